"""BLEU of words, followed piece by piece: sacreBLEU's where a hypothesis has ended, the definition where it has not."""

import math
import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics.bleu import BLEU

from nmt.config import TrainConfig
from nmt.errors import UserError
from nmt.lines import read_lines
from nmt.objectives import SoftBeamConfig
from nmt.objectives.scorer import make_scorer
from nmt.objectives.word_bleu import WordBLEU
from nmt.objectives.words import Words, prefix_hashes
from nmt.runs.module import make_objective
from nmt.text.batching import Batch
from nmt.text.tokens import Cut, TokenList
from nmt.text.vocabulary import EOS, UNK, SentencePiece, VocabularyConfig
from tests.unit.test_prefix_bleu import within_reach

LINES = ["the red cat, the (big) dog's owner", "a cat is no dog.", "redder than the-big cats!", "well-known, said he."]


@pytest.fixture(scope="module")
def vocabulary():
    return SentencePiece.train(LINES * 5, VocabularyConfig(size=60))


@pytest.fixture(scope="module")
def words(vocabulary):
    return Words(vocabulary)


def padded(rows):
    width = max(map(len, rows)) + 1
    return torch.tensor([[*row, EOS, *[0] * (width - 1 - len(row))] for row in rows])


def values(words, hypotheses, references, ended):
    """Of one hypothesis for each reference, each extended piece by piece; beside it an empty one, in another slot."""
    lengths = torch.tensor([len(reference) for reference in references])
    scorer = WordBLEU(words, padded(references), lengths, EOS)
    matches = scorer.start()
    matches = type(matches)(
        type(matches[0])(*(leaf.expand(-1, 2, *leaf.shape[2:]) for leaf in matches[0])),
        *(leaf.expand(-1, 2) for leaf in matches[1:]),
    )
    for column in padded(hypotheses).T:
        matches = scorer.extend(
            matches, torch.stack([column.masked_fill(column == 0, EOS), torch.full_like(column, EOS)], 1)
        )
    found = scorer.bleu(scorer.counts(matches, torch.full((len(references), 2), ended)))
    return found[:, 0].tolist()


def sentence_bleu(hypothesis, reference):
    metric = BLEU(smooth_method="add-k", smooth_value=1, effective_order=True)
    return metric.sentence_score(hypothesis, [reference]).score / 100


def some_cut(vocabulary, text, rng):
    """One of the ways in which pieces spell a text."""
    names = {piece: i for i, piece in enumerate(vocabulary.pieces(range(len(vocabulary)))) if i > 3}
    text, place, ids = "▁" + text.replace(" ", "▁"), 0, []
    while place < len(text):
        fits = [end for end in range(place + 1, len(text) + 1) if text[place:end] in names]
        end = rng.choice(fits)
        ids.append(names[text[place:end]])
        place = end
    return ids


def test_what_has_ended_has_sacrebleus_score_however_it_is_cut(vocabulary, words):
    rng = random.Random(1)
    texts = [line for line in LINES for _ in range(6)]
    shuffled = [" ".join(rng.sample(line.split(), rng.randint(1, len(line.split())))) for line in texts]
    hypotheses = [some_cut(vocabulary, text, rng) for text in shuffled]
    references = [some_cut(vocabulary, text, rng) for text in texts]
    assert len({tuple(row) for row in references}) > len(LINES)
    expected = [sentence_bleu(*pair) for pair in zip(shuffled, texts, strict=True)]
    assert values(words, hypotheses, references, True) == pytest.approx(expected, abs=1e-6)
    assert values(words, references, references, True) == pytest.approx([1.0] * len(texts), abs=1e-6)


def test_an_open_prefix_has_what_is_within_its_reach(vocabulary, words):
    """A last word that begins a word of the reference counts as that one."""
    rng = random.Random(2)
    texts = [line for line in LINES for _ in range(12)]
    others = [" ".join(rng.sample(line.split(), rng.randint(1, len(line.split())))) for line in texts]
    references = [some_cut(vocabulary, text, rng) for text in texts]
    hypotheses = []
    for text in others:
        ids = some_cut(vocabulary, text, rng)
        hypotheses.append(ids[: rng.randint(0, len(ids))])
    expected, unfinished = [], 0
    for hypothesis, reference in zip(hypotheses, references, strict=True):
        found, wanted = words.split(hypothesis), words.split(reference)
        whole = [within_reach(found, wanted)]
        if found:
            # What is reached is reached by one of the words that it can become, or by none.
            become = {word for word in wanted if word.startswith(found[-1])}
            unfinished += bool(become - {found[-1]})
            whole += [within_reach([*found[:-1], word], wanted) for word in become]
        expected.append(max(whole))
    got = values(words, hypotheses, references, False)
    assert unfinished > 5
    # A word that begins two of the reference's words counts as both, which no single one reaches: never less.
    assert all(high >= low - 1e-6 for high, low in zip(got, expected, strict=True))
    assert sum(abs(high - low) < 1e-6 for high, low in zip(got, expected, strict=True)) > 0.8 * len(got)


def test_no_completion_is_better_than_what_was_within_reach(vocabulary, words):
    rng = random.Random(3)
    for line in LINES * 4:
        reference = some_cut(vocabulary, line, rng)
        end = " ".join(rng.sample(line.split(), len(line.split())))
        ids = some_cut(vocabulary, end, rng)
        count = len(ids) + 1
        reach = values(words, [ids[:cut] for cut in range(count)], [reference] * count, False)
        assert reach[0] == pytest.approx(1.0) and sentence_bleu(end, line) <= min(reach) + 1e-6


def test_half_a_word_is_worth_nothing_once_it_ends(vocabulary, words):
    rng = random.Random(4)
    reference = some_cut(vocabulary, "the red cat", rng)
    ids = {text: some_cut(vocabulary, text, rng) for text in ("the redd", "the re", "the red")}
    reach = values(words, list(ids.values()), [reference] * 3, False)
    assert reach[1] == reach[2] == pytest.approx(1.0) and reach[0] < 0.8
    assert values(words, [ids["the re"]], [reference], True)[0] < 0.8


def test_a_word_that_cannot_go_on_is_what_it_is():
    """ "..." is a word of its own, which "." does not become."""
    vocabulary = TokenList.build(["<pad>", "<unk>", "<s>", "</s>", "cat", ".", "..."], Cut("words"))
    short, long = vocabulary.ids(["cat", "."]), vocabulary.ids(["cat", "..."])
    reach = values(Words(vocabulary), [short, long], [long] * 2, False)
    assert reach == pytest.approx([values(Words(vocabulary), [short], [long], True)[0], 1.0])
    assert reach[0] < 0.8


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text("ab▁.,'-(", max_size=4), max_size=12))
def test_words_are_those_of_the_text(texts):
    """Against the rule itself, character by character."""
    vocabulary = TokenList.build(["<pad>", "<unk>", "<s>", "</s>", *texts], Cut("sentencepiece", model=MODEL))
    split = Words(vocabulary).split(range(4, 4 + len(texts)))
    spaced = ""
    for text in texts:
        alone = bool(text.replace("▁", "")) and not set(text) - set("▁.,(")
        spaced += (
            f" {text.replace('▁', '')} " if alone else (" " if text.startswith("▁") else "") + text.replace("▁", "")
        )
    assert split == [word.encode() for word in spaced.split()]


MODEL = SentencePiece.train(LINES * 5, VocabularyConfig(size=60)).model


def test_bpe_with_separators_and_words_as_tokens():
    tokens = ["<pad>", "<unk>", "<s>", "</s>", "low@@", "er", "low", ".", "new@@"]
    bpe = Words(TokenList.build(tokens, Cut("bpe", codes="#version: 0.2\nl o\n")))
    assert bpe.split([4, 5, 6, 7, 8, 7, UNK, 4]) == [b"lower", b"low", b".", b"new", b".", None, b"low"]
    plain = Words(TokenList.build(["<pad>", "<unk>", "<s>", "</s>", "low", "er"], Cut("words")))
    assert plain.split([4, 5, 4]) == [b"low", b"er", b"low"]


def test_bytes_spell_what_a_piece_would():
    vocabulary = SentencePiece.train(LINES * 5, VocabularyConfig(size=330, byte_fallback=True))
    ids = vocabulary.encode(["the naïve cat"])[0]
    assert "<0xC3>" in vocabulary.pieces(ids)
    assert Words(vocabulary).split(ids) == [b"the", "naïve".encode(), b"cat"]


def test_an_unknown_piece_matches_nothing(vocabulary, words):
    reference = [*vocabulary.encode(["the cat"])[0], UNK]
    assert words.split(reference)[-1] is None
    assert values(words, [reference], [reference], True)[0] < 0.9


def test_hashes_tell_prefixes_apart():
    found = prefix_hashes(b"abcabc")
    assert len(set(found)) == 7 and found[0] == 0
    assert prefix_hashes(b"abc") == found[:4]


def test_real_sentences(corpora):
    """Of Multi30k: nearly all lines have the words of sacreBLEU's tokenizer, and so its score."""
    lines = read_lines(corpora / "multi30k" / "val.fr.gz")[:400]
    vocabulary = SentencePiece.train(lines, VocabularyConfig(size=1000))
    words = Words(vocabulary)
    hypotheses = [*lines[1:], lines[0]]
    halves = [
        " ".join([*a.split()[: len(a.split()) // 2], *b.split()[3:]]) for a, b in zip(lines, hypotheses, strict=True)
    ]
    got = values(words, vocabulary.encode(halves), vocabulary.encode(lines), True)
    expected = [sentence_bleu(*pair) for pair in zip(halves, lines, strict=True)]
    off = [line for line, a, b in zip(lines, got, expected, strict=True) if abs(a - b) > 1e-5]
    assert len(off) <= 0.02 * len(lines), off


@pytest.mark.parametrize("name", ["soft_beam", "min_risk", "bso"])
def test_objectives_count_words_when_told(vocabulary, name):
    config = TrainConfig(objective=name)
    assert make_objective(config, vocabulary).words is None
    setattr(config, name, replace(getattr(config, name), word_share=0.4))
    words = make_objective(config, vocabulary).words
    assert (words.share, words.brevity) == (0.4, "pieces")
    setattr(config, name, replace(getattr(config, name), word_share=0.0, brevity="words"))
    words = make_objective(config, vocabulary).words
    assert (words.share, words.brevity) == (0.0, "words")


def test_shares_of_words_and_pieces(vocabulary):
    target = padded(vocabulary.encode(LINES))
    lengths = (target != 0).sum(dim=1)
    batch = Batch(target, lengths, target, lengths, [0, 1, 2, 3])
    found = {}
    for share in (None, 0.0, 0.25, 1.0):
        scorer = make_scorer(batch, EOS, None if share is None else Words(vocabulary, share))
        matches = scorer.start()
        for column in (target[:, 2:3], target[:, 4:5], target[:, 3:4]):
            matches = scorer.extend(matches, column)
        found[share] = scorer.bleu(scorer.counts(matches, torch.zeros(4, 1, dtype=torch.bool)))
    assert torch.equal(found[None], found[0.0]) and not torch.allclose(found[0.0], found[1.0])
    torch.testing.assert_close(found[0.25], 0.25 * found[1.0] + 0.75 * found[0.0])


def bleu_of(words, hypotheses, references, ended=True):
    target = padded(references)
    lengths = torch.tensor([len(reference) + 1 for reference in references])
    scorer = make_scorer(Batch(target, lengths, target, lengths, list(range(len(references)))), EOS, words)
    matches = scorer.start()
    for column in padded(hypotheses).T:
        matches = scorer.extend(matches, column.masked_fill(column == 0, EOS).unsqueeze(1))
    return scorer, matches, scorer.bleu(scorer.counts(matches, torch.full((len(references), 1), ended)))[:, 0]


def cut_at_random(vocabulary, times, seed):
    """Parts of the lines, shuffled and cut somehow, and the lines, cut somehow."""
    rng = random.Random(seed)
    texts = [line for line in LINES for _ in range(times)]
    parts = [" ".join(rng.sample(line.split(), rng.randint(1, len(line.split())))) for line in texts]
    return tuple([some_cut(vocabulary, text, rng) for text in each] for each in (parts, texts))


def test_a_brevity_penalty_that_counts_words(vocabulary, words):
    """The precisions of pieces, the penalty of words; each by sacreBLEU's definition, of whole sentences."""
    hypotheses, references = cut_at_random(vocabulary, 12, 5)
    *_, found = bleu_of(Words(vocabulary, 0.0, "words"), hypotheses, references)
    expected, plain = [], []
    for hypothesis, reference in zip(hypotheses, references, strict=True):
        pieces = sentence_bleu(*(" ".join(f"p{i}" for i in ids) for ids in (hypothesis, reference)))
        of_pieces = len(reference) / len(hypothesis)
        of_words = len(words.split(reference)) / len(words.split(hypothesis))
        expected.append(pieces * math.exp(min(0, 1 - of_words) - min(0, 1 - of_pieces)))
        plain.append(pieces)
    assert found.tolist() == pytest.approx(expected, abs=1e-6)
    assert bleu_of(None, hypotheses, references)[2].tolist() == pytest.approx(plain, abs=1e-6)
    apart = [a - b for a, b in zip(expected, plain, strict=True)]
    assert max(apart) > 0.01 and min(apart) < -0.01


def test_words_of_a_prefix_are_counted_piece_by_piece(vocabulary, words):
    hypotheses, references = cut_at_random(vocabulary, 12, 6)
    hypotheses = [[*ids[:2], UNK, *ids[2:]] if number % 3 == 0 else ids for number, ids in enumerate(hypotheses)]
    _, matches, _ = bleu_of(Words(vocabulary, 0.0, "words"), hypotheses, references)
    assert (matches.ended + matches.begun)[:, 0].tolist() == [len(words.split(ids)) for ids in hypotheses]
    assert any(len(words.split(ids)) != len(ids) for ids in hypotheses)


def test_an_open_prefix_is_never_too_short(vocabulary):
    """Within its reach is a length of any unit."""
    hypotheses, references = cut_at_random(vocabulary, 6, 7)
    reach = [bleu_of(each, hypotheses, references, ended=False)[2] for each in (Words(vocabulary, 0.0, "words"), None)]
    assert torch.equal(*reach)


def test_a_share_of_words_beside_pieces_whose_brevity_is_theirs(vocabulary):
    hypotheses, references = cut_at_random(vocabulary, 2, 8)
    found = [bleu_of(Words(vocabulary, share, "words"), hypotheses, references)[2] for share in (0.0, 0.25, 1.0)]
    torch.testing.assert_close(found[1], 0.75 * found[0] + 0.25 * found[2])


def test_what_says_nothing_is_worth_nothing(vocabulary):
    reference = vocabulary.encode(["the cat"])[0]
    assert bleu_of(Words(vocabulary, 0.0, "words"), [[]], [reference])[2].tolist() == [0.0]


def test_a_language_without_spaces_is_told(words, vocabulary, caplog):
    reference = vocabulary.ids(["▁", *"redcatdog"])
    for _ in range(2):
        words.references(padded([reference]), torch.tensor([len(reference)]))
    assert "word_share" in caplog.text and len(caplog.records) == 1


@pytest.mark.parametrize("loss", ["token", "gold_in_beam", "expected_bleu"])
def test_a_share_that_a_loss_does_not_know_is_refused(loss):
    with pytest.raises(UserError, match=r"word_share is 0\.5, .*reachable_bleu"):
        SoftBeamConfig(loss=loss, word_share=0.5)
    with pytest.raises(UserError, match=r"brevity is words, .*reachable_bleu"):
        SoftBeamConfig(loss=loss, brevity="words")
    with pytest.raises(UserError, match=r"bleu is batch, .*reachable_bleu"):
        SoftBeamConfig(loss=loss, bleu="batch")
    with pytest.raises(UserError, match=r"future is expected, .*reachable_bleu"):
        SoftBeamConfig(loss=loss, future="expected")
