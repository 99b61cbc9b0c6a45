"""The rivals, each against its definition, and the table of what they guarantee."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from nmt.topk import hard_topk, soft_topk
from nmt.topk.rivals import (
    OPERATORS,
    lap_sum,
    neural_sort,
    perturbed_topk,
    relax_subsample,
    sinkhorn_ranks,
    sinkhorn_sort,
    soft_k_argmax,
    soft_sort,
    sparse_topk,
    straight_through,
    successive_softmax,
)


def _randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


CASES = [
    (scale * _randn(5, n, seed=n + k), k, T)
    for n, k in ((2, 1), (2, 2), (6, 3), (7, 5))
    for scale in (0.3, 3.0)
    for T in (1e-3, 0.05, 0.5, 10.0)
]
TIES = torch.tensor([[1.0, 2.0, 2.0, 2.0, 0.0]], dtype=torch.float64)


def _sums(operator, ranked):
    for x, k, T in CASES:
        A = operator(x, k, T)
        yield (A.sum(-2) - 1).abs().max() if ranked else (A.sum(-1) - k).abs().max()


def _bounded(operator, ranked):
    for x, k, T in CASES:
        A = operator(x, k, T)
        yield (A.sum(-1) if ranked else A).max() - 1


def _exact(operator, ranked):
    for n, k in ((4, 2), (7, 3)):
        x = torch.stack([torch.randperm(n, generator=torch.Generator().manual_seed(s)) for s in range(20)]).double()
        hard = hard_topk(x, k)
        yield (operator(x, k, 1e-4) - (hard if ranked else hard.sum(-1))).abs().max()


def _equivariant(operator, ranked):
    for x, k, T in [*CASES, (TIES, 2, 0.3)]:
        order = torch.arange(x.shape[-1]).roll(1).flip(0)
        torch.manual_seed(0)
        A = operator(x, k, T)
        torch.manual_seed(0)
        yield (operator(x[:, order], k, T) - A[:, order]).abs().max()


def _deterministic(operator, ranked):
    for x, k, T in CASES:
        yield (operator(x, k, T) - operator(x, k, T)).abs().max()


CHECKS = {
    "sums": _sums,
    "bounded": _bounded,
    "exact": _exact,
    "equivariant": _equivariant,
    "deterministic": _deterministic,
}


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("check", CHECKS)
def test_the_table(name, check):
    row = OPERATORS[name]
    torch.manual_seed(0)
    worst = max(float(part) for part in CHECKS[check](row.operator, row.ranked))
    if getattr(row, check):
        assert worst < 1e-9
    else:
        assert worst > 1e-3, "a counterexample to the claim 'no'"


@pytest.mark.parametrize("name", OPERATORS)
def test_shapes_dtypes_and_refusals(name):
    operator, ranked = OPERATORS[name].operator, OPERATORS[name].ranked
    torch.manual_seed(0)
    for shape in ((6,), (2, 3, 6)):
        for T in (0.5, torch.tensor(0.5), torch.full(shape[:-1], 0.5)):
            x = _randn(*shape).float().requires_grad_()
            A = operator(x, 2, T)
            assert A.shape == ((*shape, 2) if ranked else shape) and A.dtype == torch.float32
            (g,) = torch.autograd.grad(A.square().sum(), x)
            assert g.shape == shape and bool(g.isfinite().all())
    for arguments in ((torch.tensor([math.nan, 0, 1]), 1, 0.5), (torch.zeros(3), 4, 0.5), (torch.zeros(3), 1, 0.0)):
        with pytest.raises(ValueError, match="scores hold NaN|k must lie|temperature must be"):
            operator(*arguments)


SMOOTH = [neural_sort, soft_sort, soft_k_argmax, successive_softmax, lap_sum, sparse_topk, sinkhorn_sort]


@pytest.mark.parametrize("operator", SMOOTH)
@pytest.mark.parametrize("k", [1, 2, 4])
def test_gradcheck(operator, k):
    x = _randn(2, 5).requires_grad_()
    T = torch.tensor([0.4, 1.7], dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x, T: operator(x, k, T), (x, T))


def test_masks_are_refused():
    with pytest.raises(ValueError, match="scores hold -inf"):
        soft_sort(torch.tensor([0.0, -math.inf]), 1, 0.5)


def test_neural_sort_by_its_formula():
    x, T = [0.3, 1.5, -0.7, 0.9], 0.8
    A = neural_sort(torch.tensor(x).double(), 3, T)
    for i in range(1, 4):
        powers = [math.exp(((5 - 2 * i) * a - sum(abs(a - b) for b in x)) / T) for a in x]
        wanted = torch.tensor([p / sum(powers) for p in powers], dtype=torch.float64)
        torch.testing.assert_close(A[:, i - 1], wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("operator, power", [(soft_sort, 1), (soft_k_argmax, 2)])
def test_softmaxes_of_distances_by_their_formula(operator, power):
    x, T = _randn(5), 0.6
    A = operator(x, 5, T)
    for i, best in enumerate(sorted(x.tolist(), reverse=True)):
        powers = torch.tensor([math.exp(-(abs(a - best) ** power) / T) for a in x.tolist()]).double()
        torch.testing.assert_close(A[:, i], powers / powers.sum(), rtol=1e-6, atol=1e-8)


def test_successive_softmax_by_its_formula():
    x, T = _randn(5), 0.6
    A, a = successive_softmax(x, 4, T), x
    for i in range(4):
        w = (a / T).softmax(-1)
        torch.testing.assert_close(A[:, i], w)
        a = a + (1 - w).log()


def test_relax_subsample_draws_by_weight_without_replacement():
    # As T -> 0: P(subset {a, b}) of two draws without replacement, in either order.
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    drawn = relax_subsample(p.log().expand(20_000, 3), 2, 1e-3, generator=torch.Generator().manual_seed(0))
    assert bool(((drawn > 0.99) | (drawn < 0.01)).all(-1).float().mean() > 0.99)
    missing = 1 - drawn.mean(0)
    wanted = [0.3 * 0.2 / 0.7 + 0.2 * 0.3 / 0.8, 0.5 * 0.2 / 0.5 + 0.2 * 0.5 / 0.8, 0.5 * 0.3 / 0.5 + 0.3 * 0.5 / 0.7]
    torch.testing.assert_close(missing, torch.tensor(wanted, dtype=torch.float64), rtol=0, atol=0.012)


@pytest.mark.parametrize("k", [1, 3, 6])
@pytest.mark.parametrize("T", [1e-6, 0.2, 30.0])
def test_lap_sum_is_a_laplace_distribution_of_one_threshold(k, T):
    x = torch.cat((_randn(4, 7), torch.full((1, 7), 0.3).double(), TIES.repeat(1, 2)[:, :7]))
    A = lap_sum(x, k, T)
    torch.testing.assert_close(A.sum(-1), torch.full((6,), float(k)).double(), rtol=0, atol=1e-9)
    b = x - T * torch.where(A < 0.5, (2 * A).log(), -(2 * (1 - A)).log())
    for row, weights in zip(b, A, strict=True):
        readable = row[(weights > 1e-4) & (weights < 1 - 1e-4)]
        torch.testing.assert_close(
            readable / T, readable[:1].expand_as(readable) / T, rtol=0, atol=1e-7 * max(1, 1 / T)
        )


def test_sinkhorn_sort_has_the_marginals_and_the_ranks():
    x = torch.tensor([0.3, 2.5, -0.7, 0.9], dtype=torch.float64)
    P = sinkhorn_sort(x, 4, 0.1, iterations=3000)
    for dim in (0, 1):
        torch.testing.assert_close(P.sum(dim), torch.ones(4).double(), rtol=0, atol=1e-9)
    # A plan of least cost plus entropy: log P = f_i + g_j - (s_i - y_j)^2 / T.
    s = ((x - x.mean()) / x.std(correction=0)).sigmoid()
    y = torch.linspace(1, 0, 4, dtype=torch.float64)
    rest = P.log() + (s.unsqueeze(1) - y).square() / 0.1
    torch.testing.assert_close(
        rest - rest[:1] - rest[:, :1] + rest[0, 0], torch.zeros(4, 4).double(), atol=1e-8, rtol=0
    )
    torch.testing.assert_close(sinkhorn_ranks(x, 0.1, iterations=3000), P @ torch.tensor([4.0, 3, 2, 1]).double())
    ranks = sinkhorn_ranks(x, 1e-3, iterations=5000)
    torch.testing.assert_close(ranks, torch.tensor([2.0, 4, 1, 3]).double(), rtol=0, atol=0.05)


@pytest.mark.parametrize("p", [4 / 3, 1.5, 2.0])
@pytest.mark.parametrize("k", [1, 3, 6, 7])
@pytest.mark.parametrize("T", [0.3, 5.0])
def test_sparse_topk_meets_the_conditions_of_optimality(p, k, T):
    x = torch.cat((_randn(4, 7), TIES.repeat(1, 2)[:, :7]))
    A = sparse_topk(x, k, T, p=p)
    torch.testing.assert_close(A.sum(-1), torch.full((5,), float(k)).double(), rtol=0, atol=1e-9)
    assert bool((A >= 0).all()) and bool((A <= 1).all())
    # x - T y^(p-1) is one multiplier inside; not more where y = 0, and not less where y = 1.
    slack = x - T * A.pow(p - 1)
    for row, y in zip(slack, A, strict=True):
        inside = row[(y > 1e-9) & (y < 1 - 1e-9)]
        if len(inside):
            tau = inside.mean()
            torch.testing.assert_close(inside, tau.expand_as(inside), rtol=0, atol=1e-6)
            assert bool((row[y <= 1e-9] <= tau + 1e-6).all()) and bool((row[y >= 1 - 1e-9] >= tau - 1e-6).all())
    if T == 0.3 and k == 3:
        assert int((A == 0).sum()) > 0


def test_sparse_topk_with_p_2_is_a_projection():
    x = _randn(6)
    y = sparse_topk(x, 2, 1.0, p=2.0)
    best = float((y - x).square().sum())
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        other = soft_topk(torch.randn(6, generator=generator, dtype=torch.float64), 2, 0.3)
        for step in (1.0, 0.05):
            mixed = y + step * (other - y)
            assert float((mixed - x).square().sum()) >= best - 1e-12
    with pytest.raises(ValueError, match="p must lie in"):
        sparse_topk(x, 2, 1.0, p=1.0)


def test_perturbed_topk_of_two_candidates_is_a_normal_distribution():
    # P(x_1 + T Z_1 > x_2 + T Z_2) = Phi((x_1 - x_2) / (T sqrt 2)), and its derivative the density.
    x = torch.tensor([0.4, -0.1], dtype=torch.float64, requires_grad=True)
    A = perturbed_topk(x, 1, 0.7, samples=400_000, generator=torch.Generator().manual_seed(0))
    s = 0.5 / (0.7 * math.sqrt(2))
    assert float(A[0]) == pytest.approx(0.5 * (1 + math.erf(s / math.sqrt(2))), abs=3e-3)
    (to_x,) = torch.autograd.grad(A[0], x)
    density = math.exp(-s * s / 2) / math.sqrt(2 * math.pi) / (0.7 * math.sqrt(2))
    torch.testing.assert_close(to_x, torch.tensor([density, -density]).double(), rtol=0, atol=8e-3)
    with pytest.raises(ValueError, match="samples must be >= 1"):
        perturbed_topk(x, 1, 0.7, samples=0)


def test_straight_through_has_hard_values_and_soft_gradients():
    x = _randn(3, 6).requires_grad_()
    T = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    g = _randn(3, 6, seed=1)
    A = straight_through(x, 2, T)
    assert torch.equal(A.detach(), hard_topk(x, 2).sum(-1))
    wanted = torch.autograd.grad(soft_topk(x, 2, T), (x, T), g)
    assert all(torch.equal(a, b) for a, b in zip(torch.autograd.grad(A, (x, T), g), wanted, strict=True))


def test_lap_sum_equals_bisection():
    x = _randn(4, 50)
    low, high = x.amin(-1, keepdim=True) - 9, x.amax(-1, keepdim=True) + 9
    for _ in range(80):
        b = (low + high) / 2
        s = (x - b) / 0.4
        A = torch.where(s <= 0, (-s.abs()).exp() / 2, 1 - (-s.abs()).exp() / 2)
        low, high = (
            torch.where((A.sum(-1, keepdim=True) > 5) == up, b, edge) for up, edge in ((True, low), (False, high))
        )
    torch.testing.assert_close(lap_sum(x, 5, 0.4), A, rtol=0, atol=1e-10)
