import pickle
import threading

import numpy as np
import pytest

from nmt.errors import UserError
from nmt.text.pairs import Pairs
from nmt.text.vocabulary import BOS, EOS, PAD, UNK, SentencePiece, VocabularyConfig, train_vocabularies

_STEMS = ["walk", "talk", "open", "clos", "paint", "print", "read", "writ"]
_STEMS += ["light", "strong", "quick", "slow", "farm", "garden", "teach", "learn"]
_ENDINGS = ["", "ing", "ed", "er", "ers", "ly", "est", "ness"]
LINES = [
    " ".join(_STEMS[(i * k) % 16] + _ENDINGS[(i + 3 * k) % 8] for k in range(1, 9)).capitalize() + "."
    for i in range(150)
]


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def vocabulary(request):
    return SentencePiece.train(LINES, VocabularyConfig(size=70, kind=request.param))


def test_text_survives(vocabulary):
    assert len(vocabulary) == 70
    encoded = vocabulary.encode(LINES)
    assert [vocabulary.decode(ids) for ids in encoded] == LINES
    assert min(min(ids) for ids in encoded) > EOS
    assert vocabulary.encode(["", "  "]) == [[], []]
    assert vocabulary.decode([]) == ""


def test_decode_stops_at_the_end_and_skips_padding(vocabulary):
    ids = vocabulary.encode(["the teacher"])[0]
    noisy = np.array([BOS, PAD, *ids, EOS, *ids, PAD])
    assert vocabulary.decode(noisy) == "the teacher"
    assert vocabulary.pieces([PAD, UNK, BOS, EOS]) == ["<pad>", "<unk>", "<s>", "</s>"]
    assert "".join(vocabulary.pieces(ids)) == "▁the▁teacher"
    for wrong in (70, -1):
        with pytest.raises(ValueError, match="outside of the vocabulary of 70"):
            vocabulary.decode([wrong])


def test_training_is_deterministic_and_takes_any_text(vocabulary):
    config = VocabularyConfig(size=70)
    first = SentencePiece.train(LINES, config, seed=1)
    assert first.model == SentencePiece.train(iter(LINES), config, seed=1).model
    odd = SentencePiece.train([*LINES, "", "nul \0 inside", "a\rb\u2028c"], config)
    assert len(odd) == 70


def test_sampling_depends_on_the_seed_alone(vocabulary):
    plain = vocabulary.encode(LINES)
    first = vocabulary.sample(LINES, 5, 0.3)
    vocabulary.sample(LINES, 6, 0.3)
    assert first == vocabulary.sample(LINES, 5, 0.3)
    assert first != vocabulary.sample(LINES, 6, 0.3)
    assert first != plain
    assert vocabulary.sample(LINES, 5, 0.0) == plain
    assert [vocabulary.decode(ids) for ids in first] == LINES
    assert first == vocabulary.sample(LINES, 5 + 2**32, 0.3)


def test_sampling_in_threads_at_once(vocabulary):
    expected = [vocabulary.sample(LINES, seed, 0.3) for seed in range(4)]
    found = {}
    threads = [
        threading.Thread(target=lambda s=seed: found.update({s: vocabulary.sample(LINES, s, 0.3)})) for seed in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[seed] for seed in range(4)] == expected


def test_more_dropout_makes_more_pieces():
    vocabulary = SentencePiece.train(LINES, VocabularyConfig(size=70))
    counts = [sum(map(len, vocabulary.sample(LINES, 1, strength))) for strength in (0.0, 0.1, 0.5)]
    assert counts[0] < counts[1] < counts[2]


def test_unknown_characters_are_counted(vocabulary):
    encoded = vocabulary.encode(["the 猫"])
    assert vocabulary.unknown_share(encoded) == pytest.approx(1 / len(encoded[0]))
    assert vocabulary.unknown_pieces("the 猫") == ["猫"]
    assert vocabulary.unknown_share([]) == 0.0
    fallback = SentencePiece.train(LINES, VocabularyConfig(size=330, byte_fallback=True))
    assert fallback.unknown_share(fallback.encode(["the 猫"])) == 0.0
    assert fallback.decode(fallback.encode(["the 猫"])[0]) == "the 猫"


def test_a_vocabulary_travels_as_bytes(vocabulary):
    for copy in (SentencePiece(vocabulary.model), pickle.loads(pickle.dumps(vocabulary))):
        assert copy.checksum() == vocabulary.checksum()
        assert copy.encode(LINES) == vocabulary.encode(LINES)


def test_damaged_and_foreign_models(vocabulary):
    for model in (b"", b"hello", vocabulary.model[:-5], vocabulary.model[: len(vocabulary.model) // 2]):
        with pytest.raises(UserError, match=f"{len(model):,} bytes.* is no whole SentencePiece model"):
            SentencePiece(model)
    import io

    import sentencepiece

    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES), model_writer=buffer, vocab_size=50, minloglevel=2
    )
    with pytest.raises(UserError, match=r"has the ids \(-1, 0, 1, 2\) for pad, unk, bos, eos"):
        SentencePiece(buffer.getvalue())


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_impossible_sizes_name_the_limit(kind):
    with pytest.raises(UserError, match=r"vocabulary.size is 5000, but this text allows \d+ pieces") as error:
        SentencePiece.train(LINES, VocabularyConfig(size=5000, kind=kind))
    largest = int(str(error.value).split("allows ")[1].split()[0])
    assert len(SentencePiece.train(LINES, VocabularyConfig(size=largest, kind=kind))) == largest
    with pytest.raises(UserError, match=r"vocabulary.size is 10, .* alone need \d+ pieces"):
        SentencePiece.train(LINES, VocabularyConfig(size=10, kind=kind))
    with pytest.raises(UserError, match="no line with words"):
        SentencePiece.train(["", " "], VocabularyConfig(size=70, kind=kind))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 3}, "size is 3"),
        ({"kind": "unigramm"}, "kind is 'unigramm'.*Did you mean 'unigram'"),
        ({"normalization": "nfck"}, "normalization is 'nfck'.*Did you mean 'nfkc'"),
        ({"character_coverage": 99.5}, "character_coverage is 99.5"),
        ({"sampling": 1.0}, "sampling is 1.0"),
    ],
)
def test_mistakes_in_the_config(options, message):
    with pytest.raises(UserError, match=message):
        VocabularyConfig(**options)


def test_one_vocabulary_or_two():
    pairs = Pairs(LINES, [line.upper() for line in LINES], "toy")
    source, target = train_vocabularies(pairs, VocabularyConfig(size=90))
    assert source is target
    source, target = train_vocabularies(pairs, VocabularyConfig(size=60, joint=False))
    assert source.checksum() != target.checksum()
    assert source.unknown_share(source.encode(pairs.target)) > 0.1
    assert target.unknown_share(target.encode(pairs.target)) == 0
