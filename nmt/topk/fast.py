"""Whether the operators run as compiled kernels, and how tensors get into them and back.

On the CPU these are loops over rows (`nmt.topk.kernels`, numba), on a GPU Triton kernels (`nmt.topk.gpu`). They take
what most calls are: forward and first backward, of float32 or float64 on the CPU, of float32, bfloat16 or float16 on a
GPU. All else (other dtypes, long screens, further derivatives, transforms) takes the way of PyTorch; the kernels solve
for the same unknowns, so that a further derivative of a forward by a kernel finds what it needs.
"""

import functools
import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

_VARIABLE = "NMT_TOPK_KERNELS"
# Scores from which another thread is worth its start.
_PER_THREAD = 1 << 18
# How many modes look at each operation of PyTorch, to trace or to count; a kernel would pass them by. The number has no
# public face; without it there are none.
_modes = getattr(torch._C, "_len_torch_dispatch_stack", int)


class _Way(NamedTuple):
    """Kernels for a kind of device.

    Attributes:
        package: what they are compiled by.
        folder: their modules, below this package.
        dtypes: of the scores.
        widest: the longest screen; on the CPU, where the best are put in order by insertion, that is quadratic.
        most_ranked: the longest screen times the number of slots of the sorted operator.
    """

    package: str
    folder: str
    dtypes: tuple[torch.dtype, ...]
    widest: int = 256
    most_ranked: int = 1 << 30


_WAYS = {
    "cpu": _Way("numba", "kernels", (torch.float32, torch.float64)),
    "cuda": _Way("triton", "gpu", (torch.float32, torch.bfloat16, torch.float16), most_ranked=1024),
}


class use_kernels:  # noqa: N801
    """Turns the compiled kernels on or off: as a function until further notice, in a `with` statement for its block.

    Those for the CPU need numba (`pip install numba`), which is imported at their first use; then an operator and dtype
    compiles for some seconds, once a machine, as the result is kept on disk (numba's NUMBA_CACHE_DIR). Those for a GPU
    need triton 3.7 or newer, which comes with PyTorch there; they have not run on a card yet. Before the first call of
    this all are off. Values agree with those of the other way within rounding. Who cannot call this sets
    NMT_TOPK_KERNELS to 1 in the environment.

    Args:
        on: False turns them off.

    Raises:
        ImportError: neither numba nor triton is installed.
    """

    _on = os.environ.get(_VARIABLE, "") not in ("", "0")

    def __init__(self, on: bool = True) -> None:
        if on and not any(find_spec(way.package) for way in _WAYS.values()):
            raise ImportError("the compiled kernels of nmt.topk need numba, or triton for a GPU: pip install numba")
        self._before, use_kernels._on = use_kernels._on, on

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: Any) -> None:
        use_kernels._on = self._before


class Solved(NamedTuple):
    """What a kernel keeps for its backward, as `Solution` is of PyTorch's way.

    Attributes:
        order: (rows, C) positions of the best candidates, best first.
        plan: (rows, ...) float64, their plan.
        state: (rows, ...) float64; of the kernel's module.
        solution: (rows, ...) float64, of the derivatives to any order.
        weights: (rows, n) of a dense result of the plain operator, else None.
    """

    order: Tensor
    plan: Tensor
    state: Tensor
    solution: Tensor
    weights: Tensor | None


def fits(rows: Tensor, width: int, k: int = 1) -> bool:
    """Whether the kernels are on, and take scores (rows, n) with `width` best candidates, and k slots of ranks."""
    way = _WAYS.get(rows.device.type)
    return (
        way is not None
        and use_kernels._on
        and rows.dtype in way.dtypes
        and type(rows) in (Tensor, torch.nn.Parameter)
        and 0 < width <= way.widest
        and width * k <= way.most_ranked
        and len(rows) > 0
        and _modes() == 0
        and _is_there(way.package)
        and (way.package == "numba" or _module("gpu", "rows").takes(rows.shape[1], width))
    )


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2])


@functools.cache
def _is_there(package: str) -> bool:
    # Older versions of triton are not tested.
    if find_spec(package) and (package == "numba" or _version(import_module(package).__version__) >= (3, 7)):
        return True
    text = f"the kernels of nmt.topk are on ({_VARIABLE}), but {package} is not installed, or too old"
    warnings.warn(text, stacklevel=2)
    return False


@functools.cache
def _module(folder: str, name: str) -> Any:
    # Importing numba takes half a second: only who uses it waits.
    return import_module(f"nmt.topk.{folder}.{name}")


def column(value: float | Tensor) -> Tensor:
    """A number, a 0-d tensor or one value a row as float64 of shape (1,) or (rows,)."""
    return torch.tensor([value], dtype=torch.float64) if not isinstance(value, Tensor) else value


def array(value: Tensor) -> Any:
    """A tensor as a contiguous array of one dimension at least."""
    return value.detach().contiguous().view(value.shape or (1,)).numpy()


def _run(name: str, function: str, rows: Tensor, numbers: tuple[float | Tensor, ...], *arguments: Any) -> list[Any]:
    """Calls a kernel on rows (count, n); on the CPU they are split among as many threads as PyTorch may use.

    Args:
        numbers: a number, a tensor () or (count,) float64 each.

    Returns:
        What each part returns.
    """
    way = _WAYS[rows.device.type]
    kernel: Callable[..., Any] = getattr(_module(way.folder, name), function)
    if way.package == "triton":
        tensors = (value.detach().contiguous() if isinstance(value, Tensor) else value for value in arguments)
        return [kernel(rows.detach(), *numbers, *tensors)]
    values = [array(v) if isinstance(v, Tensor) else v for v in (rows, *map(column, numbers), *arguments)]
    count, n = rows.shape
    threads = min(torch.get_num_threads(), count, count * n // _PER_THREAD)
    if threads < 2:
        return [kernel(*values)]

    def part(i: int) -> Any:
        some = slice(count * i // threads, count * (i + 1) // threads)
        # What is no value of a row has one entry, or none, and there are two rows at least.
        return kernel(*(value[some] if hasattr(value, "shape") and len(value) == count else value for value in values))

    # Not kept: a forked process would wait for threads that it does not have.
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(part, range(threads)))


def _empty(rows: Tensor, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=rows.device)


def _order(rows: Tensor, width: int) -> Tensor:
    """For the positions of the best candidates: `width` of them, or for a GPU the next power of two."""
    n = rows.shape[1]
    if _WAYS[rows.device.type].package == "triton":
        width = min(n, 1 << (width - 1).bit_length())
    return _empty(rows, len(rows), width, dtype=torch.int64)


def _refused(found: list[int]) -> bool:
    """Whether a forward has met scores that are none."""
    assert min(found) >= -1, "a row has not converged"
    return max(found) >= 0


def plain_forward(
    rows: Tensor, k: int | Tensor, temperature: float | Tensor, most: int, width: int, kept: int | None
) -> tuple[tuple[Tensor, ...], Solved] | None:
    """Solves scores (rows, n), all arguments checked but the scores.

    Args:
        most: the largest k, rounded up.
        width: C, the number of candidates of the screen.
        kept: c of a sparse result, or None for a dense one.

    Returns:
        The weights (rows, n), or positions, weights (rows, c) and the sums of all others (rows,); and what the backward
        needs. None if there is NaN or +inf among the scores.
    """
    count, n = rows.shape
    weights = rows.new_empty(count if kept is None else 0, n)
    best, tail = rows.new_empty(count, kept or 0), rows.new_empty(count)
    order = _order(rows, width)
    z, solution, state = (_empty(rows, count, size) for size in (order.shape[1], 2, 4))
    tensors = (weights, order, best, tail, z, solution, state)
    if _refused(_run("plain", "forward", rows, (k, temperature), most, *tensors)):
        return None
    if kept is None:
        return (weights,), Solved(order, z, state, solution, weights)
    return (order[:, :kept].clone(), best, tail), Solved(order, z, state, solution, None)


def plain_backward(
    rows: Tensor, T: float | Tensor, g: Tensor, g_tail: Tensor | None, solved: Solved, of_T: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients by the rows (rows, n), and by k and the temperature (rows,), float64.

    Args:
        g, g_tail: dL/dA (rows, n) of a dense result; (rows, c) and (rows,) of a sparse one.
        of_T: whether the last result is wanted.
    """
    count, n = rows.shape
    to_rows = torch.empty_like(rows)
    to_k, to_T = _empty(rows, 2, count).unbind()
    order, z, state, solution, weights = solved
    weights = rows.new_empty(0, n) if weights is None else weights
    g_tail = rows.new_empty(0) if g_tail is None else g_tail
    tensors = (weights, g, g_tail, order, z, solution, state)
    _run("plain", "backward", rows, (T,), *tensors, of_T, to_rows, to_k, to_T)
    return to_rows, to_k, to_T


def ranked_forward(
    rows: Tensor, k: int, temperature: float | Tensor, width: int, kept: int | None
) -> tuple[tuple[Tensor, ...], Solved] | None:
    """As `plain_forward`; the weights are (rows, n, k) or (rows, c, k), and the sums of all others (rows, k)."""
    count, n = rows.shape
    weights = rows.new_empty(count if kept is None else 0, n, k)
    best, tail = rows.new_empty(count, kept or 0, k), rows.new_empty(count, k)
    order = _order(rows, width)
    plan = _empty(rows, count, k + 1, max(order.shape[1], k + 1))
    solution, state = _empty(rows, count, 2, k), _empty(rows, count, k + 2)
    tensors = (weights, order, best, tail, plan, solution, state)
    if _refused(_run("ranked", "forward", rows, (temperature,), *tensors)):
        return None
    if kept is None:
        return (weights,), Solved(order, plan, state, solution, None)
    return (order[:, :kept].clone(), best, tail), Solved(order, plan, state, solution, None)


def ranked_backward(
    rows: Tensor, T: float | Tensor, g: Tensor, g_tail: Tensor | None, solved: Solved, of_T: bool
) -> tuple[Tensor, Tensor]:
    """The gradients by the rows (rows, n) and the temperature (rows,); arguments as those of `plain_backward`."""
    count = len(rows)
    order, plan, state, solution, _ = solved
    k = plan.shape[1] - 1
    to_rows, to_T = torch.empty_like(rows), _empty(rows, count)
    g_tail = rows.new_empty(0, k) if g_tail is None else g_tail
    tensors = (g, g_tail, order, plan, solution, state)
    _run("ranked_backward", "backward", rows, (T,), *tensors, of_T, to_rows, to_T)
    return to_rows, to_T
