"""The best candidates of one row, by the maxima of blocks: one read of the scores, and few comparisons after it."""

from typing import Any

import numpy as np
from numba import njit

from nmt.topk.kernels.numeric import key, larger, magnitude, unkey

# Candidates of a block in a short row and in a long one.
SHORT, LONG = 8, 32
# Maxima from which the strided maxima of maxima are taken first.
_MANY = 1024
_FOLDED = 256


@njit
def block_of(n: int, width: int) -> int:
    """How many candidates a block has, of n in a row: so many blocks that their best maxima bound the best scores."""
    return LONG if n >= 4 * LONG * width else SHORT


@njit
def _long(x: Any) -> Any:
    best, most = key(x[0]), magnitude(x[0])
    for i in range(LONG):
        best, most = larger(best, key(x[i])), larger(most, magnitude(x[i]))
    return best, most


@njit
def _short(x: Any) -> Any:
    best, most = key(x[0]), magnitude(x[0])
    for i in range(SHORT):
        best, most = larger(best, key(x[i])), larger(most, magnitude(x[i]))
    return best, most


@njit
def maxima_of(x: Any, block: int, out: Any) -> bool:
    """The maximum of each block of x (n,), the last of which may be shorter; whether none holds NaN or +inf."""
    n = len(x)
    full = n // block
    infinity = magnitude(x.dtype.type(np.inf))
    worst = magnitude(x[0])
    # Of one block at a time: LLVM would take many at once, and gather their scores.
    if block == LONG:
        for b in range(full):
            best, most = _long(x[b * LONG : b * LONG + LONG])
            out[b], worst = unkey(best), larger(worst, most)
    else:
        for b in range(full):
            best, most = _short(x[b * SHORT : b * SHORT + SHORT])
            out[b], worst = unkey(best), larger(worst, most)
    if full * block < n:
        best = key(x[full * block])
        for i in range(full * block, n):
            best, worst = larger(best, key(x[i])), larger(worst, magnitude(x[i]))
        out[full] = unkey(best)
    if worst > infinity:
        return False
    # Of -inf, the mask, or of +inf.
    if worst == infinity:
        for b in range(len(out)):
            if out[b] == np.inf:
                return False
    return True


@njit
def _kth_largest(values: Any, k: int) -> Any:
    """The k-th largest, k = 1..len(values); the values are permuted."""
    low, high, wanted = 0, len(values) - 1, k - 1
    while low < high:
        pivot = values[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while values[i] > pivot:
                i += 1
            while values[j] < pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if wanted <= j:
            high = j
        elif wanted >= i:
            low = i
        else:
            break
    return values[wanted]


@njit
def _bound(maxima: Any, width: int, scratch: Any) -> Any:
    """A score that at least `width` candidates reach, by their blocks; -inf where there are too few blocks."""
    count = len(maxima)
    if count < width:
        return -np.inf
    if count < _MANY or width > _FOLDED // 4:
        scratch[:count] = maxima
        return _kth_largest(scratch[:count], width)
    folded = scratch[:_FOLDED]
    folded[:] = maxima[:_FOLDED]
    for start in range(_FOLDED, count - _FOLDED + 1, _FOLDED):
        for i in range(_FOLDED):
            folded[i] = maxima[start + i] if maxima[start + i] > folded[i] else folded[i]
    return _kth_largest(folded, width)


@njit
def best_of(x: Any, block: int, maxima: Any, scratch: Any, order: Any, values: Any) -> int:
    """Fills the positions (C,) and the scores (C,) of the best candidates of x (n,), best first.

    Returns:
        How many others equal the last of them; 0 if that is a mask.
    """
    n, width = len(x), len(order)
    least = _bound(maxima, width, scratch)
    filled, ties = 0, 0
    for b in range(len(maxima)):
        if maxima[b] < least:
            continue
        for i in range(b * block, min(n, b * block + block)):
            value = x[i]
            if value < least:
                continue
            if filled == width:
                last = values[width - 1]
                if value == last:
                    ties += 1
                if value <= last:
                    continue
                ties = ties + 1 if values[width - 2] == last and width > 1 else 0
                at = width - 1
            else:
                at = filled
                filled += 1
            while at > 0 and values[at - 1] < value:
                values[at] = values[at - 1]
                order[at] = order[at - 1]
                at -= 1
            values[at] = value
            order[at] = i
            if filled == width:
                least = values[width - 1]
    return ties if values[width - 1] > -np.inf else 0
