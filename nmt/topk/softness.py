"""How soft a selection is, and what it took to find it."""

from typing import NamedTuple

import torch
from torch import Tensor

from nmt.topk import plain, sorted
from nmt.topk.arguments import as_rows
from nmt.topk.sparse import candidate_width


class Report(NamedTuple):
    """Of each row; no gradient.

    Attributes:
        softness: (...) sum of A (1 - A) over all weights, float64: 0 where the selection is hard, about k where
            it is uniform over many candidates.
        tail_mass: (...) the part of the weights outside the `width` best candidates, float64.
        iterations: Newton iterations in float64, added up over the calls of the solver; each call counts the row that
            took most. More than one call means that a screen was too narrow for some row.
    """

    softness: Tensor
    tail_mass: Tensor
    iterations: int


def report(
    scores: Tensor,
    k: int | Tensor,
    temperature: float | Tensor,
    *,
    ranked: bool = False,
    largest: bool = True,
    width: int | None = None,
) -> Report:
    """Solves once more and reports; the operators themselves keep no record.

    Args:
        scores, k, temperature, largest: as `soft_topk`, or with `ranked` as `sorted_soft_topk`.
        ranked: report the sorted operator.
        width: number of candidates that are no tail, by default min(n, max(32, 4 k)).

    Raises:
        ValueError: as the operators and `sparse_soft_topk`.
    """
    count = candidate_width(scores, k, width)
    rows, k, temperature = as_rows(scores.detach(), k, temperature, largest, ranked)
    rows = rows.double()
    iterations: list[int] = []
    with torch.no_grad():
        if ranked:
            assert isinstance(k, int)
            ranks = sorted.solve_rows(rows, k, temperature, scores.shape[:-1], largest, iterations=iterations)
            weights = sorted.dense(ranks, rows, k)
        else:
            solved = plain.solve_rows(rows, k, temperature, scores.shape[:-1], largest, iterations=iterations)
            weights = plain.dense(solved, rows).unsqueeze(-1)
    softness = (weights * (1 - weights)).sum((1, 2))
    best = rows.topk(count, dim=-1).indices
    tail = weights.sum(2).scatter(1, best, 0.0).sum(1)
    shape = scores.shape[:-1]
    return Report(softness.view(shape), tail.view(shape), sum(iterations))
