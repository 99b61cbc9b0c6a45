"""The gradients of the sorted operator: what `sorted.pull_lean` computes; shapes and indices as in `ranked`.

Of the rest, whatever its weights, all slots are taken: this costs no further read.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from nmt.topk.gpu.linear import moment, solve
from nmt.topk.gpu.ranked import TINY, rest_tile, tile_of
from nmt.topk.gpu.rows import launch, number, of_row, power_of_two, put_best

# Parts of a row whose sums are added up at a time.
_PARTS = 16


@triton.jit
def _of_rest(g, row, n, i, others, k, G_ROW: tl.constexpr, K: tl.constexpr):
    """dL/dp (K, E) by anchors of some candidates, of g (rows, n, k); or (rows, k) if not G_ROW."""
    j = tl.arange(0, K)[:, None]
    if G_ROW:
        found = tl.load(g + (row * n + i[None, :]) * k + k - 1 - j, mask=others[None, :] & (j < k), other=0.0)
    else:
        found = tl.load(g + row * k + k - 1 - j, mask=j < k, other=0.0)
    return found.to(tl.float32)


@triton.jit
def _sum(
    x, T, g, order, state, sums, n, width, k, parts,
    T_STRIDE: tl.constexpr, G_ROW: tl.constexpr, K: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    """Of each part of a row, over the rest: b (K,) of `ranked_rest.pull_sums`, sums of p (K,), of c_j c_m (K, K)."""
    row = tl.program_id(0).to(tl.int64)
    i, others, _, _, p = rest_tile(x, T, order, state, n, width, k, row, T_STRIDE, K, E)
    gp = _of_rest(g, row, n, i, others, k, G_ROW, K) * p
    c = tl.cumsum(p, 0, reverse=True)
    b = tl.sum(tl.cumsum(gp, 0, reverse=True) - c * tl.sum(gp, 0)[None, :], 1)
    j = tl.arange(0, K)
    part = sums + (row * parts + tl.program_id(1)) * K * (K + 2)
    tl.store(part + j, b)
    tl.store(part + K + j, tl.sum(p, 1))
    tl.store(part + 2 * K + j[:, None] * K + j[None, :], moment(c, c, c, c, k, K))


@triton.jit
def _pull_best(
    g, T, g_tail, order, plan, sums, to_best, to_T, y_out, n, width, kept, k, parts,
    T_STRIDE: tl.constexpr, DENSE: tl.constexpr, K: tl.constexpr, C: tl.constexpr, W: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """`thresholds.gather`, `balance` and `of_scores` of a row: gradients by the best, y, and a part of that by T."""
    row = tl.program_id(0).to(tl.int64)
    lane, j = tl.arange(0, C), tl.arange(0, K)
    inside, real = (lane < width)[None, :], (j < k)[:, None]
    at = real & (lane < W)[None, :]
    place = tl.load(order + row * width + lane, mask=lane < width, other=0)
    plan += row * (k + 1) * W + j[:, None] * W + lane[None, :]
    # By thresholds: of the anchor above each, and of the one below it.
    below, p = tl.load(plan, mask=at, other=0.0), tl.load(plan + W, mask=at, other=0.0)
    c, d = tl.cumsum(p, 0, reverse=True), tl.cumsum(below, 0)
    slot = k - 1 - j[:, None]
    lower = real & (j > 0)[:, None]
    if DENSE:
        of_best = g + (row * n + place[None, :]) * k + slot
        above_g = tl.load(of_best, mask=real & inside, other=0.0).to(tl.float64)
        below_g = tl.load(of_best + 1, mask=lower & inside, other=0.0).to(tl.float64)
    else:
        of_best, of_tail = g + (row * kept + lane[None, :]) * k + slot, g_tail + row * k + slot
        here = (lane < kept)[None, :]
        above_g = tl.where(here, tl.load(of_best, mask=real & here, other=0.0), tl.load(of_tail, mask=real, other=0.0))
        below_g = tl.load(of_best + 1, mask=lower & here, other=0.0)
        below_g = tl.where(here, below_g, tl.load(of_tail + 1, mask=lower, other=0.0)).to(tl.float64)
        above_g = above_g.to(tl.float64)
    gp, gp_below = above_g * p, below_g * below
    tilt = tl.cumsum(gp, 0, reverse=True) * d - tl.cumsum(gp_below, 0) * c
    b = tl.sum(tilt, 1)
    rest, products = tl.zeros((K,), tl.float64), tl.zeros((K * K,), tl.float64)
    for start in range(0, parts, PARTS):
        part = (start + tl.arange(0, PARTS))[:, None]
        at_part = sums + (row * parts + part) * K * (K + 2) + tl.arange(0, K)[None, :]
        b += tl.sum(tl.load(at_part, mask=part < parts, other=0.0).to(tl.float64), 0)
        rest += tl.sum(tl.load(at_part + K, mask=part < parts, other=0.0).to(tl.float64), 0)
        at_part = sums + (row * parts + part) * K * (K + 2) + 2 * K + tl.arange(0, K * K)[None, :]
        products += tl.sum(tl.load(at_part, mask=part < parts, other=0.0).to(tl.float64), 0)
    rest = tl.cumsum(rest, 0, reverse=True)
    of_rest = tl.where(j[:, None] > j[None, :], rest[:, None], rest[None, :]) - products.reshape(K, K)
    stiff = moment(d, c, c, d, k, K) + of_rest
    diagonal = j[:, None] == j[None, :]
    scale = 1.0 / tl.sqrt(tl.sum(tl.where(diagonal, stiff, 0.0), 1) + TINY)
    stiff = tl.where(diagonal, 1.0, stiff * scale[:, None] * scale[None, :])
    y = scale * solve(stiff, scale * b, k, K)
    reach = c * tl.cumsum(d, 0) + d * (tl.cumsum(c, 0, reverse=True) - c)
    t = of_row(T, row, T_STRIDE)
    of_score = tl.sum(tl.where(real, tilt - y[:, None] * reach, 0.0), 0) / t
    tl.store(to_best + row * width + lane, of_score.to(tl.float32), mask=lane < width)
    tl.store(y_out + row * K + j, y)
    # p log p, the log relative to the likeliest anchor so that it keeps its digits.
    none = tl.sum(tl.where(j[:, None] == 0, below, 0.0), 0)[None, :]
    most = tl.maximum(tl.maximum(tl.max(p, 0)[None, :], none), TINY)
    log_p = tl.where(p > 0.0, p * tl.log(tl.maximum(p / most, TINY)), 0.0)
    log_below = tl.where(below > 0.0, below * tl.log(tl.maximum(below / most, TINY)), 0.0)
    total = tl.sum(log_p + tl.where(j[:, None] == 0, log_below, 0.0), 0)[None, :]
    direct = tl.sum(tl.sum(above_g * (log_p - p * total), 1), 0)
    through = tl.sum(tl.cumsum(log_p, 0, reverse=True) * d - tl.cumsum(log_below, 0) * c, 1)
    tl.store(to_T + row, (tl.sum(tl.where(j < k, y * through, 0.0), 0) - direct) / t)


@triton.jit
def _pull_rest(
    x, T, g, order, state, y_in, to_best, to_rows, of_T, n, width, k, parts,
    T_STRIDE: tl.constexpr, G_ROW: tl.constexpr, TEMPERATURE: tl.constexpr, K: tl.constexpr, C: tl.constexpr,
    E: tl.constexpr,
):  # fmt: skip
    """The gradients by all scores, by the rest as `ranked_rest.pull`; of each part of that minus the one by T."""
    row = tl.program_id(0).to(tl.int64)
    i, others, y, far, p = rest_tile(x, T, order, state, n, width, k, row, T_STRIDE, K, E)
    j = tl.arange(0, K)
    level = (j + 1).to(tl.float32)[:, None]
    change = tl.cumsum(tl.where(j < k, tl.load(y_in + row * K + j), 0.0), 0).to(tl.float32)[:, None]
    hp = (_of_rest(g, row, n, i, others, k, G_ROW, K) - change) * p
    total = tl.sum(hp, 0)
    t = of_row(T, row, T_STRIDE).to(tl.float32)
    out = (tl.sum(level * hp, 0) - total * tl.sum(level * p, 0)) / t
    tl.store(to_rows + row * n + i, out, mask=i < n)
    lane = tl.arange(0, C)
    of_best = tl.load(to_best + row * width + lane, mask=lane < width, other=0.0)
    put_best(to_rows + row * n, order + row * width, of_best, tl.program_id(1) * E, width, C, E)
    if TEMPERATURE:
        log = tl.where(p > 0.0, level * y[None, :] + far[:, None], 0.0)
        covariance = tl.sum(tl.sum(log * (hp - total[None, :] * p), 1), 0) / t
        tl.store(of_T + row * parts + tl.program_id(1), covariance)


def backward(
    rows: Tensor, T: float | Tensor, g: Tensor, g_tail: Tensor, order: Tensor, plan: Tensor, solution: Tensor,
    state: Tensor, of_temperature: bool, to_rows: Tensor, to_T: Tensor,
) -> None:  # fmt: skip
    """The gradients; arguments as those of `kernels.ranked_backward.backward`, g_tail (0, k) of a dense result."""
    count, n = rows.shape
    width, k, W, dense = order.shape[1], solution.shape[2], plan.shape[2], not len(g_tail)
    K, E = tile_of(k)
    parts = triton.cdiv(n, E)
    sums, of_T = (
        torch.empty(count, parts, *size, dtype=torch.float32, device=rows.device) for size in ((K * (K + 2),), ())
    )
    to_best = torch.empty(count, width, dtype=torch.float32, device=rows.device)
    y = torch.empty(count, K, dtype=torch.float64, device=rows.device)
    t, stride = number(T)
    of_rest = g if dense else g_tail
    shared: dict[str, Any] = {"T_STRIDE": stride, "G_ROW": dense, "K": K, "E": E}
    launch(_sum, (count, parts), rows, t, of_rest, order, state, sums, n, width, k, parts, **shared)
    launch(_pull_best, (count,), g, t, g_tail, order, plan, sums, to_best, to_T, y, n, width, g.shape[1], k, parts,
           T_STRIDE=stride, DENSE=dense, K=K, C=power_of_two(W, 16), W=W, PARTS=_PARTS)  # fmt: skip
    launch(_pull_rest, (count, parts), rows, t, of_rest, order, state, y, to_best, to_rows, of_T, n, width, k, parts,
           TEMPERATURE=of_temperature, C=power_of_two(width, 16), **shared)  # fmt: skip
    if of_temperature:
        to_T -= of_T.sum(1)
