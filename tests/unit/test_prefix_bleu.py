"""BLEU of prefixes: sacreBLEU's where they have ended, and the definition, word by word, of what is within reach."""

import math
from collections import Counter
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nmt.objectives.prefix_bleu import PrefixBLEU, sentence_bleu, worth
from nmt.objectives.words import word_boundaries
from tests.unit.test_soft_bleu import sacre

EOS = 3
PIECES = ["<pad>", "<unk>", "<s>", "</s>", "▁a", "▁b", "c", ".", "▁"]
BOUNDARIES = word_boundaries(PIECES)
tokens = st.lists(st.integers(4, 7), max_size=9)
# No white space of its own at the end, or before more of it.
spelled = st.lists(st.sampled_from([[4], [5], [6], [7], [8, 5], [8, 6], [4, 6], [5, 6]]), max_size=8).map(
    lambda parts: [piece for part in parts for piece in part]
)


def score(hypotheses, reference, ended, boundaries=None):
    """Values of several prefixes of one reference; one that has ended has read EOS."""
    target = torch.zeros(1, len(reference) + 2, dtype=torch.long)
    target[0, : len(reference) + 1] = torch.tensor([*reference, EOS])
    scorer = PrefixBLEU(target, torch.tensor([len(reference)]), EOS, boundaries)
    values = []
    for hypothesis in hypotheses:
        matches = scorer.start()
        for token in [*hypothesis, EOS] if ended else hypothesis:
            matches = scorer.extend(matches, torch.tensor([[token]]))
        assert matches.length.item() == len(words_of(hypothesis, boundaries))
        bleu = partial(sentence_bleu, reference_length=scorer.lengths)
        values.append(worth(scorer, matches, torch.tensor([[ended]]), bleu).item())
    return values


def words_of(pieces, boundaries=None):
    """Tuples of pieces."""
    if boundaries is None:
        return [(piece,) for piece in pieces]
    words = []
    for place, piece in enumerate(pieces):
        before = PIECES[pieces[place - 1]] if place else ""
        begins = PIECES[piece].startswith("▁") or piece == 7 or before == "."
        if not words or (begins and before != "▁"):
            words.append(())
        words[-1] += (piece,)
    return words


@settings(max_examples=200, deadline=None)
@given(spelled)
def test_words_are_those_of_13a(pieces):
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    text = "".join(PIECES[piece] for piece in pieces).replace("▁", " ")
    assert Tokenizer13a()(text).split() == [
        "".join(PIECES[piece] for piece in word).replace("▁", "") for word in words_of(pieces, BOUNDARIES)
    ]
    previous = torch.tensor([-1, *pieces[:-1]])
    begins = BOUNDARIES.begins(torch.tensor(pieces, dtype=torch.long), previous) if pieces else torch.zeros(0)
    assert int(begins.sum()) == len(words_of(pieces, BOUNDARIES))


@settings(max_examples=200, deadline=None)
@given(st.lists(tokens, min_size=1, max_size=4), tokens.filter(bool))
def test_an_ended_prefix_has_sacrebleus_score(hypotheses, reference):
    assert score(hypotheses, reference, True) == pytest.approx([sacre(h, reference) for h in hypotheses], abs=1e-6)


@settings(max_examples=200, deadline=None)
@given(st.lists(spelled, min_size=1, max_size=4), spelled.filter(bool))
def test_an_ended_prefix_has_sacrebleus_score_of_its_words(hypotheses, reference):
    names = {}
    number = [[names.setdefault(w, len(names)) for w in words_of(h, BOUNDARIES)] for h in [reference, *hypotheses]]
    expected = [sacre(h, number[0]) for h in number[1:]]
    assert score(hypotheses, reference, True, BOUNDARIES) == pytest.approx(expected, abs=1e-6)


def within_reach(prefix, reference, boundaries=None):
    """The best completion by a suffix of the reference; a last word that one of the reference's begins with may be
    that word."""
    mine, theirs = words_of(prefix, boundaries), words_of(reference, boundaries)
    ways = [[*mine[:-1], last] for last in meant(mine, theirs)] if mine else [[]]
    return max(completed(way, theirs, cut) for cut in range(len(theirs) + 1) for way in ways)


def completed(words, reference, cut):
    """Sentence BLEU by its definition, but for the n-grams that begin in `words` and end in the suffix: those match at
    their own place or not at all."""
    whole, log_precision = words + reference[cut:], 0.0
    for n in range(1, 5):
        grams = Counter(tuple(reference[i : i + n]) for i in range(len(reference) - n + 1))
        found = Counter()
        for i in range(len(whole) - n + 1):
            gram, place = tuple(whole[i : i + n]), i - len(words) + cut
            across = i < len(words) < i + n
            found[gram] += not across or (place >= 0 and gram == tuple(reference[place : place + n]))
        matched, total = sum(min(found[gram], grams[gram]) for gram in grams), max(0, len(whole) - n + 1)
        if matched == 0 and n == 1:
            return 0.0
        log_precision += math.log(matched / total if n == 1 else (matched + 1) / (total + 1)) / 4
    return math.exp(log_precision + min(0.0, 1 - len(reference) / len(whole)))


def meant(mine, theirs):
    """The words that the last one may be."""
    return {mine[-1]} | {word for word in theirs if word[: len(mine[-1])] == mine[-1]}


@settings(max_examples=300, deadline=None)
@given(st.lists(tokens, min_size=1, max_size=4), tokens.filter(bool))
def test_an_open_prefix_has_what_is_within_its_reach(hypotheses, reference):
    expected = [within_reach(h, reference) for h in hypotheses]
    assert score(hypotheses, reference, False) == pytest.approx(expected, abs=1e-6)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(4, 9), max_size=9), st.lists(st.integers(4, 9), max_size=6, unique=True).filter(bool))
def test_where_no_word_stands_twice_it_is_the_best_completion(hypothesis, reference):
    expected = max(sacre(hypothesis + reference[cut:], reference) for cut in range(len(reference) + 1))
    assert score([hypothesis], reference, False) == pytest.approx([expected], abs=1e-6)


@settings(max_examples=300, deadline=None)
@given(st.lists(spelled, min_size=1, max_size=4), spelled.filter(bool))
def test_an_open_prefix_has_what_is_within_the_reach_of_its_words(hypotheses, reference):
    """But a last word that begins two of the reference's counts as both."""
    words = words_of(reference, BOUNDARIES)
    found = score(hypotheses, reference, False, BOUNDARIES)
    for hypothesis, value in zip(hypotheses, found, strict=True):
        expected, mine = within_reach(hypothesis, reference, BOUNDARIES), words_of(hypothesis, BOUNDARIES)
        assert 0 <= value <= 1 + 1e-6
        assert value >= expected - 1e-6
        if not mine or sum(word[: len(mine[-1])] == mine[-1] for word in set(words)) <= 1:
            assert value == pytest.approx(expected, abs=1e-6)


def test_the_references_prefixes_reach_all_and_a_wrong_token_costs_at_once():
    reference = [4, 5, 6, 7, 4]
    assert score([reference[:cut] for cut in range(6)], reference, False) == pytest.approx([1.0] * 6)
    right, wrong = score([[4, 5, 6], [4, 5, 7]], reference, False)
    ended = score([[4, 5, 6]], reference, True)[0]
    assert right == pytest.approx(1.0) and wrong < 0.7 and ended < 0.7
    # A wrong piece within a word costs the word, and a word that is spelled so far costs nothing.
    reference = [4, 6, 5, 6, 7]
    right, wrong, early = score([[4, 6, 5], [4, 6, 5, 5], [4, 5]], reference, False, BOUNDARIES)
    assert right == pytest.approx(1.0) and wrong < 0.7 and early < 0.7
