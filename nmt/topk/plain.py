"""The plain soft top-k: one threshold, A_i = sigmoid((x_i - tau) / T) with sum A = k.

Source of the operator: Xie et al., Differentiable Top-k with Optimal Transport, NeurIPS 2020 (arXiv
2002.06504), with the anchors {0, 1} and the raw squared cost. Expanding the square moves x^2 and y^2 into the
potentials; with T = eps / 2 the plan of a candidate is a sigmoid, and the one unknown left is tau.
"""

import math
from typing import Any

import torch
from torch import Tensor

from nmt.topk import compiled
from nmt.topk.arguments import (
    check_k,
    check_k_rows,
    check_scores,
    check_temperature,
    refuse_k,
    refuse_temperature,
    refuse_values,
)
from nmt.topk.balance import offsets_of, pull_back, sides, solve
from nmt.topk.plain_derivatives import pull_plain, push_plain
from nmt.topk.rows import map_rows, refuse_nested_forward, total
from nmt.topk.screening import Candidates, Certificate, flat_positions, of_rows, screen, tail_sums, tail_weights


def soft_topk(scores: Tensor, k: int | Tensor, temperature: float | Tensor, *, largest: bool = True) -> Tensor:
    """Soft indicators of being among the k best candidates of each row.

    Differentiable in the scores, the temperature and a floating-point k by the implicit function theorem: once
    from the screened candidates; again, or forward (`torch.func.jvp`, once),
    in O(n) memory. `torch.func.vmap` and
    `torch.compile` work.

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
    if torch.compiler.is_compiling():
        of_k, of_t = (torch.as_tensor(v, dtype=torch.float64, device=scores.device) for v in (k, temperature))
        return compiled.plain(rows, of_k, of_t, scores.shape[:-1], largest).view(scores.shape)
    weights: Tensor = _SoftTopk.apply(rows, k, temperature, scores.shape[:-1], largest, [])[0]
    return weights.view(scores.shape)


def solve_rows(
    rows: Tensor,
    k: int | Tensor,
    temperature: float | Tensor,
    shape: torch.Size,
    largest: bool,
    iterations: list[int] | None = None,
) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    """The weights (rows, n) of scores (rows, n), the solution (rows, 2) of `plain_derivatives`, and what the
    first-order backward keeps, eight entries a part of the rows.

    `shape` and `largest` name a row and a value that is refused; `iterations` takes those of each call
    of the solver.
    """
    n = rows.shape[1]
    refuse_temperature(temperature)
    refuse_k(k, n)

    def solver(candidates: Candidates) -> tuple[tuple[Tensor, ...], Certificate | None]:
        if candidates.rows is None:
            refuse_values(candidates.values[:, 0], shape, largest)
        t = of_rows(temperature, candidates.rows)
        offsets = offsets_of(candidates.values, of_rows(k, candidates.rows), t, n)
        if candidates.log_tail is None or candidates.reference is None:
            z, u = solve(offsets, None, iterations)
            return (z, offsets.free, torch.cat((offsets.middle, u), 1)), None
        # 0 in a row with fewer finite scores than k: its middle is masked, and its tail as well.
        shift = ((candidates.reference.double() - offsets.middle) / t).where(offsets.free, 0.0)
        log_tail = candidates.log_tail.unsqueeze(1) + shift
        z, u = solve(offsets, log_tail, iterations)
        log_mass = log_tail - u
        log_share = log_mass - (offsets.whole + offsets.part).log()
        certificate = Certificate((log_mass + z[:, -1:]).squeeze(1), log_share.squeeze(1))
        solution = torch.cat((offsets.middle, u), 1)
        return (z, offsets.free, solution, log_mass, (shift - u).squeeze(1)), certificate

    most = k if isinstance(k, int) else math.ceil(float(k.max())) if k.numel() else 1
    weights = torch.empty_like(rows)
    solutions = rows.new_empty(len(rows), 2, dtype=torch.float64)
    kept: list[Tensor | None] = []
    for candidates, (z, free, solution, *tail) in screen(rows, most, temperature, 1, solver):
        chosen, order, reference = candidates.rows, candidates.order, candidates.reference
        if tail:
            assert reference is not None
            part = tail_weights(rows, chosen, order, reference, tail[1], temperature).to(rows.dtype)
            weights = part if chosen is None else weights.index_copy_(0, chosen, part)
        where = flat_positions(chosen, order, n)
        weights.view(-1).index_copy_(0, where, sides(z)[0].reshape(-1).to(rows.dtype))
        solutions = solution if chosen is None else solutions.index_copy_(0, chosen, solution)
        kept += [chosen, where, z, free, *((order, reference, *tail) if tail else (None,) * 4)]
    return weights, solutions.nan_to_num_(), kept


class _SoftTopk(torch.autograd.Function):
    # `kept` is an empty list that the forward fills for the lean backward. A functional transform hands a copy
    # of it down, so that it stays empty there: such a backward is the differentiable one.

    @staticmethod
    def forward(
        rows: Tensor,
        k: int | Tensor,
        temperature: float | Tensor,
        shape: torch.Size,
        largest: bool,
        kept: list[Tensor | None],
    ) -> tuple[Tensor, Tensor]:
        weights, solution, parts = solve_rows(rows, k, temperature, shape, largest)
        kept += parts
        return weights, solution

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        rows, k, temperature, _, _, kept = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.numbers = tuple(None if isinstance(value, Tensor) else value for value in (k, temperature))
        tensors = [value if isinstance(value, Tensor) else None for value in (k, temperature)]
        ctx.save_for_backward(rows, *tensors, output[1], *kept)
        ctx.save_for_forward(rows, *tensors, output[1])
        kept.clear()

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        return map_rows(_SoftTopk, info.batch_size, in_dims, arguments)

    @staticmethod
    def jvp(ctx: Any, dx: Tensor | None, dk: Tensor | None, dT: Tensor | None, *_: None) -> tuple[Tensor, None]:
        x, k, T, solution = ctx.saved_tensors[:4]
        k, T = (number if tensor is None else tensor for tensor, number in zip((k, T), ctx.numbers, strict=True))
        refuse_nested_forward()
        dx = torch.zeros_like(x) if dx is None else dx
        dk, dT = (x.new_zeros(()) if tangent is None else tangent for tangent in (dk, dT))
        return push_plain(dx, dk, dT, x, k, T, solution).to(x.dtype), None

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        scores, k, T, solution, *kept = ctx.saved_tensors
        k, T = (number if tensor is None else tensor for tensor, number in zip((k, T), ctx.numbers, strict=True))
        if grad is None:
            return (None,) * 6
        if torch.is_grad_enabled() or not kept:
            to_scores, to_k, to_T = pull_plain(grad, scores, k, T, solution)
        else:
            to_scores, to_k, to_T = pull_lean(grad, scores, T, kept, ctx.needs_input_grad[2])
        return to_scores.to(scores.dtype), total(to_k, k), total(to_T, T), None, None, None


def pull_lean(
    grad: Tensor, scores: Tensor, T: float | Tensor, kept: list[Tensor | Any], of_temperature: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients by the rows (rows, n), and by k and the temperature (rows,), of `kept` of `solve_rows`."""
    to_scores = torch.empty_like(grad, memory_format=torch.contiguous_format)
    to_k, to_temperature = grad.new_zeros(2, len(grad), dtype=torch.float64)
    for first in range(0, len(kept), 8):
        rows, where, z, free, order, reference, log_mass, shift = kept[first : first + 8]
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
    return to_scores, to_k, to_temperature / T
