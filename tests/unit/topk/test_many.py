"""The theorems of the paper on ten thousand random cases, and the operators against slow solvers at every size."""

import math

import pytest
import torch

from nmt.topk import sinkhorn_topk, soft_topk, sorted_sinkhorn_topk, sorted_soft_topk

pytestmark = pytest.mark.usefixtures("each_way")
PAIRS = [(soft_topk, sinkhorn_topk), (sorted_soft_topk, sorted_sinkhorn_topk)]


def _randn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _random_cases(sizes, rows):
    """Scores (rows, n) in units of T over three orders of magnitude, a tenth of them rounded into ties, and k."""
    generator = torch.Generator().manual_seed(0)
    for n in sizes:
        for k in sorted({1, 2, n // 3, n // 2, n - 1} & set(range(1, n))):
            scale = 10 ** torch.empty(rows, 1, dtype=torch.float64).uniform_(-2, 1, generator=generator)
            x = torch.randn(rows, n, generator=generator, dtype=torch.float64) * scale
            x[: rows // 10] = x[: rows // 10].round()
            yield x, k


def test_every_row_of_the_jacobian_has_an_entry():
    # Theorem 1, here for each row: dA_i / dx_i = A_i (1 - A_i) (1 - q_i) / T > 0, and no row is 0.
    count = 0
    for x, k in _random_cases((2, 3, 5, 8, 12, 20), 520):
        jacobian = torch.func.vmap(torch.func.jacrev(lambda row, k=k: soft_topk(row, k, 1.0)))(x)
        assert bool((jacobian != 0).any(-1).all())
        assert bool((jacobian.diagonal(dim1=1, dim2=2) > 0).all())
        # A shift of all scores changes nothing, and neither does the sum of the weights.
        assert float(jacobian.sum(-1).abs().max()) < 1e-12 and float(jacobian.sum(-2).abs().max()) < 1e-12
        count += len(x)
    assert count >= 10_000


def test_every_score_moves_the_ranks():
    for x, k in _random_cases((3, 5, 8), 120):
        jacobian = torch.func.vmap(torch.func.jacrev(lambda row, k=k: sorted_soft_topk(row, k, 1.0).sum(-1)))(x)
        assert bool((jacobian != 0).any(-1).all())


def test_the_bound_of_the_bias():
    # Theorem 2, tight: ||A - A*||_1 = 2 M, M <= sqrt(k (n - k)) exp(-gap / (2 T)); the plan's norm is at most 2 M / n.
    count, closest = 0, 0.0
    for x, k in _random_cases((2, 3, 6, 9, 17, 30, 50), 400):
        n = x.shape[1]
        values, order = x.topk(k + 1)
        A = soft_topk(x, k, 1.0)
        hard = torch.zeros_like(A).scatter_(1, order[:, :k], 1.0)
        bias = (A - hard).abs().sum(-1)
        bound = math.sqrt(k * (n - k)) * (-(values[:, k - 1] - values[:, k]) / 2).exp()
        assert bool((bias <= 2 * bound * (1 + 1e-9)).all())
        # Both columns of the plan, A / n and (1 - A) / n, are off by the same.
        assert bool(((A - hard).norm(dim=-1) * math.sqrt(2) / n <= 2 * bound / n * (1 + 1e-9)).all())
        closest = max(closest, float((bias / (2 * bound)).max()))
        count += len(x)
    assert count >= 10_000 and closest > 0.999


@pytest.mark.parametrize("operator, sinkhorn", PAIRS)
@pytest.mark.parametrize(
    "n, k, T", [(100, 1, 0.5), (300, 17, 1.0), (300, 150, 3.0), (1000, 999, 2.0), (5000, 3, 1.0), (5000, 40, 100.0)]
)
def test_equals_converged_sinkhorn_at_size(operator, sinkhorn, n, k, T):
    if operator is sorted_soft_topk:
        n, k = (n // 10, k // 10) if k > 40 else (n, min(k, 10))
    x = _randn(2, n, seed=n + k)
    x[1, ::7] = -math.inf
    k = min(k, int(x[1].isfinite().sum()))
    x.requires_grad_()
    reference = sinkhorn(x, k, T, iterations=20_000, tolerance=3e-11, backward="kkt")
    ours = operator(x, k, T)
    torch.testing.assert_close(ours, reference, rtol=0, atol=1e-10)
    g = _randn(*ours.shape, seed=1)
    (a,), (b,) = torch.autograd.grad(ours, x, g), torch.autograd.grad(reference, x, g)
    torch.testing.assert_close(a, b, rtol=0, atol=1e-8)


def _bisect(x: torch.Tensor, k: int, T: float) -> torch.Tensor:
    low, high = x.amin(-1, keepdim=True) - 800 * T, x.amax(-1, keepdim=True) + 800 * T
    for _ in range(200):
        tau = low / 2 + high / 2
        more = ((x - tau) / T).sigmoid().sum(-1, keepdim=True) > k
        low, high = torch.where(more, tau, low), torch.where(more, high, tau)
    return ((x - tau) / T).sigmoid()


@pytest.mark.parametrize("n", [2, 7, 33, 65, 130, 1000, 5000])
@pytest.mark.parametrize("T", [100.0, 1.0, 0.05, 1e-3, 1e-9])
def test_plain_equals_bisection_for_every_k(n, T):
    # Scores of the size of T as well, so that the weights are soft at every T.
    x = _randn(3, n, seed=n)
    x = torch.cat((x, x * T, (2 * x).round() * T))
    for k in sorted({1, 2, n // 10, n // 3, n // 2, n - 2, n - 1} & set(range(1, n))):
        A = soft_topk(x, k, T)
        assert float((A.sum(-1) - k).abs().max()) < 1e-10 * max(1, n / 100)
        torch.testing.assert_close(A, _bisect(x, k, T), rtol=0, atol=1e-10 if T >= 1e-3 else 1e-6)


@pytest.mark.parametrize("n, k", [(7, 7), (33, 20), (130, 3), (1000, 8), (5000, 5)])
@pytest.mark.parametrize("T", [100.0, 1.0, 0.05, 1e-3, 1e-9])
def test_sorted_meets_the_conditions_of_optimality(n, k, T):
    # A plan with the marginals, and log (p_l / p_(l+1)) = (x - tau_l) / T of every candidate, is the optimal one.
    x = _randn(3, n, seed=n) * 3 * T
    A = sorted_soft_topk(x, k, T)
    assert float((A.sum(1) - 1).abs().max()) < 1e-11
    p = torch.cat((A, 1 - A.sum(2, keepdim=True)), 2)
    step = (p[..., :-1] / p[..., 1:]).log() - (x / T).unsqueeze(2)
    readable = (p[..., :-1] > 1e-5) & (p[..., 1:] > 1e-5)
    for row, kept in zip(step, readable, strict=True):
        for rank in range(k):
            found = row[kept[:, rank], rank]
            if len(found):
                torch.testing.assert_close(found, found[:1].expand_as(found), rtol=0, atol=1e-8)
