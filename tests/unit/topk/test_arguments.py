"""What the operators refuse, and the shapes that they accept."""

import math
import re

import pytest
import torch

from nmt.topk import hard_topk, sinkhorn_topk, soft_topk, sorted_sinkhorn_topk, sorted_soft_topk

pytestmark = pytest.mark.usefixtures("each_way")
SOFT = [soft_topk, sorted_soft_topk, sinkhorn_topk, sorted_sinkhorn_topk]
ALL = [*SOFT, lambda scores, k, temperature, **options: hard_topk(scores, k, **options)]


@pytest.mark.parametrize("operator", ALL)
@pytest.mark.parametrize("n", [5, 500])
@pytest.mark.parametrize(
    "value, largest, message",
    [
        (math.nan, True, "scores hold NaN in row (1, 2): mask candidates with -inf"),
        (math.inf, True, "scores hold +inf in row (1, 2): mask candidates with -inf"),
        (-math.inf, False, "scores hold -inf in row (1, 2): mask candidates with +inf"),
        (math.nan, False, "scores hold NaN in row (1, 2): mask candidates with +inf"),
    ],
)
def test_values_that_are_no_scores(operator, n, value, largest, message):
    scores = torch.zeros(2, 3, n)
    scores[1, 2, 3] = value
    with pytest.raises(ValueError, match=re.escape(message)):
        operator(scores, 2, 0.5, largest=largest)


@pytest.mark.parametrize("operator", ALL)
@pytest.mark.parametrize(
    "scores, k, message",
    [
        (torch.zeros(3), 4, "k must lie in 1..3 (the number of candidates), not 4"),
        (torch.zeros(3), 0, "k must lie in 1..3"),
        (torch.zeros(3), 1.5, "k must be an int, not 1.5"),
        (torch.zeros(3), True, "k must be an int, not True"),
        (torch.zeros(3, dtype=torch.long), 1, "not torch.int64"),
        (torch.tensor(1.0), 1, "shape (..., n) with n >= 1, not ()"),
        (torch.zeros(2, 0), 1, "shape (..., n) with n >= 1, not (2, 0)"),
    ],
)
def test_scores_and_k(operator, scores, k, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        operator(scores, k, 0.5)


@pytest.mark.parametrize("operator", SOFT)
@pytest.mark.parametrize(
    "temperature, message",
    [
        (0.0, "temperature must be finite and > 0, not 0.0: for T = 0 use hard_topk"),
        (-1, "not -1"),
        (math.nan, "not nan"),
        (torch.tensor([0.5, -2.0]), "in every row, not -2.0"),
        (torch.tensor([0.5, 1.0, 2.0]), "one value a row, shape (2,), not shape (3,)"),
        (torch.tensor([[0.5], [1.0]]), "one value a row, shape (2,), not shape (2, 1)"),
    ],
)
def test_temperature(operator, temperature, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        operator(torch.zeros(2, 3), 1, temperature)


@pytest.mark.parametrize(
    "k, message",
    [
        (torch.tensor([1.0, 3.5]), "k must lie in (0, 3] (the number of candidates) in every row, not 3.5"),
        (torch.tensor(0.0), "not 0.0"),
        (torch.tensor([1.0, math.nan]), "not nan"),
        (torch.tensor([1.0]), "one value a row, shape (2,), not shape (1,)"),
    ],
)
def test_k_of_a_row(k, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        soft_topk(torch.zeros(2, 3), k, 0.5)


@pytest.mark.parametrize("operator", [sinkhorn_topk, sorted_sinkhorn_topk])
def test_iterations(operator):
    with pytest.raises(ValueError, match="iterations must be >= 1"):
        operator(torch.zeros(3), 1, 0.5, iterations=0)
    with pytest.raises(ValueError, match="tolerance >= 0"):
        operator(torch.zeros(3), 1, 0.5, tolerance=math.nan)


@pytest.mark.parametrize("shape", [(6,), (1, 6), (2, 3, 6), (0, 6), (2, 0, 6)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_shapes_and_dtypes(shape, dtype):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    plain, ranked, hard = soft_topk(x, 2, 0.5), sorted_soft_topk(x, 2, 0.5), hard_topk(x, 2)
    assert plain.shape == shape and ranked.shape == hard.shape == (*shape, 2)
    assert plain.dtype == ranked.dtype == hard.dtype == dtype
    (plain.sum() + ranked[..., 0].sum()).backward()
    assert x.grad.shape == shape and x.grad.dtype == dtype


def test_an_odd_row_among_many_is_named():
    scores = torch.zeros(7, 90)
    scores[4, 11] = math.nan
    with pytest.raises(ValueError, match="in row 4"):
        soft_topk(scores, 2, torch.full((7,), 0.5))
    with pytest.raises(ValueError, match="in the only row"):
        soft_topk(scores[4], 2, 0.5)
