"""Sinkhorn ranks and sorts: the transport of all scores to n sorted targets."""

import torch
from torch import Tensor

from nmt.topk.rivals.arguments import prepare


def sinkhorn_sort(scores: Tensor, k: int, temperature: float | Tensor, *, iterations: int = 100) -> Tensor:
    """The first k ranks of the Sinkhorn sort: n times the plan from the scores to the k largest targets.

    The scores are standardised and squashed by the logistic function, the targets are evenly spaced in [0, 1],
    all weights are 1 / n and the cost is the squared distance. Source: Cuturi,
    Teboul and Vert, Differentiable Ranks and Sorting using Optimal Transport, NeurIPS 2019 (arXiv 1905.11885).
    Gradients are those of the iterations.

    Args:
        scores: (..., n), finite.
        k: number of ranks, 1..n.
        temperature: the paper's epsilon, for costs in [0, 1]: a number, 0-d or one value a row.
        iterations: Sinkhorn iterations; the columns are exact after each, the rows only in the limit.

    Returns:
        (..., n, k), in the dtype of the scores.

    Raises:
        ValueError: as `prepare`; fewer than one iteration.
    """
    return _plan(scores, k, temperature, iterations)[..., -k:].flip(-1).to(scores.dtype)


def sinkhorn_ranks(scores: Tensor, temperature: float | Tensor, *, iterations: int = 100) -> Tensor:
    """Soft ranks (..., n), 1 the smallest score and n the largest: n P b_cumulated / a of the same plan."""
    plan = _plan(scores, 1, temperature, iterations)
    rank = torch.arange(1, plan.shape[-1] + 1, dtype=plan.dtype, device=plan.device)
    return (plan @ rank).to(scores.dtype)


def _plan(scores: Tensor, k: int, temperature: float | Tensor, iterations: int) -> Tensor:
    if iterations < 1:
        raise ValueError(f"iterations must be >= 1, not {iterations}")
    x, T = prepare(scores, k, temperature)
    n = x.shape[-1]
    centred = x - x.mean(-1, keepdim=True)
    # Equal scores have no deviation; the square root must keep a finite gradient there.
    squashed = (centred / (centred.square().mean(-1, keepdim=True) + 1e-12).sqrt()).sigmoid()
    targets = torch.linspace(0, 1, n, dtype=x.dtype, device=x.device)
    T = T.unsqueeze(-1) if isinstance(T, Tensor) else T
    log_plan = -(squashed.unsqueeze(-1) - targets).square() / T
    for _ in range(iterations):
        log_plan = log_plan.log_softmax(-1).log_softmax(-2)
    return log_plan.exp()
