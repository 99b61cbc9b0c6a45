"""The candidates of a row outside the screen, as exponentials in the dtype of the scores."""

from typing import Any

from numba import njit

from nmt.topk.kernels.numeric import CONTRACT, SUMS, exp
from nmt.topk.kernels.selection import LONG

# Candidates whose sums are taken in the dtype of the scores, many beside each other, before they go into float64.
PIECE = 512


@njit(error_model="numpy")
def scale_of(x: Any, T: float) -> Any:
    """1 / T in the dtype of the scores x, and finite."""
    return x.dtype.type(min(1.0 / T, 1e38 if x.itemsize == 4 else 1e300))


@njit(fastmath=CONTRACT, error_model="numpy")
def exponentials(x: Any, reference: Any, scale: Any, out: Any) -> None:
    """exp((x - reference) scale), at most 1."""
    for i in range(len(x)):
        y = (x[i] - reference) * scale
        out[i] = exp(y if y < 0 else x.dtype.type(0))


@njit(fastmath=SUMS, error_model="numpy")
def _sum_below(x: Any, e: Any, last: Any) -> Any:
    """The sums of e and of e^2 over the scores of a piece that are below `last`."""
    mass = square = e.dtype.type(0)
    for i in range(len(x)):
        v = e[i] if x[i] < last else x.dtype.type(0)
        mass += v
        square += v * v
    return mass, square


@njit(error_model="numpy")
def _long(x: Any, reference: Any, scale: Any, last: Any, e: Any) -> Any:
    """Both of one long block."""
    for i in range(LONG):
        y = (x[i] - reference) * scale
        e[i] = exp(y if y < 0 else x.dtype.type(0))
    return _sum_below(x[:LONG], e[:LONG], last)


@njit(error_model="numpy")
def sum_blocks(
    x: Any, maxima: Any, block: int, cut: float, reference: Any, scale: Any, last: Any, e: Any, dense: bool
) -> Any:
    """The sums of the exponentials below `last` and of their squares, over the blocks that reach `cut`.

    Fills e; with 0 where a block does not reach it, if `dense`.
    """
    n, blocks = len(x), len(maxima)
    mass, square = 0.0, 0.0
    b = 0
    while b < blocks:
        first = b
        while b < blocks and maxima[b] > cut:
            b += 1
        i, end = first * block, min(n, b * block)
        while i < end:
            j = min(end, i + PIECE)
            if j - i == LONG:
                some, squares = _long(x[i:j], reference, scale, last, e[i:j])
            else:
                exponentials(x[i:j], reference, scale, e[i:j])
                some, squares = _sum_below(x[i:j], e[i:j], last)
            mass += some
            square += squares
            i = j
        first = b
        while b < blocks and not maxima[b] > cut:
            b += 1
        if dense:
            e[first * block : min(n, b * block)] = 0
    return mass, square
