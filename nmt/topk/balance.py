"""The one threshold of the plain operator: its Newton iteration and the derivative through it."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nmt.topk.thresholds import HARD, RESIDUAL

_ITERATIONS = 200
# Added to misplaced masses: scores this far apart, in units of T, leave nothing to balance.
_LEAST = 1e-305
# Newton steps without a guard or a look at the residual: half the cost of others, and nearly always enough.
_FREE = 3

Tail = Callable[[Tensor], tuple[Tensor, Tensor | None]]


class Offsets(NamedTuple):
    """Scores of some rows in units of T, best first; all float64.

    Attributes:
        z: (rows, C) (x - middle) / T; +-HARD in a row that selects all its finite scores.
        middle: (rows, 1) the middle of the gap at k, or the score x_(floor(k) + 1) for a fractional k.
        half: (rows, 1) half of that gap, in units of T.
        whole: floor(min(k, finite scores)), an int for all rows or (rows, 1).
        part: (rows, 1) the rest of k, in [0, 1), or None if k is an int for all rows.
        free: (rows, 1) False in a row that selects all its finite scores, or None if there is none.
        total: number of candidates, those screened out included.
    """

    z: Tensor
    middle: Tensor
    half: Tensor
    whole: int | Tensor
    part: Tensor | None
    free: Tensor | None
    total: int

    def take(self, rows: Tensor) -> "Offsets":
        fields: Any = (field[rows] if isinstance(field, Tensor) else field for field in self)
        return Offsets(*fields)

    def bracket(self) -> tuple[Tensor, Tensor]:
        """Bounds (rows, 1) of u = (tau - middle) / T.

        For an integer k, sum A >= k at tau = x_(k+1) - T log k, and sum A <= k at tau = x_(k) + T log(n - k). For
        a fractional k, x_(floor(k)+1) is itself the selected part, and the bracket follows from it alone.
        """
        if self.part is None:
            whole = torch.as_tensor(self.whole, dtype=self.z.dtype, device=self.z.device)
            return -self.half - whole.log(), self.half + math.log(self.total)
        wanted = self.whole + self.part
        low = -self.half - (wanted / (1 - self.part)).log()
        return low, self.half + (self.total / self.part.where(self.part > 0, 1.0)).log()


def offsets_of(values: Tensor, k: float | Tensor, temperature: float | Tensor, total: int) -> Offsets:
    """Places the origin where u = 0 is a good start.

    Args:
        values: (rows, C) float64, best first.
        k: a number, or a tensor () or (rows, 1).
        temperature: a number, or a tensor () or (rows, 1).
        total: number of candidates, those screened out included.
    """
    if isinstance(k, int) and k < values.shape[1] and bool((values[:, k] > -torch.inf).all()):
        # Halves first: the sum of two scores near the largest float overflows.
        left, right = values[:, k - 1 : k] / 2, values[:, k : k + 1] / 2
        middle = left + right
        z = (values - middle) / temperature
        return Offsets(z, middle, (left - right) / temperature, k, None, None, total)
    finite = values > -torch.inf
    count = finite.sum(-1, keepdim=True)
    wanted = torch.minimum(torch.as_tensor(k, dtype=values.dtype, device=values.device), count.to(values.dtype))
    free = wanted < count
    whole = wanted.floor().long()
    part = wanted - whole
    right = values.gather(1, whole.clamp(max=values.shape[1] - 1))
    left = values.gather(1, (whole - 1).clamp(min=0)).where(part == 0, right)
    middle = left / 2 + right / 2
    z = ((values - middle) / temperature).where(free, torch.where(finite, HARD, -HARD).to(values.dtype))
    half = ((left / 2 - right / 2) / temperature).where(free, torch.zeros_like(part))
    return Offsets(z, middle, half, whole, part, free, total)


def sides(z: Tensor) -> tuple[Tensor, Tensor]:
    """A = sigmoid(z) and 1 - A, neither by subtraction.

    As a softmax over two: the vectorised sigmoid rounds the last few elements of a tensor otherwise than the
    others, and then a row alone would differ from the row in a batch.
    """
    both = torch.stack((z, torch.zeros_like(z)), 1).softmax(1)
    return both[:, 0], both[:, 1]


def solve(
    offsets: Offsets,
    tail: Tail | None = None,
    tolerance: float = RESIDUAL,
    iterations: list[int] | None = None,
    start: Tensor | None = None,
) -> Tensor:
    """Newton on log P - log Q, P the mass misplaced below rank k and Q the mass missing above it.

    All terms of both sums and of the slope are positive, so nothing cancels; Newton on sum A - k stalls where
    all A are nearly 0 or 1. Every row takes the first steps, which are free; the others, of rows that have not
    converged by then, bisect where Newton would leave the bracket. So a row's result does not depend on the other rows.

    Args:
        offsets: of `offsets_of`.
        tail: of the candidates outside the screen: from u (rows, 1), the sums of their A and of their A^2, or None
            where that is nothing beside the first.
        tolerance: the residual at which a row takes its last step.
        iterations: a list that takes the number of them, of the row with most.
        start: (rows, 1) where u starts, instead of at 0; then no step is free, as u may be good already.

    Returns:
        u (rows, 1).
    """
    z, k, part = offsets.z, offsets.whole, offsets.part
    if z.shape[1] % 16:
        z = torch.nn.functional.pad(z, (0, -z.shape[1] % 16), value=-HARD)
    rows, count = z.shape
    both = z.new_empty(2, rows, count)
    wrong, square = both.unbind()
    if isinstance(k, int):
        sign = z.new_ones(count)
        sign[:k] = -1.0
    else:
        sign = torch.where(torch.arange(1, count + 1, device=z.device) <= k, -1.0, 1.0).to(z.dtype)
    # The sum over the ranks below k, and that over those above it with what is selected of a fractional k.
    halves = torch.stack((sign, -sign), -1).clamp_(min=0.0)
    base = z.new_zeros(2, rows, 2)
    base[0] = _LEAST
    if part is not None:
        base[..., 1:] += part
    signed = z * sign

    def step(u: Tensor) -> tuple[Tensor, Tensor]:
        torch.addcmul(signed, sign, u, value=-1, out=wrong)
        torch.mul(wrong.sigmoid_(), wrong, out=square)
        if halves.dim() == 2:
            sums = torch.addmm(base.view(-1, 2), both.view(-1, count), halves).view(2, rows, 2)
        else:
            sums = base + (both.unsqueeze(2) @ halves).squeeze(2)
        masses, squares = sums.unbind()
        below, above = masses[:, :1], masses[:, 1:]
        if tail is not None:
            mass, second = tail(u)
            below.add_(mass)
            if second is not None:
                squares[:, :1] += second
        residual = (below / above).log_()
        # The sums of A (1 - A) over those of A, and the same above; negated.
        slope = (squares / masses).sum(-1, keepdim=True).sub_(2.0)
        return residual, torch.addcdiv(u, residual, slope, value=-1)

    free = _FREE if start is None else 0
    u = z.new_zeros(rows, 1) if start is None else start
    for _ in range(free):
        residual, u = step(u)
    if free:
        active = ~(residual.abs() <= tolerance)
        if not bool(active.any()):
            if iterations is not None:
                iterations.append(free)
            return u
    else:
        active = torch.ones_like(u, dtype=torch.bool)
    low, high = offsets.bracket()
    u = torch.where(active, u.nan_to_num(0.0).clamp(low, high), u)
    for iteration in range(free + 1, _ITERATIONS + 1):
        residual, new = step(u)
        small = residual.abs() <= tolerance
        low, high = torch.where(residual > 0, u, low), torch.where(residual < 0, u, high)
        # `not inside` rather than `outside`: bisects for NaN as well. A final step may end on the bracket by
        # rounding.
        new = new.where(((new > low) & (new < high)) | small, low / 2 + high / 2)
        u = torch.where(active, new, u)
        active = active & ~small
        if not bool(active.any()):
            if iterations is not None:
                iterations.append(iteration)
            return u
    raise AssertionError(f"{int(active.sum())} rows of {rows} have not converged: C = {count}")


def pull_back(
    g: Tensor, z: Tensor, rest: tuple[Tensor, Tensor] | None, of_temperature: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The derivative by the implicit function theorem: with w = A (1 - A), q = w / sum w, gbar = sum q g,

        T dL/dx = w (g - gbar),  dL/dk = gbar,  T dL/dT = -sum w g (z - sum q z) = -sum w (g - gbar) (z - c), any c.

    Args:
        g: (rows, C) dL/dA.
        z: (rows, C) (x - tau) / T.
        rest: (rows, 1) the sums of w and of w g over the candidates that were screened out.
        of_temperature: whether the last result is wanted.

    Returns:
        T dL/dx (rows, C), gbar (rows, 1), c (rows, 1), and the part of T dL/dT (rows,) of these candidates, or None.
    """
    weight, other = sides(z)
    w = weight * other
    # The shares q from exp(s) w, s the least |z|: w itself may be 0 for all candidates of a hard row.
    distance = z.abs()
    least = distance.amin(-1, keepdim=True)
    v = (least - distance).exp_().mul_(torch.maximum(weight, other).square_())
    total, mean = v.sum(-1, keepdim=True), (v * g).sum(-1, keepdim=True)
    if rest is not None:
        scale = least.clamp(max=700.0).exp_()
        total, mean = torch.addcmul(total, rest[0], scale), torch.addcmul(mean, rest[1], scale)
    mean = mean / total
    to_scores = w * (g - mean)
    if not of_temperature:
        return to_scores, mean, mean, None
    bounded = z.clamp(-HARD, HARD)
    # A center near the mean keeps the sum from cancelling.
    center = (v * bounded).sum(-1, keepdim=True) / total
    return to_scores, mean, center, -(to_scores * (bounded - center)).sum(-1)
