"""Derivatives of the plain operator to any order, forward and backward, by differentiable pieces on all
candidates.

The first-order backward of the operator is leaner: it uses the screened candidates and writes in place. What
differentiates further, or forward, comes here. The threshold u enters as a constant and leaves with its exact
derivative (implicit function theorem), which is itself written with the attached u: so every order follows.
Memory is O(n).

Shapes: x (rows, n) float64; k, T and all sums (rows, 1); a solution (rows, 2) holds the origin and
u = (tau - origin) / T, as `balance` defines them.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from nmt.topk.rows import FAR, column
from nmt.topk.thresholds import HARD


class _Row(NamedTuple):
    """The plain plan: y = (x - origin) / T, z = y - u, w = A (1 - A), q = w / sum w, and log sum w."""

    y: Tensor
    z: Tensor
    w: Tensor
    q: Tensor
    log_sum: Tensor
    free: Tensor


def _row(x: Tensor, k: Tensor, T: Tensor, origin: Tensor, u: Tensor) -> _Row:
    finite = x > -torch.inf
    free = k < finite.sum(-1, keepdim=True)
    soft = free & finite
    y = torch.where(soft, (torch.where(finite, x, 0.0) - origin).clamp(-FAR, FAR) / T, 0.0)
    # A row that selects all it has is hard, whatever the scores.
    hard = torch.where(finite, HARD, -HARD).to(x.dtype)
    z = torch.where(soft, (y - u).clamp(-HARD, HARD), hard)
    log_w = logsigmoid(z) + logsigmoid(-z)
    log_sum = log_w.logsumexp(-1, keepdim=True)
    w = torch.where(soft, log_w.exp(), 0.0)
    return _Row(y, z, w, torch.where(soft, (log_w - log_sum).exp(), 0.0), log_sum, free)


class _Threshold(torch.autograd.Function):
    """u with du = sum q dy - dk / sum w, which keeps sum A = k."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, k: Tensor, T: Tensor, origin: Tensor, u: Tensor) -> Tensor:
        return u.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:4], output)
        ctx.save_for_forward(*inputs[:4], output)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        T = ctx.saved_tensors[2]
        row = _row(*ctx.saved_tensors)
        to_k = torch.where(row.free, -g * (-row.log_sum.clamp(min=-600.0)).exp(), 0.0)
        return row.q * g / T, to_k, -(row.q * row.y).sum(-1, keepdim=True) * g / T, None, None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, dk: Tensor, dT: Tensor, *_: None) -> Tensor:
        T = ctx.saved_tensors[2]
        row = _row(*ctx.saved_tensors)
        of_k = torch.where(row.free, dk * (-row.log_sum.clamp(min=-600.0)).exp(), 0.0)
        return (row.q * (dx - row.y * dT)).sum(-1, keepdim=True) / T - of_k


def _solved(x: Tensor, k: float | Tensor, T: float | Tensor, solution: Tensor) -> tuple[_Row, Tensor]:
    x, k, T = x.double(), column(k, x), column(T, x)
    origin, u = solution.detach().split(1, -1)
    return _row(x, k, T, origin, _Threshold.apply(x, k, T, origin, u)), T


def pull_plain(
    g: Tensor, x: Tensor, k: float | Tensor, T: float | Tensor, solution: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """dL/dx (rows, n), dL/dk and dL/dT (rows,) of g = dL/dA (rows, n); formulas at `balance.pull_back`."""
    row, t = _solved(x, k, T, solution)
    g = g.double()
    mean = (row.q * g).sum(-1, keepdim=True)
    # Times T: in the units of A.
    scaled = row.w * (g - mean)
    return scaled / t, mean.squeeze(1), -((scaled * row.y).sum(-1, keepdim=True) / t).squeeze(1)


def push_plain(
    dx: Tensor, dk: Tensor, dT: Tensor, x: Tensor, k: float | Tensor, T: float | Tensor, solution: Tensor
) -> Tensor:
    """dA = w (dy - sum q dy) + q dk, with dy = (dx - y dT) / T: (rows, n)."""
    row, t = _solved(x, k, T, solution)
    dy = (dx.double() - row.y * column(dT, x)) / t
    return row.w * (dy - (row.q * dy).sum(-1, keepdim=True)) + row.q * column(dk, x)
