"""The sorted soft top-k: one soft indicator for each of the k ranks.

Source of the operator: Xie et al., Differentiable Top-k with Optimal Transport, NeurIPS 2020 (arXiv
2002.06504), with the anchors 0, 1, ..., k and the raw squared cost. Expanding the square leaves, with T = eps
/ 2,

    A_il = softmax over l of sum_{j = l..k} (x_i - tau_j) / T      (0 for "not selected"),

and the thresholds tau_1..tau_k for which every slot receives a mass of one.
"""

from typing import Any

import torch
from torch import Tensor

from nmt.topk import compiled
from nmt.topk.arguments import check_k, check_scores, check_temperature, refuse_temperature, refuse_values
from nmt.topk.rows import map_rows, refuse_nested_forward, total
from nmt.topk.screening import Candidates, Certificate, flat_positions, of_rows, screen, tail_sums, tail_weights
from nmt.topk.sorted_derivatives import pull_sorted, push_sorted
from nmt.topk.thresholds import RESIDUAL, RESIDUAL_SINGLE, Plan, offsets_of, pull_back, solve


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
    check_scores(scores)
    n = scores.shape[-1]
    check_k(k, n)
    temperature = check_temperature(temperature, scores)
    rows = (scores if largest else -scores).reshape(-1, n).contiguous()
    if isinstance(temperature, Tensor) and temperature.dim():
        temperature = temperature.reshape(-1)
    if torch.compiler.is_compiling():
        of_t = torch.as_tensor(temperature, dtype=torch.float64, device=scores.device)
        return compiled.ranked(rows, k, of_t, scores.shape[:-1], largest).view(*scores.shape, k)
    weights: Tensor = _SortedSoftTopk.apply(rows, k, temperature, scores.shape[:-1], largest, [])[0]
    return weights.view(*scores.shape, k)


def solve_rows(
    rows: Tensor,
    k: int,
    temperature: float | Tensor,
    shape: torch.Size,
    largest: bool,
    iterations: list[int] | None = None,
) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    """The weights (rows, n, k) of scores (rows, n), the solution (rows, 2, k) of `sorted_derivatives`, and what the
    first-order backward keeps, nine entries a part of the rows.

    `shape` and `largest` name a row and a value that is refused; `iterations` takes those of each call
    of the solver.
    """
    refuse_temperature(temperature)

    def solver(candidates: Candidates) -> tuple[tuple[Tensor, ...], Certificate | None]:
        _, order, values, _, log_tail = candidates
        if candidates.rows is None:
            refuse_values(values[:, 0], shape, largest)
        offsets, middles, finite = offsets_of(values, k, of_rows(temperature, candidates.rows))
        middle = offsets[:, 1, k - 1]
        if log_tail is not None:
            log_tail = log_tail + middle
        plan, u = solve(offsets, log_tail, tolerance, iterations)
        solution = torch.stack((middles, u), 1)
        if finite is not None:
            # Masked candidates that fill an empty slot weigh nothing; the padding goes.
            plan = Plan(*(part[:, :, : order.shape[1]] for part in plan))
            plan = plan._replace(p=plan.p * finite.unsqueeze(1)[:, :, : order.shape[1]])
        if log_tail is None:
            return (*plan, solution), None
        log_mass = log_tail - u[:, 0]
        # The tail is all in slot k, which holds a mass of one.
        log_bound = log_mass + (offsets[:, 1:, -1] - u).amax(-1)
        return (*plan, solution, log_mass.exp(), middle - u[:, 0]), Certificate(log_bound, log_mass)

    batch, n = rows.shape
    tolerance = RESIDUAL if rows.dtype == torch.float64 else RESIDUAL_SINGLE
    weights = rows.new_empty(batch, n, k)
    solutions = rows.new_empty(batch, 2, k, dtype=torch.float64)
    kept: list[Tensor | None] = []
    for candidates, (p, c, d, solution, *tail) in screen(rows, k, temperature, k + 1, solver):
        chosen, order = candidates.rows, candidates.order
        if tail:
            assert candidates.reference is not None
            part = tail_weights(rows, chosen, order, candidates.reference, tail[1], temperature)
            dense = torch.zeros_like(weights) if chosen is None else weights.new_zeros(len(chosen), n, k)
            dense[..., -1] = part
            weights = dense if chosen is None else weights.index_copy_(0, chosen, dense)
        where = flat_positions(chosen, order, n)
        weights.view(-1, k).index_copy_(0, where, p[:, 1:].flip(1).mT.reshape(-1, k).to(rows.dtype))
        solutions = solution if chosen is None else solutions.index_copy_(0, chosen, solution)
        kept += [chosen, where, p, c, d, *((order, candidates.reference, *tail) if tail else (None,) * 4)]
    return weights, solutions.nan_to_num_(), kept


class _SortedSoftTopk(torch.autograd.Function):
    # `kept`: see the plain operator.

    @staticmethod
    def forward(
        rows: Tensor, k: int, temperature: float | Tensor, shape: torch.Size, largest: bool, kept: list[Tensor | None]
    ) -> tuple[Tensor, Tensor]:
        weights, solution, parts = solve_rows(rows, k, temperature, shape, largest)
        kept += parts
        return weights, solution

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
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
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
        if torch.is_grad_enabled() or not kept:
            to_scores, to_T = pull_sorted(grad, scores, T, solution)
        else:
            to_scores, to_T = pull_lean(grad, scores, T, kept, ctx.needs_input_grad[2])
        return to_scores.to(scores.dtype), None, total(to_T, T), None, None, None


def pull_lean(
    grad: Tensor, scores: Tensor, T: float | Tensor, kept: list[Tensor | Any], of_temperature: bool
) -> tuple[Tensor, Tensor]:
    """The gradients by the rows (rows, n) and the temperature (rows,), of `kept` of `solve_rows`."""
    batch, n, k = grad.shape
    to_scores = grad.new_empty(batch, n)
    to_temperature = grad.new_zeros(batch, dtype=torch.float64)
    for first in range(0, len(kept), 9):
        rows, where, p, c, d, order, reference, mass, shift = kept[first : first + 9]
        g = grad.reshape(-1, k).index_select(0, where).double().view(len(p), p.shape[2], k).mT.flip(1)
        tail = None
        if order is not None:
            q = tail_weights(scores, rows, order, reference, shift, T)
            g_tail = (grad if rows is None else grad[rows])[..., -1].to(q.dtype)
            tail = tail_sums(q, g_tail, of_temperature)._replace(p=mass)
        of_scores, y, of_T = pull_back(g, Plan(p, c, d), tail, of_temperature)
        t = of_rows(T, rows)
        if order is not None:
            part = (q * (g_tail - y.unsqueeze(1).to(q.dtype)) / t).to(grad.dtype)
            to_scores = part if rows is None else to_scores.index_copy_(0, rows, part)
        to_scores.view(-1).index_copy_(0, where, (of_scores / t).view(-1).to(grad.dtype))
        if of_T is not None:
            to_temperature[slice(None) if rows is None else rows] = of_T
    return to_scores, to_temperature / T
