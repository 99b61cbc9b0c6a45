"""The sorted soft top-k: one soft indicator for each of the k ranks.

Source of the operator: Xie et al., Differentiable Top-k with Optimal Transport, NeurIPS 2020 (arXiv
2002.06504), with the anchors 0, 1, ..., k and the raw squared cost. Expanding the square leaves, with T = eps
/ 2,

    A_il = softmax over l of sum_{j = l..k} (x_i - tau_j) / T      (0 for "not selected"),

and the thresholds tau_1..tau_k for which every slot receives a mass of one.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from nmt.topk import compiled, fast, ranked_rest
from nmt.topk.arguments import as_rows, refuse_temperature, refuse_values
from nmt.topk.rest import parts, rows_in_parts, spread
from nmt.topk.rows import as_column, is_plain, map_rows, narrow, refuse_nested_forward, total, with_signature
from nmt.topk.screening import log_limit, screen, width_of
from nmt.topk.sorted_derivatives import pull_sorted, push_sorted
from nmt.topk.thresholds import (
    HARD,
    RESIDUAL,
    RESIDUAL_SINGLE,
    Plan,
    balance,
    gather,
    of_scores,
    offsets_of,
    plan_of,
    solve,
)


def sorted_soft_topk(scores: Tensor, k: int, temperature: float | Tensor, *, largest: bool = True) -> Tensor:
    """Soft indicators of the best, the second best, ..., the k-th best candidate of each row.

    Differentiable in the scores and in the temperature by the implicit function theorem: once from the screened
    candidates; again, or forward (`torch.func.jvp`, once), in O(n k) memory. `torch.func.vmap` and
    `torch.compile` work.

    Args:
        scores: (..., n), any leading shape. -inf masks a candidate (+inf with `largest=False`).
            A masked candidate has weight 0 and gradient 0.
        k: number of slots, 1..n.
        temperature: T in the units of the scores (nats for log-probabilities): a number, a 0-d tensor or one
            value a row, of shape (...). As T -> 0 the result is `hard_topk`, but that ties share their slots
            equally.
        largest: False selects the smallest.

    Returns:
        (..., n, k), in the dtype of the scores: column m is the soft indicator of the m-th best candidate.
        Columns sum to 1, rows to at most 1. With fewer than k unmasked candidates the last columns are 0.

    Raises:
        ValueError: NaN or +inf among the scores, a k or a temperature out of range, shapes that do not fit.
    """
    rows, k, temperature = as_rows(scores, k, temperature, largest, ranked=True)
    if torch.compiler.is_compiling():
        of_t = torch.as_tensor(temperature, dtype=torch.float64, device=scores.device)
        return compiled.ranked(rows, k, of_t, scores.shape[:-1], largest).view(*scores.shape, k)
    weights: Tensor = _SortedSoftTopk.apply(rows, k, temperature, scores.shape[:-1], largest, [])[0]
    return weights.view(*scores.shape, k)


class Solution(NamedTuple):
    """The solved rows.

    Attributes:
        order: (rows, C) positions of the best candidates, best first.
        p, c, d: their `thresholds.Plan`, float64.
        solution: (rows, 2, k) of `sorted_derivatives`, float64.
        rest: (rows, m) weights of the others in slot k, the only one that they reach; or, in the rows `exact`,
            exponentials still, as they reach all slots. None if there are no others.
        starts: of `Rest`.
        exact: (r,) those rows, or None.
        steps: (r, k) log of the factors that turn their exponentials into exp((x - tau_j) / T), j = 1..k.
    """

    order: Tensor
    p: Tensor
    c: Tensor
    d: Tensor
    solution: Tensor
    rest: Tensor | None = None
    starts: Tensor | None = None
    exact: Tensor | None = None
    steps: Tensor | None = None

    @property
    def plan(self) -> Plan:
        return Plan(self.p, self.c, self.d)


def solve_rows(
    rows: Tensor,
    k: int,
    temperature: float | Tensor,
    shape: torch.Size,
    largest: bool,
    *,
    whole: bool = True,
    width: int = 0,
    iterations: list[int] | None = None,
) -> Solution:
    """Solves scores (rows, n); arguments as those of `plain.solve_rows`."""
    refuse_temperature(temperature)
    t = as_column(temperature)
    order, values, rest = screen(rows, k, width_of(rows.shape[1], k, width), t, whole)
    refuse_values(values[:, 0], shape, largest)
    offsets, middles, finite = offsets_of(values, k, t)
    tolerance = RESIDUAL if rows.dtype == torch.float64 else RESIDUAL_SINGLE
    if rest is None:
        u = solve(offsets, None, tolerance, iterations)
        return Solution(order, *_trim(plan_of(offsets, u), finite, order), torch.stack((middles, u), 1).nan_to_num_())
    # From u to that of the reference of the rest; 0 where the rest weighs nothing, as its reference may be none.
    shift = ((middles - rest.reference) / t).where(rest.sums > 0, 0.0)
    log_mass = rest.sums.log() - shift[:, :1]

    def cheap(u: Tensor) -> tuple[Tensor, Tensor]:
        mass = (log_mass - u[:, :1]).clamp_(max=HARD / 2).exp_()
        return mass, mass.unsqueeze(2)

    u = solve(offsets, cheap, tolerance, iterations)
    # The rest is all in slot k, which holds a mass of one.
    coarse = log_mass.squeeze(1) - u[:, 0] + (offsets[:, 1:, -1] - u).amax(-1) > log_limit(rows, k)
    exact = coarse.nonzero().squeeze(1) if bool(coarse.any()) else None
    for these in rows_in_parts(exact, rest.weights):
        powers, moved = ranked_rest.powers_of(_even(rest.weights[these]), k), shift[these]

        def full(u: Tensor, powers: Tensor = powers, moved: Tensor = moved) -> tuple[Tensor, Tensor]:
            return ranked_rest.masses(ranked_rest.weights_of(powers, -(u + moved)))

        u[these] = solve(offsets[these], full, tolerance, iterations, u[these])
    steps = -(u + shift)
    factor = steps[:, :1].exp()
    if exact is not None:
        factor[exact], steps = 1.0, steps[exact]
    rest.weights.mul_(factor.to(rest.weights.dtype))
    plan = _trim(plan_of(offsets, u), finite, order)
    solution = torch.stack((middles, u), 1).nan_to_num_()
    return Solution(order, *plan, solution, rest.weights, rest.starts, exact, None if exact is None else steps)


def _trim(plan: Plan, finite: Tensor | None, order: Tensor) -> Plan:
    if finite is None:
        return plan
    # Masked candidates that fill an empty slot weigh nothing; the padding goes.
    width = order.shape[1]
    p, c, d = (part[:, :, :width] for part in plan)
    return Plan(p * finite.unsqueeze(1)[:, :, :width], c, d)


def weights_of(solved: Solution) -> tuple[Tensor, Tensor]:
    """The weights (rows, C, k) of the best candidates and the sum (rows, k) of the others', float64."""
    best = solved.p[:, 1:].flip(1).mT
    tail = best.new_zeros(len(best), best.shape[2])
    if solved.rest is not None:
        tail[:, -1] = solved.rest.sum(-1)
    for these, p in _exact_parts(solved):
        tail[these] = p.sum(-1).flip(1).double()
    return best, tail


def dense(solved: Solution, rows: Tensor, k: int) -> Tensor:
    """The weights (rows, n, k) in the dtype of the rows."""
    count, n = rows.shape
    weights = rows.new_empty(count, n, k) if solved.rest is None else rows.new_zeros(count, n, k)
    if solved.rest is not None:
        weights[..., -1] = solved.rest
    for these, p in _exact_parts(solved):
        weights[these] = p[..., :n].flip(1).mT.to(rows.dtype)
    best = solved.p[:, 1:].flip(1).mT.to(rows.dtype)
    return weights.scatter_(1, solved.order.unsqueeze(2).expand(-1, -1, k), best)


def _exact_parts(solved: Solution) -> Iterator[tuple[Tensor, Tensor]]:
    """Positions (r,) of the rows whose rest reaches all slots, and its weights (r, k, m) by anchors 1..k, in parts."""
    if solved.exact is None:
        return
    assert solved.rest is not None and solved.steps is not None
    for some in parts(len(solved.exact), solved.rest.shape[1], solved.rest.is_cuda):
        these, steps = solved.exact[some], solved.steps[some]
        yield these, ranked_rest.weights_of(ranked_rest.powers_of(_even(solved.rest[these]), steps.shape[1]), steps)


def _even(e: Tensor) -> Tensor:
    """(rows, m) with zeros up to a multiple of 16: matrix products may round otherwise where rows begin unaligned."""
    return pad(e, (0, -e.shape[1] % 16))


def run(
    rows: Tensor, k: int, temperature: float | Tensor, shape: torch.Size, largest: bool, width: int | None = None
) -> tuple[tuple[Tensor, ...], Solution | fast.Solved]:
    """Solves scores (rows, n), by a kernel or by PyTorch; arguments as those of `plain.run`.

    Returns:
        The weights (rows, n, k); or with a width the positions (rows, width) and weights (rows, width, k) of the best
        candidates and the sums (rows, k) of all others. And what the backward needs.
    """
    screened = width_of(rows.shape[1], k, width or 0)
    if fast.fits(rows, screened, k):
        refuse_temperature(temperature)
        found = fast.ranked_forward(rows, k, temperature, screened, width)
        if found is None:
            refuse_values(rows.amax(-1), shape, largest)
            raise AssertionError("a kernel has refused scores that are none to refuse")
        return found
    solved = solve_rows(rows, k, temperature, shape, largest, whole=width is None, width=width or 0)
    if width is None:
        return (dense(solved, rows, k),), solved
    return narrow(solved.order, *weights_of(solved), width, rows.dtype), solved


@with_signature
class _SortedSoftTopk(torch.autograd.Function):
    # `kept`: see the plain operator.

    @staticmethod
    def forward(
        rows: Tensor, k: int, temperature: float | Tensor, shape: torch.Size, largest: bool, kept: list[Tensor | None]
    ) -> tuple[Tensor, Tensor]:
        (weights,), solved = run(rows, k, temperature, shape, largest)
        kept += solved
        return weights, solved.solution

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        rows, _, temperature, _, _, kept = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        tensor = isinstance(temperature, Tensor)
        ctx.number = None if tensor else temperature
        ctx.save_for_backward(rows, temperature if tensor else None, output[1], *kept)
        ctx.save_for_forward(rows, temperature if tensor else None, output[1])
        kept.clear()

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        return map_rows(_SortedSoftTopk, info.batch_size, in_dims, arguments)

    @staticmethod
    def jvp(ctx: Any, dx: Tensor | None, dk: None, dT: Tensor | None, *_: None) -> tuple[Tensor, None]:
        x, T, solution = ctx.saved_tensors[:3]
        refuse_nested_forward()
        dx = torch.zeros_like(x) if dx is None else dx
        dT = x.new_zeros(()) if dT is None else dT
        return push_sorted(dx, dT, x, ctx.number if T is None else T, solution).to(x.dtype), None

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        scores, temperature, solution, *kept = ctx.saved_tensors
        T = ctx.number if temperature is None else temperature
        if grad is None:
            return (None,) * 6
        if not is_plain(grad, kept):
            to_scores, to_T = pull_sorted(grad, scores, T, solution)
        else:
            to_scores, to_T = pull_dense(grad, scores, T, restored(kept), ctx.needs_input_grad[2])
        return to_scores.to(scores.dtype), None, total(to_T, T), None, None, None


def restored(kept: Any) -> Solution | fast.Solved:
    """What the forward kept, from the list of its fields."""
    return fast.Solved(*kept) if len(kept) == len(fast.Solved._fields) else Solution(*kept)


def pull_dense(
    g: Tensor, rows: Tensor, T: float | Tensor, solved: Solution | fast.Solved, of_temperature: bool
) -> tuple[Tensor, Tensor]:
    """As `pull_lean`, of dL/dA (rows, n, k)."""
    if isinstance(solved, fast.Solved):
        return fast.ranked_backward(rows, T, g, None, solved, of_temperature)
    best = g.gather(1, solved.order.unsqueeze(2).expand(-1, -1, g.shape[2]))
    return pull_lean(best, g, T, solved, g.shape[1], of_temperature)


def pull_sparse(
    g: Tensor, g_tail: Tensor, rows: Tensor, T: float | Tensor, solved: Solution | fast.Solved, of_temperature: bool
) -> tuple[Tensor, Tensor]:
    """As `pull_lean`, of dL/dA (rows, c, k) of the first candidates and (rows, k) of all others."""
    if isinstance(solved, fast.Solved):
        return fast.ranked_backward(rows, T, g, g_tail, solved, of_temperature)
    others, g_tail = solved.order.shape[1] - g.shape[1], g_tail.unsqueeze(1)
    g = torch.cat((g, g_tail.expand(len(g), others, g.shape[2])), 1) if others else g
    return pull_lean(g, g_tail, T, solved, rows.shape[1], of_temperature)


def pull_lean(
    g: Tensor, g_rest: Tensor, T: float | Tensor, solved: Solution, n: int, of_temperature: bool
) -> tuple[Tensor, Tensor]:
    """The gradients by the rows (rows, n) and the temperature (rows,).

    Args:
        g: (rows, C, k) dL/dA of the best candidates.
        g_rest: dL/dA of the others: (rows, n, k), or (rows, 1, k) where all of a row have the same.
        T: the temperature.
        solved: of `solve_rows`.
        n: number of candidates.
        of_temperature: whether the last result is wanted; else it is 0.
    """
    t = as_column(T)
    rest, exact = solved.rest, solved.exact
    best = gather(g.double().mT.flip(1), solved.plan, of_temperature)
    b, moment, direct, through = best[1:]
    if rest is not None:
        g_last = g_rest[..., -1].to(rest.dtype)
        p = rest.clone()
        if solved.starts is None:
            p.scatter_(1, solved.order, 0.0)
        if exact is not None:
            p[exact] = 0.0
        for these, weights in _exact_parts(solved):
            b[these] += ranked_rest.pull_sums(weights, _to_anchors(g_rest[these], weights))[0]
            moment[these] += ranked_rest.masses(weights)[1]
        product = p * g_last
        moment[:, 0, 0] += p.sum(-1)
        b[:, 0] += product.sum(-1)
        if of_temperature:
            log_p = torch.where(p > 0, p, 1.0).log()
            direct = direct + (product * log_p).sum(-1)
            through[:, 0] += (p * log_p).sum(-1)
    y = balance(b, moment)
    of_best = of_scores(best.e, y, solved.plan)
    to_T = (y * through).sum(-1) - direct if of_temperature else torch.zeros_like(direct)
    if rest is None:
        to_scores = of_best.new_empty(len(b), n, dtype=g.dtype)
    else:
        # T dL/dx = p (g - y), y of slot k.
        part = product.sub_(p.mul_(y[:, :1].to(p.dtype)))
        for these, weights in _exact_parts(solved):
            gp = ranked_rest.pull_sums(weights, _to_anchors(g_rest[these], weights))[1]
            of_rest, of_T = ranked_rest.pull(weights, gp, y[these], of_temperature)
            part[these] = of_rest[:, : part.shape[1]]
            to_T[these] += of_T
        to_scores = spread(part.div_(t), solved.starts, n).to(g.dtype)
    to_scores.scatter_(1, solved.order, (of_best / t).to(g.dtype))
    return to_scores, to_T / T


def _to_anchors(g: Tensor, p: Tensor) -> Tensor:
    """(rows, m, k) of slots as (rows, k, m) of anchors, with zeros as `_even` adds them; (rows, 1, k) stays so."""
    g = g.to(p.dtype).mT.flip(1)
    return g if g.shape[2] == 1 else pad(g, (0, p.shape[2] - g.shape[2]))
