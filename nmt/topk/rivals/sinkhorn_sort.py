"""Sinkhorn ranks and sorts: the transport of all scores to sorted targets."""

import torch
from torch import Tensor

from nmt.topk.rivals.arguments import prepare


def sinkhorn_sort(
    scores: Tensor, k: int, temperature: float | Tensor, *, iterations: int = 100, merged: bool = False
) -> Tensor:
    """The first k ranks of the Sinkhorn sort: n times the plan from the scores to the k largest targets.

    The scores are standardised and squashed by the logistic function, the targets are evenly spaced in [0, 1],
    all weights are 1 / n and the cost is the squared distance. Source: Cuturi,
    Teboul and Vert, Differentiable Ranks and Sorting using Optimal Transport, NeurIPS 2019 (arXiv 1905.11885).
    Gradients are those of the iterations.

    Three choices differ from the code released with the paper. It scales by pi / sqrt(3) before the logistic
    function; here, as in OTT-JAX, the deviation is 1. It ends on the rows; here the columns come last, so that
    each rank sums to 1. And it lowers epsilon from 0.1 as it goes, which changes the way there, not the plan.

    Args:
        scores: (..., n), finite.
        k: number of ranks, 1..n.
        temperature: the paper's epsilon, for costs in [0, 1]: a number, 0-d or one value a row.
        iterations: Sinkhorn iterations; the columns are exact after each, the rows only in the limit.
        merged: one target of weight (n - k) / n in the place of the n - k smallest, as the top-k of both codes has
            it: O(n k) an iteration instead of O(n^2), and another plan.

    Returns:
        (..., n, k), in the dtype of the scores.

    Raises:
        ValueError: as `prepare`; fewer than one iteration.
    """
    x, T = prepare(scores, k, temperature)
    rest = x.shape[-1] - k
    weights = ([rest] if merged and rest else [1] * rest) + [1] * k
    return _log_plan(x, T, iterations, weights)[..., -k:].flip(-1).exp().to(scores.dtype)


def sinkhorn_ranks(scores: Tensor, temperature: float | Tensor, *, iterations: int = 100) -> Tensor:
    """Soft ranks, 1 for the smallest score and n for the largest: n P b_cumulated / a of the plan of the full sort.

    Without a k; `sinkhorn_rank_topk` is the top-k made of ranks. Source and squashing as `sinkhorn_sort`.

    Args:
        scores: (..., n), finite.
        temperature: the paper's epsilon, for costs in [0, 1]: a number, 0-d or one value a row.
        iterations: Sinkhorn iterations. The rows come last, so that every rank lies in [1, n].

    Returns:
        (..., n), in the dtype of the scores.

    Raises:
        ValueError: as `prepare`; fewer than one iteration.
    """
    x, T = prepare(scores, 1, temperature)
    n = x.shape[-1]
    rank = torch.arange(1, n + 1, dtype=x.dtype, device=x.device)
    return (_log_plan(x, T, iterations, [1] * n).softmax(-1) @ rank).to(scores.dtype)


def sinkhorn_rank_topk(scores: Tensor, k: int, temperature: float | Tensor, *, iterations: int = 100) -> Tensor:
    """The top-k made of Sinkhorn ranks: with only two targets, the rank from 0 to 1.

    The targets 0 and 1 have the weights (n - k) / n and k / n. Source: the top-k mask of OTT-JAX, after Cuturi et
    al. as in `sinkhorn_sort`. `OPERATORS` leaves it out: in the limit of many iterations it is `soft_topk` of the
    squashed scores at T = epsilon / 2.

    Args:
        scores: (..., n), finite.
        k: number of selected candidates, 1..n.
        temperature: the paper's epsilon, for costs in [0, 1]: a number, 0-d or one value a row.
        iterations: Sinkhorn iterations. The rows come last: no weight exceeds 1, and the sum is k in the limit.

    Returns:
        (..., n), in the dtype of the scores.

    Raises:
        ValueError: as `prepare`; fewer than one iteration.
    """
    x, T = prepare(scores, k, temperature)
    rest = x.shape[-1] - k
    weights = [rest, k] if rest else [k]
    return _log_plan(x, T, iterations, weights).softmax(-1)[..., -1].to(scores.dtype)


def _log_plan(x: Tensor, T: float | Tensor, iterations: int, weights: list[int]) -> Tensor:
    """The logarithm of the plan in units of candidates, to ascending targets with the sums `weights`."""
    if iterations < 1:
        raise ValueError(f"iterations must be >= 1, not {iterations}")
    centred = x - x.mean(-1, keepdim=True)
    # Equal scores have no deviation; the square root must keep a finite gradient there.
    squashed = (centred / (centred.square().mean(-1, keepdim=True) + 1e-12).sqrt()).sigmoid()
    targets = torch.linspace(0, 1, len(weights), dtype=x.dtype, device=x.device)
    log_weights = torch.tensor(weights, dtype=x.dtype, device=x.device).log()
    T = T.unsqueeze(-1) if isinstance(T, Tensor) else T
    log_plan = -(squashed.unsqueeze(-1) - targets).square() / T
    for _ in range(iterations):
        log_plan = log_plan.log_softmax(-1).log_softmax(-2) + log_weights
    return log_plan
