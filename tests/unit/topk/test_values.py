"""Values of the operators, against Sinkhorn iterations, against the conditions of optimality and in their
limits.
"""

import math

import pytest
import torch

from nmt.topk import hard_topk, sinkhorn_topk, soft_topk, sorted_sinkhorn_topk, sorted_soft_topk

pytestmark = pytest.mark.usefixtures("each_way")
INF = math.inf
PAIRS = [(soft_topk, sinkhorn_topk), (sorted_soft_topk, sorted_sinkhorn_topk)]


def _scores(kind: str, n: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(4, n, generator=generator, dtype=torch.float64)
    if kind == "ties":
        return x.round()
    if kind == "equal":
        return torch.full_like(x, 0.7)
    if kind == "offset":
        return x + torch.tensor([1e6, -1e6, 1e3, 0.0], dtype=torch.float64).unsqueeze(1)
    if kind == "mask":
        x[0, 0] = x[1, -1] = x[2, n // 2] = -INF
    if kind == "log_probabilities":
        return (2.5 * x).log_softmax(-1)
    return x


@pytest.mark.parametrize("operator, sinkhorn", PAIRS)
@pytest.mark.parametrize("kind", ["normal", "ties", "equal", "offset", "mask", "log_probabilities"])
@pytest.mark.parametrize("n, k", [(2, 1), (3, 2), (5, 5), (8, 3), (16, 4), (40, 7)])
@pytest.mark.parametrize("T", [100.0, 3.0, 0.6])
def test_equals_converged_sinkhorn(operator, sinkhorn, kind, n, k, T):
    x = _scores(kind, n)
    reference = sinkhorn(x, k, T, iterations=20_000, tolerance=1e-12)
    torch.testing.assert_close(operator(x, k, T), reference, rtol=0, atol=1e-10)


def _certificate(x: torch.Tensor, A: torch.Tensor, T: float) -> tuple[float, float]:
    """Largest error of the marginals, and of log p_il + log p_jm - log p_im - log p_jl, which a Gibbs plan
    with the cost
    (x - y)^2 has equal to (x_i - x_j) (y_l - y_m) / T. The plan with both is unique."""
    k = A.shape[1]
    p = torch.cat((A, 1 - A.sum(1, keepdim=True)), 1)
    y = torch.arange(k, -1, -1, dtype=A.dtype)
    marginals = max(float((A.sum(0) - 1).abs().max()), float((A.sum(1) - 1).max()))
    logs = (p / p[:1]).log()
    logs = logs - logs[:, :1]
    wanted = (x - x[0]).unsqueeze(1) * (y - y[0]) / T
    readable = (p > 1e-6) & (p[:1] > 1e-6) & (p[:, :1] > 1e-6) & (p[0, 0] > 1e-6)
    assert readable.sum() > 3
    return marginals, float((logs - wanted)[readable].abs().max())


@pytest.mark.parametrize("T", [100.0, 1.0, 0.1, 1e-3, 1e-6, 1e-9])
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_is_the_optimal_plan_at_any_temperature(T, offset):
    # Scores close enough in units of T that the plan is soft, and two groups far apart.
    steps = torch.tensor([0.0, -0.5, -0.5, -1.7, -2.0, -3.1], dtype=torch.float64) * T
    x = (offset + torch.cat((steps, steps[:3] - 1e4 * T))).to(torch.float64)
    A = sorted_soft_topk(x, 4, T)
    marginals, gibbs = _certificate(x[:6], A[:6], T)
    assert marginals < 1e-12
    assert gibbs < 1e-8


@pytest.mark.parametrize("T", [100.0, 0.3, 1e-3, 1e-9])
def test_plain_is_a_sigmoid_of_one_threshold(T):
    x = torch.linspace(2, -2, 9, dtype=torch.float64) * T
    A = soft_topk(x, 4, T)
    tau = x - T * A.logit()
    assert abs(float(A.sum()) - 4) < 1e-13
    torch.testing.assert_close(tau, tau[:1].expand_as(tau), rtol=1e-10, atol=0)


def test_one_slot_is_the_same_operator():
    # With k = 1 both have the anchors 0 and 1.
    x = _scores("normal", 12)
    torch.testing.assert_close(sorted_soft_topk(x, 1, 0.4).squeeze(-1), soft_topk(x, 1, 0.4), rtol=0, atol=1e-14)


def test_more_slots_are_not_the_plain_operator():
    x = _scores("normal", 12)
    difference = (sorted_soft_topk(x, 3, 0.6).sum(-1) - soft_topk(x, 3, 0.6)).abs().max()
    assert 1e-2 < float(difference) < 0.5


def test_golden_case_of_the_released_demo():
    # k = 3 smallest, eps = .05 against C / max C, where max C = 6^2.
    scores = torch.tensor([5, 2, 3, 4, 1, 6], dtype=torch.float64)
    golden = torch.tensor([0.158869, 0.841131, 0.635424, 0.364576, 0.941463, 0.058537], dtype=torch.float64)
    for operator in (soft_topk, sinkhorn_topk):
        result = operator(scores, 3, 0.05 * 36 / 2, largest=False)
        torch.testing.assert_close(result, golden, rtol=0, atol=5e-7)


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("n, k", [(5, 2), (16, 4), (16, 16), (200, 5)])
def test_cold_limit_is_the_hard_selection(n, k, largest):
    x = torch.randn(8, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    hard = hard_topk(x, k, largest=largest)
    assert torch.equal(sorted_soft_topk(x, k, 1e-9, largest=largest), hard)
    assert torch.equal(soft_topk(x, k, 1e-9, largest=largest), hard.sum(-1))


def test_hard_topk_by_hand():
    x = torch.tensor([1.0, 3.0, -INF, 3.0])
    expected = torch.tensor([[0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]]).float()
    assert torch.equal(hard_topk(x, 4), expected)
    assert torch.equal(hard_topk(-x, 4, largest=False), expected)


@pytest.mark.parametrize("T", [100.0, 0.25, 1e-9])
def test_ties_get_equal_weights(T):
    x = torch.tensor([[2.0, 1.0, 1.0, 1.0, 0.0], [3.0] * 5], dtype=torch.float64)
    A, S = soft_topk(x, 2, T), sorted_soft_topk(x, 2, T)
    for tied in (A[0, 1:4], S[0, 1:4], A[1], S[1]):
        torch.testing.assert_close(tied, tied[:1].expand_as(tied), rtol=1e-13, atol=0)
    torch.testing.assert_close(A[1], torch.full((5,), 0.4, dtype=torch.float64), rtol=0, atol=1e-14)
    if T < 1e-6:
        torch.testing.assert_close(A[0], torch.tensor([3.0, 1, 1, 1, 0]).double() / 3, rtol=0, atol=1e-12)
        wanted = torch.tensor([0, 1 / 3, 1 / 3, 1 / 3, 0], dtype=torch.float64)
        torch.testing.assert_close(S[0, :, 1], wanted, rtol=0, atol=1e-12)


def test_masked_candidates_weigh_nothing():
    x = torch.tensor([[0.3, -INF, 0.1, 0.2, -INF, -0.5]], dtype=torch.float64)
    kept = x[:, [0, 2, 3, 5]]
    for operator, k in ((soft_topk, 2), (sorted_soft_topk, 3)):
        A = operator(x, k, 0.3)
        assert bool((A[:, [1, 4]] == 0).all())
        torch.testing.assert_close(A[:, [0, 2, 3, 5]], operator(kept, k, 0.3), rtol=0, atol=1e-14)
        torch.testing.assert_close(operator(-x, k, 0.3, largest=False), A, rtol=0, atol=0)


@pytest.mark.parametrize("n", [6, 300])
@pytest.mark.parametrize("finite", [0, 1, 2, 3])
@pytest.mark.parametrize("T", [50.0, 0.3, 1e-6])
def test_too_few_candidates_fill_the_first_slots(n, finite, T):
    x = torch.full((2, n), -INF, dtype=torch.float64)
    x[0, 1 : 1 + finite] = torch.tensor([0.2, 0.5, 0.1], dtype=torch.float64)[:finite]
    x[1] = torch.linspace(0, 1, n, dtype=torch.float64)
    plain, ranked = soft_topk(x, 4, T), sorted_soft_topk(x, 4, T)
    wanted = torch.zeros(n, dtype=torch.float64)
    wanted[1 : 1 + finite] = 1
    assert torch.equal(plain[0], wanted)
    slots = torch.tensor([float(m < finite) for m in range(4)], dtype=torch.float64)
    torch.testing.assert_close(ranked[0].sum(0), slots, rtol=0, atol=1e-12)
    torch.testing.assert_close(ranked[0].sum(1), wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(ranked[1].sum(0), torch.ones(4, dtype=torch.float64), rtol=0, atol=1e-9)
    if finite > 1:
        alone = sorted_sinkhorn_topk(x[0, 1 : 1 + finite], finite, max(T, 0.3), iterations=5000)
        again = sorted_soft_topk(x, 4, max(T, 0.3))[0, 1 : 1 + finite, :finite]
        torch.testing.assert_close(again, alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("T", [100.0, 0.3, 1e-9])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_huge_scores(T, dtype):
    x = torch.tensor([1e30, -1e30, 0.1, 0.2, 0.0, 1e30, -1e30], dtype=dtype)
    A = soft_topk(x, 3, T)
    S = sorted_soft_topk(x, 3, T)
    assert torch.equal(A[[0, 5]], torch.ones(2, dtype=dtype))
    assert torch.equal(A[[1, 6]], torch.zeros(2, dtype=dtype))
    torch.testing.assert_close(A[2:5], soft_topk(x[2:5], 1, T))
    torch.testing.assert_close(S[[0, 5], :2], torch.full((2, 2), 0.5, dtype=dtype))
    torch.testing.assert_close(S[2:5, 2], soft_topk(x[2:5], 1, T))
    largest = torch.finfo(dtype).max
    assert bool(sorted_soft_topk(torch.tensor([largest, -largest, 0.0], dtype=dtype), 2, T).isfinite().all())


def test_tight_bound_of_the_misplaced_mass():
    # Theorem 2: M <= sqrt(k (n - k)) exp(-gap / (2 T)), reached by two levels.
    generator = torch.Generator().manual_seed(5)
    closest = 0.0
    for n, k in ((2, 1), (6, 2), (9, 5), (30, 4)):
        scale = 10 ** torch.empty(500, 1, dtype=torch.float64).uniform_(-2, 1, generator=generator)
        x = torch.randn(500, n, generator=generator, dtype=torch.float64) * scale
        x[0] = (torch.arange(n) < k).double() * 30
        best = x.topk(k + 1).values
        misplaced = soft_topk(x, k, 1.0).masked_fill(x >= best[:, k - 1 : k], 0).sum(-1)
        bound = math.sqrt(k * (n - k)) * (-(best[:, k - 1] - best[:, k]) / 2).exp()
        assert bool((misplaced <= bound * (1 + 1e-9)).all())
        closest = max(closest, float((misplaced / bound).max()))
    assert closest > 0.999


def test_one_k_and_one_temperature_a_row():
    x = torch.randn(2, 3, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    T = torch.tensor([[0.1, 1, 10], [0.5, 2, 0.01]], dtype=torch.float64)
    k = torch.tensor([[1, 2, 8.5], [0.25, 9, 4]], dtype=torch.float64)
    A, S = soft_topk(x, k, T), sorted_soft_topk(x, 3, T)
    torch.testing.assert_close(A.sum(-1), k, rtol=0, atol=1e-12)
    for i in range(2):
        for j in range(3):
            assert torch.equal(A[i, j], soft_topk(x[i, j], k[i, j], float(T[i, j])))
            assert torch.equal(S[i, j], sorted_soft_topk(x[i, j], 3, float(T[i, j])))
    assert torch.equal(soft_topk(x, torch.tensor(3), T), soft_topk(x, 3, T))


@pytest.mark.parametrize("operator", [soft_topk, sorted_soft_topk])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("n", [9, 16, 500])
def test_a_row_is_bitwise_the_same_in_any_batch(operator, dtype, n):
    # Rows that take from one to many iterations.
    generator = torch.Generator().manual_seed(n)
    scale = 10 ** torch.empty(40, 1).uniform_(-2, 2, generator=generator)
    x = (torch.randn(40, n, generator=generator) * scale).to(dtype)
    T = torch.full((40,), 0.3)
    A = operator(x, 4, T)
    for i in range(40):
        assert torch.equal(operator(x[i], 4, T[i]), A[i])
        assert torch.equal(operator(x[i : i + 3], 4, T[i : i + 3]), A[i : i + 3])
