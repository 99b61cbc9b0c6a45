"""Whether the operators run as compiled loops over rows (`nmt.topk.kernels`), and how tensors get into them and back.

The loops take what most calls are: float32 or float64 on the CPU, forward and first backward. All else (half precision,
a GPU, long screens, further derivatives, transforms) takes the way of PyTorch; the kernels solve for the same unknowns,
so that a further derivative of a forward by a kernel finds what it needs.
"""

import functools
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

_VARIABLE = "NMT_TOPK_KERNELS"
# The best are put in order by insertion, which is quadratic.
_WIDEST = 256
# Scores from which another thread is worth its start.
_PER_THREAD = 1 << 18
# How many modes look at each operation of PyTorch, to trace or to count; a kernel would pass them by. The number has no
# public face; without it there are none.
_modes = getattr(torch._C, "_len_torch_dispatch_stack", int)


class use_kernels:  # noqa: N801
    """Turns the compiled kernels on or off: as a function until further notice, in a `with` statement for its block.

    They need numba (`pip install numba`), which is imported at their first use; then an operator and dtype compiles for
    some seconds, once a machine, as the result is kept on disk (numba's NUMBA_CACHE_DIR). Values agree with those of
    the other way within rounding. Who cannot call this sets NMT_TOPK_KERNELS=1 in the environment.

    Args:
        on: False turns them off.

    Raises:
        ImportError: numba is not installed.
    """

    _on = os.environ.get(_VARIABLE, "0") not in ("", "0")

    def __init__(self, on: bool = True) -> None:
        if on and not find_spec("numba"):
            raise ImportError("the compiled kernels of nmt.topk need numba: pip install numba")
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


def fits(rows: Tensor, width: int) -> bool:
    """Whether the kernels are on, and take scores (rows, n) with `width` best candidates."""
    return (
        use_kernels._on
        and rows.device.type == "cpu"
        and rows.dtype in (torch.float32, torch.float64)
        and type(rows) in (Tensor, torch.nn.Parameter)
        and 0 < width <= _WIDEST
        and len(rows) > 0
        and _modes() == 0
        and _is_there()
    )


@functools.cache
def _is_there() -> bool:
    if find_spec("numba"):
        return True
    warnings.warn(f"{_VARIABLE} is set, but numba is not installed: nmt.topk runs without kernels", stacklevel=2)
    return False


@functools.cache
def _module(name: str) -> ModuleType:
    # Importing numba takes half a second: only who uses it waits.
    from importlib import import_module

    return import_module(f"nmt.topk.kernels.{name}")


def column(value: float | Tensor) -> Tensor:
    """A number, a 0-d tensor or one value a row as float64 of shape (1,) or (rows,)."""
    return torch.tensor([value], dtype=torch.float64) if not isinstance(value, Tensor) else value


def array(value: Tensor) -> Any:
    """A tensor as a contiguous array of one dimension at least."""
    return value.detach().contiguous().view(value.shape or (1,)).numpy()


def _run(name: str, function: str, count: int, n: int, *arguments: Any) -> list[Any]:
    """Calls a kernel on rows (count, n), split among as many threads as PyTorch may use; what each part returns."""
    kernel = getattr(_module(name), function)
    values = [array(value) if isinstance(value, Tensor) else value for value in arguments]
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
    double = {"dtype": torch.float64}
    weights = rows.new_empty(count if kept is None else 0, n)
    best, tail = rows.new_empty(count, kept or 0), rows.new_empty(count)
    order = torch.empty(count, width, dtype=torch.int64)
    z, solution, state = (torch.empty(count, size, **double) for size in (width, 2, 4))  # type: ignore[call-overload]
    tensors = (weights, order, best, tail, z, solution, state)
    if _refused(_run("plain", "forward", count, n, rows, column(k), column(temperature), most, *tensors)):
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
    to_k, to_T = torch.empty(2, count, dtype=torch.float64).unbind()
    order, z, state, solution, weights = solved
    weights = rows.new_empty(0, n) if weights is None else weights
    g_tail = rows.new_empty(0) if g_tail is None else g_tail
    tensors = (rows, column(T), weights, g, g_tail, order, z, solution, state)
    _run("plain", "backward", count, n, *tensors, of_T, to_rows, to_k, to_T)
    return to_rows, to_k, to_T


def ranked_forward(
    rows: Tensor, k: int, temperature: float | Tensor, width: int, kept: int | None
) -> tuple[tuple[Tensor, ...], Solved] | None:
    """As `plain_forward`; the weights are (rows, n, k) or (rows, c, k), and the sums of all others (rows, k)."""
    count, n = rows.shape
    double = {"dtype": torch.float64}
    weights = rows.new_empty(count if kept is None else 0, n, k)
    best, tail = rows.new_empty(count, kept or 0, k), rows.new_empty(count, k)
    order = torch.empty(count, width, dtype=torch.int64)
    plan = torch.empty(count, k + 1, max(width, k + 1), **double)  # type: ignore[call-overload]
    solution, state = torch.empty(count, 2, k, **double), torch.empty(count, k + 2, **double)  # type: ignore[call-overload]
    tensors = (weights, order, best, tail, plan, solution, state)
    if _refused(_run("ranked", "forward", count, n, rows, column(temperature), *tensors)):
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
    to_rows, to_T = torch.empty_like(rows), torch.empty(count, dtype=torch.float64)
    g_tail = rows.new_empty(0, k) if g_tail is None else g_tail
    tensors = (rows, column(T), g, g_tail, order, plan, solution, state)
    _run("ranked_backward", "backward", count, rows.shape[1], *tensors, of_T, to_rows, to_T)
    return to_rows, to_T
