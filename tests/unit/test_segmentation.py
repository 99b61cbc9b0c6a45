"""Random pieces are those of SentencePiece's rules, and the same in every process."""

import itertools
import math
import subprocess
import sys
from collections import Counter

import pytest
import sentencepiece

from nmt.text.segmentation import Segmenter
from nmt.text.vocabulary import SentencePiece, VocabularyConfig
from tests.unit.test_vocabulary import LINES

ODD = ["", "  ", "the 猫猫 cat", "two   gaps", "ﬁne ▁ text", "x" * 300, "猫", "the\tcat"]


def make(kind, **options):
    size = 330 if options.get("byte_fallback") else 70
    return SentencePiece.train(LINES, VocabularyConfig(kind=kind, size=size, **options))


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def kind(request):
    return request.param


@pytest.mark.parametrize("byte_fallback", [False, True])
def test_without_chance_it_is_the_encoding(kind, byte_fallback):
    vocabulary = make(kind, byte_fallback=byte_fallback)
    segmenter = Segmenter(vocabulary._processor)
    assert segmenter.is_bpe == (kind == "bpe")
    # A large alpha leaves the best segmentation alone.
    strength = 0.0 if kind == "bpe" else 1e6
    for line in [*LINES, *ODD]:
        assert segmenter.sample([line], 1, strength) == vocabulary.encode([line]), line


def test_all_merges_dropped_leaves_characters():
    vocabulary = make("bpe")
    (ids,) = Segmenter(vocabulary._processor).sample(["the cat"], 1, 1.0)
    assert [vocabulary._processor.id_to_piece(i) for i in ids] == list("▁the▁cat")


def test_words_come_as_often_as_sentencepiece_has_them(kind):
    """How often each segmentation of a word is drawn, beside SentencePiece's own sampling."""
    vocabulary = make(kind)
    word, strength, draws = max(" ".join(LINES).split(), key=len), 0.3 if kind == "bpe" else 0.02, 4000
    segmenter, processor = Segmenter(vocabulary._processor), vocabulary._processor
    ours = Counter(tuple(segmenter.sample([word], seed, strength)[0]) for seed in range(draws))
    sentencepiece.set_random_generator_seed(1)
    theirs = Counter(
        tuple(processor.encode(word, out_type=int, enable_sampling=True, alpha=strength, nbest_size=-1))
        for _ in range(draws)
    )
    assert len(ours) > 2
    # The distance of two samples of one distribution of a few common values is about sqrt(values / draws).
    common = [ids for ids, count in theirs.items() if count > draws / 200]
    for ids in common:
        share = theirs[ids] / draws
        assert ours[ids] / draws == pytest.approx(share, abs=5.5 * math.sqrt(2 * share * (1 - share) / draws))


def test_a_lattice_is_that_of_all_segmentations():
    vocabulary = make("unigram")
    segmenter, word, alpha = Segmenter(vocabulary._processor), "▁the", 0.5
    weights = {}
    for cuts in itertools.product([False, True], repeat=len(word) - 1):
        pieces, begin = [], 0
        for place, cut in enumerate([*cuts, True], start=1):
            if cut:
                pieces.append(word[begin:place])
                begin = place
        if all(piece in segmenter.scores for piece in pieces):
            weights[tuple(pieces)] = math.exp(alpha * sum(segmenter.scores[piece] for piece in pieces))
    assert len(weights) > 1
    draws = 5000
    found = Counter(tuple(ids) for seed in range(draws) for ids in segmenter.sample(["the"], seed, alpha))
    for pieces, weight in weights.items():
        share = weight / sum(weights.values())
        count = found[tuple(segmenter.ids[piece] for piece in pieces)]
        assert count / draws == pytest.approx(share, abs=5 * math.sqrt(share * (1 - share) / draws) + 1e-3)


def test_another_process_draws_the_same(kind, tmp_path):
    """What a run that is resumed, or has several processes, rests on; SentencePiece's own sampling fails here."""
    vocabulary = make(kind)
    (tmp_path / "model").write_bytes(vocabulary.model)
    script = (
        "import sys; from nmt.text.vocabulary import SentencePiece; from tests.unit.test_vocabulary import LINES; "
        "print(SentencePiece(open(sys.argv[1], 'rb').read()).sample(LINES, 5, 0.3))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "model"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(vocabulary.sample(LINES, 5, 0.3))
