"""The plain operator on rows of float32 or float64: what `plain.solve_rows` and `plain.pull_lean` compute, row by row.

Formulas, limits and their reasons are those of `nmt.topk.balance`, `nmt.topk.screening` and `nmt.topk.rest`.

Shapes: rows (rows, n); order, z (rows, C); k and T float64, one value or one a row; `state` (rows, 4) holds of each row
whether it does not select all it has, (reference - tau) / T, whether its rest takes e / (e + 1) in the place of e, and
the sum of A (1 - A) over the rest.
"""

import math
from typing import Any

import numpy as np
from numba import njit

from nmt.topk.kernels.cache import entry
from nmt.topk.kernels.numeric import CONTRACT, SUMS, exp
from nmt.topk.kernels.rest import PIECE, exponentials, scale_of, sum_blocks
from nmt.topk.kernels.selection import best_of, block_of, maxima_of

FREE, SHIFT, EXACT, SLOPE = 0, 1, 2, 3
_HARD = 800.0
_LEAST = 1e-305
_ITERATIONS = 200


@njit(fastmath=SUMS, error_model="numpy")
def _wrong(z: Any, u: float, sign: float) -> Any:
    """The sums of sigmoid(sign (z - u)) and of its square."""
    mass, square = 0.0, 0.0
    for i in range(len(z)):
        s = sign * (z[i] - u)
        e = exp(-abs(s))
        a = (1.0 if s > 0.0 else e) / (1.0 + e)
        mass += a
        square += a * a
    return mass, square


@njit(fastmath=SUMS, error_model="numpy")
def _masses_of_piece(e: Any, U: Any) -> Any:
    mass = square = e.dtype.type(0)
    for i in range(len(e)):
        a = e[i] / (e[i] + U)
        mass += a
        square += a * a
    return mass, square


@njit(error_model="numpy")
def _masses(e: Any, U: Any) -> Any:
    """The sums of A = e / (e + U) and of A^2, float64."""
    mass, square = 0.0, 0.0
    for start in range(0, len(e), PIECE):
        some, squares = _masses_of_piece(e[start : start + PIECE], U)
        mass += some
        square += squares
    return mass, square


@njit(error_model="numpy")
def _solve(
    z: Any, whole: int, part: float, low: float, high: float, tolerance: float, log_mass: float, e: Any, shift: float,
    exact: bool, u: float,
) -> float:  # fmt: skip
    """u of one row by the iteration of `balance.solve`; the rest by its sum, or by the exponentials e if `exact`."""
    for _ in range(_ITERATIONS):
        below, below_squares = _wrong(z[whole:], u, 1.0)
        above, above_squares = _wrong(z[:whole], u, -1.0)
        if exact:
            mass, square = _masses(e, e.dtype.type(math.exp(u + shift)))
            below += mass
            below_squares += square
        elif log_mass > -np.inf:
            below += math.exp(log_mass - u)
        below += _LEAST
        above += part + _LEAST
        residual = math.log(below / above)
        small = abs(residual) <= tolerance
        new = u - residual / (below_squares / below + (above_squares + part) / above - 2.0)
        if residual > 0:
            low = u
        elif residual < 0:
            high = u
        if not small and not (low < new < high):
            new = low / 2 + high / 2
        u = new
        if small:
            return u
    return np.nan


@njit(error_model="numpy")
def _place(values: Any, k: float, T: float, n: int, z: Any) -> Any:
    """Fills z as `balance.offsets_of` does: whether the row is free, middle, whole and other part of k, bracket."""
    width, count = len(values), len(values)
    while count > 0 and values[count - 1] == -np.inf:
        count -= 1
    wanted = min(k, float(count))
    whole = math.floor(wanted)
    part = wanted - whole
    if not wanted < count:
        for i in range(width):
            z[i] = _HARD if i < count else -_HARD
        return False, 0.0, whole, part, 0.0, 0.0
    right = np.float64(values[whole])
    left = np.float64(values[whole - 1]) if part == 0 else right
    middle = left / 2 + right / 2
    half = (left / 2 - right / 2) / T
    for i in range(width):
        z[i] = (np.float64(values[i]) - middle) / T
    low = -half - math.log(wanted / (1 - part))
    return True, middle, whole, part, low, half + math.log(n / part if part > 0 else float(n))


@entry
def forward(
    rows: Any, k: Any, T: Any, most: int, weights: Any, order: Any, best: Any, tail: Any, z: Any, solution: Any,
    state: Any,
) -> int:  # fmt: skip
    """Solves the rows.

    Args:
        rows: (rows, n).
        k, T: (1,) or (rows,).
        most: the largest k, rounded up.
        weights: (rows, n), filled; or (0, n) for a sparse result, which may leave out candidates that weigh nothing.
        order: (rows, C), filled with positions, best first.
        best, tail: (rows, c) and (rows,), filled with the weights of the first of them and the sum of all others; or
            (0, c).
        z, solution, state: (rows, C), (rows, 2) of `plain.Solution`, and (rows, 4), filled.

    Returns:
        -1, or the first row that holds a NaN or +inf, or -2 - row for a row that has not converged.
    """
    count, n = rows.shape
    width = order.shape[1]
    dense, single = len(weights) == count, rows.itemsize == 4
    limit = math.log(most * (1e-8 if single else 1e-13))
    depth = math.log(10.0 * n * most) - limit
    tolerance = 1e-4 if single else 1e-7
    floor = 87.0 if single else 708.0
    block = block_of(n, width)
    maxima = np.empty(-(-n // block), rows.dtype)
    scratch = np.empty(max(len(maxima), 256), rows.dtype)
    values = np.empty(width, rows.dtype)
    row_e = np.empty(0 if dense else n, rows.dtype)
    for r in range(count):
        x = rows[r]
        t, of_k = T[r if len(T) > 1 else 0], k[r if len(k) > 1 else 0]
        if not maxima_of(x, block, maxima):
            return r
        ties = best_of(x, block, maxima, scratch, order[r], values)
        free, middle, whole, part, low, high = _place(values, of_k, t, n, z[r])
        last = values[width - 1]
        e = weights[r] if dense else row_e
        scale = scale_of(x, t)
        reference = last if last > -np.inf else x.dtype.type(0)
        mass, square = 0.0, 0.0
        cut = np.float64(last) - floor * t
        if width < n:
            if not dense and free:
                cut = max(cut, np.float64(values[min(width - 1, math.ceil(of_k))]) - t * depth)
            mass, square = sum_blocks(x, maxima, block, cut, reference, scale, last, e, dense)
            mass += ties
            square += ties
        shift = (middle - np.float64(reference)) / t if mass > 0 else 0.0
        log_mass = math.log(mass) - shift if mass > 0 else -np.inf
        u, exact = 0.0, False
        if free:
            u = _solve(z[r], whole, part, low, high, tolerance, log_mass, e, shift, False, u)
            exact = mass > 0 and log_mass + z[r, width - 1] - 2 * u > limit
            if exact:
                if not dense:
                    exponentials(x, reference, scale, e)
                for i in range(width):
                    e[order[r, i]] = 0
                u = _solve(z[r], whole, part, low, high, tolerance, log_mass, e, shift, True, u)
            if math.isnan(u):
                return -2 - r
        factor = math.exp(-u - shift) if mass > 0 else 0.0
        if exact:
            U = e.dtype.type(math.exp(u + shift))
            mass, square = _masses(e, U)
            if dense:
                for i in range(n):
                    e[i] = e[i] / (e[i] + U)
        else:
            mass *= factor
            square *= factor * factor
            if dense and width < n:
                f = e.dtype.type(factor)
                for i in range(n):
                    e[i] = e[i] * f
        rest = mass
        for i in range(width):
            z[r, i] -= u
            a = _sigmoid(z[r, i])
            if dense:
                weights[r, order[r, i]] = a
            elif i < best.shape[1]:
                best[r, i] = a
            else:
                rest += a
        if not dense:
            tail[r] = rest
        solution[r, 0], solution[r, 1] = middle, u
        state[r, 0], state[r, 1], state[r, 2], state[r, 3] = free, -u - shift, exact, mass - square
    return -1


@njit(error_model="numpy")
def _sigmoid(z: float) -> float:
    e = math.exp(-abs(z))
    return (1.0 if z > 0.0 else e) / (1.0 + e)


@njit(fastmath=SUMS, error_model="numpy")
def _slopes_of_piece(a: Any, g: Any) -> Any:
    mass = product = a.dtype.type(0)
    for i in range(len(a)):
        w = a[i] * (1 - a[i])
        mass += w
        product += w * g[i]
    return mass, product


@njit(error_model="numpy")
def _sum_slopes(a: Any, g: Any) -> Any:
    """The sums of w = A (1 - A) and of w g, float64."""
    mass, product = 0.0, 0.0
    for start in range(0, len(a), PIECE):
        some, products = _slopes_of_piece(a[start : start + PIECE], g[start : start + PIECE])
        mass += some
        product += products
    return mass, product


@njit(fastmath=CONTRACT, error_model="numpy")
def _spread(a: Any, g: Any, mean: Any, inverse: Any, out: Any) -> None:
    for i in range(len(a)):
        out[i] = a[i] * (1 - a[i]) * ((g[i] - mean) * inverse)


@njit(fastmath=CONTRACT, error_model="numpy")
def _spread_again(x: Any, reference: Any, scale: Any, log_factor: float, exact: bool, change: Any, out: Any) -> None:
    """A (1 - A) change, with A from the scores again."""
    one = x.dtype.type(1)
    f = x.dtype.type(math.exp(log_factor))
    for i in range(len(x)):
        y = (x[i] - reference) * scale
        a = exp(y if y < 0 else x.dtype.type(0)) * f
        if exact:
            a = a / (one + a)
        out[i] = a * (one - a) * change


@njit(fastmath=CONTRACT, error_model="numpy")
def _shares(z: Any, least: float, v: Any, bounded: Any) -> None:
    """Fills v = exp(least) A (1 - A), `least` the least |z|, and z within +-HARD."""
    for i in range(len(z)):
        s = abs(z[i])
        a = 1.0 / (1.0 + exp(-s))
        v[i] = exp(least - s) * a * a
        bounded[i] = _HARD if z[i] > _HARD else (-_HARD if z[i] < -_HARD else z[i])


@njit(fastmath=SUMS, error_model="numpy")
def _dot(a: Any, b: Any) -> float:
    total = 0.0
    for i in range(len(a)):
        total += a[i] * b[i]
    return total


@entry
def backward(
    rows: Any, T: Any, weights: Any, g: Any, g_tail: Any, order: Any, z: Any, solution: Any, state: Any,
    of_temperature: bool, to_rows: Any, to_k: Any, to_T: Any,
) -> None:  # fmt: skip
    """The gradients by the scores (rows, n), k (rows,) and T (rows,).

    Args:
        weights, g: (rows, n) of a dense result; of a sparse one weights are (0, n), and g (rows, c) of its first
            candidates.
        g_tail: (rows,) of all others of a sparse result.
    """
    count, n = rows.shape
    width = order.shape[1]
    dense = len(weights) == count
    v, bounded, best, ones = np.empty(width), np.empty(width), np.empty(width), np.ones(width)
    for r in range(count):
        x, t, out = rows[r], T[r if len(T) > 1 else 0], to_rows[r]
        rest, product = 0.0, 0.0
        if width < n and state[r, FREE] > 0:
            if dense:
                rest, product = _sum_slopes(weights[r], g[r])
                for i in range(width):
                    a = weights[r, order[r, i]]
                    w = np.float64(a * (1 - a))
                    rest -= w
                    product -= w * np.float64(g[r, order[r, i]])
            else:
                rest = state[r, SLOPE]
                product = rest * g_tail[r]
        for i in range(width):
            if dense:
                best[i] = g[r, order[r, i]]
            else:
                best[i] = g[r, i] if i < g.shape[1] else g_tail[r]
        least = abs(z[r, 0])
        for i in range(width):
            least = min(least, abs(z[r, i]))
        _shares(z[r], least, v, bounded)
        grown = math.exp(min(least, 700.0))
        total = _dot(v, ones)
        center = _dot(v, bounded) / total
        total += grown * rest
        mean = (_dot(v, best) + grown * product) / total
        to_k[r] = mean if state[r, FREE] > 0 else 0.0
        if width < n:
            if state[r, FREE] == 0:
                out[:] = 0
            elif dense:
                _spread(weights[r], g[r], x.dtype.type(mean), x.dtype.type(1.0 / t), out)
            else:
                last = x[order[r, width - 1]]
                reference = last if last > -np.inf else x.dtype.type(0)
                scale = scale_of(x, t)
                change = x.dtype.type((np.float64(g_tail[r]) - mean) / t)
                if rest > 0:
                    _spread_again(x, reference, scale, state[r, SHIFT], state[r, EXACT] > 0, change, out)
                else:
                    out[:] = 0
        of_T = 0.0
        shrunk = math.exp(-least)
        for i in range(width):
            of_score = shrunk * v[i] * (best[i] - mean)
            of_T -= of_score * (bounded[i] - center)
            out[order[r, i]] = 0
            v[i] = of_score / t
        if of_temperature and width < n and state[r, FREE] > 0:
            for i in range(n):
                if out[i] != 0:
                    far = (np.float64(x[i]) - solution[r, 0]) / t - solution[r, 1]
                    of_T -= np.float64(out[i]) * t * (far - center)
        for i in range(width):
            out[order[r, i]] = v[i]
        to_T[r] = of_T / t
