"""BLEU of prefixes: sacreBLEU's where they have ended, and the definition, word by word, of what is within reach."""

import itertools
import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nmt.objectives.prefix_bleu import PrefixBLEU
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
        values.append(scorer.bleu(matches, torch.tensor([[ended]])).item())
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
    """From the docstring: the words to come, up to the reference's length, match as far as what stands allows, and the
    last word may go on to be what it matches so far."""
    mine, theirs = words_of(prefix, boundaries), words_of(reference, boundaries)
    done, rest = mine[:-1], max(0, len(theirs) - len(mine))
    # For each place of the reference: how many words the prefix matches up to it, its last one as far as it is there.
    run = []
    for place, word in enumerate(theirs):
        same = 0
        if mine and word[: len(mine[-1])] == mine[-1]:
            same = 1
            while same < min(4, place + 1, len(mine)) and mine[-1 - same] == theirs[place - same]:
                same += 1
        run.append(same)
    length, log_precision = len(mine) + rest, 0.0
    for n in range(1, 5):
        total, possible = max(0, length - n + 1), max(0, len(theirs) - n + 1)
        grams = Counter(tuple(theirs[i : i + n]) for i in range(possible))
        found = Counter(tuple(done[i : i + n]) for i in range(len(done) - n + 1))
        last = {tuple(theirs[place - n + 1 : place + 1]) for place, same in enumerate(run) if same >= n}
        opened = min(1, sum(found[gram] < grams[gram] for gram in last))
        matched = sum(min(found[gram], grams[gram]) for gram in grams)
        # The first n-grams of the rest begin in the prefix, which has to end in a match that is long enough.
        broken = max(0, min(n - 1, len(mine)) - max(run))
        matched += min(opened + max(0, rest - broken), possible - matched)
        if n == 1 and matched == 0:
            return 0.0
        log_precision += math.log(matched / total if n == 1 else (matched + 1) / (total + 1)) / 4
    return math.exp(log_precision)


@settings(max_examples=200, deadline=None)
@given(st.lists(tokens, min_size=1, max_size=4), tokens.filter(bool))
def test_an_open_prefix_has_what_is_within_its_reach(hypotheses, reference):
    expected = [within_reach(h, reference) for h in hypotheses]
    assert score(hypotheses, reference, False) == pytest.approx(expected, abs=1e-6)


@settings(max_examples=300, deadline=None)
@given(st.lists(spelled, min_size=1, max_size=4), spelled.filter(bool))
def test_an_open_prefix_has_what_is_within_the_reach_of_its_words(hypotheses, reference):
    expected = [within_reach(h, reference, BOUNDARIES) for h in hypotheses]
    assert score(hypotheses, reference, False, BOUNDARIES) == pytest.approx(expected, abs=1e-6)


@settings(max_examples=100, deadline=None)
@given(tokens.filter(bool), st.data())
def test_no_completion_of_the_references_length_is_better(reference, data):
    whole = data.draw(st.lists(st.integers(4, 7), min_size=len(reference), max_size=len(reference)))
    best = [score([whole[:cut]], reference, False)[0] for cut in range(len(whole) + 1)]
    assert best[0] == pytest.approx(1.0)
    assert all(later <= earlier + 1e-6 for earlier, later in itertools.pairwise(best))
    assert sacre(whole, reference) <= best[-1] + 1e-6


@settings(max_examples=200, deadline=None)
@given(spelled.filter(bool), spelled)
def test_what_is_within_reach_of_words_only_falls(reference, whole):
    wanted = len(words_of(reference, BOUNDARIES))
    while len(words_of(whole, BOUNDARIES)) > wanted:
        whole = whole[:-1]
    best = score([whole[:cut] for cut in range(len(whole) + 1)], reference, False, BOUNDARIES)
    assert best[0] == pytest.approx(1.0)
    assert all(later <= earlier + 1e-6 for earlier, later in itertools.pairwise(best))
    ended = score([whole], reference, True, BOUNDARIES)[0]
    if len(words_of(whole, BOUNDARIES)) == wanted:
        assert ended <= best[-1] + 1e-6


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
