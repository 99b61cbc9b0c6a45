"""Algorithm 2 of the paper, beside autograd through the iterations and the closed form."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from nmt.topk import sinkhorn_topk, soft_topk, sorted_sinkhorn_topk, sorted_soft_topk

PAIRS = [(soft_topk, sinkhorn_topk), (sorted_soft_topk, sorted_sinkhorn_topk)]


def _case(n: int) -> torch.Tensor:
    x = torch.randn(4, n, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    x[1] = x[1].round()
    x[2, 0] = -math.inf
    x[3, 2:] = -math.inf
    return x.requires_grad_()


@pytest.mark.parametrize("ours, sinkhorn", PAIRS)
@pytest.mark.parametrize("n, k, T", [(4, 1, 0.5), (4, 4, 0.6), (9, 3, 0.3), (9, 3, 100.0), (20, 5, 0.5)])
def test_three_ways_to_one_gradient(ours, sinkhorn, n, k, T):
    x, t = _case(n), torch.tensor(T, dtype=torch.float64, requires_grad=True)
    A = ours(x, k, t)
    g = torch.randn(A.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    closed = torch.autograd.grad(A, (x, t), g)
    options = {"iterations": 10_000, "tolerance": 1e-14}
    for backward in ("iterations", "kkt"):
        plan = sinkhorn(x, k, t, backward=backward, **options)
        torch.testing.assert_close(plan, A, rtol=0, atol=1e-11)
        for a, b in zip(torch.autograd.grad(plan, (x, t), g), closed, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sinkhorn", [sinkhorn_topk, sorted_sinkhorn_topk])
def test_gradcheck(sinkhorn):
    x = torch.randn(2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    T = torch.tensor([0.6, 2.0], dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x, T: sinkhorn(x, 2, T, iterations=5000, tolerance=1e-14, backward="kkt"), (x, T))


@pytest.mark.parametrize("sinkhorn", [sinkhorn_topk, sorted_sinkhorn_topk])
def test_before_convergence_the_two_backwards_differ(sinkhorn):
    # Algorithm 2 assumes an optimal plan; only autograd differentiates what two iterations computed.
    x, gradients = _case(9), []
    for backward in ("iterations", "kkt"):
        plan = sinkhorn(x, 3, 0.1, iterations=2, backward=backward)
        gradients.append(torch.autograd.grad(plan.square().sum(), x)[0])
    assert float((gradients[0] - gradients[1]).abs().max()) > 1e-2


def test_an_unknown_backward():
    with pytest.raises(ValueError, match="backward must be 'iterations' or 'kkt', not 'ktt'"):
        sinkhorn_topk(torch.zeros(3), 1, 0.5, backward="ktt")
