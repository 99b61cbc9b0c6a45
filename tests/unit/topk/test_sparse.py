"""The sparse results have the derivatives, the transforms and the odd cases of the dense ones."""

import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from nmt.topk import soft_topk, sorted_soft_topk, sparse_soft_topk, sparse_sorted_soft_topk

pytestmark = pytest.mark.usefixtures("each_way")
PAIRS = [(soft_topk, sparse_soft_topk), (sorted_soft_topk, sparse_sorted_soft_topk)]
SPARSE = [sparse_soft_topk, sparse_sorted_soft_topk]


def _randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _split(weights, indices):
    index = indices if weights.dim() == indices.dim() else indices.unsqueeze(-1).expand(*indices.shape, 2)
    dim = indices.dim() - 1
    return weights.gather(dim, index), weights.scatter(dim, index, 0.0).sum(dim)


@pytest.mark.parametrize("sparse", SPARSE)
@pytest.mark.parametrize("largest", [True, False])
def test_first_and_second_derivatives(sparse, largest):
    x = _randn(2, 7).requires_grad_()
    T = torch.tensor([0.4, 1.3], dtype=torch.float64, requires_grad=True)
    f = lambda x, T: sparse(x, 2, T, width=3, largest=largest)[1:]  # noqa: E731
    assert gradcheck(f, (x, T), check_forward_ad=True)
    assert gradgradcheck(f, (x, T))


def test_derivative_by_k():
    x = _randn(2, 7).requires_grad_()
    k = torch.tensor([0.7, 3.2], dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x, k: sparse_soft_topk(x, k, 0.5, width=3)[1:], (x, k), check_forward_ad=True)
    assert gradgradcheck(lambda x, k: sparse_soft_topk(x, k, 0.5, width=3)[1:], (x, k))


@pytest.mark.parametrize("dense, sparse", PAIRS)
@pytest.mark.parametrize("n", [9, 300])
@pytest.mark.parametrize("T", [0.2, 3.0])
def test_transforms(dense, sparse, n, T):
    x, v = _randn(3, n), _randn(3, n, seed=1)
    found = sparse(x, 2, T, width=5).indices

    mapped = torch.func.vmap(lambda row: tuple(sparse(row, 2, T, width=5)))(x)
    for part, wanted in zip(mapped, sparse(x, 2, T, width=5), strict=True):
        torch.testing.assert_close(part, wanted, rtol=0, atol=1e-15)

    _, moved = torch.func.jvp(lambda x: sparse(x, 2, T, width=5)[1:], (x,), (v,))
    _, whole = torch.func.jvp(lambda x: dense(x, 2, T), (x,), (v,))
    for part, wanted in zip(moved, _split(whole, found), strict=True):
        torch.testing.assert_close(part, wanted, rtol=1e-9, atol=1e-12)

    def loss(operator):
        def run(x):
            weights, tail = operator(x)
            return (weights * weights.detach().cos()).sum() + (tail * tail.detach().sin()).sum()

        return torch.func.grad(run)(x)

    of_sparse = loss(lambda x: sparse(x, 2, T, width=5)[1:])
    of_dense = loss(lambda x: _split(dense(x, 2, T), found))
    torch.testing.assert_close(of_sparse, of_dense, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("sparse", SPARSE)
def test_a_compiled_graph_without_breaks(sparse):
    x = _randn(3, 80).requires_grad_()

    def run(x):
        _, weights, tail = sparse(x, 3, 0.4)
        return weights.square().sum() + tail.sum()

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    wanted, found = run(x), compiled(x)
    torch.testing.assert_close(found, wanted)
    for a, b in zip(torch.autograd.grad(found, x), torch.autograd.grad(wanted, x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("n", [9, 300, 20_001])
def test_odd_shapes(n):
    for dense, sparse in PAIRS:
        none = torch.zeros(0, n, requires_grad=True)
        assert dense(none, 2, 0.3).shape[:2] == (0, n)
        part = sparse(none, 2, 0.3, width=4)
        assert part.indices.shape == (0, 4) and part.weights.shape[:2] == (0, 4) and part.tail_mass.shape[0] == 0
        (part.weights.sum() + part.tail_mass.sum() + dense(none, 2, 0.3).sum()).backward()
        assert none.grad.shape == (0, n)
        masked = torch.full((2, n), -math.inf)
        masked[1, -1] = 0.5
        part = sparse(masked, 2, 0.3, width=4)
        assert part.indices[1, 0] == n - 1
        assert float(part.weights[0].abs().sum()) == 0 and float(part.weights[1].sum()) == pytest.approx(1)
        assert float(part.tail_mass.abs().max()) == 0
        for bad in (math.nan, math.inf):
            masked[0, n // 2] = bad
            with pytest.raises(ValueError, match="in row 0"):
                sparse(masked, 2, 0.3, width=4)


@pytest.mark.parametrize("sparse", SPARSE)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 4e-3)])
def test_narrow_scores_by_blocks(sparse, dtype, tolerance):
    x = (3 * _randn(2, 20_001)).to(dtype)
    T = torch.tensor([0.1, 1.0], dtype=torch.float32, requires_grad=True)
    narrow, wide = x.clone().requires_grad_(), x.double().requires_grad_()
    results = []
    for scores in (narrow, wide):
        part = sparse(scores, 3, T)
        assert part.weights.dtype == scores.dtype and part.tail_mass.dtype == scores.dtype
        (part.weights.double().square().sum() + part.tail_mass.double().sum()).backward()
        results.append((part.weights.double().sum(1), part.tail_mass.double(), scores.grad.double()))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=10 * tolerance, atol=tolerance)
