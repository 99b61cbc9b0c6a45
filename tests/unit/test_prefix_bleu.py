"""BLEU of prefixes: sacreBLEU's where they have ended, and the definition, word by word, of what is within reach."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nmt.objectives.prefix_bleu import Counts, PrefixBLEU, sobered
from nmt.objectives.soft_bleu import count_reference
from tests.unit.test_soft_bleu import sacre

EOS = 3
tokens = st.lists(st.integers(4, 7), max_size=9)


def score(hypotheses, reference, ended, shares=None):
    """Values of several prefixes of one reference, each extended token by token in a slot of its own."""
    width = len(reference) + 2
    target = torch.zeros(1, width, dtype=torch.long)
    target[0, : len(reference) + 1] = torch.tensor([*reference, EOS])
    scorer = PrefixBLEU(target, count_reference(target, torch.tensor([len(reference)])), EOS)
    matches = scorer.start()
    matches = type(matches)(*(leaf.expand(-1, len(hypotheses), *leaf.shape[2:]) for leaf in matches))
    for place in range(max(map(len, hypotheses), default=0) + 1):
        column = [hypothesis[place] if place < len(hypothesis) else EOS for hypothesis in hypotheses]
        matches = scorer.extend(matches, torch.tensor([column]))
    assert matches.length.tolist() == [[float(len(hypothesis)) for hypothesis in hypotheses]]
    counts = scorer.counts(matches, torch.tensor([[ended] * len(hypotheses)]))
    if shares is not None:
        none = torch.zeros(1, 1)
        counts = sobered(counts, Counts(40 * torch.tensor([[shares]]), torch.full((1, 1, 4), 40.0), *[none] * 3))
    return scorer.bleu(counts)[0].tolist()


@settings(max_examples=200, deadline=None)
@given(st.lists(tokens, min_size=1, max_size=4), tokens.filter(bool))
def test_an_ended_prefix_has_sacrebleus_score(hypotheses, reference):
    assert score(hypotheses, reference, True) == pytest.approx([sacre(h, reference) for h in hypotheses], abs=1e-6)


def within_reach(prefix, reference, shares=(1, 1, 1, 1)):
    """From the docstring: the rest of the tokens, up to the reference's length, match as far as what stands allows."""
    rest = max(0, len(reference) - len(prefix))
    run = 0
    for end in range(1, len(reference) + 1):
        same = 0
        while same < min(4, end, len(prefix)) and prefix[-1 - same] == reference[end - 1 - same]:
            same += 1
        run = max(run, same)
    length, log_precision = len(prefix) + rest, 0.0
    for n in range(1, 5):
        total = max(0, length - n + 1)
        possible = max(0, len(reference) - n + 1)
        mine = [tuple(prefix[i : i + n]) for i in range(len(prefix) - n + 1)]
        theirs = [tuple(reference[i : i + n]) for i in range(possible)]
        matched = sum(min(mine.count(gram), theirs.count(gram)) for gram in set(mine))
        # The first n-grams of the rest begin in the prefix, which has to end in a match that is long enough.
        broken = max(0, min(n - 1, len(prefix)) - run)
        matched += shares[n - 1] * min(max(0, rest - broken), possible - matched)
        if n == 1 and matched == 0:
            return 0.0
        log_precision += math.log(matched / total if n == 1 else (matched + 1) / (total + 1)) / 4
    return math.exp(log_precision)


@settings(max_examples=200, deadline=None)
@given(st.lists(tokens, min_size=1, max_size=4), tokens.filter(bool))
def test_an_open_prefix_has_what_is_within_its_reach(hypotheses, reference):
    expected = [within_reach(h, reference) for h in hypotheses]
    assert score(hypotheses, reference, False) == pytest.approx(expected, abs=1e-6)


@settings(max_examples=100, deadline=None)
@given(st.lists(tokens, min_size=1, max_size=4), tokens.filter(bool))
def test_expected_of_an_open_prefix_is_a_share_of_what_is_within_its_reach(hypotheses, reference):
    shares = (0.75, 0.5, 0.3, 0.2)
    expected = [within_reach(h, reference, shares) for h in hypotheses]
    assert score(hypotheses, reference, False, shares) == pytest.approx(expected, abs=1e-6)
    assert score(hypotheses, reference, True, shares) == score(hypotheses, reference, True)


def test_expecting_a_share_an_end_is_worth_nearly_as_much_as_going_on():
    """Two tokens too short and right so far."""
    reference, prefix, shares = [4, 5, 6, 7, 4, 5, 8, 9], [4, 5, 6, 7, 4, 5], (0.4, 0.2, 0.1, 0.05)
    ended = score([prefix], reference, True)[0]
    best, expected = (score([prefix], reference, False, each)[0] for each in (None, shares))
    assert best == pytest.approx(1.0) and ended < expected < ended + (best - ended) / 4


@settings(max_examples=100, deadline=None)
@given(tokens.filter(bool), st.data())
def test_no_completion_of_the_references_length_is_better(reference, data):
    whole = data.draw(st.lists(st.integers(4, 7), min_size=len(reference), max_size=len(reference)))
    best = [score([whole[:cut]], reference, False)[0] for cut in range(len(whole) + 1)]
    assert best[0] == pytest.approx(1.0)
    assert all(later <= earlier + 1e-6 for earlier, later in itertools.pairwise(best))
    assert sacre(whole, reference) <= best[-1] + 1e-6


def test_the_references_prefixes_reach_all_and_a_wrong_token_costs_at_once():
    reference = [4, 5, 6, 7, 4]
    assert score([reference[:cut] for cut in range(6)], reference, False) == pytest.approx([1.0] * 6)
    right, wrong, ended = *score([[4, 5, 6], [4, 5, 7]], reference, False), score([[4, 5, 6]], reference, True)[0]
    assert right == pytest.approx(1.0) and wrong < 0.7 and ended < 0.7
