"""The screened solution against the one on all candidates, and the rows whose bound fails."""

import pytest
import torch

from nmt.topk import (
    plain,
    ranked_rest,
    rest,
    screening,
    soft_topk,
    sorted_soft_topk,
    sparse_soft_topk,
    sparse_sorted_soft_topk,
)

OPERATORS = [soft_topk, sorted_soft_topk]


def _log_probabilities(rows: int, n: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(n)
    return (3 * torch.randn(rows, n, generator=generator, dtype=torch.float64)).log_softmax(-1).to(dtype)


def _run(operator, x, k, T, g):
    x = x.clone().requires_grad_()
    T = torch.as_tensor(T, dtype=torch.float64).clone().requires_grad_()
    A = operator(x, k, T)
    return (A.detach(), *torch.autograd.grad(A, (x, T), g))


def _both(monkeypatch, operator, x, k, T):
    """On the screen and on all candidates, and how many rows took passes over their rest."""
    shape = x.shape if operator is soft_topk else (*x.shape, k)
    g = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(x.dtype)
    exact = [0]
    with monkeypatch.context() as patch:
        original, ranked = rest.masses, ranked_rest.powers_of

        def masses(e, U):
            exact[0] = max(exact[0], len(e))
            return original(e, U)

        def powers_of(e, k):
            exact[0] = max(exact[0], len(e))
            return ranked(e, k)

        patch.setattr(plain, "masses", masses)
        patch.setattr(ranked_rest, "powers_of", powers_of)
        screened = _run(operator, x, k, T, g)
    with monkeypatch.context() as patch:
        patch.setattr(screening, "_ALL", 10**9)
        return screened, _run(operator, x, k, T, g), exact[0]


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-7)])
@pytest.mark.parametrize("n, k, T", [(1000, 5, 0.1), (5000, 5, 0.25), (5000, 1, 0.25), (160_000, 5, 0.25)])
def test_screened_equals_unscreened(monkeypatch, operator, dtype, tolerance, n, k, T):
    x = _log_probabilities(1 if n > 5000 else 3, n, dtype)
    screened, full, exact = _both(monkeypatch, operator, x, k, T)
    if dtype == torch.float32 and T == 0.1:
        assert exact == 0
    for a, b in zip(screened, full, strict=True):
        torch.testing.assert_close(a, b, rtol=20 * tolerance, atol=tolerance)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("n", [1000, 20_000, 20_011])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_only_soft_rows_take_passes_over_their_rest(monkeypatch, operator, n, dtype, tolerance):
    x = _log_probabilities(4, n, dtype)
    T = torch.tensor([0.01, 0.3, 0.05, 100.0], dtype=torch.float64)
    screened, full, exact = _both(monkeypatch, operator, x, 3, T)
    assert exact in (1, 2)
    for a, b in zip(screened, full, strict=True):
        torch.testing.assert_close(a, b, rtol=100 * tolerance, atol=tolerance)
    for i in range(4):
        assert torch.equal(operator(x[i], 3, T[i]), screened[0][i])


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("k, T", [(1, 0.5), (3, 2.0), (7, 1e3), (40, 0.1), (40, 5.0)])
def test_the_rest_in_all_slots(monkeypatch, operator, k, T):
    x = torch.randn(3, 400, generator=torch.Generator().manual_seed(k), dtype=torch.float64)
    x[0, ::3], x[1] = -torch.inf, 0.25
    screened, full, exact = _both(monkeypatch, operator, x, k, T)
    assert exact > 0
    # What a screen may miss in float64 is 1e-13 k.
    for a, b in zip(screened, full, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12 + 1e-13 * k)


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("dense, sparse", [(soft_topk, sparse_soft_topk), (sorted_soft_topk, sparse_sorted_soft_topk)])
@pytest.mark.parametrize("n", [20_000, 20_011])
@pytest.mark.parametrize("T", [0.05, 0.3, 3.0])
def test_blocks_that_are_left_out_weigh_nothing(dense, sparse, n, T):
    # The last candidates, outside of all whole blocks, are among the best.
    x = _log_probabilities(3, n)
    x[0, -3:] = x[0].max() + 0.1
    x.requires_grad_()
    whole, part = dense(x, 4, T), sparse(x, 4, T)
    assert bool((part.indices.diff(dim=-1) != 0).all())
    torch.testing.assert_close(x.gather(1, part.indices), x.topk(32).values, rtol=0, atol=0)
    index = part.indices if dense is soft_topk else part.indices.unsqueeze(-1).expand_as(part.weights)
    torch.testing.assert_close(part.weights, whole.gather(1, index), rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(part.tail_mass, whole.scatter(1, index, 0.0).sum(1), rtol=1e-9, atol=1e-12)
    g = torch.randn(part.weights.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    g_tail = torch.randn(part.tail_mass.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    (of_sparse,) = torch.autograd.grad((part.weights, part.tail_mass), x, (g, g_tail))
    (of_dense,) = torch.autograd.grad(whole, x, g_tail.unsqueeze(1).expand_as(whole).scatter(1, index, g))
    torch.testing.assert_close(of_sparse * T, of_dense * T, rtol=1e-8, atol=1e-12)


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("operator", OPERATORS)
def test_the_tail_has_its_weights_and_gradients(operator):
    # One candidate far below, outside the screen: it weighs exp((x - tau) / T), and moves with it.
    x = torch.cat((torch.linspace(0, -1, 31), torch.linspace(-5, -6, 200))).double().requires_grad_()
    A = operator(x, 2, 0.3).view(231, -1)
    tail = A[31:, -1]
    assert float(tail.detach().min()) > 0
    (to_x,) = torch.autograd.grad(tail.sum(), x)
    expected = tail * (1 - tail.sum()) / 0.3
    assert bool((to_x[31:] > 0).all())
    torch.testing.assert_close(to_x[31:], expected, rtol=0.05, atol=0)


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_solved_in_more(operator, dtype):
    x = _log_probabilities(3, 2000).to(dtype)
    for n in (40, 2000):
        wide = operator(x[:, :n].double(), 5, 0.5)
        narrow = operator(x[:, :n], 5, 0.5)
        assert narrow.dtype == dtype
        torch.testing.assert_close(narrow, wide.to(dtype), rtol=2e-2, atol=1e-6)
        # What is left of the sum is the rounding of the result, not of the solution.
        assert abs(float((narrow.double() - wide).sum())) < 0.02


def test_gradients_have_the_dtype_of_their_argument():
    x = _log_probabilities(2, 50).bfloat16().requires_grad_()
    T = torch.tensor(0.5, dtype=torch.float32, requires_grad=True)
    sorted_soft_topk(x, 3, T)[..., 0].square().sum().backward()
    assert x.grad.dtype == torch.bfloat16 and T.grad.dtype == torch.float32
    assert float(x.grad.abs().max()) > 0 and float(T.grad) != 0


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("kind", ["normal", "ties", "close", "huge", "masks", "offset"])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 2e-5)])
def test_odd_rows_with_a_rest(monkeypatch, operator, kind, dtype, tolerance):
    generator = torch.Generator().manual_seed(len(kind))
    for case in range(30):
        k, n = (1, 2, 3, 5, 12)[case % 5], (130, 200, 333)[case % 3]
        scale, T = 10 ** (torch.rand(2, generator=generator, dtype=torch.float64) * 11 - 8)
        x = torch.randn(3, n, generator=generator, dtype=torch.float64) * scale * 1e4
        if kind == "ties":
            x = (x / scale / 1e4).round()
        elif kind == "close":
            x = x / scale / 1e4 * T
        elif kind == "huge":
            x[0, case], x[1, ::2] = 1e30, -1e30
        elif kind == "masks":
            x[0, k - 1 :], x[1, k + 1 :] = -torch.inf, -torch.inf
        elif kind == "offset":
            x = x + 1e6
        screened, full, _ = _both(monkeypatch, operator, x.to(dtype), k, T)
        for a, b, unit in zip(screened, full, (1, T, T), strict=True):
            assert float((a - b).abs().max() * unit) < tolerance * (1 if unit == 1 else 300)
