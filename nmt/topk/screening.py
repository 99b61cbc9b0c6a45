"""Certified screening: solve on the best candidates, bound the error of the rest, widen where the bound
fails.

All candidates below the C best ones weigh exp(z) with z = (x - tau) / T < 0 instead of sigmoid(z), and one
logsumexp gives their sum M. The error of this is at most exp(z_C) M a row, z_C the scaled score of the last
candidate kept. A row whose bound is too large is solved again with more candidates, in the end with all of
them.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

# Up to here the solver on all candidates is cheaper than one more pass over them.
_ALL = 64
_GROWTH = 16
# Elements of one (rows, slots + 1, n) float64 tensor in a pass over all candidates: 64 MiB.
_PASS = 1 << 23


class Candidates(NamedTuple):
    """The best candidates of some rows.

    Attributes:
        rows: (r,) which rows, or None for all of them.
        order: (r, C) their positions in the row, best first.
        values: (r, C) their scores in float64.
        reference: (r, 1) the score x_(k), or 0 where it is masked; None when there are no other candidates.
        log_tail: (r,) log sum exp((x - reference) / T) of all others; None when there are none.
    """

    rows: Tensor | None
    order: Tensor
    values: Tensor
    reference: Tensor | None
    log_tail: Tensor | None


class TailSums(NamedTuple):
    """Sums over the candidates outside the screen, of their weights p and gradients g = dL/dp; each (rows,),
    float64.
    """

    p: Tensor
    gp: Tensor
    p_log_p: Tensor
    gp_log_p: Tensor


class Certificate(NamedTuple):
    """What the screen did to each row.

    Attributes:
        log_bound: (rows,) log of the bound of the error.
        log_share: (rows,) log of the mass outside the screen, over all the mass that could be there.
    """

    log_bound: Tensor
    log_share: Tensor


# Takes candidates; returns tensors with a first axis of rows, and a certificate if there are candidates
# outside.
Solver = Callable[[Candidates], tuple[tuple[Tensor, ...], Certificate | None]]


def screen(
    scores: Tensor, k: int, temperature: float | Tensor, slots: int, solver: Solver
) -> Iterator[tuple[Candidates, tuple[Tensor, ...]]]:
    """Solves all rows and yields the solutions in parts; every row is in exactly one of them.

    The bound to meet is 1e-8 k, or 1e-13 k for float64 scores.

    Args:
        scores: (rows, n).
        k: number of selected candidates.
        temperature: a number, or a float64 tensor of shape () or (rows,).
        slots: size of the axis that the solver adds, to bound the memory of a pass over all candidates.
        solver: called with the candidates of a part of the rows.

    Yields:
        Candidates, and what the solver returned for them.
    """
    n = scores.shape[1]
    limit = math.log(k * (1e-13 if scores.dtype == torch.float64 else 1e-8))
    count = n if n <= _ALL else max(32, 8 * k)
    todo: Tensor | None = None
    uniform: list[Tensor] = []
    while 2 * count < n:
        candidates = _best(scores, todo, count, k, temperature)
        solution, certificate = solver(candidates)
        assert certificate is not None
        good = certificate.log_bound <= limit
        if bool(good.all()):
            yield candidates, solution
            todo = scores.new_empty(0, dtype=torch.long)
            break
        todo = torch.arange(scores.shape[0], device=scores.device) if todo is None else todo
        if bool(good.any()):
            kept = Candidates(todo[good], *(_pick(part, good) for part in candidates[1:]))
            yield kept, tuple(part[good] for part in solution)
        # Most of the mass is outside: the weights are nearly uniform, and a wider screen would fail as well.
        hopeless = ~good & (certificate.log_share > math.log(0.5))
        uniform.append(todo[hopeless])
        todo = todo[~(good | hopeless)]
        if not todo.numel():
            break
        count *= _GROWTH
    if todo is None and scores.shape[0] * slots * n <= _PASS:
        candidates = _best(scores, None, n, k, temperature)
        yield candidates, solver(candidates)[0]
        return
    rest = torch.arange(scores.shape[0], device=scores.device) if todo is None else torch.cat((todo, *uniform))
    for part in rest.split(max(1, _PASS // (slots * n))) if rest.numel() else ():
        candidates = _best(scores, part, n, k, temperature)
        yield candidates, solver(candidates)[0]


def of_rows(value: float | Tensor, rows: Tensor | None) -> float | Tensor:
    """A value a row, (rows,), for the chosen rows, as a column; numbers and 0-d tensors as they are."""
    if not isinstance(value, Tensor) or value.dim() == 0:
        return value
    return (value if rows is None else value[rows]).unsqueeze(1)


def tail_weights(
    scores: Tensor,
    rows: Tensor | None,
    order: Tensor,
    reference: Tensor,
    shift: Tensor,
    temperature: float | Tensor,
) -> Tensor:
    """exp((x - reference) / T + shift) of the candidates outside `order` (r, C), 0 for those in it: (r, n).

    In float64 for float64 scores, else in float32. `scores` and `temperature` are those of all rows.
    """
    scores = scores if rows is None else scores[rows]
    rest = _relative(scores, reference, of_rows(temperature, rows)).add_(shift.unsqueeze(1)).exp_()
    return rest.scatter_(1, order, 0.0)


def tail_sums(p: Tensor, g: Tensor, of_temperature: bool) -> TailSums:
    """What the derivatives need of the candidates outside the screen: weights p and dL/dp = g, both (r, n).

    The sums that only the derivative by the temperature needs are 0 unless it is asked for.
    """
    mass, of_mass = p.sum(-1, dtype=torch.float64), (p * g).sum(-1, dtype=torch.float64)
    if not of_temperature:
        return TailSums(mass, of_mass, torch.zeros_like(mass), torch.zeros_like(mass))
    log_p = torch.xlogy(p, p)
    return TailSums(mass, of_mass, log_p.sum(-1, dtype=torch.float64), (log_p * g).sum(-1, dtype=torch.float64))


def _relative(scores: Tensor, reference: Tensor, temperature: float | Tensor) -> Tensor:
    # Relative to a score of the row, not to a middle: the difference of two scores is exact where it matters.
    wide = scores if scores.dtype == torch.float64 else scores.float()
    return (wide - reference.to(wide.dtype)).div_(temperature)


def _pick(part: Tensor | None, good: Tensor) -> Tensor:
    assert part is not None
    return part[good]


def _best(scores: Tensor, rows: Tensor | None, count: int, k: int, temperature: float | Tensor) -> Candidates:
    scores = scores if rows is None else scores[rows]
    if count == scores.shape[1]:
        values, order = scores.sort(dim=-1, descending=True, stable=True)
        return Candidates(rows, order, values.double(), None, None)
    values, order = scores.topk(count, dim=-1)
    reference = values[:, k - 1 : k]
    reference = torch.where(reference.isfinite(), reference, 0.0)
    rest = _relative(scores, reference, of_rows(temperature, rows)).scatter_(1, order, -torch.inf)
    return Candidates(rows, order, values.double(), reference, rest.logsumexp(-1).double())


def flat_positions(rows: Tensor | None, order: Tensor, n: int) -> Tensor:
    """The positions of the candidates in the flattened (rows * n) scores: (r * C,)."""
    if rows is None:
        rows = torch.arange(order.shape[0], device=order.device)
    return (order + rows.unsqueeze(1) * n).view(-1)
