"""The kernels for GPUs: by Triton's interpreter where there is none, against the operators in float64."""

import math
import os
import subprocess
import sys

import pytest
import torch

from nmt.topk import fast, soft_topk, sorted_soft_topk, sparse_soft_topk, sparse_sorted_soft_topk, use_kernels
from tests import ROOT

pytest.importorskip("triton")
# numpy warns of what is infinite on purpose.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

INF = math.inf
OPERATORS = [soft_topk, sorted_soft_topk, sparse_soft_topk, sparse_sorted_soft_topk]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def _gpu(monkeypatch):
    """On the CPU its tensors pass for those of a GPU; chunks are so short that a row has several."""
    from nmt.topk.gpu import plain, ranked, rows

    if DEVICE == "cpu":
        monkeypatch.setitem(fast._WAYS, "cpu", fast._WAYS["cuda"])
    for module, name in ((rows, "CHUNK"), (plain, "CHUNK"), (ranked, "_TILE")):
        monkeypatch.setattr(module, name, 512)


def _parts(result):
    return [result] if isinstance(result, torch.Tensor) else [result.weights, result.tail_mass]


def _compare(operator, x, k, T, values=1e-6, gradients=1e-5, **options):
    """Values and gradients, times T, by the kernels against the other way in float64."""
    found, of_found, wanted, of_wanted = [], [], [], []
    for dtype, kernels, results, grads in (
        (x.dtype, True, found, of_found),
        (torch.float64, False, wanted, of_wanted),
    ):
        inputs = [x.to(dtype).requires_grad_()]
        inputs += [value.clone().requires_grad_() for value in (k, T) if isinstance(value, torch.Tensor)]
        given = iter(inputs[1:])
        of_k, of_T = (next(given) if isinstance(value, torch.Tensor) else value for value in (k, T))
        with use_kernels(kernels):
            result = operator(inputs[0], of_k, of_T, **options)
            results += [part.detach().double() for part in _parts(result)]
            generator = torch.Generator().manual_seed(1)
            g = [torch.randn(part.shape, generator=generator).to(x) for part in _parts(result)]
            if not isinstance(result, torch.Tensor):
                # The same for equal scores: which of them are among the best is free.
                of_score = (3 * x.gather(-1, result.indices).double().clamp(min=-50)).cos()
                g[0] = of_score if g[0].dim() == 2 else of_score.unsqueeze(2) * torch.arange(1, k + 1).to(x.device)
            g = [part.to(dtype) for part in g]
            grads += torch.autograd.grad(_parts(result), inputs, g)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=values, atol=values)
    for a, b, like in zip(of_found, of_wanted, inputs, strict=True):
        unit = 1.0 if like is of_k else T.reshape(-1, *[1] * (b.dim() - 1)) if isinstance(T, torch.Tensor) else T
        torch.testing.assert_close(a.double() * unit, b * unit, rtol=gradients, atol=gradients)


def _rows(n: int) -> torch.Tensor:
    """A row without ties, and one with ties and masks."""
    x = torch.randn(2, n, generator=torch.Generator().manual_seed(n)).to(DEVICE)
    x[1] = (3 * x[1]).round()
    x[1, ::3] = -INF
    return x


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("T", [0.3, 20.0])
def test_values_and_gradients(operator, T):
    x = _rows(300)
    if operator in (sparse_soft_topk, sparse_sorted_soft_topk):
        # No ties at the border of the screen: outside of it the cotangent is another.
        x[1] += torch.linspace(0, 3.1, 300, device=DEVICE)
    _compare(operator, x, 4, torch.full((2,), T, dtype=torch.float64, device=DEVICE))


@pytest.mark.parametrize("operator", [soft_topk, sorted_soft_topk])
@pytest.mark.parametrize("n", [2, 5])
def test_every_k(operator, n):
    x = torch.tensor([[0.3, -INF, 0.2, 0.3, -2.0]], device=DEVICE)[:, :n]
    for k in range(1, n + 1):
        _compare(operator, x, k, 0.2)


@pytest.mark.parametrize("operator", [soft_topk, sparse_sorted_soft_topk])
@pytest.mark.parametrize("dtype, error", [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
def test_half_precision_is_rounded_once(operator, dtype, error):
    x = torch.randn(1, 150, generator=torch.Generator().manual_seed(0)).to(DEVICE, dtype)
    _compare(operator, x, 2, 0.1, values=error, gradients=2 * error)
    assert _parts(operator(x, 2, 0.1))[0].dtype == dtype


@pytest.mark.parametrize("operator, options", [(soft_topk, {}), (sparse_soft_topk, {"width": 20})])
def test_k_and_temperature_of_a_row(operator, options):
    x = torch.randn(3, 150, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    k = torch.tensor([0.3, 2.5, 7.0], dtype=torch.float64, device=DEVICE)
    T = torch.tensor([0.02, 0.5, 30.0], dtype=torch.float64, device=DEVICE)
    _compare(operator, x, k, T, largest=False, **options)


@pytest.mark.parametrize("x", [[1e30, -1e30, 0.5, 3e38], [1e6, 1e6 + 1, 1e6 + 2, 1e6 - 1], [-INF, -INF, -INF, -INF]])
def test_far_scores(x):
    for operator in (soft_topk, sorted_soft_topk):
        for T in (1e-9, 0.5):
            _compare(operator, torch.tensor([x], device=DEVICE), 2, T)


@pytest.mark.parametrize("operator", [soft_topk, sorted_soft_topk])
def test_a_row_alone_is_the_row_in_a_batch_to_the_last_bit(operator):
    x = _rows(300).requires_grad_()
    whole = operator(x, 3, 0.4)
    alone = operator(x[0], 3, 0.4)
    assert torch.equal(alone, whole[0])
    g = torch.linspace(0, 1, whole[0].numel(), device=DEVICE).view(whole[0].shape)
    assert torch.equal(*(torch.autograd.grad(part, x, g)[0][0] for part in (alone, whole[0])))


@pytest.mark.parametrize("n, width", [(20, 20), (257, 32), (3000, 48)])
def test_the_best_are_those_of_a_stable_sort(n, width):
    from nmt.topk.gpu.rows import best_of

    x = torch.randn(3, n, generator=torch.Generator().manual_seed(n)).to(DEVICE)
    x[1] = x[1].round() * 0.0 - x[1].round()
    x[2, 3:] = -INF
    width = fast._order(x, width).shape[1]
    order = torch.empty(3, width, dtype=torch.int64, device=DEVICE)
    mass, status = best_of(x, 0.7, order)
    wanted = x.sort(dim=-1, descending=True, stable=True)
    assert torch.equal(order, wanted.indices[:, :width]) and not status.any()
    last, others = wanted.values[:, width - 1 : width].clamp(min=-1e9), wanted.values[:, width:]
    torch.testing.assert_close(mass, ((others - last).double() / 0.7).exp().sum(-1), rtol=1e-6, atol=0)


def test_what_is_no_score_is_refused():
    for bad, operator in ((math.nan, soft_topk), (-math.nan, sorted_soft_topk), (INF, soft_topk)):
        x = torch.zeros(2, 70, device=DEVICE)
        x[1, 68] = bad
        with pytest.raises(ValueError, match=rf"scores hold {'NaN' if bad != INF else '.inf'} in row 1"):
            operator(x, 2, 0.5)


def test_a_graph_that_is_captured_gives_nan_in_its_place(monkeypatch):
    monkeypatch.setattr("nmt.topk.arguments.is_captured", lambda x: True)
    x = torch.zeros(2, 100, device=DEVICE)
    x[1, 70] = math.nan
    with use_kernels():
        weights = soft_topk(x, 2, 0.5)
    assert float(weights[0].sum()) == pytest.approx(2) and bool(weights[1].isnan().all())


@pytest.mark.parametrize("k", [1, 2, 5, 8])
def test_linear_equations(k):
    import triton
    import triton.language as tl

    from nmt.topk.gpu.linear import solve

    @triton.jit
    def call(A, b, x, k, K: tl.constexpr, solve: tl.constexpr):
        i = tl.arange(0, K)
        inside = (i[:, None] < k) & (i[None, :] < k)
        matrix = tl.load(A + i[:, None] * k + i[None, :], mask=inside, other=7.0)
        tl.store(x + i, solve(matrix, tl.load(b + i, mask=i < k, other=7.0), k, K), mask=i < k)

    A = torch.randn(k, k, generator=torch.Generator().manual_seed(k), dtype=torch.float64).to(DEVICE)
    A[0, 0] = 0.0 if k > 1 else 3.0
    b, x = A.sin().sum(1), torch.empty(k, dtype=torch.float64, device=DEVICE)
    call[(1,)](A, b, x, k, K=8, solve=solve)
    torch.testing.assert_close(x, torch.linalg.solve(A, b), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("operator", [soft_topk, sparse_sorted_soft_topk])
def test_when_they_are_used(operator, monkeypatch):
    calls = []
    original = fast._module
    monkeypatch.setattr(fast, "_module", lambda *name: calls.append(name) or original(*name))
    monkeypatch.setattr(use_kernels, "_on", True)

    def used(x, k=2) -> list:
        calls.clear()
        operator(x, k, 0.2)
        return [module for _, module in calls if module != "rows"]

    x = torch.randn(1, 100, device=DEVICE)
    assert len(used(x)) == 1
    with use_kernels(False):
        assert used(x) == []
    assert used(x.double()) == [], "float64 is for PyTorch"
    assert used(torch.randn(1, 700, device=DEVICE), 100) == [], "so is a long screen"
    assert used(x[:0]) == []
    for name, change in (("find_spec", lambda name: None), ("_version", lambda text: (3, 6))):
        with monkeypatch.context() as patch:
            patch.setattr(fast, name, change)
            fast._is_there.cache_clear()
            with pytest.warns(UserWarning, match="NMT_TOPK_KERNELS.*, but triton is not installed, or too old"):
                assert used(x) == []
    fast._is_there.cache_clear()
    assert len(used(x)) == 1 and fast._version("3.10.0+git1") == (3, 10)


_COMPILE = """
import torch, triton
from triton.backends.compiler import GPUTarget
from nmt.topk import fast, soft_topk, sparse_sorted_soft_topk
from nmt.topk.gpu import plain, ranked, ranked_backward, rows

TYPES = {torch.float32: "*fp32", torch.float64: "*fp64", torch.bfloat16: "*bf16", torch.int32: "*i32",
         torch.int64: "*i64"}

def type_of(value):
    return TYPES[value.dtype] if isinstance(value, torch.Tensor) else "fp32" if isinstance(value, float) else "i32"

def launch(kernel, grid, *arguments, warps=4, **constants):
    types = dict(zip(kernel.arg_names, map(type_of, arguments))) | dict.fromkeys(constants, "constexpr")
    source = triton.compiler.ASTSource(kernel, types, constants)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
    assert made.asm["cubin"]
    print(kernel.__name__)

for module in (rows, plain, ranked, ranked_backward):
    module.launch = launch
for module in (plain, ranked):
    module.refused = lambda status: -1
fast._WAYS["cpu"] = fast._WAYS["cuda"]
T = torch.ones(2, dtype=torch.float64, requires_grad=True)
for operator, dtype, temperature in ((soft_topk, torch.float32, 0.5), (sparse_sorted_soft_topk, torch.bfloat16, T)):
    x = torch.zeros(2, 20000, dtype=dtype, requires_grad=True)
    found = operator(x, 5, temperature)
    found = found if isinstance(found, torch.Tensor) else found.weights
    torch.autograd.grad(found.sum(), [x, T] if temperature is T else x)
"""


def test_they_compile_for_a_gpu():
    """Without one: the interpreter takes more than the compiler does."""
    environment = {name: text for name, text in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["NMT_TOPK_KERNELS"] = "1"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _COMPILE], capture_output=True, text=True, cwd=ROOT, env=environment
    )
    assert done.returncode == 0, done.stderr
    backward = ["_sum", "_pull_best", "_pull_rest"]
    first, second = (["blocks", "select", "_solve", *more, *backward] for more in (["_fill"], []))
    assert done.stdout.split() == first + second
