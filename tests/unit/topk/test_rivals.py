"""The rivals, each against its definition, and the table of what they guarantee."""

import math
from decimal import Decimal, localcontext

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
    sinkhorn_rank_topk,
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


def _double(values: list) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


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


SMOOTH = [
    neural_sort,
    soft_sort,
    soft_k_argmax,
    successive_softmax,
    lap_sum,
    sparse_topk,
    sinkhorn_sort,
    sinkhorn_rank_topk,
]


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
    A = neural_sort(_double(x), 3, T)
    for i in range(1, 4):
        powers = [math.exp(((5 - 2 * i) * a - sum(abs(a - b) for b in x)) / T) for a in x]
        wanted = _double([p / sum(powers) for p in powers])
        torch.testing.assert_close(A[:, i - 1], wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("operator, power", [(soft_sort, 1), (soft_k_argmax, 2)])
def test_softmaxes_of_distances_by_their_formula(operator, power):
    x, T = _randn(5), 0.6
    A = operator(x, 5, T)
    for i, best in enumerate(sorted(x.tolist(), reverse=True)):
        powers = _double([math.exp(-(abs(a - best) ** power) / T) for a in x.tolist()])
        torch.testing.assert_close(A[:, i], powers / powers.sum(), rtol=1e-10, atol=1e-12)


def _successive(x: list[float], k: int, T: float) -> list[list[float]]:
    """Equations 8 to 10 of Ploetz and Roth, with digits enough for 1 - w."""
    with localcontext() as context:
        context.prec = 80
        a, columns = [Decimal(value) for value in x], []
        for _ in range(k):
            powers = [(value / Decimal(T)).exp() for value in a]
            w = [power / sum(powers) for power in powers]
            columns.append([float(value) for value in w])
            a = [value + (1 - weight).ln() for value, weight in zip(a, w, strict=True)]
        return columns


@pytest.mark.parametrize("T", [0.25, 1.0, 3.0])
@pytest.mark.parametrize("x", [[0.3, 1.5, -0.7, 0.9], [2.0, 2.0, 2.0, 1.0], [0.0, 60.0, -45.0, 1.0]])
def test_successive_softmax_by_its_formula(x, T):
    A = successive_softmax(_double(x), 3, T)
    torch.testing.assert_close(A.mT, _double(_successive(x, 3, T)), rtol=1e-10, atol=1e-12)


def test_successive_softmax_divides_by_the_temperature_each_time():
    # Divided once, before the first softmax, the second rank were (1/2, 1/2): exactly so at T = 1.
    x = torch.tensor([50.0, 0.0, -50.0], dtype=torch.float64)
    second = [successive_softmax(x, 2, T)[:, 1] for T in (0.5, 1.0)]
    torch.testing.assert_close(second[0], _double([0.0, 1, 0]), rtol=0, atol=1e-12)
    torch.testing.assert_close(second[1], _double([0.5, 0.5, 0]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("T", [0.1, 2.0])
def test_relax_subsample_by_its_formula(T):
    x = [0.2, -1.0, 0.7, 0.1]
    drawn = torch.empty(4, dtype=torch.float64).exponential_(generator=torch.Generator().manual_seed(3))
    # The logarithm of an exponential variable is minus a Gumbel one.
    keys = [value - math.log(e) for value, e in zip(x, drawn.tolist(), strict=True)]
    wanted = [sum(column[i] for column in _successive(keys, 3, T)) for i in range(4)]
    A = relax_subsample(_double(x), 3, T, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(A, _double(wanted), rtol=1e-10, atol=1e-12)


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


def _sinkhorn(x: list[float], weights: list[int], eps: float, iterations: int) -> list[list[float]]:
    """The plan, in units of candidates, of the definition in powers: v = b / (K^T u), u = a / (K v)."""
    n, m = len(x), len(weights)
    mean = sum(x) / n
    deviation = math.sqrt(sum((value - mean) ** 2 for value in x) / n)
    squashed = [1 / (1 + math.exp(-(value - mean) / deviation)) for value in x]
    K = [[math.exp(-((value - j / (m - 1)) ** 2) / eps) for j in range(m)] for value in squashed]
    u, v = [1.0] * n, [1.0] * m
    for _ in range(iterations):
        u = [1 / sum(K[i][j] * v[j] for j in range(m)) for i in range(n)]
        v = [weights[j] / sum(K[i][j] * u[i] for i in range(n)) for j in range(m)]
    return [[u[i] * K[i][j] * v[j] for j in range(m)] for i in range(n)]


@pytest.mark.parametrize("iterations", [1, 3, 500])
def test_sinkhorn_operators_by_their_formula(iterations):
    x, eps = [0.3, 2.5, -0.7, 0.9, 0.1], 0.07
    scores = _double(x)

    def close(result, wanted):
        torch.testing.assert_close(result, _double(wanted), rtol=1e-9, atol=1e-12)

    full = _sinkhorn(x, [1] * 5, eps, iterations)
    close(sinkhorn_sort(scores, 3, eps, iterations=iterations), [row[:1:-1] for row in full])
    ranks = [sum((j + 1) * weight for j, weight in enumerate(row)) / sum(row) for row in full]
    close(sinkhorn_ranks(scores, eps, iterations=iterations), ranks)
    merged = _sinkhorn(x, [3, 1, 1], eps, iterations)
    close(sinkhorn_sort(scores, 2, eps, iterations=iterations, merged=True), [row[:0:-1] for row in merged])
    two = _sinkhorn(x, [3, 2], eps, iterations)
    close(sinkhorn_rank_topk(scores, 2, eps, iterations=iterations), [row[1] / sum(row) for row in two])


def test_sinkhorn_operators_against_ott_jax():
    # ott.tools.soft_sort 0.6 at epsilon = 0.1 with the threshold 1e-13: ranks (from 0), sort, sort with topk=2,
    # and topk_mask with k=2.
    x = torch.tensor([0.3, 2.5, -0.7, 0.9], dtype=torch.float64)
    for result, wanted in (
        (sinkhorn_ranks(x, 0.1, iterations=3000) - 1, [1.105432588, 2.716036776, 0.415605071, 1.762925564]),
        (x @ sinkhorn_sort(x, 4, 0.1, iterations=3000), [2.047220312, 1.024209846, 0.227350547, -0.298780705]),
        (x @ sinkhorn_sort(x, 2, 0.1, iterations=3000, merged=True), [2.214703043, 0.897813119]),
        (sinkhorn_rank_topk(x, 2, 0.1, iterations=3000), [0.214464339, 0.999079918, 0.007197530, 0.779258213]),
    ):
        torch.testing.assert_close(result, _double(wanted), rtol=0, atol=2e-9)


def test_sinkhorn_ranks_lie_in_their_range_and_the_top_k_of_ranks_is_soft_topk():
    x = _randn(3, 6)
    for iterations in (1, 2, 100):
        ranks = sinkhorn_ranks(x, torch.tensor([1e-3, 0.1, 5.0]), iterations=iterations)
        assert bool((ranks >= 1 - 1e-12).all()) and bool((ranks <= 6 + 1e-12).all())
    squashed = ((x - x.mean(-1, keepdim=True)) / x.std(-1, correction=0, keepdim=True)).sigmoid()
    for k in (1, 4, 6):
        A = sinkhorn_rank_topk(x, k, 0.2, iterations=2000)
        torch.testing.assert_close(A, soft_topk(squashed, k, 0.1), rtol=0, atol=1e-9)
        merged = sinkhorn_sort(x, k, 0.2, iterations=2000, merged=True)
        torch.testing.assert_close(merged.sum(-2), torch.ones(3, k).double(), rtol=0, atol=1e-12)
        assert float(merged.sum(-1).max()) <= 1 + 1e-9
        if k == 6:
            torch.testing.assert_close(merged, sinkhorn_sort(x, 6, 0.2, iterations=2000), rtol=0, atol=0)
    for operator in (sinkhorn_ranks, lambda x, T, **_: sinkhorn_rank_topk(x, 2, T, iterations=0)):
        with pytest.raises(ValueError, match="iterations must be >= 1"):
            operator(x, 0.2, iterations=0)


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


def test_sparse_topk_against_the_printed_numbers_of_its_code():
    # README of the released code: the gradient of a function of ten scores, and the tie in a mask; in float32.
    x = [-1.68362939, 0.61769098, 0.09659418, -1.55870473, -0.76370925]
    x += [-0.77612925, -0.09819217, 0.59106708, 1.01902366, -0.16765739]
    wanted = [0, 0.09063217, 0.2323066, 0, 0.12527105, 0.05957882, -0.13923873, 0.05559958, 0, -0.09306791]
    scores = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    (sparse_topk(scores, 4, 0.5) + sparse_topk(scores.square(), 4, 0.5)).square().mean().backward()
    torch.testing.assert_close(scores.grad, _double(wanted), rtol=0, atol=2e-7)
    mask = sparse_topk(torch.tensor([0.0, 0.0, -5.0, 5.0]), 2, 1e-2)
    torch.testing.assert_close(mask, torch.tensor([0.5, 0.5, 0, 1]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("p", [1.2, 4 / 3, 2.0])
def test_sparse_topk_by_isotonic_regression(p):
    # The paper's way: y = ((s - v) / T)^(q - 1) of the sorted s, with the decreasing v that minimises
    # |s - v|_q^q / (q T^(q - 1)) + sum_{i <= k} v_i, by v_i = min over a <= i of the max over b >= i of the best level
    # of s_a..s_b.
    s, k, T = [1.4, 1.1, 1.0, 0.6, 0.1, -0.9], 3, 0.8
    power = 1 / (p - 1)

    def level(a: int, b: int) -> float:
        low, high = s[b] - T, s[a]
        for _ in range(100):
            v = (low + high) / 2
            slope = sum(math.copysign(abs(v - s[i]) ** power, v - s[i]) + T**power * (i < k) for i in range(a, b + 1))
            low, high = (low, v) if slope > 0 else (v, high)
        return low

    n = len(s)
    v = [min(max(level(a, b) for b in range(i, n)) for a in range(i + 1)) for i in range(n)]
    wanted = [(max(0.0, a - b) / T) ** power for a, b in zip(s, v, strict=True)]
    order = [4, 0, 5, 2, 1, 3]
    A = sparse_topk(_double(s)[order], k, T, p=p)
    torch.testing.assert_close(A, _double(wanted)[order], rtol=0, atol=1e-6)


def test_perturbed_topk_by_its_formula():
    x, k, T, samples = [0.4, -0.1, 0.3, 0.9], 2, 0.7, 6
    g = [0.5, -1.0, 2.0, 0.3]
    Z = torch.randn((samples, 4), dtype=torch.float64, generator=torch.Generator().manual_seed(2)).tolist()
    values, to_x = [0.0] * 4, [0.0] * 4
    for z in Z:
        noisy = [a + T * b for a, b in zip(x, z, strict=True)]
        chosen = sorted(range(4), key=lambda i: -noisy[i])[:k]
        for i in chosen:
            values[i] += 1 / samples
        for j in range(4):
            to_x[j] += sum(g[i] for i in chosen) * z[j] / T / samples
    scores = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    A = perturbed_topk(scores, k, T, samples=samples, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(A.detach(), _double(values))
    (got,) = torch.autograd.grad(A, scores, _double(g))
    torch.testing.assert_close(got, _double(to_x))


def test_perturbed_topk_of_three_candidates_by_quadrature():
    # Two of three: 1 - P(the last), and P(i last) = E of the product of 1 - Phi((x_i - x_j) / T + z).
    def weights(x: list[float], T: float) -> list[float]:
        def last(i: int) -> float:
            total = 0.0
            for step in range(-800, 801):
                z = step / 100
                term = math.exp(-z * z / 2) / math.sqrt(2 * math.pi) / 100
                for j in range(3):
                    if j != i:
                        term *= 0.5 * math.erfc(((x[i] - x[j]) / T + z) / math.sqrt(2))
                total += term
            return total

        return [1 - last(i) for i in range(3)]

    x, T, h = [0.4, -0.1, 0.2], 0.5, 1e-3
    scores = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    A = perturbed_topk(scores, 2, T, samples=400_000, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(A.detach(), _double(weights(x, T)), rtol=0, atol=3e-3)
    (got,) = torch.autograd.grad(A[0], scores)
    wanted = [
        (weights([*x[:j], x[j] + h, *x[j + 1 :]], T)[0] - weights([*x[:j], x[j] - h, *x[j + 1 :]], T)[0]) / (2 * h)
        for j in range(3)
    ]
    torch.testing.assert_close(got, _double(wanted), rtol=0, atol=1e-2)


def test_perturbed_topk_of_two_candidates_is_a_normal_distribution():
    # P(x_1 + T Z_1 > x_2 + T Z_2) = Phi((x_1 - x_2) / (T sqrt 2)), and its derivative the density.
    x = torch.tensor([0.4, -0.1], dtype=torch.float64, requires_grad=True)
    A = perturbed_topk(x, 1, 0.7, samples=400_000, generator=torch.Generator().manual_seed(0))
    s = 0.5 / (0.7 * math.sqrt(2))
    assert float(A[0].detach()) == pytest.approx(0.5 * (1 + math.erf(s / math.sqrt(2))), abs=3e-3)
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


def test_straight_through_of_two_candidates():
    # soft_topk of two at k = 1 is the logistic function of (x_1 - x_2) / (2 T).
    x = torch.tensor([0.4, -0.1], dtype=torch.float64, requires_grad=True)
    A = straight_through(x, 1, 0.3)
    assert A.tolist() == [1.0, 0.0]
    (to_x,) = torch.autograd.grad(A[0], x)
    a = 1 / (1 + math.exp(-0.5 / 0.6))
    torch.testing.assert_close(to_x, _double([1.0, -1]) * a * (1 - a) / 0.6)


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("T", [0.2, 1.5])
def test_lap_sum_by_its_formula(k, T):
    # With the paper's sign: alpha = -T, p_i = Lap((b - x_i) / alpha), and dp_i/dx_j = p'_i (d_ij - p'_j / sum p').
    x = [0.3, 1.5, -0.7, 0.9, 0.2]

    def lap(s: float) -> float:
        return math.exp(s) / 2 if s <= 0 else 1 - math.exp(-s) / 2

    low, high = min(x) - 20 * T, max(x) + 20 * T
    for _ in range(200):
        b = (low + high) / 2
        low, high = (b, high) if sum(lap((b - a) / -T) for a in x) > k else (low, b)
    scores = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    A = lap_sum(scores, k, T)
    torch.testing.assert_close(A.detach(), _double([lap((b - a) / -T) for a in x]))
    density = [math.exp(-abs(a - b) / T) / (2 * T) for a in x]
    for i in range(5):
        (row,) = torch.autograd.grad(A[i], scores, retain_graph=True)
        wanted = [density[i] * ((i == j) - density[j] / sum(density)) for j in range(5)]
        torch.testing.assert_close(row, _double(wanted), rtol=1e-6, atol=1e-9)


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
