"""The one threshold of the plain operator: its Newton iteration and the derivative through it."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from nmt.topk.screening import TailSums
from nmt.topk.thresholds import HARD, RESIDUAL, TINY

_ITERATIONS = 200


class Offsets(NamedTuple):
    """Scores of some rows in units of T, best first; all float64.

    Attributes:
        z: (rows, n) (x - middle) / T; +-HARD in a row that selects all its finite scores.
        middle: (rows, 1) the middle of the gap at k, or the score x_(floor(k) + 1) for a fractional k.
        whole: (rows, 1) floor(min(k, finite scores)), an integer.
        part: (rows, 1) the rest of k, in [0, 1).
        low, high: (rows, 1) a bracket of u = (tau - middle) / T.
        free: (rows, 1) False in a row that selects all its finite scores.
    """

    z: Tensor
    middle: Tensor
    whole: Tensor
    part: Tensor
    low: Tensor
    high: Tensor
    free: Tensor


def offsets_of(values: Tensor, k: float | Tensor, temperature: float | Tensor, total: int) -> Offsets:
    """Places the origin where u = 0 is a good start, and brackets u.

    For an integer k, sum A >= k at tau = x_(k+1) - T log k, and sum A <= k at tau = x_(k) + T log(n - k). For
    a fractional k, x_(floor(k)+1) is itself the selected part, and the bracket follows from it alone.

    Args:
        values: (rows, C) float64, best first.
        k: a number, or a tensor () or (rows, 1).
        temperature: a number, or a tensor () or (rows, 1).
        total: number of candidates, those screened out included.
    """
    finite = values > -torch.inf
    count = finite.sum(-1, keepdim=True)
    wanted = torch.minimum(torch.as_tensor(k, dtype=values.dtype, device=values.device), count.to(values.dtype))
    free = wanted < count
    whole = wanted.floor().long()
    part = wanted - whole
    right = values.gather(1, whole.clamp(max=values.shape[1] - 1))
    left = values.gather(1, (whole - 1).clamp(min=0)).where(part == 0, right)
    # Halves first: the sum of two scores near the largest float overflows.
    middle = left / 2 + right / 2
    z = ((values - middle) / temperature).where(free, torch.where(finite, HARD, -HARD).to(values.dtype))
    half = ((left / 2 - right / 2) / temperature).where(free, torch.zeros_like(part))
    low = -half - (wanted / (1 - part)).log()
    high = half + (total / part.where(part > 0, torch.ones_like(part))).log()
    return Offsets(z, middle, whole, part, low, high, free)


def sides(z: Tensor) -> tuple[Tensor, Tensor]:
    """A = sigmoid(z) and 1 - A, neither by subtraction.

    As a softmax over two: the vectorised sigmoid rounds the last few elements of a tensor otherwise than the
    others, and then a row alone would differ from the row in a batch.
    """
    both = torch.stack((z, torch.zeros_like(z)), 1).softmax(1)
    return both[:, 0], both[:, 1]


def solve(
    offsets: Offsets, log_tail: Tensor | None = None, iterations: list[int] | None = None
) -> tuple[Tensor, Tensor]:
    """Newton on log P - log Q, P the mass misplaced below rank k and Q the mass missing above it; bisection
    as guard.

    All terms of both sums and of the slope are positive, so nothing cancels; Newton on sum A - k stalls where
    all A are nearly 0 or 1. A row that has converged is frozen, so that its result does not depend on the
    other rows.

    Args:
        offsets: of `offsets_of`.
        log_tail: (rows, 1) logsumexp of the offsets of the candidates that were screened out.
        iterations: a list that takes the number of them, of the row with most.

    Returns:
        (x - tau) / T of the candidates (rows, C), and u (rows, 1).
    """
    start, _, whole, part, low, high, _ = offsets
    above = torch.arange(1, start.shape[1] + 1, device=start.device) <= whole
    u = torch.zeros_like(part).clamp_(low, high)
    active = torch.ones_like(above[:, :1])
    for iteration in range(1, _ITERATIONS + 1):
        z = start - u
        weight, rest = sides(z)
        wrong, slopes = torch.where(above, rest, weight), weight * rest
        below = torch.where(above, 0.0, wrong).sum(-1, keepdim=True).add_(TINY)
        over = torch.where(above, wrong, 0.0).sum(-1, keepdim=True).add_(part).add_(TINY)
        slope_below = torch.where(above, 0.0, slopes).sum(-1, keepdim=True)
        slope_over = torch.where(above, slopes, 0.0).sum(-1, keepdim=True)
        if log_tail is not None:
            tail = (log_tail - u).clamp_(max=HARD / 2).exp_()
            below, slope_below = below + tail, slope_below + tail
        residual = below.log() - over.log()
        low, high = torch.where(residual > 0, u, low), torch.where(residual < 0, u, high)
        new = u + residual / (slope_below / below + slope_over / over + 1e-30)
        # `not inside` rather than `outside`: bisects for NaN as well. A final step may end on the bracket by
        # rounding.
        small = residual.abs() <= RESIDUAL
        new = new.where(((new > low) & (new < high)) | small, low / 2 + high / 2)
        u = torch.where(active, new, u)
        active = active & ~small
        if not bool(active.any()):
            if iterations is not None:
                iterations.append(iteration)
            return start - u, u
    raise AssertionError(f"{int(active.sum())} rows of {len(active)} have not converged: C = {start.shape[1]}")


def pull_back(
    g: Tensor, z: Tensor, log_mass: Tensor | None, tail: TailSums | None, of_temperature: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The derivative by the implicit function theorem: with w = A (1 - A), q = w / sum w, gbar = sum q g,

        T dL/dx = w (g - gbar),  dL/dk = gbar,  T dL/dT = -sum w g (z - sum q z).

    Args:
        g: (rows, C) dL/dA.
        z: (rows, C) (x - tau) / T.
        log_mass: (rows, 1) log of the weight of the candidates that were screened out, whose w is their
            weight p.
        tail: the sums over them.
        of_temperature: whether the third result is wanted.

    Returns:
        T dL/dx (rows, C), gbar (rows, 1), T dL/dT (rows,) or None.
    """
    weight, rest = sides(z)
    w = weight * rest
    # The shares q as a softmax: w itself may be 0 for all candidates of a hard row.
    log_w = logsigmoid(z) + logsigmoid(-z)
    log_sum = log_w.logsumexp(-1, keepdim=True)
    if log_mass is not None:
        log_sum = torch.logaddexp(log_sum, log_mass)
    q = (log_w - log_sum).exp()
    bounded = z.clamp(-HARD, HARD)
    mean = (q * g).sum(-1, keepdim=True)
    if tail is not None:
        scale = (-log_sum.clamp(min=-700.0)).exp()
        mean = mean + tail.gp.unsqueeze(1) * scale
    to_scores = w * (g - mean)
    if not of_temperature:
        return to_scores, mean, None
    # sum w g (z - sum q z) = sum w (g - gbar) (z - center) for any center; a near one keeps it from
    # cancelling.
    center = (q * bounded).sum(-1, keepdim=True)
    if tail is None:
        return to_scores, mean, -(to_scores * (bounded - center)).sum(-1)
    in_tail = tail.gp_log_p - mean.squeeze(1) * tail.p_log_p - center.squeeze(1) * (tail.gp - mean.squeeze(1) * tail.p)
    return to_scores, mean, -(to_scores * (bounded - center)).sum(-1) - in_tail
