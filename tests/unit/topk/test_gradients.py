"""Gradients of the operators: closed forms against finite differences, Sinkhorn's own, and the hard limits."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from nmt.topk import sinkhorn_topk, soft_topk, sorted_sinkhorn_topk, sorted_soft_topk

pytestmark = pytest.mark.usefixtures("each_way")
INF = math.inf
PAIRS = [(soft_topk, sinkhorn_topk), (sorted_soft_topk, sorted_sinkhorn_topk)]
OPERATORS = [soft_topk, sorted_soft_topk]


def _randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("n, k", [(2, 1), (4, 4), (7, 3), (12, 11)])
@pytest.mark.parametrize("T", [0.2, 1.0, 20.0])
@pytest.mark.parametrize("largest", [True, False])
def test_gradcheck(operator, n, k, T, largest):
    x = _randn(3, n).requires_grad_()
    one = torch.tensor(T, dtype=torch.float64, requires_grad=True)
    each = (T * (1 + _randn(3, seed=1).abs())).requires_grad_()
    for temperature in (one, each):
        assert gradcheck(lambda x, t: operator(x, k, t, largest=largest), (x, temperature))


def test_gradcheck_of_k():
    x = _randn(3, 7).requires_grad_()
    k = torch.tensor([0.4, 2.5, 6.7], dtype=torch.float64, requires_grad=True)
    T = torch.tensor([0.2, 1.0, 5.0], dtype=torch.float64, requires_grad=True)
    assert gradcheck(soft_topk, (x, k, T))
    one = torch.tensor(3.3, dtype=torch.float64, requires_grad=True)
    assert gradcheck(soft_topk, (x, one, T))


def test_a_row_that_selects_all_it_has_does_not_depend_on_k():
    x = torch.tensor([[0.1, 0.2, 0.3, 0.5], [0.1, -INF, 0.3, -INF]], dtype=torch.float64)
    k = torch.tensor([2.5, 2.5], dtype=torch.float64, requires_grad=True)
    (to_k,) = torch.autograd.grad(soft_topk(x, k, 0.2).sum(-1), k, torch.tensor([3.0, 5.0]).double())
    torch.testing.assert_close(to_k, torch.tensor([3.0, 0.0]).double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("operator", OPERATORS)
def test_gradcheck_with_masks_and_missing_candidates(operator):
    x = _randn(3, 6)
    x[0, 2] = -INF
    x[1, 2:] = -INF
    finite = x.isfinite()
    free = x[finite].requires_grad_()
    T = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda v, t: operator(x.masked_scatter(finite, v), 3, t), (free, T))


@pytest.mark.parametrize("operator, sinkhorn", PAIRS)
@pytest.mark.parametrize("n, k, T", [(2, 1, 0.5), (9, 3, 0.3), (9, 3, 100.0), (20, 5, 0.5)])
def test_equals_the_gradient_of_converged_sinkhorn(operator, sinkhorn, n, k, T):
    x = _randn(3, n)
    x[1] = x[1].round()
    x[2, 0] = -INF
    x.requires_grad_()
    t = torch.tensor(T, dtype=torch.float64, requires_grad=True)
    ours, reference = operator(x, k, t), sinkhorn(x, k, t, iterations=4000, tolerance=1e-14)
    g = _randn(*ours.shape, seed=2)
    for a, b in zip(torch.autograd.grad(ours, (x, t), g), torch.autograd.grad(reference, (x, t), g), strict=True):
        assert float(b.abs().max()) > 1e-6
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("n", [6, 300])
def test_masks_and_hard_rows_get_zero_gradients(operator, n):
    x = torch.linspace(3, -3, n, dtype=torch.float64).repeat(3, 1)
    x[1, 0] = -INF
    x[2, 2:] = -INF
    x.requires_grad_()
    T = torch.tensor([1e-9, 1e-9, 0.7], dtype=torch.float64, requires_grad=True)
    A = operator(x, 3, T)
    to_x, to_T = torch.autograd.grad(A, (x, T), _randn(*A.shape))
    assert bool((to_x[:2] == 0).all())
    assert bool((to_T[:2] == 0).all())
    assert bool((to_x[2, 2:] == 0).all())
    assert bool(to_x.isfinite().all())


def test_empty_slots_give_no_gradient():
    x = torch.tensor([0.3, 0.1, -INF, -INF], dtype=torch.float64, requires_grad=True)
    (to_x,) = torch.autograd.grad(sorted_soft_topk(x, 4, 0.3)[:, 2:].sum(), x)
    assert bool((to_x == 0).all())


@pytest.mark.parametrize("T", [1e-9, 1e-3, 1.0, 100.0])
@pytest.mark.parametrize("operator", OPERATORS)
def test_gradient_scales_with_the_temperature(operator, T):
    # A(s x, s T) = A(x, T): T times the gradient is the same at any scale, and x dL/dx + T dL/dT = 0.
    base = torch.tensor([0.0, -0.4, -0.9, -1.1, -2.5, -300.0, -300.5, -301.0], dtype=torch.float64)
    g = _randn(8) if operator is soft_topk else _randn(8, 6)

    def gradients(scale: float) -> tuple[torch.Tensor, torch.Tensor]:
        x = (base * scale).requires_grad_()
        t = torch.tensor(scale, dtype=torch.float64, requires_grad=True)
        to_x, to_t = torch.autograd.grad(operator(x, 6, t), (x, t), g)
        return to_x * scale, to_t * scale

    (to_x, to_t), (x1, t1) = gradients(T), gradients(1.0)
    torch.testing.assert_close(to_x, x1, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(to_t, t1, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(t1, -(base * x1).sum(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("operator", OPERATORS)
def test_theorem_1_the_gradient_never_vanishes_where_the_weights_are_soft(operator):
    x = _randn(5, 8)
    for row in x:
        jacobian = torch.autograd.functional.jacobian(lambda v: operator(v, 3, 0.5), row).view(-1, 8)
        assert bool((jacobian.abs().amax(-1) > 0).all())
        torch.testing.assert_close(jacobian.sum(-1), torch.zeros(len(jacobian)).double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("operator", OPERATORS)
def test_grad_of_any_layout(operator):
    x = _randn(4, 6).requires_grad_()
    A = operator(x.t().contiguous().t(), 2, 0.5)
    (expanded,) = torch.autograd.grad(A.sum(-1).square().sum(), x, retain_graph=True)
    (dense,) = torch.autograd.grad(A, x, (2 * A.sum(-1, keepdim=True)).expand_as(A).contiguous())
    torch.testing.assert_close(expanded, dense)
