"""Successive softmax: a softmax for each rank, what it took being taken away before the next."""

import torch
from torch import Tensor

from nmt.topk.rivals.arguments import prepare

# log(1 - w) of a weight of one: lower than any score that matters, with a finite gradient.
_LEAST = 1e-300


def take(logits: Tensor, k: int, T: float | Tensor) -> Tensor:
    """w^1..w^k (..., n, k): w^i = softmax(a^i / T), a^(i+1) = a^i + log(1 - w^i), from a^1 = logits (..., n)."""
    columns = []
    for _ in range(k):
        scaled = logits / T
        weights = scaled.softmax(-1)
        columns.append(weights)
        # 1 - w as the sum of the other weights would cost n^2; expm1 keeps the digits of w next to 1.
        rest = -torch.expm1(scaled.log_softmax(-1))
        logits = logits + rest.clamp(min=_LEAST).log()
    return torch.stack(columns, -1)


def successive_softmax(scores: Tensor, k: int, temperature: float | Tensor) -> Tensor:
    """A softmax k times.

    Source: Ploetz and Roth, Neural Nearest Neighbors Networks, NeurIPS 2018 (arXiv
    1810.12575).

    Args:
        scores: (..., n), finite.
        k: number of ranks, 1..n.
        temperature: T in units of the scores: a number, 0-d or one value a row.

    Returns:
        (..., n, k), in the dtype of the scores.

    Raises:
        ValueError: as `prepare`.
    """
    x, T = prepare(scores, k, temperature)
    return take(x, k, T).to(scores.dtype)
