"""The plain soft top-k: one threshold, A_i = sigmoid((x_i - tau) / T) with sum A = k.

Source of the operator: Xie et al., Differentiable Top-k with Optimal Transport, NeurIPS 2020 (arXiv
2002.06504), with the anchors {0, 1} and the raw squared cost. Expanding the square moves x^2 and y^2 into the
potentials; with T = eps / 2 the plan of a candidate is a sigmoid, and the one unknown left is tau.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nmt.topk.arguments import check_k, check_k_rows, check_scores, check_temperature, refuse_values
from nmt.topk.balance import offsets_of, pull_back, sides, solve
from nmt.topk.screening import Candidates, Certificate, flat_positions, of_rows, screen, tail_sums, tail_weights


def soft_topk(scores: Tensor, k: int | Tensor, temperature: float | Tensor, *, largest: bool = True) -> Tensor:
    """Soft indicators of being among the k best candidates of each row.

    Differentiable once, in the scores, the temperature and a floating-point k, by the implicit function
    theorem.

    Args:
        scores: (..., n), any leading shape. -inf masks a candidate (+inf with `largest=False`).
            A masked candidate has weight 0 and gradient 0.
        k: number of selected candidates, an int in 1..n; or a tensor of values in (0, n], 0-d or one value a
            row, of shape (...), that may be fractional.
        temperature: T in the units of the scores (nats for log-probabilities): a number, a 0-d tensor or one
            value a row, of shape (...). As T -> 0 the result is the sum of the columns of `hard_topk`, ties
            sharing equally.
        largest: False selects the smallest.

    Returns:
        (..., n), in the dtype of the scores, in [0, 1], with the sum min(k, number of unmasked candidates).

    Raises:
        ValueError: NaN or +inf among the scores, a k or a temperature out of range, shapes that do not fit.
    """
    check_scores(scores)
    n = scores.shape[-1]
    if isinstance(k, Tensor):
        k = check_k_rows(k, scores)
    else:
        check_k(k, n)
    temperature = check_temperature(temperature, scores)
    rows = (scores if largest else -scores).reshape(-1, n).contiguous()
    if isinstance(temperature, Tensor) and temperature.dim():
        temperature = temperature.reshape(-1)
    if isinstance(k, Tensor) and k.dim():
        k = k.reshape(-1)
    weights: Tensor = _SoftTopk.apply(rows, k, temperature, scores.shape[:-1], largest)
    return weights.view(scores.shape)


class _SoftTopk(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, k: int | Tensor, temperature: float | Tensor, shape: torch.Size, largest: bool
    ) -> Tensor:
        n = rows.shape[1]

        def solver(candidates: Candidates) -> tuple[tuple[Tensor, ...], Certificate | None]:
            if candidates.rows is None:
                refuse_values(candidates.values[:, 0], shape, largest)
            t = of_rows(temperature, candidates.rows)
            offsets = offsets_of(candidates.values, of_rows(k, candidates.rows), t, n)
            if candidates.log_tail is None or candidates.reference is None:
                return (solve(offsets)[0], offsets.free), None
            # 0 in a row with fewer finite scores than k: its middle is masked, and its tail as well.
            shift = ((candidates.reference.double() - offsets.middle) / t).where(offsets.free, 0.0)
            log_tail = candidates.log_tail.unsqueeze(1) + shift
            z, u = solve(offsets, log_tail)
            log_mass = log_tail - u
            log_share = log_mass - (offsets.whole + offsets.part).log()
            certificate = Certificate((log_mass + z[:, -1:]).squeeze(1), log_share.squeeze(1))
            return (z, offsets.free, log_mass, (shift - u).squeeze(1)), certificate

        most = k if isinstance(k, int) else math.ceil(float(k.max())) if k.numel() else 1
        weights = torch.empty_like(rows)
        tensors = [value if isinstance(value, Tensor) else None for value in (k, temperature)]
        saved: list[Tensor | None] = [rows, *tensors]
        for candidates, (z, free, *tail) in screen(rows, most, temperature, 1, solver):
            chosen, order, reference = candidates.rows, candidates.order, candidates.reference
            if tail:
                assert reference is not None
                part = tail_weights(rows, chosen, order, reference, tail[1], temperature).to(rows.dtype)
                weights = part if chosen is None else weights.index_copy_(0, chosen, part)
            where = flat_positions(chosen, order, n)
            weights.view(-1).index_copy_(0, where, sides(z)[0].reshape(-1).to(rows.dtype))
            saved += [chosen, where, z, free, *((order, reference, *tail) if tail else (None,) * 4)]
        ctx.number = None if isinstance(temperature, Tensor) else temperature
        ctx.save_for_backward(*saved)
        return weights

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scores, k, temperature, *saved = ctx.saved_tensors
        T = ctx.number if temperature is None else temperature
        _, of_k, of_temperature, *_ = ctx.needs_input_grad
        to_scores = torch.empty_like(grad, memory_format=torch.contiguous_format)
        to_k, to_temperature = grad.new_empty(2, len(grad), dtype=torch.float64)
        for first in range(0, len(saved), 8):
            rows, where, z, free, order, reference, log_mass, shift = saved[first : first + 8]
            t = of_rows(T, rows)
            g = grad.reshape(-1).index_select(0, where).double().view(z.shape)
            tail = None
            if order is not None:
                p = tail_weights(scores, rows, order, reference, shift, T)
                g_tail = (grad if rows is None else grad[rows]).to(p.dtype)
                tail = tail_sums(p, g_tail, of_temperature)
            of_scores, mean, of_T = pull_back(g, z, log_mass, tail, of_temperature)
            if order is not None:
                part = (p * (g_tail - mean.to(p.dtype)) / t).to(grad.dtype)
                to_scores = part if rows is None else to_scores.index_copy_(0, rows, part)
            to_scores.view(-1).index_copy_(0, where, (of_scores / t).view(-1).to(grad.dtype))
            chosen = slice(None) if rows is None else rows
            # A row that selects all it has does not depend on k.
            to_k[chosen] = mean.where(free, 0.0).squeeze(1)
            if of_T is not None:
                to_temperature[chosen] = of_T
        k_grad = t_grad = None
        if of_k:
            k_grad = to_k if k.dim() else to_k.sum()
        if of_temperature:
            to_temperature = to_temperature / T
            t_grad = to_temperature if temperature.dim() else to_temperature.sum()
        return to_scores, k_grad, t_grad, None, None
