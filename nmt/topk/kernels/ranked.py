"""The sorted operator on rows of float32 or float64: what `sorted.solve_rows` and `sorted.pull_lean` compute.

Formulas, limits and their reasons are those of `nmt.topk.thresholds` and `nmt.topk.ranked_rest`. Anchors 1..k are at
the indices 0..k - 1 but in p, which begins with the anchor 0.

Shapes: rows (rows, n); order (rows, C); T float64, one value or one a row; plan (rows, k + 1, W) the weights p of the
best candidates by anchors, 0 for i >= C; `state` (rows, k + 2) holds of each row the steps (reference - tau_j) / T,
what its rest is (NOTHING, CHEAP, EXACT), and the weight of a cheap rest.
"""

import math
from typing import Any

import numpy as np
from numba import njit

from nmt.topk.kernels.cache import entry
from nmt.topk.kernels.linear import solve
from nmt.topk.kernels.numeric import CONTRACT, SUMS, exp
from nmt.topk.kernels.rest import PIECE, exponentials, scale_of, sum_blocks
from nmt.topk.kernels.selection import best_of, block_of, maxima_of

NOTHING, CHEAP, EXACT = 0.0, 1.0, 2.0
_HARD = 800.0
TINY = 1e-290
_STEP = 4.0
_FAR = 60.0
_ITERATIONS = 200


@njit(fastmath=SUMS, error_model="numpy")
def dot(a: Any, b: Any) -> Any:
    total = a.dtype.type(0)
    for i in range(len(a)):
        total += a[i] * b[i]
    return total


@njit(fastmath=SUMS, error_model="numpy")
def sum_of(a: Any) -> Any:
    total = a.dtype.type(0)
    for i in range(len(a)):
        total += a[i]
    return total


@njit(fastmath=CONTRACT, error_model="numpy")
def _logits(before: Any, offsets: Any, u: float, after: Any, most: Any) -> None:
    for i in range(len(before)):
        step = offsets[i] - u
        step = _HARD if step > _HARD else (-_HARD if step < -_HARD else step)
        value = before[i] + step
        after[i] = value
        most[i] = value if value > most[i] else most[i]


@njit(fastmath=CONTRACT, error_model="numpy")
def _grow(p: Any, most: Any, total: Any) -> None:
    for i in range(len(p)):
        value = exp(p[i] - most[i])
        p[i] = value
        total[i] += value


@njit(error_model="numpy")
def _plan(offsets: Any, u: Any, p: Any, c: Any, d: Any, most: Any, total: Any) -> None:
    """Fills p (k + 1, W), c and d (k, W) of `thresholds.Plan` from the offsets (k, W)."""
    k = len(u)
    p[0] = 0.0
    most[:] = 0.0
    for j in range(k):
        _logits(p[j], offsets[j], u[j], p[j + 1], most)
    total[:] = 0.0
    for j in range(k + 1):
        _grow(p[j], most, total)
    for i in range(len(total)):
        total[i] = 1.0 / total[i]
    for j in range(k + 1):
        for i in range(len(total)):
            p[j, i] *= total[i]
    cumulate(p, c, d)


@njit(error_model="numpy")
def cumulate(p: Any, c: Any, d: Any) -> None:
    k = len(c)
    d[0] = p[0]
    c[k - 1] = p[k]
    for j in range(1, k):
        for i in range(p.shape[1]):
            d[j, i] = d[j - 1, i] + p[j, i]
    for j in range(k - 2, -1, -1):
        for i in range(p.shape[1]):
            c[j, i] = c[j + 1, i] + p[j + 1, i]


@njit(error_model="numpy")
def _place(values: Any, k: int, T: float, offsets: Any, middle: Any) -> int:
    """Fills the offsets (k, W) of `thresholds.offsets_of` and the middles (k,); how many scores are finite."""
    width, count = len(values), len(values)
    while count > 0 and values[count - 1] == -np.inf:
        count -= 1
    for j in range(k):
        level = k - j
        if level >= count:
            middle[j] = 0.0
            for i in range(offsets.shape[1]):
                offsets[j, i] = _HARD if i < level else -_HARD
            continue
        middle[j] = np.float64(values[level - 1]) / 2 + np.float64(values[level]) / 2
        for i in range(offsets.shape[1]):
            offsets[j, i] = (np.float64(values[i]) - middle[j]) / T if i < width else -np.inf
    return count


@njit(error_model="numpy")
def _solve(
    offsets: Any, u: Any, tolerance: float, log_mass: float, e: Any, shift: Any, exact: bool, p: Any, c: Any, d: Any,
    most: Any, total: Any, J: Any, F: Any, below: Any, above: Any, moment: Any, sums: Any, far: Any,
) -> bool:  # fmt: skip
    """Newton as in `thresholds.solve`, from u; the rest by its sum, or by the exponentials e if `exact`."""
    k = len(u)
    for _ in range(_ITERATIONS):
        _plan(offsets, u, p, c, d, most, total)
        mass = 0.0
        if exact:
            _factors(u, shift, far)
            masses_of(e, far, sums, moment)
        elif log_mass > -np.inf:
            mass = math.exp(min(log_mass - u[0], _HARD / 2))
        largest = 0.0
        for j in range(k):
            level = k - j
            above[j] = sum_of(d[j, :level]) + TINY
            below[j] = sum_of(c[j, level:]) + TINY
            if exact:
                below[j] += sums[j]
            elif j == 0:
                below[j] += mass
            F[j] = math.log(below[j]) - math.log(above[j])
            largest = max(largest, abs(F[j]))
        for j in range(k):
            level = k - j
            upper, lower = 1.0 / above[j], 1.0 / below[j]
            for m in range(k):
                a, b = (d[j], c[m]) if j <= m else (c[j], d[m])
                J[j, m] = dot(a[:level], b[:level]) * upper + dot(a[level:], b[level:]) * lower
                if exact:
                    J[j, m] += moment[j, m] * lower
            J[j, j] += 1e-30
        if not exact:
            J[0, 0] += mass / below[0]
        solve(J, F)
        for j in range(k):
            u[j] += min(max(F[j], -_STEP), _STEP)
        if largest <= tolerance:
            return True
    return False


@njit(error_model="numpy")
def _factors(u: Any, shift: Any, far: Any) -> None:
    """far (k,): the log of what turns the l-th power of an exponential into p_l / p_0."""
    total = 0.0
    for j in range(len(u)):
        total -= u[j] + shift[j]
        far[j] = total


@njit(fastmath=CONTRACT, error_model="numpy")
def _power(e: Any, power: Any, factor: Any, p: Any, total: Any) -> None:
    for i in range(len(e)):
        power[i] *= e[i]
        p[i] = power[i] * factor
        total[i] += p[i]


@njit(error_model="numpy")
def times(p: Any, factor: Any) -> None:
    for i in range(len(p)):
        p[i] *= factor[i]


@njit(error_model="numpy")
def add(total: Any, some: Any) -> None:
    for i in range(len(total)):
        total[i] += some[i]


@njit(error_model="numpy")
def weights_of(e: Any, far: Any, p: Any) -> None:
    """Fills p (k + 2, PIECE) of a piece e (m,): at 1..k the weights of the anchors 1..k; first and last are scratch."""
    k, m, one = len(far), len(e), e.dtype.type(1)
    power, total = p[0, :m], p[k + 1, :m]
    power[:] = one
    total[:] = one
    for j in range(k):
        _power(e, power, e.dtype.type(math.exp(min(far[j], _FAR))), p[j + 1, :m], total)
    for i in range(m):
        total[i] = one / total[i]
    for j in range(1, k + 1):
        times(p[j, :m], total)


@njit(error_model="numpy")
def masses_of(e: Any, far: Any, sums: Any, moment: Any) -> None:
    """Fills `ranked_rest.masses` of exponentials e (n,)."""
    k = len(far)
    sums[:] = 0.0
    moment[:] = 0.0
    c = np.empty((k + 2, PIECE), e.dtype)
    for start in range(0, len(e), PIECE):
        some = e[start : start + PIECE]
        size = len(some)
        weights_of(some, far, c)
        for j in range(k - 1, 0, -1):
            add(c[j, :size], c[j + 1, :size])
        for j in range(k):
            sums[j] += sum_of(c[j + 1, :size])
            for m in range(j, k):
                moment[j, m] -= dot(c[j + 1, :size], c[m + 1, :size])
    for j in range(k):
        for m in range(j, k):
            moment[j, m] += sums[m]
            moment[m, j] = moment[j, m]


@entry
def forward(
    rows: Any, T: Any, weights: Any, order: Any, best: Any, tail: Any, plan: Any, solution: Any, state: Any
) -> int:
    """Solves the rows.

    Args:
        rows: (rows, n).
        T: (1,) or (rows,).
        weights: (rows, n, k), filled; or (0, n, k) for a sparse result.
        order: (rows, C), filled with positions, best first.
        best, tail: (rows, c, k) and (rows, k), filled with the weights of the first of them and the sums of all others;
            or (0, c, k).
        plan, solution, state: filled.

    Returns:
        -1, or the first row that holds a NaN or +inf, or -2 - row for a row that has not converged.
    """
    count, n = rows.shape
    width, k, W = order.shape[1], solution.shape[2], plan.shape[2]
    dense, single = len(weights) == count, rows.itemsize == 4
    limit = math.log(k * (1e-8 if single else 1e-13))
    depth = math.log(10.0 * n * k) - limit
    tolerance = 1e-4 if single else 1e-7
    block = block_of(n, width)
    maxima = np.empty(-(-n // block), rows.dtype)
    scratch = np.empty(max(len(maxima), 256), rows.dtype)
    values, e = np.empty(width, rows.dtype), np.empty(n if width < n else 0, rows.dtype)
    offsets, c, d = np.empty((k, W)), np.empty((k, W)), np.empty((k, W))
    most, total = np.empty(W), np.empty(W)
    J, moment = np.empty((k, k)), np.empty((k, k))
    F, below, above, sums, far = np.empty(k), np.empty(k), np.empty(k), np.empty(k), np.empty(k)
    u, shift, middle, tails = np.empty(k), np.empty(k), np.empty(k), np.empty(k)
    work = np.empty((k + 2, PIECE), rows.dtype)
    for r in range(count):
        x, t, p = rows[r], T[r if len(T) > 1 else 0], plan[r]
        if not maxima_of(x, block, maxima):
            return r
        ties = best_of(x, block, maxima, scratch, order[r], values)
        finite = _place(values, k, t, offsets, middle)
        last = values[width - 1]
        reference = last if last > -np.inf else x.dtype.type(0)
        scale = scale_of(x, t)
        mass = 0.0
        if width < n:
            cut = np.float64(last) - (87.0 if single else 708.0) * t
            if not dense:
                cut = max(cut, np.float64(values[k]) - t * depth)
            mass = sum_blocks(x, maxima, block, cut, reference, scale, last, e, dense)[0] + ties
        for j in range(k):
            shift[j] = (middle[j] - np.float64(reference)) / t if mass > 0 else 0.0
        log_mass = math.log(mass) - shift[0] if mass > 0 else -np.inf
        u[:] = 0.0
        found = _solve(offsets, u, tolerance, log_mass, e, shift, False, p, c, d, most, total, J, F, below, above,
                       moment, sums, far)  # fmt: skip
        kind = CHEAP if mass > 0 else NOTHING
        if found and mass > 0:
            nearest = -np.inf
            for j in range(k):
                nearest = max(nearest, offsets[j, width - 1] - u[j])
            if log_mass - u[0] + nearest > limit:
                kind = EXACT
                if not dense:
                    exponentials(x, reference, scale, e)
                for i in range(width):
                    e[order[r, i]] = 0
                found = _solve(offsets, u, tolerance, log_mass, e, shift, True, p, c, d, most, total, J, F, below,
                               above, moment, sums, far)  # fmt: skip
        if not found:
            return -2 - r
        _plan(offsets, u, p, c, d, most, total)
        _factors(u, shift, far)
        for i in range(finite, W):
            p[:, i] = 0.0
        tails[:] = 0.0
        mass *= math.exp(far[0]) if kind == CHEAP else 0.0
        tails[0] = mass
        if dense:
            _fill(e, far, kind, work, weights[r])
        elif kind == EXACT:
            for start in range(0, n, PIECE):
                some = e[start : start + PIECE]
                weights_of(some, far, work)
                for j in range(k):
                    tails[j] += sum_of(work[j + 1, : len(some)])
        for i in range(width):
            for j in range(k):
                if dense:
                    weights[r, order[r, i], k - 1 - j] = p[j + 1, i]
                elif i < best.shape[1]:
                    best[r, i, k - 1 - j] = p[j + 1, i]
                else:
                    tails[j] += p[j + 1, i]
        for j in range(k):
            if not dense:
                tail[r, k - 1 - j] = tails[j]
            solution[r, 0, j], solution[r, 1, j] = middle[j], u[j]
            state[r, j] = -u[j] - shift[j]
        state[r, k], state[r, k + 1] = kind, mass
    return -1


@njit(error_model="numpy")
def _fill(e: Any, far: Any, kind: float, work: Any, out: Any) -> None:
    """The weights (n, k) of the rest."""
    n, k = out.shape
    factor = e.dtype.type(math.exp(far[0]) if kind == CHEAP else 0.0)
    for start in range(0, n, PIECE):
        some, part = e[start : start + PIECE], out[start : start + PIECE]
        if kind == EXACT:
            weights_of(some, far, work)
            for i in range(len(some)):
                for j in range(k):
                    part[i, k - 1 - j] = work[j + 1, i]
            continue
        # A piece is written twice while it is in the cache.
        part[:] = 0
        if kind == CHEAP:
            for i in range(len(some)):
                part[i, k - 1] = some[i] * factor
