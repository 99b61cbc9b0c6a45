"""The hard selection as one-hot indicators: the limit T -> 0 of the soft operators."""

import torch
from torch import Tensor

from nmt.topk.arguments import check_k, check_scores, refuse_values


def hard_topk(scores: Tensor, k: int, *, largest: bool = True) -> Tensor:
    """One-hot indicators of the best, the second best, ..., the k-th best candidate; no gradient.

    Args:
        scores: (..., n); -inf (with `largest=False`: +inf) masks a candidate.
        k: number of slots, 1..n.
        largest: False selects the smallest.

    Returns:
        (..., n, k), in the dtype of the scores. Of tied candidates the first comes first. With fewer than k
        unmasked candidates the last columns are 0.

    Raises:
        ValueError: NaN or +inf among the scores, or k out of range.
    """
    check_scores(scores)
    check_k(k, scores.shape[-1])
    signed = scores.detach() if largest else -scores.detach()
    values, order = signed.sort(dim=-1, descending=True, stable=True)
    refuse_values(values[..., 0].reshape(-1), scores.shape[:-1], largest)
    filled = (values[..., None, :k] > -torch.inf).to(scores.dtype)
    return scores.new_zeros(*scores.shape, k).scatter_(-2, order[..., None, :k], filled)
