"""Successive softmax: a softmax for each rank, what it took being taken away before the next."""

import torch
from torch import Tensor

from nmt.topk.rivals.arguments import prepare

# Logarithms below this are of no weight at any temperature, and stay finite when divided by one.
_LEAST = -1e40


def take(logits: Tensor, k: int, T: float | Tensor) -> Tensor:
    """w^1..w^k (..., n, k): w^i = softmax(a^i / T), a^(i+1) = a^i + log(1 - w^i), from a^1 = logits (..., n)."""
    columns = [(logits / T).softmax(-1)]
    for _ in range(k - 1):
        logits = logits + _log_rest(logits / T).clamp(min=_LEAST)
        columns.append((logits / T).softmax(-1))
    return torch.stack(columns, -1)


def _log_rest(scaled: Tensor) -> Tensor:
    """log(1 - w), w = softmax(scaled).

    Only the largest weight can exceed 1/2 and leave no digits of 1 - w: that one is the sum of the others. All sums
    would cost n^2.
    """
    weights = scaled.softmax(-1)
    largest = torch.zeros_like(scaled, dtype=torch.bool)
    largest.scatter_(-1, scaled.detach().argmax(-1, keepdim=True), True)
    others = scaled.masked_fill(largest, -torch.inf).logsumexp(-1, keepdim=True) - scaled.logsumexp(-1, keepdim=True)
    return torch.where(largest, others, torch.log1p(-weights.masked_fill(largest, 0.0)))


def successive_softmax(scores: Tensor, k: int, temperature: float | Tensor) -> Tensor:
    """A softmax k times: w^i = softmax(a^i / T), a^(i+1) = a^i + log(1 - w^i), from a^1 = x.

    Source: Ploetz and Roth, Neural Nearest Neighbors Networks, NeurIPS 2018 (arXiv
    1810.12575), with x the negative distance. The code released with it divides by T once, before the first
    softmax, and log(1 - w) not at all. That is the same at T = 1; as T -> 0 its second rank is half the first
    candidate and half the second, not the nearest neighbours that the paper has as the limit.

    Args:
        scores: (..., n), finite.
        k: number of ranks, 1..n.
        temperature: T in units of the scores: a number, 0-d or one value a row. From T = 1 on the first candidate
            may come again: the ranks are exact as T -> 0 only.

    Returns:
        (..., n, k), in the dtype of the scores.

    Raises:
        ValueError: as `prepare`.
    """
    x, T = prepare(scores, k, temperature)
    return take(x, k, T).to(scores.dtype)
