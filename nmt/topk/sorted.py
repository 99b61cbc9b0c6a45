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
from torch.autograd.function import once_differentiable

from nmt.topk.arguments import check_k, check_scores, check_temperature, refuse_values
from nmt.topk.screening import Candidates, Certificate, flat_positions, of_rows, screen, tail_sums, tail_weights
from nmt.topk.thresholds import RESIDUAL, RESIDUAL_SINGLE, Plan, offsets_of, pull_back, solve


def sorted_soft_topk(scores: Tensor, k: int, temperature: float | Tensor, *, largest: bool = True) -> Tensor:
    """Soft indicators of the best, the second best, ..., the k-th best candidate of each row.

    Differentiable once, in the scores and in the temperature, by the implicit function theorem.

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
    weights: Tensor = _SortedSoftTopk.apply(rows, k, temperature, scores.shape[:-1], largest)
    return weights.view(*scores.shape, k)


class _SortedSoftTopk(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, k: int, temperature: float | Tensor, shape: torch.Size, largest: bool
    ) -> Tensor:
        def solver(candidates: Candidates) -> tuple[tuple[Tensor, ...], Certificate | None]:
            _, order, values, _, log_tail = candidates
            if candidates.rows is None:
                refuse_values(values[:, 0], shape, largest)
            offsets, finite = offsets_of(values, k, of_rows(temperature, candidates.rows))
            middle = offsets[:, 1, k - 1]
            if log_tail is not None:
                log_tail = log_tail + middle
            plan, u = solve(offsets, log_tail, tolerance)
            if finite is not None:
                # Masked candidates that fill an empty slot weigh nothing; the padding goes.
                plan = Plan(*(part[:, :, : order.shape[1]] for part in plan))
                plan = plan._replace(p=plan.p * finite.unsqueeze(1)[:, :, : order.shape[1]])
            if log_tail is None:
                return plan, None
            log_mass = log_tail - u[:, 0]
            # The tail is all in slot k, which holds a mass of one.
            log_bound = log_mass + (offsets[:, 1:, -1] - u).amax(-1)
            return (*plan, log_mass.exp(), middle - u[:, 0]), Certificate(log_bound, log_mass)

        batch, n = rows.shape
        tolerance = RESIDUAL if rows.dtype == torch.float64 else RESIDUAL_SINGLE
        weights = rows.new_empty(batch, n, k)
        number = None if isinstance(temperature, Tensor) else temperature
        saved: list[Tensor | None] = [rows, temperature if isinstance(temperature, Tensor) else None]
        for candidates, (p, c, d, *tail) in screen(rows, k, temperature, k + 1, solver):
            chosen, order = candidates.rows, candidates.order
            if tail:
                assert candidates.reference is not None
                part = tail_weights(rows, chosen, order, candidates.reference, tail[1], temperature)
                dense = torch.zeros_like(weights) if chosen is None else weights.new_zeros(len(chosen), n, k)
                dense[..., -1] = part
                weights = dense if chosen is None else weights.index_copy_(0, chosen, dense)
            where = flat_positions(chosen, order, n)
            weights.view(-1, k).index_copy_(0, where, p[:, 1:].flip(1).mT.reshape(-1, k).to(rows.dtype))
            saved += [
                chosen,
                where,
                p,
                c,
                d,
                *((order, candidates.reference, *tail) if tail else (None,) * 4),
            ]
        ctx.number = number
        ctx.save_for_backward(*saved)
        return weights

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scores, temperature, *saved = ctx.saved_tensors
        T = ctx.number if temperature is None else temperature
        batch, n, k = grad.shape
        to_scores = grad.new_empty(batch, n)
        to_temperature = grad.new_empty(batch, dtype=torch.float64) if ctx.needs_input_grad[2] else None
        for first in range(0, len(saved), 9):
            rows, where, p, c, d, order, reference, mass, shift = saved[first : first + 9]
            g = grad.reshape(-1, k).index_select(0, where).double().view(len(p), p.shape[2], k).mT.flip(1)
            tail = None
            if order is not None:
                q = tail_weights(scores, rows, order, reference, shift, T)
                g_tail = (grad if rows is None else grad[rows])[..., -1].to(q.dtype)
                tail = tail_sums(q, g_tail, to_temperature is not None)._replace(p=mass)
            of_scores, y, of_temperature = pull_back(g, Plan(p, c, d), tail, to_temperature is not None)
            t = of_rows(T, rows)
            if order is not None:
                part = (q * (g_tail - y.unsqueeze(1).to(q.dtype)) / t).to(grad.dtype)
                to_scores = part if rows is None else to_scores.index_copy_(0, rows, part)
            to_scores.view(-1).index_copy_(0, where, (of_scores / t).view(-1).to(grad.dtype))
            if to_temperature is not None:
                assert of_temperature is not None
                to_temperature[slice(None) if rows is None else rows] = of_temperature
        if to_temperature is not None:
            to_temperature = to_temperature / T
            to_temperature = to_temperature if temperature.dim() else to_temperature.sum()
        return to_scores, None, to_temperature, None, None
