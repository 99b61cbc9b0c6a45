"""The screened solution against the one on all candidates, and the rows whose bound fails."""

import pytest
import torch

from nmt.topk import screening, soft_topk, sorted_soft_topk

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
    shape = x.shape if operator is soft_topk else (*x.shape, k)
    g = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(x.dtype)
    widths = []
    original = screening._best

    def spy(scores, rows, count, *rest):
        widths.append((count, len(scores) if rows is None else len(rows)))
        return original(scores, rows, count, *rest)

    monkeypatch.setattr(screening, "_best", spy)
    screened = _run(operator, x, k, T, g)
    taken = list(widths)
    monkeypatch.setattr(screening, "_ALL", 10**9)
    return screened, _run(operator, x, k, T, g), taken


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-7)])
@pytest.mark.parametrize("n, k, T", [(1000, 5, 0.1), (5000, 5, 0.25), (5000, 1, 0.25), (160_000, 5, 0.25)])
def test_screened_equals_unscreened(monkeypatch, operator, dtype, tolerance, n, k, T):
    x = _log_probabilities(1 if n > 5000 else 3, n, dtype)
    screened, full, widths = _both(monkeypatch, operator, x, k, T)
    assert widths[0][0] == max(32, 8 * k)
    if dtype == torch.float32:
        assert widths[-1][0] < n
    for a, b in zip(screened, full, strict=True):
        torch.testing.assert_close(a, b, rtol=20 * tolerance, atol=tolerance)


@pytest.mark.parametrize("operator", OPERATORS)
def test_every_row_takes_the_width_it_needs(monkeypatch, operator):
    x = _log_probabilities(4, 20_000)
    T = torch.tensor([0.01, 0.3, 0.05, 100.0], dtype=torch.float64)
    screened, full, widths = _both(monkeypatch, operator, x, 3, T)
    # All rows, one row again in a wider screen, and the nearly uniform one at once in full.
    assert widths[0] == (32, 4) and widths[1] == (512, 1) and widths[-1][0] == 20_000
    for a, b in zip(screened, full, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    for i in range(4):
        alone = operator(x[i], 3, T[i])
        torch.testing.assert_close(screened[0][i], alone, rtol=0, atol=1e-13)


def test_a_pass_over_all_candidates_is_split(monkeypatch):
    x = _log_probabilities(5, 300)
    whole = sorted_soft_topk(x, 2, 10.0)
    monkeypatch.setattr(screening, "_PASS", 2 * 3 * 300)
    torch.testing.assert_close(sorted_soft_topk(x, 2, 10.0), whole, rtol=0, atol=1e-14)


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
