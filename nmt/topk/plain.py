"""The plain soft top-k: one threshold, A_i = sigmoid((x_i - tau) / T) with sum A = k.

Source of the operator: Xie et al., Differentiable Top-k with Optimal Transport, NeurIPS 2020 (arXiv
2002.06504), with the anchors {0, 1} and the raw squared cost. Expanding the square moves x^2 and y^2 into the
potentials; with T = eps / 2 the plan of a candidate is a sigmoid, and the one unknown left is tau.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nmt.topk import compiled, fast
from nmt.topk.arguments import as_rows, refuse_k, refuse_temperature, refuse_values
from nmt.topk.balance import Offsets, offsets_of, pull_back, sides, solve
from nmt.topk.plain_derivatives import pull_plain, push_plain
from nmt.topk.rest import masses, pull, rows_in_parts, slopes, spread, weigh
from nmt.topk.rows import as_column, is_plain, map_rows, narrow, refuse_nested_forward, total, with_signature
from nmt.topk.screening import log_limit, screen, width_of
from nmt.topk.thresholds import RESIDUAL, RESIDUAL_SINGLE


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
    rows, k, temperature = as_rows(scores, k, temperature, largest, ranked=False)
    if torch.compiler.is_compiling():
        of_k, of_t = (torch.as_tensor(v, dtype=torch.float64, device=scores.device) for v in (k, temperature))
        return compiled.plain(rows, of_k, of_t, scores.shape[:-1], largest).view(scores.shape)
    weights: Tensor = _SoftTopk.apply(rows, k, temperature, scores.shape[:-1], largest, [])[0]
    return weights.view(scores.shape)


class Solution(NamedTuple):
    """The solved rows; all but `order`, `rest` and `starts` in float64.

    Attributes:
        order: (rows, C) positions of the best candidates, best first.
        z: (rows, C) (x - tau) / T of them.
        free: (rows, 1) False in a row that selects all it has, or None if there is none.
        solution: (rows, 2) of `plain_derivatives`.
        rest: (rows, m) weights of the others, or None; `Rest.weights`.
        starts: of `Rest`.
    """

    order: Tensor
    z: Tensor
    free: Tensor | None
    solution: Tensor
    rest: Tensor | None
    starts: Tensor | None


_REST = Solution._fields.index("rest")


def solve_rows(
    rows: Tensor,
    k: int | Tensor,
    temperature: float | Tensor,
    shape: torch.Size,
    largest: bool,
    *,
    whole: bool = True,
    width: int = 0,
    iterations: list[int] | None = None,
) -> Solution:
    """Solves scores (rows, n).

    Args:
        rows, k, temperature: checked by shape, not by value.
        shape, largest: to name a row and a value that is refused.
        whole: give the weights of all other candidates, or else of those that matter.
        width: at least so many best candidates.
        iterations: takes those of each call of the solver.
    """
    n = rows.shape[1]
    k, most = _checked(n, k, temperature)
    t, of_k = as_column(temperature), as_column(k)
    order, values, rest = screen(rows, most, width_of(n, most, width), t, whole)
    refuse_values(values[:, 0], shape, largest)
    offsets = offsets_of(values, of_k, t, n)
    tolerance = RESIDUAL if rows.dtype == torch.float64 else RESIDUAL_SINGLE
    if rest is None:
        u = solve(offsets, None, tolerance, iterations)
        return Solution(order, offsets.z - u, offsets.free, _solution(offsets, u), None, None)
    # From u to that of the reference of the rest; 0 where the rest weighs nothing, as its reference may be none.
    shift = ((offsets.middle - rest.reference) / t).where(rest.sums > 0, 0.0)
    log_mass = rest.sums.log().sub_(shift)
    u = solve(offsets, lambda u: ((log_mass - u).exp_(), None), tolerance, iterations)
    coarse = log_mass.add_(offsets.z[:, -1:]).sub_(u, alpha=2) > log_limit(rows, most)
    exact = coarse.squeeze(1).nonzero().squeeze(1) if bool(coarse.any()) else None
    for these in rows_in_parts(exact, rest.weights):
        e, moved = rest.weights[these], shift[these]

        def full(u: Tensor, e: Tensor = e, moved: Tensor = moved) -> tuple[Tensor, Tensor]:
            return masses(e, (u + moved).exp())

        u[these] = solve(offsets.take(these), full, tolerance, iterations, u[these])
    weigh(rest, u + shift, exact)
    return Solution(order, offsets.z - u, offsets.free, _solution(offsets, u), rest.weights, rest.starts)


def _checked(n: int, k: int | Tensor, temperature: float | Tensor) -> tuple[int | Tensor, int]:
    """k, as an int if it is one for all rows, and the largest, rounded up; values out of range are refused."""
    refuse_temperature(temperature)
    refuse_k(k, n)
    if isinstance(k, Tensor) and not k.dim() and float(k).is_integer():
        k = int(k)
    return k, k if isinstance(k, int) else math.ceil(float(k.max())) if k.numel() else 1


def _solution(offsets: Offsets, u: Tensor) -> Tensor:
    solution = torch.cat((offsets.middle, u), 1)
    return solution if offsets.free is None else solution.nan_to_num_()


def weights_of(solved: Solution) -> tuple[Tensor, Tensor]:
    """The weights (rows, C) of the best candidates and the sum (rows,) of the others', float64."""
    best = sides(solved.z)[0]
    return best, best.new_zeros(len(best)) if solved.rest is None else solved.rest.sum(-1).double()


def dense(solved: Solution, rows: Tensor) -> Tensor:
    """The weights (rows, n) in the dtype of the rows; they take the place of the rest, where it has that dtype."""
    best = sides(solved.z)[0].to(rows.dtype)
    weights = torch.empty_like(rows) if solved.rest is None else solved.rest.to(rows.dtype)
    return weights.scatter_(1, solved.order, best)


def run(
    rows: Tensor,
    k: int | Tensor,
    temperature: float | Tensor,
    shape: torch.Size,
    largest: bool,
    width: int | None = None,
) -> tuple[tuple[Tensor, ...], Solution | fast.Solved]:
    """Solves scores (rows, n), by a kernel or by PyTorch; the first arguments as those of `solve_rows`.

    Returns:
        The weights (rows, n); or with a width the positions and weights (rows, width) of the best candidates and the
        sums (rows,) of all others. And what the backward needs.
    """
    n = rows.shape[1]
    if fast.fits(rows, 1):
        k, most = _checked(n, k, temperature)
        screened = width_of(n, most, width or 0)
        if fast.fits(rows, screened):
            found = fast.plain_forward(rows, k, temperature, most, screened, width)
            if found is None:
                refuse_values(rows.amax(-1), shape, largest)
                raise AssertionError("a kernel has refused scores that are none to refuse")
            return found
    solved = solve_rows(rows, k, temperature, shape, largest, whole=width is None, width=width or 0)
    if width is None:
        return (dense(solved, rows),), solved
    return narrow(solved.order, *weights_of(solved), width, rows.dtype), solved


@with_signature
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
        (weights,), solved = run(rows, k, temperature, shape, largest)
        kept += solved
        return weights, solved.solution

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        rows, k, temperature, _, _, kept = inputs
        weights, solution = output
        ctx.mark_non_differentiable(solution)
        ctx.set_materialize_grads(False)
        ctx.numbers = tuple(None if isinstance(value, Tensor) else value for value in (k, temperature))
        tensors = [value if isinstance(value, Tensor) else None for value in (k, temperature)]
        # The weights of the rest are those of the output, unless it is narrower.
        if kept and kept[_REST] is not None and kept[_REST].dtype == weights.dtype:
            kept[_REST] = weights
        ctx.save_for_backward(rows, *tensors, solution, *kept)
        ctx.save_for_forward(rows, *tensors, solution)
        kept.clear()

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
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
        if not is_plain(grad, kept):
            to_scores, to_k, to_T = pull_plain(grad, scores, k, T, solution)
        else:
            to_scores, to_k, to_T = pull_dense(grad, scores, T, restored(kept), ctx.needs_input_grad[2])
        return to_scores.to(scores.dtype), total(to_k, k), total(to_T, T), None, None, None


def restored(kept: Any) -> Solution | fast.Solved:
    """What the forward kept, from the list of its fields."""
    return fast.Solved(*kept) if len(kept) == len(fast.Solved._fields) else Solution(*kept)


def pull_dense(
    g: Tensor, rows: Tensor, T: float | Tensor, solved: Solution | fast.Solved, of_temperature: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """As `pull_lean`, of dL/dA (rows, n)."""
    if isinstance(solved, fast.Solved):
        return fast.plain_backward(rows, T, g, None, solved, of_temperature)
    return pull_lean(g.gather(1, solved.order), g, T, solved, g.shape[1], of_temperature)


def pull_sparse(
    g: Tensor, g_tail: Tensor, rows: Tensor, T: float | Tensor, solved: Solution | fast.Solved, of_temperature: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """As `pull_lean`, of dL/dA (rows, c) of the first candidates and (rows,) of all others."""
    if isinstance(solved, fast.Solved):
        return fast.plain_backward(rows, T, g, g_tail, solved, of_temperature)
    others, g_tail = solved.order.shape[1] - g.shape[1], g_tail.unsqueeze(1)
    g = torch.cat((g, g_tail.expand(len(g), others)), 1) if others else g
    return pull_lean(g, g_tail, T, solved, rows.shape[1], of_temperature)


def pull_lean(
    g: Tensor, g_rest: Tensor, T: float | Tensor, solved: Solution, n: int, of_temperature: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients by the rows (rows, n), and by k and the temperature (rows,).

    Args:
        g: (rows, C) dL/dA of the best candidates.
        g_rest: dL/dA of the others: (rows, n), or (rows, 1) where all of a row have the same.
        T: the temperature.
        solved: of `solve_rows`.
        n: number of candidates.
        of_temperature: whether the last result is wanted; else it is 0.
    """
    order, z, free, _, A, starts = solved
    t = as_column(T)
    if A is None:
        of_best, mean, _, to_T = pull_back(g.double(), z, None, of_temperature)
        to_scores = of_best.new_empty(len(z), n, dtype=g.dtype)
    else:
        g_rest = g_rest.to(A.dtype)
        w, *sums = slopes(A, order if starts is None else None, g_rest)
        of_best, mean, center, to_T = pull_back(g.double(), z, (sums[0], sums[1]), of_temperature)
        part = pull(w, g_rest, mean, t)
        if to_T is not None:
            # z of a weight, which is 0 only where w is 0 as well.
            far = torch.where(part != 0, A.double(), 0.5).logit() - center
            to_T = to_T - (part * far).sum(-1) * T
        to_scores = spread(part, starts, n).to(g.dtype)
    to_scores.scatter_(1, order, (of_best / t).to(g.dtype))
    # A row that selects all it has does not depend on k.
    to_k = (mean if free is None else mean.where(free, 0.0)).squeeze(1)
    return to_scores, to_k, torch.zeros_like(to_k) if to_T is None else to_T / T
