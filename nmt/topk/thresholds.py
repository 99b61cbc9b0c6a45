"""The k thresholds of the sorted operator: their Newton iteration and the derivative through them.

The tensors put the anchors y = 0..k on axis 1 (slot l is anchor k + 1 - l, so that a cumulative sum over the
anchors gives the logits) and the candidates, best first, on the last axis. All of it is float64. The unknown
of a threshold is u = (tau - middle of its gap) / T, never tau: an absolute tau loses its digits to an offset
of the scores.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

# exp(-800) is 0 in float64: beyond it a decision is hard, and clamping keeps logits exact and finite for any
# scores.
HARD = 800.0
# Added to misplaced masses: a threshold between scores this far apart moves nothing that float64 can show.
TINY = 1e-290
# Newton converges quadratically: the last step, taken at such a residual, leaves an error below 1e-14 for
# float64 scores and below 1e-8, which their own dtype cannot show, for all others.
RESIDUAL, RESIDUAL_SINGLE = 1e-7, 1e-4
_STEP = 4.0
_ITERATIONS = 200
# Steps that all rows take before the first look at the residuals.
_FREE = 3


# From u (rows, k) to the sums (rows, r) of c and (rows, r, r) of M over candidates outside the screen.
Tail = Callable[[Tensor], tuple[Tensor, Tensor]]


class Plan(NamedTuple):
    """The transport plan of each candidate, times n.

    Attributes:
        p: (rows, k + 1, n) weight of each anchor.
        c: (rows, k, n) weight of the anchors >= y, y = 1..k.
        d: (rows, k, n) 1 - c, the weight of the anchors < y. Both are sums of positive terms: neither loses
            its digits next to 0.
    """

    p: Tensor
    c: Tensor
    d: Tensor


def offsets_of(values: Tensor, k: int, temperature: float | Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """(x_i - middle of gap j) / T with a zero plane for anchor 0, the middles, and the mask of the finite scores.

    The mask is None when every threshold of every row has a finite score below it. The other thresholds
    belong to slots that stay empty: their decisions are pinned to +-HARD by rank, and masked candidates fill
    those slots.

    Args:
        values: (rows, n) float64, best first.
        k: number of slots; n <= k is padded to k + 1 candidates.
        temperature: a number, a 0-d tensor or (rows, 1).

    Returns:
        (rows, k + 1, n), (rows, k), and (rows, n) or None.
    """
    rows, n = values.shape
    if n <= k:
        values = pad(values, (0, k + 1 - n), value=-torch.inf)
        n = k + 1
    offsets = values.new_zeros(rows, k + 1, n)
    # Halves first: the sum of two scores near the largest float overflows.
    half = values[:, : k + 1] / 2
    middle = (half[:, :-1] + half[:, 1:]).flip(1)
    torch.sub(values.unsqueeze(1), middle.unsqueeze(2), out=offsets[:, 1:])
    offsets[:, 1:].div_(temperature.view(-1, 1, 1) if isinstance(temperature, Tensor) else temperature)
    finite = values > -torch.inf
    if bool(finite[:, k].all()):
        return offsets, middle, None
    rank = torch.arange(1, n + 1, device=values.device)
    level = torch.arange(k, 0, -1, device=values.device).unsqueeze(1)
    pinned = level >= finite.sum(-1).view(-1, 1, 1)
    hard = torch.where(rank <= level, HARD, -HARD).to(values.dtype)
    offsets[:, 1:] = torch.where(pinned, hard, offsets[:, 1:])
    return offsets, middle, finite


def solve(
    offsets: Tensor,
    tail: Tail | None = None,
    tolerance: float = RESIDUAL,
    iterations: list[int] | None = None,
    start: Tensor | None = None,
) -> Tensor:
    """Newton on log(mass misplaced below) - log(mass misplaced above) of the k thresholds, all rows at once.

    With P_j the sum of c over the ranks > j and Q_j the sum of 1 - c over the ranks <= j, F_j = log P_j - log
    Q_j has a Jacobian of positive terms only; Newton on the sums themselves stalls on their plateaus. Every row takes
    the first steps; then one that has converged is frozen. So its result does not depend on the other rows
    (bitwise on one thread).

    Args:
        offsets: (rows, k + 1, n) of `offsets_of`.
        tail: of the candidates outside the screen: from u (rows, k), the sums (rows, r) of their c_j and (rows, r, r)
            of their M_jm = d_min(j,m) c_max(j,m), of the thresholds j = 1..r that they reach.
        tolerance: the residual F at which a row takes its last step.
        iterations: a list that takes the number of them, of the row with most.
        start: (rows, k) where u starts, instead of at 0; then no step is taken by all rows, as u may be good already.

    Returns:
        u (rows, k) for the anchors 1..k.
    """
    rows, k, n = offsets.shape[0], offsets.shape[1] - 1, offsets.shape[2]
    level = torch.arange(k, 0, -1, device=offsets.device).unsqueeze(1)
    above = torch.arange(1, n + 1, device=offsets.device) <= level
    sides = torch.stack((~above, above)).to(offsets.dtype)
    upper = _upper(k, offsets.device)
    floor = torch.full((k,), 1e-30, dtype=offsets.dtype, device=offsets.device).diag()

    def step(u: Tensor) -> tuple[Tensor, Tensor]:
        _, c, d = plan_of(offsets, u)
        mass = (torch.where(above, d, c).unsqueeze(1) * sides).sum(-1).add_(TINY)
        if tail is not None:
            tail_mass, tail_moment = tail(u)
            mass[:, 0, : tail_mass.shape[1]] += tail_mass
        below, over = mass.log().unbind(1)
        residual = below - over
        inverse = mass.reciprocal_().unsqueeze(-1)
        weight = torch.where(above, inverse[:, 1], inverse[:, 0])
        jacobian = torch.where(upper, torch.bmm(weight * d, c.mT), torch.bmm(weight * c, d.mT)).add_(floor)
        if tail is not None:
            reached = tail_moment.shape[1]
            jacobian[:, :reached, :reached] += tail_moment * inverse[:, 0, :reached]
        return residual, torch.linalg.solve_ex(jacobian, residual).result.clamp_(-_STEP, _STEP)

    free = _FREE if start is None else 0
    u = offsets.new_zeros(rows, k) if start is None else start
    active = torch.ones(rows, 1, dtype=torch.bool, device=offsets.device)
    for iteration in range(1, _ITERATIONS + 1):
        residual, change = step(u)
        if iteration <= free:
            u = u + change
            if iteration < free:
                continue
        else:
            u = u + torch.where(active, change, 0.0)
        active = active & ~(residual.abs().amax(-1, keepdim=True) <= tolerance)
        if not bool(active.any()):
            if iterations is not None:
                iterations.append(iteration)
            return u
    raise AssertionError(f"{int(active.sum())} rows of {rows} have not converged: k = {k}, n = {n}")


class Group(NamedTuple):
    """What some candidates of each row bring to the backward; e alone is one value a candidate.

    Attributes:
        e: (rows, k, n) T times the change of the loss with each threshold, negated.
        b: (rows, k) its sum.
        moment: (rows, k, k) sum of d_j c_m; its upper triangle is K.
        direct, through: (rows,) and (rows, k), of the derivative by the temperature; 0 unless asked for.
    """

    e: Tensor
    b: Tensor
    moment: Tensor
    direct: Tensor
    through: Tensor


def gather(g: Tensor, plan: Plan, of_temperature: bool) -> Group:
    """The sums over some candidates; g (rows, k, n) dL/dp for the anchors 1..k."""
    p, c, d = plan
    e = _tilt(torch.cat((torch.zeros_like(p[:, :1]), g * p[:, 1:]), 1), c, d)
    b, moment = e.sum(-1), d @ c.mT
    if not of_temperature:
        return Group(e, b, moment, b.new_zeros(len(b)), torch.zeros_like(b))
    # The logits up to a constant of each candidate, 0 for its likeliest anchor so that p log p keeps its
    # digits.
    p_log_p = torch.xlogy(p, p / p.amax(1, keepdim=True).clamp_(min=TINY))
    direct = (g * (p_log_p[:, 1:] - p[:, 1:] * p_log_p.sum(1, keepdim=True))).sum((1, 2))
    return Group(e, b, moment, direct, _tilt(p_log_p, c, d).sum(-1))


def balance(b: Tensor, moment: Tensor) -> Tensor:
    """y = K^-1 b (rows, k), by the implicit function theorem T dL/dtau at balanced slots; both over all candidates.

    K_jm = sum_i c_i,min(j,m) (1 - c_i,max(j,m)). It is scaled by its diagonal before the solve: its entries may
    differ by hundreds of orders of magnitude.
    """
    moment = torch.where(_upper(b.shape[1], b.device), moment, moment.mT)
    scale = (moment.diagonal(dim1=1, dim2=2) + TINY).rsqrt()
    scaled = moment * scale.unsqueeze(2) * scale.unsqueeze(1)
    scaled.diagonal(dim1=1, dim2=2).fill_(1.0)
    return scale * torch.linalg.solve_ex(scaled, (scale * b).unsqueeze(-1)).result.squeeze(-1)


def of_scores(e: Tensor, y: Tensor, plan: Plan) -> Tensor:
    """T dL/dx of some candidates (rows, n), y of `balance`."""
    c, d = plan.c, plan.d
    reach = c * d.cumsum(1) + d * (c.flip(1).cumsum(1).flip(1) - c)
    return e.sum(1) - (y.unsqueeze(1).to(c.dtype) @ reach).squeeze(1)


def _upper(k: int, device: torch.device) -> Tensor:
    return torch.ones(k, k, dtype=torch.bool, device=device).triu()


def plan_of(offsets: Tensor, u: Tensor) -> Plan:
    """The plan of candidates with the offsets (rows, k + 1, n) of `offsets_of`, at u (rows, k)."""
    p = (offsets - pad(u, (1, 0)).unsqueeze(2)).clamp_(-HARD, HARD).cumsum(1).softmax(1)
    return Plan(p, p.flip(1).cumsum(1).flip(1)[:, 1:], p.cumsum(1)[:, :-1])


def _tilt(gp: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """Derivative of c along logits whose change times p is `gp` (rows, k + 1, n), without cancellation:
    (rows, k, n).
    """
    return gp.flip(1).cumsum(1).flip(1)[:, 1:] * d - gp.cumsum(1)[:, :-1] * c
