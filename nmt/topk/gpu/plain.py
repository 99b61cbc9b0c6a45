"""The plain operator on rows of float32, bfloat16 or float16: what `plain.solve_rows` and `plain.pull_lean` compute.

Formulas, limits and their reasons are those of `nmt.topk.balance` and `nmt.topk.screening`.

Shapes: rows (rows, n); order, z (rows, C); `state` (rows, 4) holds of each row whether it does not select all it has,
and (reference - tau) / T, the reference being the last of the best candidates.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from nmt.topk.gpu.rows import (
    CHUNK,
    best_of,
    last_of,
    launch,
    number,
    of_row,
    power_of_two,
    put_best,
    refused,
    rest_of,
    scale_of,
)

FREE, SHIFT = tl.constexpr(0), tl.constexpr(1)
_HARD = tl.constexpr(800.0)
_TOLERANCE = tl.constexpr(1e-4)
_LEAST = tl.constexpr(1e-305)
_ITERATIONS = tl.constexpr(200)


@triton.jit
def _sigmoid(z):
    return 1.0 / (1.0 + tl.exp(-z))


@triton.jit
def _masses(x, n, last, reference, scale, steps, E: tl.constexpr):
    """The sums of A and of A^2 over the rest of a row."""
    mass, square = tl.full([], 0.0, tl.float64), tl.full([], 0.0, tl.float64)
    for start in range(0, n, E):
        y, _ = rest_of(x, start + tl.arange(0, E), n, last, reference, scale)
        a = _sigmoid(y + steps.to(tl.float32))
        mass += tl.sum(a, 0).to(tl.float64)
        square += tl.sum(a * a, 0).to(tl.float64)
    return mass, square


@triton.jit
def _solve(
    x, k, T, order, mass, status, best, tail, z_out, solution, state, n, width, kept, limit,
    K_STRIDE: tl.constexpr, T_STRIDE: tl.constexpr, DENSE: tl.constexpr, C: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    """u of one row by the iteration of `balance.solve`: the rest by its mass, or by a pass each step if that fails."""
    row = tl.program_id(0).to(tl.int64)
    x += row * n
    order += row * width
    lane = tl.arange(0, C)
    inside = lane < width
    place = tl.load(order + lane, mask=inside, other=0)
    value = tl.load(x + place, mask=inside, other=-float("inf")).to(tl.float64)
    t = of_row(T, row, T_STRIDE)
    count = tl.sum((value > -float("inf")).to(tl.int32), 0).to(tl.float64)
    wanted = tl.minimum(of_row(k, row, K_STRIDE), count)
    free = wanted < count
    whole = tl.floor(wanted)
    part = wanted - whole
    rank = lane.to(tl.float64)
    right = tl.sum(tl.where(rank == whole, value, 0.0), 0)
    left = tl.where(part == 0.0, tl.sum(tl.where(rank == whole - 1.0, value, 0.0), 0), right)
    left, right = tl.where(free, left, 0.0), tl.where(free, right, 0.0)
    middle = left / 2 + right / 2
    half = (left / 2 - right / 2) / t
    z = tl.where(free, (value - middle) / t, tl.where(value > -float("inf"), _HARD, -_HARD))
    first_low = -half - tl.log(tl.where(free, wanted, 1.0) / (1.0 - part))
    first_high = half + tl.log(n / tl.where(part > 0.0, part, 1.0))
    last, reference = last_of(x, order, width)
    scale = scale_of(t)
    m = tl.load(mass + row)
    shift = tl.where(m > 0.0, (middle - reference) / t, 0.0)
    log_mass = tl.where(m > 0.0, tl.log(tl.maximum(m, 1e-300)) - shift, -float("inf"))
    nearest = tl.sum(tl.where(lane == width - 1, z, 0.0), 0)
    above_k = rank < whole
    u = tl.full([], 0.0, tl.float64)
    low, high = first_low, first_high
    exact = tl.full([], 0, tl.int32)
    bad = tl.load(status + row)
    iterations = tl.full([], 0, tl.int32)
    going = free & (bad == 0)
    while going:
        wrong = _sigmoid(tl.where(above_k, u - z, z - u))
        square = wrong * wrong
        above = tl.sum(tl.where(above_k, wrong, 0.0), 0) + part + _LEAST
        above_square = tl.sum(tl.where(above_k, square, 0.0), 0)
        below = tl.sum(tl.where(above_k, 0.0, wrong), 0) + _LEAST
        below_square = tl.sum(tl.where(above_k, 0.0, square), 0)
        if exact > 0:
            rest, rest_square = _masses(x, n, last, reference, scale, -u - shift, E)
        else:
            rest, rest_square = tl.exp(log_mass - u), tl.full([], 0.0, tl.float64)
        below += rest
        residual = tl.log(below / above)
        small = tl.abs(residual) <= _TOLERANCE
        new = u - residual / ((below_square + rest_square) / below + (above_square + part) / above - 2.0)
        low, high = tl.where(residual > 0.0, u, low), tl.where(residual < 0.0, u, high)
        u = tl.where(small | ((new > low) & (new < high)), new, low / 2 + high / 2)
        # exp(z) does not serve for the weights of the rest: on with all of them.
        coarse = small & (exact == 0) & (log_mass + nearest - 2.0 * u > limit)
        low, high = tl.where(coarse, first_low, low), tl.where(coarse, first_high, high)
        exact = tl.where(coarse, 1, exact)
        iterations += 1
        going = (iterations < _ITERATIONS) & (coarse | (small == 0))
    tl.store(status + row, tl.where(iterations < _ITERATIONS, bad, 2))
    u = tl.where(bad == 0, u, float("nan"))
    z = z - u
    tl.store(z_out + row * width + lane, z, mask=inside)
    tl.store(solution + 2 * row, middle)
    tl.store(solution + 2 * row + 1, u)
    tl.store(state + 4 * row + FREE, free.to(tl.float64))
    tl.store(state + 4 * row + SHIFT, -u - shift)
    if not DENSE:
        if exact > 0:
            rest, _ = _masses(x, n, last, reference, scale, -u - shift, E)
        else:
            rest = tl.exp(log_mass - u)
        a = _sigmoid(z)
        tl.store(best + row * kept + lane, a.to(tl.float32), mask=lane < kept)
        rest += tl.sum(tl.where(inside & (lane >= kept), a, 0.0), 0)
        tl.store(tail + row, rest.to(tl.float32))


@triton.jit
def _rest(x, T, order, state, n, width, row, T_STRIDE: tl.constexpr, E: tl.constexpr):
    """Of the candidates of a program their positions, z, -inf for the best, and which are others."""
    x += row * n
    i = tl.program_id(1) * E + tl.arange(0, E)
    last, reference = last_of(x, order + row * width, width)
    y, others = rest_of(x, i, n, last, reference, scale_of(of_row(T, row, T_STRIDE)))
    return i, y + tl.load(state + 4 * row + SHIFT).to(tl.float32), others


@triton.jit
def _fill(
    x, T, order, z_in, state, weights, n, width, T_STRIDE: tl.constexpr, C: tl.constexpr, E: tl.constexpr
):  # fmt: skip
    """All weights."""
    row = tl.program_id(0).to(tl.int64)
    i, z, _ = _rest(x, T, order, state, n, width, row, T_STRIDE, E)
    weights += row * n
    tl.store(weights + i, _sigmoid(z), mask=i < n)
    lane = tl.arange(0, C)
    of_best = _sigmoid(tl.load(z_in + row * width + lane, mask=lane < width, other=0.0)).to(tl.float32)
    put_best(weights, order + row * width, of_best, tl.program_id(1) * E, width, C, E)


@triton.jit
def _slopes(z):
    """A (1 - A), neither by subtraction."""
    e = tl.exp(-tl.abs(z))
    return e / ((1.0 + e) * (1.0 + e))


@triton.jit
def _sum(
    x, T, g, order, state, sums, n, width, parts, T_STRIDE: tl.constexpr, G_ROW: tl.constexpr, E: tl.constexpr
):  # fmt: skip
    """Of each part of a row the sums of w = A (1 - A) and of w g over the rest; g (rows,) if not G_ROW."""
    row = tl.program_id(0).to(tl.int64)
    i, z, others = _rest(x, T, order, state, n, width, row, T_STRIDE, E)
    w = _slopes(z)
    if G_ROW:
        product = w * tl.load(g + row * n + i, mask=others, other=0.0).to(tl.float32)
    else:
        product = w * tl.load(g + row).to(tl.float32)
    part = row * parts + tl.program_id(1)
    tl.store(sums + 2 * part, tl.sum(w, 0))
    tl.store(sums + 2 * part + 1, tl.sum(product, 0))


@triton.jit
def _pull_best(
    g, T, g_tail, order, z_in, state, sums, to_best, to_k, to_T, means, n, width, kept, parts,
    T_STRIDE: tl.constexpr, DENSE: tl.constexpr, C: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """`balance.pull_back` of a row: gradients by the best candidates, by k, and their part of that by T."""
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, C)
    inside = lane < width
    place = tl.load(order + row * width + lane, mask=inside, other=0)
    z = tl.load(z_in + row * width + lane, mask=inside, other=-_HARD)
    if DENSE:
        of_best = tl.load(g + row * n + place, mask=inside, other=0.0).to(tl.float64)
    else:
        of_best = tl.load(g + row * kept + lane, mask=lane < kept, other=0.0).to(tl.float64)
        of_best = tl.where(lane < kept, of_best, tl.load(g_tail + row).to(tl.float64))
    distance = tl.abs(z)
    least = tl.min(tl.where(inside, distance, float("inf")), 0)
    larger = _sigmoid(distance)
    v = tl.where(inside, tl.exp(least - distance) * larger * larger, 0.0)
    i = tl.arange(0, P)
    part = sums + 2 * (row * parts + i)
    grown = tl.exp(tl.minimum(least, 700.0))
    rest = tl.sum(tl.load(part, mask=i < parts, other=0.0).to(tl.float64), 0)
    rest_product = tl.sum(tl.load(part + 1, mask=i < parts, other=0.0).to(tl.float64), 0)
    total = tl.sum(v, 0) + grown * rest
    mean = (tl.sum(v * of_best, 0) + grown * rest_product) / total
    bounded = tl.minimum(tl.maximum(z, -_HARD), _HARD)
    center = tl.sum(v * bounded, 0) / total
    of_score = tl.exp(-least) * v * (of_best - mean)
    t = of_row(T, row, T_STRIDE)
    tl.store(to_best + row * width + lane, (of_score / t).to(tl.float32), mask=inside)
    tl.store(to_k + row, tl.where(tl.load(state + 4 * row + FREE) > 0.0, mean, 0.0))
    tl.store(to_T + row, -tl.sum(of_score * (bounded - center), 0) / t)
    tl.store(means + 2 * row, mean)
    tl.store(means + 2 * row + 1, center)


@triton.jit
def _pull_rest(
    x, T, g, order, state, means, to_best, to_rows, of_T, n, width, parts,
    T_STRIDE: tl.constexpr, G_ROW: tl.constexpr, TEMPERATURE: tl.constexpr, C: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    """The gradients by all scores, w (g - mean) / T, and of each part of the rest minus the gradient by T."""
    row = tl.program_id(0).to(tl.int64)
    i, z, others = _rest(x, T, order, state, n, width, row, T_STRIDE, E)
    if G_ROW:
        of_rest = tl.load(g + row * n + i, mask=others, other=0.0).to(tl.float32)
    else:
        of_rest = tl.load(g + row).to(tl.float32)
    t = of_row(T, row, T_STRIDE).to(tl.float32)
    out = _slopes(z) * (of_rest - tl.load(means + 2 * row).to(tl.float32)) / t
    tl.store(to_rows + row * n + i, out, mask=i < n)
    lane = tl.arange(0, C)
    of_best = tl.load(to_best + row * width + lane, mask=lane < width, other=0.0)
    put_best(to_rows + row * n, order + row * width, of_best, tl.program_id(1) * E, width, C, E)
    if TEMPERATURE:
        far = tl.where(out != 0.0, z - tl.load(means + 2 * row + 1).to(tl.float32), 0.0)
        tl.store(of_T + row * parts + tl.program_id(1), tl.sum(out * far, 0))


def forward(
    rows: Tensor, k: float | Tensor, T: float | Tensor, most: int, weights: Tensor, order: Tensor, best: Tensor,
    tail: Tensor, z: Tensor, solution: Tensor, state: Tensor,
) -> int:  # fmt: skip
    """Solves the rows; arguments and result as those of `kernels.plain.forward`, but k and T may be numbers."""
    count, n = rows.shape
    width, dense = order.shape[1], len(weights) == count
    mass, status = best_of(rows, T, order)
    (of_k, k_stride), (t, t_stride) = number(k), number(T)
    launch(_solve, (count,), rows, of_k, t, order, mass, status, best, tail, z, solution, state, n, width,
           best.shape[1], math.log(most * 1e-8), K_STRIDE=k_stride, T_STRIDE=t_stride, DENSE=dense,
           C=power_of_two(width, 16), E=CHUNK)  # fmt: skip
    if dense:
        launch(_fill, (count, triton.cdiv(n, CHUNK)), rows, t, order, z, state, weights, n, width, T_STRIDE=t_stride,
               C=power_of_two(width, 16), E=CHUNK)  # fmt: skip
    return refused(status)


def backward(
    rows: Tensor, T: float | Tensor, weights: Tensor, g: Tensor, g_tail: Tensor, order: Tensor, z: Tensor,
    solution: Tensor, state: Tensor, of_temperature: bool, to_rows: Tensor, to_k: Tensor, to_T: Tensor,
) -> None:  # fmt: skip
    """The gradients; arguments as those of `kernels.plain.backward`, g_tail (0,) of a dense result."""
    count, n = rows.shape
    width, dense = order.shape[1], not len(g_tail)
    parts, C = triton.cdiv(n, CHUNK), power_of_two(width, 16)
    sums, of_T = (torch.empty(count, parts, *size, dtype=torch.float32, device=rows.device) for size in ((2,), ()))
    to_best = torch.empty(count, width, dtype=torch.float32, device=rows.device)
    means = torch.empty(count, 2, dtype=torch.float64, device=rows.device)
    t, stride = number(T)
    of_rest = g if dense else g_tail
    shared: dict[str, Any] = {"T_STRIDE": stride, "G_ROW": dense, "E": CHUNK}
    launch(_sum, (count, parts), rows, t, of_rest, order, state, sums, n, width, parts, **shared)
    launch(_pull_best, (count,), g, t, g_tail, order, z, state, sums, to_best, to_k, to_T, means, n, width, g.shape[1],
           parts, T_STRIDE=stride, DENSE=dense, C=C, P=power_of_two(parts, 2))  # fmt: skip
    launch(_pull_rest, (count, parts), rows, t, of_rest, order, state, means, to_best, to_rows, of_T, n, width, parts,
           TEMPERATURE=of_temperature, C=C, **shared)  # fmt: skip
    if of_temperature:
        to_T -= of_T.sum(1)
