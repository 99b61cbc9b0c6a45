"""The compiled kernels against PyTorch's operations; when they are used; their exponentials and their selection."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from nmt.topk import (
    fast,
    soft_topk,
    sorted_soft_topk,
    sparse_soft_topk,
    sparse_sorted_soft_topk,
    use_kernels,
)
from tests import ROOT

INF = math.inf
OPERATORS = [soft_topk, sorted_soft_topk, sparse_soft_topk, sparse_sorted_soft_topk]


@pytest.fixture
def numba():
    return pytest.importorskip("numba")


def _parts(operator, x, k, T, **options):
    """The differentiable parts of the result, and their gradients by all that has one."""
    x = x.clone().requires_grad_()
    inputs = [x]
    for value in (k, T):
        if isinstance(value, torch.Tensor):
            inputs.append(value.requires_grad_())
    result = operator(x, k, T, **options)
    parts = [result] if isinstance(result, torch.Tensor) else [result.weights, result.tail_mass]
    generator = torch.Generator().manual_seed(1)
    g = [torch.randn(part.shape, generator=generator, dtype=torch.float64).to(x.dtype) for part in parts]
    if not isinstance(result, torch.Tensor):
        # The same for equal scores: which of them are among the best is free.
        of_score = (3 * x.detach().gather(-1, result.indices).clamp(min=-50)).cos()
        g[0] = of_score if parts[0].dim() == 2 else of_score.unsqueeze(2) * torch.arange(1, k + 1)
    return [part.detach() for part in parts], torch.autograd.grad(parts, inputs, g)


def _rows(n: int, dtype: torch.dtype) -> torch.Tensor:
    """Hard and soft rows, ties, masks, and rows with fewer candidates than slots."""
    x = torch.randn(8, n, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    x[1] *= 30
    x[2] = x[2].round()
    x[3] = 0.7
    x[4, ::3] = -INF
    x[5, 2:] = -INF
    x[6] = -INF
    x[7] += 1e4
    return x.to(dtype)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-11), (torch.float32, 3e-6)])
@pytest.mark.parametrize("n, k", [(4, 4), (40, 3), (257, 1), (1000, 5), (20_011, 5)])
@pytest.mark.parametrize("T", [0.02, 0.3, 20.0])
def test_the_kernels_equal_the_operations_of_pytorch(numba, operator, dtype, tolerance, n, k, T):
    x, t = _rows(n, dtype), torch.full((8,), T, dtype=torch.float64)
    if operator in (sparse_soft_topk, sparse_sorted_soft_topk):
        # No ties at the border of the screen: outside of it the cotangent is another.
        x[2:4] += torch.linspace(0, 3.1, n, dtype=torch.float64).to(dtype)
        x[7] -= 1e4 - 16
    with use_kernels(False):
        wanted, of_wanted = _parts(operator, x, k, t)
    with use_kernels():
        found, of_found = _parts(operator, x, k, t)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance)
    for a, b, unit in zip(of_found, of_wanted, (T, T), strict=True):
        # In units of T, in which no gradient is large; half the rounding of a score of 1e4 in float32 is 5e-4.
        torch.testing.assert_close(a * unit, b * unit, rtol=100 * tolerance, atol=100 * tolerance)


@pytest.mark.parametrize("sparse", [False, True])
def test_k_and_temperature_of_a_row(numba, sparse):
    x = torch.randn(4, 300, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    k = torch.tensor([0.3, 2.5, 4.0, 7.9], dtype=torch.float64)
    T = torch.tensor([0.02, 0.1, 0.5, 30.0], dtype=torch.float64)
    operator, options = (sparse_soft_topk, {"width": 40}) if sparse else (soft_topk, {})
    for largest in (True, False):
        with use_kernels(False):
            wanted = _parts(operator, x, k, T, largest=largest, **options)
        with use_kernels():
            found = _parts(operator, x, k, T, largest=largest, **options)
        for some, others in zip(found, wanted, strict=True):
            for a, b in zip(some, others, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("n", [50, 1003, 20_011])
def test_a_row_alone_is_the_row_in_a_batch_to_the_last_bit(numba, operator, n):
    x = _rows(n, torch.float32)
    with use_kernels():
        parts, (of_batch,) = _parts(operator, x, 3, 0.2)
        for i in range(len(x)):
            y = x[i].clone().requires_grad_()
            result = operator(y, 3, 0.2)
            alone = [result] if isinstance(result, torch.Tensor) else [result.weights, result.tail_mass]
            for a, b in zip(alone, parts, strict=True):
                assert torch.equal(a, b[i])
            generator = torch.Generator().manual_seed(1)
            g = [torch.randn(part.shape, generator=generator, dtype=torch.float64).float()[i] for part in parts]
            if len(g) == 2:
                of_score = (3 * x[i].gather(-1, result.indices).clamp(min=-50)).cos()
                g[0] = of_score if g[0].dim() == 1 else of_score.unsqueeze(1) * torch.arange(1, 4)
            assert torch.equal(torch.autograd.grad(alone, y, g)[0], of_batch[i])


@pytest.mark.parametrize("operator", OPERATORS)
def test_when_they_are_used(numba, operator, monkeypatch):
    calls = []
    original = fast._module
    monkeypatch.setattr(fast, "_module", lambda *name: calls.append(name) or original(*name))
    x = torch.randn(2, 300, requires_grad=True)

    def used(x, k=3) -> int:
        calls.clear()
        result = operator(x, k, 0.2)
        result = result if isinstance(result, torch.Tensor) else result.weights
        result.sum().backward()
        return len(calls)

    assert used(x) == 0
    with use_kernels():
        assert used(x) == 2
        assert used(x.bfloat16()) == 0 and used(torch.randn(2, 5000, requires_grad=True), 100) == 0
        with use_kernels(False):
            assert used(x) == 0
        assert used(x) == 2
        with FlopCounterMode(display=False):
            assert used(x) == 0, "a mode sees the operations"
        # A graph of the backward is PyTorch's.
        calls.clear()
        loss = operator(x, 3, 0.2)
        loss = (loss if isinstance(loss, torch.Tensor) else loss.weights).square().sum()
        torch.autograd.grad(loss, x, create_graph=True)
        assert len(calls) == 1
    assert used(x) == 0


@pytest.mark.parametrize("operator", OPERATORS)
def test_rows_are_split_among_threads(numba, operator, monkeypatch):
    x, T = _rows(300, torch.float64), torch.linspace(0.1, 2, 8, dtype=torch.float64)
    with use_kernels():
        wanted = _parts(operator, x, 3, T)
        monkeypatch.setattr(fast, "_PER_THREAD", 1)
        pools = []
        pool = fast.ThreadPoolExecutor
        monkeypatch.setattr(fast, "ThreadPoolExecutor", lambda threads: pools.append(threads) or pool(threads))
        torch.set_num_threads(3)
        found = _parts(operator, x, 3, T)
        assert pools == [3, 3]
        for a, b in zip(found[0] + list(found[1]), wanted[0] + list(wanted[1]), strict=True):
            assert torch.equal(a, b)
        x[6, 7] = math.nan
        with pytest.raises(ValueError, match="scores hold NaN in row 6"):
            operator(x, 3, T)


def test_without_numba(monkeypatch):
    monkeypatch.setattr(fast, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"need numba, or triton for a GPU: pip install numba"):
        use_kernels()
    monkeypatch.setattr(use_kernels, "_on", True)
    fast._is_there.cache_clear()
    try:
        with pytest.warns(UserWarning, match="NMT_TOPK_KERNELS.*, but numba is not installed, or too old"):
            assert float(soft_topk(torch.zeros(4), 2, 1.0).sum()) == pytest.approx(2)
    finally:
        fast._is_there.cache_clear()


def test_another_process_reads_the_code_from_disk(numba):
    """Turned on by the environment; numba is imported by the first call, not with the operators."""
    with use_kernels():
        soft_topk(torch.zeros(2, 300), 2, 0.5)
    code = (
        "import sys, torch, nmt.topk\n"
        "print('numba' in sys.modules)\n"
        "print(float(nmt.topk.soft_topk(torch.zeros(2, 300), 2, 0.5).sum()))\n"
        "from nmt.topk.kernels import plain\n"
        "print(sum(plain.forward.stats.cache_hits.values()), sum(plain.forward.stats.cache_misses.values()))\n"
    )
    environment = {**os.environ, "NMT_TOPK_KERNELS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, env=environment
    )
    first, total, hits = done.stdout.splitlines()
    assert (first, hits) == ("False", "1 0") and float(total) == pytest.approx(4, abs=1e-6)


@pytest.mark.parametrize("dtype, least", [(np.float32, -86.9), (np.float64, -707.0)])
def test_exponentials(numba, dtype, least):
    from nmt.topk.kernels.numeric import CONTRACT, exp

    @numba.njit(fastmath=CONTRACT)
    def fill(x, out):
        for i in range(len(x)):
            out[i] = exp(x[i])

    x = np.concatenate((np.linspace(least, 20, 100_003), np.linspace(-1, 1, 10_001))).astype(dtype)
    out = np.empty_like(x)
    fill(x, out)
    wanted = np.exp(x.astype(np.longdouble))
    assert float(np.abs((out - wanted) / wanted).max()) < np.finfo(dtype).eps
    odd = np.array([-INF, -1e30, 0.0, -0.0], dtype)
    fill(odd, out)
    assert out[:4].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("n, width", [(7, 7), (100, 1), (200, 32), (1000, 32), (1003, 200), (5000, 32), (60_000, 48)])
def test_selection(numba, n, width):
    from nmt.topk.kernels.selection import best_of, block_of, maxima_of

    generator = np.random.default_rng(n)
    rows = generator.standard_normal((6, n)).astype(np.float32)
    rows[1], rows[2] = rows[1].round(), 0.5
    rows[3, width // 2 :] = -INF
    rows[4].sort()
    rows[5] = -rows[4]
    block = block_of(n, width)
    maxima, order, values = np.empty(-(-n // block), np.float32), np.empty(width, np.int64), np.empty(width, np.float32)
    for x in rows:
        assert maxima_of(x, block, maxima)
        ties = best_of(x, block, maxima, np.empty(max(len(maxima), 256), np.float32), order, values)
        wanted = np.sort(x)[::-1][:width]
        assert (values == wanted).all() and (x[order] == values).all() and len(set(order)) == width
        assert ties == (0 if values[-1] == -INF else (x == values[-1]).sum() - (values == values[-1]).sum())
    for bad in (math.nan, -math.nan, INF):
        for position in (0, n // 2, n - 1):
            x = rows[0].copy()
            x[position] = bad
            assert not maxima_of(x, block, maxima)
            x[:3] = -INF
            x[position] = bad
            assert not maxima_of(x, block, maxima)
