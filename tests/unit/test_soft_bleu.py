"""Soft BLEU against sacreBLEU where it is hard, and against expectations where it is soft."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics.bleu import BLEU

from nmt.lines import read_lines
from nmt.objectives.soft_bleu import count_reference, soft_bleu

tokens = st.lists(st.integers(4, 8), max_size=12)


def one_hot_match(hypothesis, reference, steps, width):
    match = torch.zeros(steps, width, dtype=torch.float64)
    for i, token in enumerate(hypothesis):
        for j, gold in enumerate(reference):
            match[i, j] = float(token == gold)
    return match


def sacre(hypothesis, reference):
    metric = BLEU(smooth_method="add-k", smooth_value=1, tokenize="none", effective_order=True)
    words = (" ".join(f"w{token}" for token in side) for side in (hypothesis, reference))
    return metric.sentence_score(next(words), [next(words)]).score / 100


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(tokens, tokens.filter(bool)), min_size=1, max_size=4))
def test_equals_sacrebleu_on_one_hot_input(pairs):
    """The vectorised form, slots and padding and all, sentence by sentence."""
    width = max(len(reference) for _, reference in pairs)
    steps = max(1, *(len(hypothesis) for hypothesis, _ in pairs)) + 2
    target = torch.zeros(len(pairs), width, dtype=torch.long)
    for row, (_, reference) in enumerate(pairs):
        target[row, : len(reference)] = torch.tensor(reference)
    counts = count_reference(target, torch.tensor([len(reference) for _, reference in pairs]))
    # Slot 0 holds the hypothesis, slot 1 the reference itself, slot 2 nothing.
    match = torch.stack(
        [
            torch.stack(
                [
                    one_hot_match(hypothesis, reference, steps + width, width),
                    one_hot_match(reference, reference, steps + width, width),
                    one_hot_match([], reference, steps + width, width),
                ]
            )
            for hypothesis, reference in pairs
        ]
    )
    lengths = torch.tensor([[len(h), len(r), 0] for h, r in pairs], dtype=torch.float64)
    found = soft_bleu(match, lengths, counts)
    for row, (hypothesis, reference) in enumerate(pairs):
        assert found[row, 0].item() == pytest.approx(sacre(hypothesis, reference), abs=1e-9)
        assert found[row, 1].item() == pytest.approx(1.0, abs=1e-9)
        assert found[row, 2].item() == 0


def test_real_sentences(corpora):
    """The agreement holds on text: reference against reference of WMT21, words as ids."""
    first, second = (read_lines(corpora / "wmt21_de-en" / f"ref.{side}.en.gz")[:200] for side in "AB")
    ids: dict[str, int] = {}
    for hypothesis, reference in zip(first, second, strict=True):
        pair = [[ids.setdefault(word, len(ids)) for word in line.split()] for line in (hypothesis, reference)]
        width = len(pair[1])
        counts = count_reference(torch.tensor([pair[1]]), torch.tensor([width]))
        match = one_hot_match(*pair, len(pair[0]), width)[None, None]
        found = soft_bleu(match, torch.tensor([[float(len(pair[0]))]], dtype=torch.float64), counts)
        assert found.item() == pytest.approx(sacre(*pair), abs=1e-9)


def test_a_mixture_of_two_tokens_counts_each_in_part():
    # Hypothesis: 4 with probability 0.3, else 5; then surely 6. Reference: 4 6.
    counts = count_reference(torch.tensor([[4, 6]]), torch.tensor([2]))
    match = torch.tensor([[[[0.3, 0.0], [0.0, 1.0]]]], dtype=torch.float64)
    length = torch.tensor([[2.0]], dtype=torch.float64)
    # p1 = 1.3 / 2; p2 = (0.3 + 1) / (1 + 1); p3 = p4 = 1 (no such n-gram: 1 / 1); no brevity penalty.
    expected = (1.3 / 2 * 1.3 / 2) ** 0.25
    assert soft_bleu(match, length, counts).item() == pytest.approx(expected, abs=1e-12)


def test_matches_are_clipped_by_the_reference_counts():
    counts = count_reference(torch.tensor([[4, 5]]), torch.tensor([2]))
    match = one_hot_match([4, 4, 4], [4, 5], 3, 2)[None, None]
    length = torch.tensor([[3.0]], dtype=torch.float64)
    # p1 = 1 / 3; p2 = 1 / 3; p3 = 1 / 2; p4 = 1.
    assert soft_bleu(match, length, counts).item() == pytest.approx((1 / 3 / 3 / 2) ** 0.25, abs=1e-12)


def test_gradient_by_finite_differences():
    torch.manual_seed(0)
    target = torch.tensor([[4, 5, 4, 6, 5], [7, 7, 4, 0, 0]])
    counts = count_reference(target, torch.tensor([5, 3]))
    match = (torch.rand(2, 2, 4, 5, dtype=torch.float64) * 0.4).requires_grad_()
    length = (torch.rand(2, 2, dtype=torch.float64) + 3.2).requires_grad_()
    assert torch.autograd.gradcheck(lambda m, n: soft_bleu(m, n, counts), (match, length))
