"""The backward of the sorted operator; see `ranked` for shapes and sources."""

import math
from typing import Any

import numpy as np
from numba import njit

from nmt.topk.kernels.cache import entry
from nmt.topk.kernels.linear import solve
from nmt.topk.kernels.ranked import (
    CHEAP,
    EXACT,
    NOTHING,
    TINY,
    add,
    cumulate,
    dot,
    masses_of,
    sum_of,
    times,
    weights_of,
)
from nmt.topk.kernels.rest import PIECE, exponentials, scale_of


@entry
def backward(
    rows: Any, T: Any, g: Any, g_tail: Any, order: Any, plan: Any, solution: Any, state: Any, of_temperature: bool,
    to_rows: Any, to_T: Any,
) -> None:  # fmt: skip
    """The gradients by the scores (rows, n) and T (rows,).

    Args:
        g, g_tail: dL/dA (rows, n, k) and (0, k) of a dense result; (rows, c, k) and (rows, k) of a sparse one.
    """
    count, n = rows.shape
    width, k, W = order.shape[1], solution.shape[2], plan.shape[2]
    dense = len(g_tail) == 0
    a, tilt, c, d = np.empty((k, W)), np.zeros((k, W)), np.empty((k, W)), np.empty((k, W))
    logs = np.empty(k + 1)
    b, y, far, through, levels = np.empty(k), np.empty(k), np.empty(k), np.empty(k), np.empty(k)
    moment, K = np.empty((k, k)), np.empty((k, k))
    e = np.empty(n if width < n else 0, rows.dtype)
    work, g_rest = np.empty((k + 2, PIECE), rows.dtype), np.empty((k, PIECE), rows.dtype)
    extra, sums = np.empty((k, k)), np.empty(k)
    for r in range(count):
        x, t, p, out, kind = rows[r], T[r if len(T) > 1 else 0], plan[r], to_rows[r], state[r, k]
        for i in range(width):
            for j in range(k):
                slot = k - 1 - j
                if dense:
                    a[j, i] = g[r, order[r, i], slot]
                else:
                    a[j, i] = g[r, i, slot] if i < g.shape[1] else g_tail[r, slot]
        cumulate(p, c, d)
        direct = 0.0
        through[:] = 0.0
        for i in range(width):
            # Sums of each side, none by a subtraction: they multiply what may be hundreds of orders of magnitude apart.
            side = 0.0
            for j in range(k - 1, -1, -1):
                side += a[j, i] * p[j + 1, i]
                tilt[j, i] = side * d[j, i]
            side = 0.0
            for j in range(k):
                tilt[j, i] -= side * c[j, i]
                side += a[j, i] * p[j + 1, i]
            if of_temperature:
                most, mean = TINY, 0.0
                for j in range(k + 1):
                    most = max(most, p[j, i])
                for j in range(k + 1):
                    logs[j] = p[j, i] * math.log(p[j, i] / most) if p[j, i] > 0 else 0.0
                    mean += logs[j]
                side = 0.0
                for j in range(k - 1, -1, -1):
                    side += logs[j + 1]
                    through[j] += side * d[j, i]
                    direct += a[j, i] * (logs[j + 1] - p[j + 1, i] * mean)
                side = logs[0]
                for j in range(k):
                    through[j] -= side * c[j, i]
                    side += logs[j + 1]
        for j in range(k):
            b[j] = sum_of(tilt[j])
            for m in range(j, k):
                moment[j, m] = dot(d[j], c[m])
        far_total = 0.0
        for j in range(k):
            far_total += state[r, j]
            far[j] = far_total
        reference = x.dtype.type(0)
        if kind != NOTHING:
            reference = x[order[r, width - 1]]
            exponentials(x, reference, scale_of(x, t), e)
            for i in range(width):
                e[order[r, i]] = 0
        if kind == CHEAP:
            factor = e.dtype.type(math.exp(far[0]))
            for i in range(n):
                e[i] *= factor
            for start in range(0, n, PIECE):
                some = e[start : start + PIECE]
                mass = np.float64(sum_of(some))
                moment[0, 0] += mass
                if dense:
                    b[0] += np.float64(dot(some, g[r, start : start + PIECE, k - 1]))
                else:
                    b[0] += mass * g_tail[r, k - 1]
            if of_temperature:
                for i in range(n):
                    if e[i] > 0:
                        log_p = e[i] * ((np.float64(x[i]) - np.float64(reference)) / t + far[0])
                        through[0] += log_p
                        direct += log_p * (g[r, i, k - 1] if dense else g_tail[r, k - 1])
        elif kind == EXACT:
            masses_of(e, far, sums, extra)
            for j in range(k):
                for m in range(j, k):
                    moment[j, m] += extra[j, m]
            _tilts(e, far, g[r] if dense else g_tail[r : r + 1], work, g_rest, levels, b)
        _balance(b, moment, K, y)
        of_T = -direct
        for j in range(k):
            of_T += y[j] * through[j]
        if kind == NOTHING:
            out[:] = 0
        elif kind == CHEAP:
            first, inverse = x.dtype.type(y[0]), x.dtype.type(1.0 / t)
            if dense:
                for i in range(n):
                    out[i] = e[i] * ((g[r, i, k - 1] - first) * inverse)
            else:
                change = x.dtype.type((np.float64(g_tail[r, k - 1]) - y[0]) / t)
                for i in range(n):
                    out[i] = e[i] * change
        else:
            of_T += _pull(x, reference, t, e, far, g[r] if dense else g_tail[r : r + 1], y, work, g_rest, levels,
                          of_temperature, out)  # fmt: skip
        for i in range(width):
            of_score, reach, others, after = 0.0, 0.0, 0.0, 0.0
            # sum_j y_j (c_j sum_{l <= j} d_l + d_j sum_{l > j} c_l), the first sum in the order of l.
            for j in range(k - 1, -1, -1):
                of_score += tilt[j, i]
                others += y[j] * c[j, i]
                reach += d[j, i] * (others + y[j] * after)
                after += c[j, i]
            out[order[r, i]] = (of_score - reach) / t
        to_T[r] = of_T / t


@njit(error_model="numpy")
def _balance(b: Any, moment: Any, K: Any, y: Any) -> None:
    """y of `thresholds.balance`; of the moment (k, k) the upper triangle counts."""
    k = len(b)
    for j in range(k):
        scale = 1.0 / math.sqrt(moment[j, j] + TINY)
        y[j] = scale * b[j]
        for m in range(j, k):
            K[j, m] = moment[j, m] * scale / math.sqrt(moment[m, m] + TINY) if m > j else 1.0
            K[m, j] = K[j, m]
    solve(K, y)
    for j in range(k):
        y[j] /= math.sqrt(moment[j, j] + TINY)


@njit(error_model="numpy")
def _anchors(g: Any, start: int, size: int, out: Any) -> None:
    """dL/dp (k, size) by anchors, of g (n, k) by slots or (1, k) for all."""
    k = g.shape[1]
    for i in range(size):
        for j in range(k):
            out[j, i] = g[start + i if len(g) > 1 else 0, k - 1 - j]


@njit(error_model="numpy")
def _tilts(e: Any, far: Any, g: Any, work: Any, g_rest: Any, levels: Any, b: Any) -> None:
    """Adds the first result of `ranked_rest.pull_sums` to b."""
    k = len(far)
    for start in range(0, len(e), PIECE):
        some = e[start : start + PIECE]
        size = len(some)
        total = work[0, :size]
        weights_of(some, far, work)
        _anchors(g, start, size, g_rest)
        total[:] = 0
        for j in range(k):
            gp = g_rest[j, :size]
            times(gp, work[j + 1, :size])
            add(total, gp)
        for j in range(k):
            levels[j] = np.float64(sum_of(g_rest[j, :size])) - np.float64(dot(work[j + 1, :size], total))
        upward = 0.0
        for j in range(k - 1, -1, -1):
            upward += levels[j]
            b[j] += upward


@njit(error_model="numpy")
def _pull(
    x: Any, reference: Any, t: float, e: Any, far: Any, g: Any, y: Any, work: Any, g_rest: Any, levels: Any,
    of_temperature: bool, out: Any,
) -> float:  # fmt: skip
    """Fills dL/dx (n,) of the rest, as `ranked_rest.pull`, and gives its part of T dL/dT."""
    k, of_T = len(far), 0.0
    upward = 0.0
    for j in range(k):
        upward += y[j]
        levels[j] = upward
    inverse = e.dtype.type(1.0 / t)
    for start in range(0, len(e), PIECE):
        some = e[start : start + PIECE]
        size = len(some)
        total, mean = work[0, :size], work[k + 1, :size]
        weights_of(some, far, work)
        _anchors(g, start, size, g_rest)
        total[:] = 0
        mean[:] = 0
        result = out[start : start + size]
        result[:] = 0
        for j in range(k):
            level, change = e.dtype.type(j + 1), e.dtype.type(levels[j])
            p, hp = work[j + 1, :size], g_rest[j, :size]
            for i in range(size):
                hp[i] = (hp[i] - change) * p[i]
                total[i] += hp[i]
                mean[i] += level * p[i]
                result[i] += level * hp[i]
        for i in range(size):
            result[i] = (result[i] - total[i] * mean[i]) * inverse
        if of_temperature:
            for i in range(size):
                if some[i] > 0:
                    z = (np.float64(x[start + i]) - np.float64(reference)) / t
                    for j in range(k):
                        log = (j + 1) * z + far[j]
                        of_T -= log * (np.float64(g_rest[j, i]) - np.float64(total[i]) * np.float64(work[j + 1, i]))
    return of_T
