"""Properties that hold for all scores, k and temperatures."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nmt.topk import soft_topk, sorted_soft_topk

pytestmark = pytest.mark.usefixtures("each_way")
OPERATORS = [soft_topk, sorted_soft_topk]
# Repeated values make ties; the wide ones make hard rows.
VALUE = st.one_of(
    st.sampled_from([0.0, 0.5, -1.0, -math.inf, 1e30, -1e30]),
    st.floats(-30, 30, allow_nan=False),
    st.floats(-1e6, 1e6, allow_nan=False),
)
ROW = st.lists(VALUE, min_size=1, max_size=12)
TEMPERATURE = st.floats(-9, 2).map(lambda exponent: 10.0**exponent)
SETTINGS = settings(max_examples=150, deadline=None, derandomize=True)


@st.composite
def _cases(draw):
    row = draw(ROW)
    return torch.tensor(row, dtype=torch.float64), draw(st.integers(1, len(row))), draw(TEMPERATURE)


@SETTINGS
@given(_cases())
def test_sums_and_bounds(case):
    x, k, T = case
    finite = int(x.isfinite().sum())
    plain, ranked = soft_topk(x, k, T), sorted_soft_topk(x, k, T)
    assert abs(float(plain.sum()) - min(k, finite)) < 1e-10
    assert bool((plain >= 0).all()) and bool((plain <= 1).all())
    slots = (torch.arange(k) < finite).double()
    torch.testing.assert_close(ranked.sum(0), slots, rtol=0, atol=1e-10)
    assert bool((ranked >= 0).all()) and float(ranked.sum(1).max()) < 1 + 1e-12
    assert bool((plain[~x.isfinite()] == 0).all()) and bool((ranked[~x.isfinite()] == 0).all())


@pytest.mark.parametrize("operator", OPERATORS)
@SETTINGS
@given(_cases(), st.randoms(use_true_random=False))
def test_permutation_equivariance(operator, case, random):
    x, k, T = case
    order = list(range(len(x)))
    random.shuffle(order)
    torch.testing.assert_close(operator(x[order], k, T), operator(x, k, T)[order], rtol=0, atol=1e-11)


@pytest.mark.parametrize("operator", OPERATORS)
@SETTINGS
@given(st.lists(st.integers(-64, 64), min_size=1, max_size=10), st.data())
def test_shift_invariance(operator, sixteenths, data):
    # Scores and shifts that float64 adds without rounding.
    x = torch.tensor(sixteenths, dtype=torch.float64) / 16
    k = data.draw(st.integers(1, len(x)))
    T = data.draw(TEMPERATURE)
    shift = float(data.draw(st.integers(-(2**20), 2**20)))
    torch.testing.assert_close(operator(x + shift, k, T), operator(x, k, T), rtol=0, atol=1e-9)


@SETTINGS
@given(_cases())
def test_better_candidates_weigh_more(case):
    x, k, T = case
    order = x.argsort(descending=True)
    plain, ranked = soft_topk(x, k, T)[order], sorted_soft_topk(x, k, T)[order]
    # c_ij, the chance to be among the first j, falls with the rank of i.
    for falling in (plain, *ranked.cumsum(1).unbind(1)):
        assert bool((falling.diff() <= 1e-12).all())


@SETTINGS
@given(_cases(), st.integers(0, 11), st.floats(0, 3))
def test_raising_a_score_raises_its_weight(case, position, step):
    x, k, T = case
    position %= len(x)
    higher = x.clone()
    higher[position] += step * T
    plain = soft_topk(higher, k, T) - soft_topk(x, k, T)
    assert float(plain[position]) >= -1e-11
    others = torch.arange(len(x)) != position
    assert bool((plain[others] <= 1e-11).all())
    ranked = sorted_soft_topk(higher, k, T) - sorted_soft_topk(x, k, T)
    assert bool((ranked[position].cumsum(0) >= -1e-11).all())


@pytest.mark.parametrize("operator", OPERATORS)
@SETTINGS
@given(st.lists(st.lists(VALUE, min_size=7, max_size=7), min_size=2, max_size=5), st.integers(1, 7), TEMPERATURE)
def test_a_row_alone_equals_the_row_in_a_batch(operator, rows, k, T):
    x = torch.tensor(rows, dtype=torch.float64, requires_grad=True)
    A = operator(x, k, T)
    g = torch.linspace(-1, 2, A[0].numel(), dtype=torch.float64).view_as(A[0])
    (batch,) = torch.autograd.grad(A, x, g.expand_as(A))
    for i in range(len(rows)):
        row = x.detach()[i].requires_grad_()
        alone = operator(row, k, T)
        torch.testing.assert_close(alone, A[i], rtol=0, atol=1e-14)
        (single,) = torch.autograd.grad(alone, row, g)
        torch.testing.assert_close(single * T, batch[i] * T, rtol=0, atol=1e-10)
