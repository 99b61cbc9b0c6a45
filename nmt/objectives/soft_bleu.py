"""Sentence BLEU of hypotheses whose tokens are known only by probability, differentiable.

From match probabilities M_ij = P(i-th token of the hypothesis = j-th token of the reference), n-gram matches
are products along diagonals, clipped by the reference's counts; the smoothing is add-one for n > 1 (Lin and
Och, 2004; sacreBLEU's `add-k` with k = 1). On one-hot M the value is sacreBLEU's sentence BLEU / 100.
"""

from typing import NamedTuple

import torch
from torch import Tensor

ORDER = 4


class ReferenceCounts(NamedTuple):
    """What BLEU needs of the references, for n = 1..4.

    Attributes:
        lengths: (batch,), EOS not counted.
        counts: n tensors (batch, longest - n + 1): how often the n-gram that begins at j occurs in its
            reference, 0 where none begins.
    """

    lengths: Tensor
    counts: list[Tensor]


def count_reference(target: Tensor, lengths: Tensor) -> ReferenceCounts:
    """Counts the n-grams of references.

    Args:
        target: (batch, longest) ids.
        lengths: (batch,) tokens that count (without EOS and padding).
    """
    longest = target.shape[1]
    same = target.unsqueeze(2) == target.unsqueeze(1)
    positions = torch.arange(longest, device=target.device)
    inside = positions.unsqueeze(0) < lengths.unsqueeze(1)
    same &= inside.unsqueeze(2) & inside.unsqueeze(1)
    counts, words = [], same
    for n in range(1, min(ORDER, longest) + 1):
        if n > 1:
            same = same[:, :-1, :-1] & diagonal_tail(words, n)
        counts.append(same.sum(dim=2).float())
    return ReferenceCounts(lengths, counts)


def diagonal_tail(first: Tensor, n: int) -> Tensor:
    """Entries (i + n - 1, j + n - 1) of a matrix (..., I, J): the last token of n-grams at (i, j)."""
    return first[..., n - 1 :, n - 1 :]


def soft_bleu(match: Tensor, length: Tensor, reference: ReferenceCounts) -> Tensor:
    """Smoothed sentence BLEU in [0, 1], one value a hypothesis.

    Args:
        match: (batch, slots, hypothesis length, reference length), M; 0 beyond the ends of both.
        length: (batch, slots), the (expected) number of tokens of the hypothesis, EOS not counted.
        reference: counts of the references.

    Returns:
        (batch, slots). A hypothesis without a single match has 0.
    """
    log_precision = torch.zeros_like(length)
    product = match
    matched = torch.zeros_like(length)
    for n in range(1, ORDER + 1):
        if n <= len(reference.counts) and n <= match.shape[2]:
            if n > 1:
                product = product[..., :-1, :-1] * diagonal_tail(match, n)
            occurrences = product.sum(dim=2)
            most = reference.counts[n - 1].to(match.dtype).unsqueeze(1)
            # Each of the `most` places of an n-gram in the reference sees the same clipped count.
            matches = (torch.minimum(occurrences, most) / most.clamp_min(1)).sum(dim=2)
        else:
            matches = torch.zeros_like(length)
        total = (length - (n - 1)).clamp_min(0)
        if n == 1:
            matched = matches
            precision = matches / total.clamp_min(torch.finfo(length.dtype).tiny)
        else:
            precision = (matches + 1) / (total + 1)
        log_precision = log_precision + precision.clamp_min(1e-12).log()
    target_length = reference.lengths.to(length.dtype).unsqueeze(1)
    brevity = (1 - target_length / length.clamp_min(1e-6)).clamp(min=-30, max=0)
    score = (log_precision / ORDER + brevity).exp()
    return torch.where((matched > 0) & (length > 0), score, torch.zeros_like(score))
