"""The weights of the best candidates alone, with the mass that all others hold."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from nmt.topk import plain, sorted
from nmt.topk.arguments import as_rows, check_scores
from nmt.topk.plain import soft_topk
from nmt.topk.plain_derivatives import pull_plain, push_plain
from nmt.topk.rows import is_plain, map_rows, refuse_nested_forward, total, with_signature
from nmt.topk.sorted import sorted_soft_topk
from nmt.topk.sorted_derivatives import pull_sorted, push_sorted


class SparseTopk(NamedTuple):
    """Soft indicators of the C best candidates of each row; differentiable in `weights` and `tail_mass`.

    Attributes:
        indices: (..., C) their positions, best first, int64.
        weights: (..., C), or (..., C, k) of the sorted operator: what the dense result has there.
        tail_mass: (...), or (..., k): the sum of the weights of all other candidates. Who drops them moves
            each row by exactly that in L1.
    """

    indices: Tensor
    weights: Tensor
    tail_mass: Tensor

    def dense(self, n: int) -> Tensor:
        """(..., n) or (..., n, k) with 0 for the candidates that are not here."""
        ranked = self.weights.dim() > self.indices.dim()
        index = self.indices.unsqueeze(-1).expand_as(self.weights) if ranked else self.indices
        shape = (*self.indices.shape[:-1], n, *self.weights.shape[self.indices.dim() :])
        return self.weights.new_zeros(shape).scatter(self.indices.dim() - 1, index, self.weights)


def sparse_soft_topk(
    scores: Tensor, k: int | Tensor, temperature: float | Tensor, *, largest: bool = True, width: int | None = None
) -> SparseTopk:
    """`soft_topk` as the weights (..., C) of the C best candidates and the mass (...) of the others.

    Args:
        scores, k, temperature, largest: as `soft_topk`.
        width: C, 1..n; by default min(n, max(32, 4 k)).

    Raises:
        ValueError: as `soft_topk`; a width out of range, or none where k is a tensor.
    """
    return _sparse(scores, k, temperature, largest, candidate_width(scores, k, width), ranked=False)


def sparse_sorted_soft_topk(
    scores: Tensor, k: int, temperature: float | Tensor, *, largest: bool = True, width: int | None = None
) -> SparseTopk:
    """`sorted_soft_topk` as the weights (..., C, k) of the C best candidates and the mass (..., k) of the others.

    Args:
        scores, k, temperature, largest: as `sorted_soft_topk`.
        width: C, 1..n; by default min(n, max(32, 4 k)).

    Raises:
        ValueError: as `sorted_soft_topk`; a width out of range.
    """
    return _sparse(scores, k, temperature, largest, candidate_width(scores, k, width), ranked=True)


def _sparse(
    scores: Tensor, k: int | Tensor, temperature: float | Tensor, largest: bool, width: int, ranked: bool
) -> SparseTopk:
    shape = scores.shape[:-1]
    if torch.compiler.is_compiling():
        operator: Any = sorted_soft_topk if ranked else soft_topk
        found = scores.detach().topk(width, dim=-1, largest=largest).indices
        weights, tail = _split(operator(scores, k, temperature, largest=largest), found, len(shape))
        return SparseTopk(found, weights, tail)
    rows, k, temperature = as_rows(scores, k, temperature, largest, ranked)
    found, weights, tail, _ = _SparseTopk.apply(rows, k, temperature, shape, largest, width, ranked, [])
    return SparseTopk(*(part.view(shape + part.shape[1:]) for part in (found, weights, tail)))


def _split(weights: Tensor, found: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Dense weights as those of the candidates `found` and the sum of all others; `dim` is that of the candidates."""
    if weights.dim() > found.dim():
        found = found.unsqueeze(-1).expand(*found.shape, weights.shape[-1])
    # A sum of many small weights in half precision would be rounded away.
    wide = weights if weights.dtype in (torch.float64, torch.float32) else weights.float()
    return weights.gather(dim, found), wide.scatter(dim, found, 0.0).sum(dim).to(weights.dtype)


@with_signature
class _SparseTopk(torch.autograd.Function):
    # As the functions of the dense operators, but for what comes out.

    @staticmethod
    def forward(
        rows: Tensor,
        k: Any,
        temperature: float | Tensor,
        shape: torch.Size,
        largest: bool,
        width: int,
        ranked: bool,
        kept: list[Tensor | None],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        run: Any = sorted.run if ranked else plain.run
        (found, best, tail), solved = run(rows, k, temperature, shape, largest, width)
        kept += solved
        return found, best, tail, solved.solution

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        rows, k, temperature, _, _, _, ctx.ranked, kept = inputs
        found, _, _, solution = output
        ctx.mark_non_differentiable(found, solution)
        ctx.numbers = tuple(None if isinstance(value, Tensor) else value for value in (k, temperature))
        tensors = [value if isinstance(value, Tensor) else None for value in (k, temperature)]
        ctx.save_for_backward(rows, *tensors, solution, found, *kept)
        ctx.save_for_forward(rows, *tensors, solution, found)
        kept.clear()

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        return map_rows(_SparseTopk, info.batch_size, in_dims, arguments)

    @staticmethod
    def jvp(ctx: Any, dx: Tensor | None, dk: Tensor | None, dT: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        x, k, T, solution, found = ctx.saved_tensors[:5]
        k, T = (number if tensor is None else tensor for tensor, number in zip((k, T), ctx.numbers, strict=True))
        refuse_nested_forward()
        dx = torch.zeros_like(x) if dx is None else dx
        dk, dT = (x.new_zeros(()) if tangent is None else tangent for tangent in (dk, dT))
        dense = push_sorted(dx, dT, x, T, solution) if ctx.ranked else push_plain(dx, dk, dT, x, k, T, solution)
        return None, *(part.to(x.dtype) for part in _split(dense, found, 1)), None

    @staticmethod
    def backward(ctx: Any, _: None, g: Tensor, g_tail: Tensor, __: None) -> tuple[Tensor | None, ...]:
        rows, k, T, solution, found, *kept = ctx.saved_tensors
        k, T = (number if tensor is None else tensor for tensor, number in zip((k, T), ctx.numbers, strict=True))
        to_k: Any = None
        if is_plain(g, kept):
            way: Any = sorted if ctx.ranked else plain
            to_rows, *to_k, to_T = way.pull_sparse(g, g_tail, rows, T, way.restored(kept), ctx.needs_input_grad[2])
        else:
            index = found.unsqueeze(2).expand(*found.shape, g.shape[2]) if ctx.ranked else found
            whole = g_tail.unsqueeze(1).expand(len(g), rows.shape[1], *g.shape[2:]).scatter(1, index, g)
            if ctx.ranked:
                to_rows, to_T = pull_sorted(whole, rows, T, solution)
            else:
                to_rows, *to_k, to_T = pull_plain(whole, rows, k, T, solution)
        of_k = total(to_k[0], k) if to_k else None
        return to_rows.to(rows.dtype), of_k, total(to_T, T), *(None,) * 5


def candidate_width(scores: Tensor, k: int | Tensor, width: int | None) -> int:
    """How many candidates are no tail: `width`, or min(n, max(32, 4 k)).

    Raises:
        ValueError: a width outside 1..n, or none where k is a tensor.
    """
    check_scores(scores)
    n = scores.shape[-1]
    if width is None:
        if isinstance(k, Tensor):
            raise ValueError("width is None and k a tensor: give the number of candidates to keep, width=...")
        return min(n, max(32, 4 * k))
    if isinstance(width, bool) or not isinstance(width, int) or not 1 <= width <= n:
        raise ValueError(f"width must be an int in 1..{n} (the number of candidates), not {width!r}")
    return width
