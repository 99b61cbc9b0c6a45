"""The weights of the best candidates alone, with the mass that all others hold."""

from typing import NamedTuple

import torch
from torch import Tensor

from nmt.topk.arguments import check_scores
from nmt.topk.plain import soft_topk
from nmt.topk.sorted import sorted_soft_topk


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
        width: C, 1..n; by default min(n, max(32, 8 k)).

    Raises:
        ValueError: as `soft_topk`; a width out of range, or none where k is a tensor.
    """
    width = candidate_width(scores, k, width)
    weights = soft_topk(scores, k, temperature, largest=largest)
    indices = _best(scores, width, largest)
    tail = _wide(weights).scatter(-1, indices, 0.0).sum(-1).to(weights.dtype)
    return SparseTopk(indices, weights.gather(-1, indices), tail)


def sparse_sorted_soft_topk(
    scores: Tensor, k: int, temperature: float | Tensor, *, largest: bool = True, width: int | None = None
) -> SparseTopk:
    """`sorted_soft_topk` as the weights (..., C, k) of the C best candidates and the mass (..., k) of the others.

    Args:
        scores, k, temperature, largest: as `sorted_soft_topk`.
        width: C, 1..n; by default min(n, max(32, 8 k)).

    Raises:
        ValueError: as `sorted_soft_topk`; a width out of range.
    """
    width = candidate_width(scores, k, width)
    weights = sorted_soft_topk(scores, k, temperature, largest=largest)
    indices = _best(scores, width, largest)
    index = indices.unsqueeze(-1).expand(*indices.shape, k)
    tail = _wide(weights).scatter(-2, index, 0.0).sum(-2).to(weights.dtype)
    return SparseTopk(indices, weights.gather(-2, index), tail)


def _best(scores: Tensor, width: int, largest: bool) -> Tensor:
    return scores.detach().topk(width, dim=-1, largest=largest).indices


def _wide(weights: Tensor) -> Tensor:
    # A sum of many small weights in half precision would be rounded away.
    return weights if weights.dtype in (torch.float64, torch.float32) else weights.float()


def candidate_width(scores: Tensor, k: int | Tensor, width: int | None) -> int:
    """How many candidates are no tail: `width`, or min(n, max(32, 8 k)).

    Raises:
        ValueError: a width outside 1..n, or none where k is a tensor.
    """
    check_scores(scores)
    n = scores.shape[-1]
    if width is None:
        if isinstance(k, Tensor):
            raise ValueError("width is None and k a tensor: give the number of candidates to keep, width=...")
        return min(n, max(32, 8 * k))
    if isinstance(width, bool) or not isinstance(width, int) or not 1 <= width <= n:
        raise ValueError(f"width must be an int in 1..{n} (the number of candidates), not {width!r}")
    return width
