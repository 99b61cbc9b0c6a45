"""The sorted operator on rows of float32, bfloat16 or float16: what `sorted.solve_rows` computes.

Formulas, limits and their reasons are those of `nmt.topk.thresholds` and `nmt.topk.ranked_rest`. Anchors 1..k are at
the indices 0..k - 1 but in the plan, which begins with the anchor 0.

Shapes: rows (rows, n); order (rows, C); plan (rows, k + 1, W) the weights of the best candidates by anchors; `state`
(rows, k + 2) holds of each row (reference - tau_j) / T, the reference being the last of the best candidates. In a
program tiles are (K, C) or (K, E), K the next power of two from k on.
"""

import math

import triton
import triton.language as tl
from torch import Tensor

from nmt.topk.gpu.linear import moment, solve
from nmt.topk.gpu.rows import (
    best_of,
    last_of,
    launch,
    number,
    of_row,
    power_of_two,
    refused,
    rest_of,
    scale_of,
)

_HARD = tl.constexpr(800.0)
TINY = tl.constexpr(1e-290)
_STEP = tl.constexpr(4.0)
_FAR = tl.constexpr(60.0)
_TOLERANCE = tl.constexpr(1e-4)
_ITERATIONS = tl.constexpr(200)
# Numbers of one tile over the rest.
_TILE = 8192


def tile_of(k: int) -> tuple[int, int]:
    """K, and the candidates E of a tile over the rest."""
    K = power_of_two(k, 2)
    return K, _TILE // K


@triton.jit
def weights_of(y, far, k, K: tl.constexpr):
    """p (K, E) of the rest, from y = (x - reference) / T (E,) and far (K,), the log of p_l / p_0 at the reference."""
    j = tl.arange(0, K)[:, None]
    log = (j + 1).to(tl.float32) * y[None, :] + far[:, None]
    p = tl.where(j < k, tl.exp(tl.minimum(log, _FAR)), 0.0)
    return p / (1.0 + tl.sum(p, 0))[None, :]


@triton.jit
def _rest_sums(x, n, last, reference, scale, far, k, K: tl.constexpr, E: tl.constexpr):
    """The sums of p (K,) over the rest of a row, and those of c_j c_m (K, K)."""
    sums, products = tl.zeros((K,), tl.float64), tl.zeros((K, K), tl.float64)
    for start in range(0, n, E):
        y, _ = rest_of(x, start + tl.arange(0, E), n, last, reference, scale)
        p = weights_of(y, far, k, K)
        c = tl.cumsum(p, 0, reverse=True)
        sums += tl.sum(p, 1).to(tl.float64)
        products += moment(c, c, c, c, k, K).to(tl.float64)
    return sums, products


@triton.jit
def _plan(offsets, u, k, K: tl.constexpr):
    """p of the anchors 1..k (K, C), and c and d of `thresholds.Plan`."""
    j = tl.arange(0, K)[:, None]
    step = tl.where(j < k, tl.minimum(tl.maximum(offsets - u[:, None], -_HARD), _HARD), 0.0)
    log = tl.cumsum(step, 0)
    most = tl.maximum(tl.max(tl.where(j < k, log, -_HARD), 0), 0.0)[None, :]
    p = tl.where(j < k, tl.exp(log - most), 0.0)
    total = tl.exp(-most) + tl.sum(p, 0)[None, :]
    below = tl.where(j < k, tl.exp(log - step - most), 0.0)
    return p / total, tl.cumsum(p, 0, reverse=True) / total, tl.cumsum(below, 0) / total


@triton.jit
def _solve(
    x, T, order, mass, status, best, tail, plan, solution, state, n, width, kept, limit, k,
    T_STRIDE: tl.constexpr, DENSE: tl.constexpr, K: tl.constexpr, C: tl.constexpr, W: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    """Newton as in `thresholds.solve`: the rest by its mass, or by a pass each step where that fails."""
    row = tl.program_id(0).to(tl.int64)
    x += row * n
    order += row * width
    lane, level = tl.arange(0, C), k - tl.arange(0, K)
    inside = lane < width
    place = tl.load(order + lane, mask=inside, other=0)
    value = tl.load(x + place, mask=inside, other=-float("inf")).to(tl.float64)
    t = of_row(T, row, T_STRIDE)
    count = tl.sum((value > -float("inf")).to(tl.int32), 0)
    i, at = lane[None, :], level[:, None]
    j = tl.arange(0, K)
    ends = tl.where((i == at - 1) | (i == at), value[None, :] / 2, 0.0)
    middle = tl.where((level < count) & (j < k), tl.sum(ends, 1), 0.0)
    above_j = i < at
    offsets = tl.where(at >= count, tl.where(above_j, _HARD, -_HARD), (value[None, :] - middle[:, None]) / t)
    last, reference = last_of(x, order, width)
    scale = scale_of(t)
    m = tl.load(mass + row)
    shift = tl.where(m > 0.0, (middle - reference) / t, 0.0)
    first = (j == 0).to(tl.float64)
    log_mass = tl.where(m > 0.0, tl.log(tl.maximum(m, 1e-300)), -float("inf")) - tl.sum(shift * first, 0)
    nearest = tl.sum(tl.where(i == width - 1, offsets, 0.0), 1)
    u = tl.zeros((K,), tl.float64)
    exact = tl.full([], 0, tl.int32)
    bad = tl.load(status + row)
    iterations = tl.full([], 0, tl.int32)
    going = bad == 0
    while going:
        p, c, d = _plan(offsets, u, k, K)
        if exact > 0:
            sums, products = _rest_sums(x, n, last, reference, scale, tl.cumsum(-u - shift, 0).to(tl.float32), k, K, E)
            rest = tl.cumsum(sums, 0, reverse=True)
            of_rest = tl.where(j[:, None] > j[None, :], rest[:, None], rest[None, :]) - products
        else:
            rest = first * tl.exp(tl.minimum(log_mass - tl.sum(u * first, 0), _HARD / 2))
            of_rest = rest[:, None] * first[None, :]
        above = tl.sum(tl.where(above_j, d, 0.0), 1) + TINY
        below = tl.sum(tl.where(above_j, 0.0, c), 1) + rest + TINY
        residual = tl.where(j < k, tl.log(below) - tl.log(above), 0.0)
        weight = tl.where(above_j, 1.0 / above[:, None], 1.0 / below[:, None])
        jacobian = moment(weight * d, c, weight * c, d, k, K) + of_rest / below[:, None]
        jacobian = tl.where(j[:, None] == j[None, :], jacobian + 1e-30, jacobian)
        change = solve(jacobian, residual, k, K)
        u += tl.minimum(tl.maximum(change, -_STEP), _STEP)
        small = tl.max(tl.abs(residual), 0) <= _TOLERANCE
        # exp(z) does not serve for the weights of the rest: on with all of them.
        reach = tl.max(tl.where(j < k, nearest - u, -float("inf")), 0)
        coarse = small & (exact == 0) & (log_mass - tl.sum(u * first, 0) + reach > limit)
        exact = tl.where(coarse, 1, exact)
        iterations += 1
        going = (iterations < _ITERATIONS) & (coarse | (small == 0))
    tl.store(status + row, tl.where(iterations < _ITERATIONS, bad, 2))
    u = tl.where(bad == 0, u, float("nan"))
    p, c, d = _plan(offsets, u, k, K)
    # Masked candidates that fill an empty slot weigh nothing.
    p = tl.where(i < count, p, 0.0)
    steps, real = -u - shift, j < k
    tl.store(solution + 2 * row * k + j, middle, mask=real)
    tl.store(solution + (2 * row + 1) * k + j, u, mask=real)
    tl.store(state + row * (k + 2) + j, steps, mask=real)
    plan += row * (k + 1) * W
    tl.store(plan + (j[:, None] + 1) * W + i, p, mask=real[:, None] & (i < W))
    nothing = tl.sum(tl.where(j[:, None] == 0, d, 0.0), 0)
    tl.store(plan + lane, tl.where(lane < count, nothing, 0.0), mask=lane < W)
    if not DENSE:
        slot = k - 1 - j
        if exact > 0:
            sums, _ = _rest_sums(x, n, last, reference, scale, tl.cumsum(steps, 0).to(tl.float32), k, K, E)
        else:
            sums = first * tl.exp(log_mass - tl.sum(u * first, 0))
        tl.store(best + (row * kept + i) * k + slot[:, None], p.to(tl.float32), mask=real[:, None] & (i < kept))
        sums += tl.sum(tl.where((i >= kept) & (i < width), p, 0.0), 1)
        tl.store(tail + row * k + slot, sums.to(tl.float32), mask=real)


@triton.jit
def rest_tile(x, T, order, state, n, width, k, row, T_STRIDE: tl.constexpr, K: tl.constexpr, E: tl.constexpr):
    """Of the candidates of a program: positions, which are of the rest, y (E,), far (K,), and `weights_of` (K, E)."""
    x += row * n
    i = tl.program_id(1) * E + tl.arange(0, E)
    j = tl.arange(0, K)
    last, reference = last_of(x, order + row * width, width)
    y, others = rest_of(x, i, n, last, reference, scale_of(of_row(T, row, T_STRIDE)))
    far = tl.cumsum(tl.load(state + row * (k + 2) + j, mask=j < k, other=0.0), 0).to(tl.float32)
    return i, others, y, far, weights_of(y, far, k, K)


@triton.jit
def _fill(
    x, T, order, plan, state, weights, n, width, k,
    T_STRIDE: tl.constexpr, K: tl.constexpr, C: tl.constexpr, W: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    """All weights; the slots last, as they are in memory."""
    row = tl.program_id(0).to(tl.int64)
    i, _, _, _, p = rest_tile(x, T, order, state, n, width, k, row, T_STRIDE, K, E)
    j, lane, first = tl.arange(0, K)[None, :], tl.arange(0, C)[:, None], tl.program_id(1) * E
    weights += row * n * k + k - 1 - j
    tl.store(weights + i[:, None] * k, tl.trans(p), mask=(i < n)[:, None] & (j < k))
    place = tl.load(order + row * width + lane, mask=lane < width, other=-1)
    best = tl.load(plan + row * (k + 1) * W + (j + 1) * W + lane, mask=(lane < width) & (j < k), other=0.0)
    tl.debug_barrier()
    tl.store(weights + place * k, best.to(tl.float32), mask=(place >= first) & (place < first + E) & (j < k))


def forward(
    rows: Tensor, T: float | Tensor, weights: Tensor, order: Tensor, best: Tensor, tail: Tensor, plan: Tensor,
    solution: Tensor, state: Tensor,
) -> int:  # fmt: skip
    """Solves the rows; arguments and result as those of `kernels.ranked.forward`, but T may be a number."""
    count, n = rows.shape
    width, k, W, dense = order.shape[1], solution.shape[2], plan.shape[2], len(weights) == count
    mass, status = best_of(rows, T, order)
    t, stride = number(T)
    K, E = tile_of(k)
    launch(_solve, (count,), rows, t, order, mass, status, best, tail, plan, solution, state, n, width,
           best.shape[1], math.log(k * 1e-8), k, T_STRIDE=stride, DENSE=dense, K=K, C=power_of_two(W, 16), W=W,
           E=E)  # fmt: skip
    if dense:
        launch(_fill, (count, triton.cdiv(n, E)), rows, t, order, plan, state, weights, n, width, k, T_STRIDE=stride,
               K=K, C=power_of_two(width, 16), W=W, E=E)  # fmt: skip
    return refused(status)
