"""The operators by Sinkhorn iterations, as their paper has them: slow, plain to read, and the reference of
the tests.

Source: Algorithm 1 of Xie et al., Differentiable Top-k with Optimal Transport, NeurIPS 2020 (arXiv
2002.06504), a row at a time and in the log domain, with the raw cost (x - y)^2 and eps = 2 T. The squares x^2
and y^2 belong to one candidate or one anchor, where the scaling removes whatever is there; only x y / T is
left of the kernel. The released code divides the cost by its maximum over the batch instead, which is T = eps
max C / 2 here. Gradients are those of the iterations.
"""

import torch
from torch import Tensor

from nmt.topk.arguments import check_k, check_scores, check_temperature, refuse_temperature, refuse_values

# The logarithm of no mass: -inf would give gradients of NaN.
_NOTHING = -1e300


def sinkhorn_topk(
    scores: Tensor,
    k: int,
    temperature: float | Tensor,
    *,
    largest: bool = True,
    iterations: int = 200,
    tolerance: float = 0.0,
) -> Tensor:
    """`soft_topk` by at most `iterations` Sinkhorn iterations.

    Args:
        scores: (..., n); -inf (with `largest=False`: +inf) masks a candidate.
        k: number of selected candidates, 1..n.
        temperature: T in the units of the scores; a number, a 0-d tensor or one value a row.
        largest: False selects the smallest.
        iterations: at most so many.
        tolerance: a row stops when no anchor's mass, in candidates, is further from its target.

    Returns:
        (..., n), in the dtype of the scores.

    Raises:
        ValueError: as `soft_topk`, and for fewer than one iteration or a negative tolerance.
    """
    return _run(scores, k, temperature, largest, iterations, tolerance, anchors=1).squeeze(-1)


def sorted_sinkhorn_topk(
    scores: Tensor,
    k: int,
    temperature: float | Tensor,
    *,
    largest: bool = True,
    iterations: int = 200,
    tolerance: float = 0.0,
) -> Tensor:
    """`sorted_soft_topk` by at most `iterations` Sinkhorn iterations; arguments and errors as
    `sinkhorn_topk`.

    Returns:
        (..., n, k), in the dtype of the scores.
    """
    return _run(scores, k, temperature, largest, iterations, tolerance, anchors=k)


def _run(
    scores: Tensor,
    k: int,
    temperature: float | Tensor,
    largest: bool,
    iterations: int,
    tolerance: float,
    anchors: int,
) -> Tensor:
    check_scores(scores)
    check_k(k, scores.shape[-1])
    temperature = check_temperature(temperature, scores)
    refuse_temperature(temperature)
    if iterations < 1 or not tolerance >= 0:
        raise ValueError(f"iterations must be >= 1 and tolerance >= 0, not {iterations} and {tolerance}")
    x = scores if largest else -scores
    refuse_values(x.detach().amax(-1).reshape(-1), scores.shape[:-1], largest)
    x = x.double()
    masked = x == -torch.inf
    count = (~masked).sum(-1, keepdim=True)
    # Any shift of a row is the anchors' own; the k-th best score keeps x y small where it matters.
    x = torch.where(masked, 0.0, x)
    pivot = x.detach().masked_fill(masked, -torch.inf).topk(k, dim=-1).values[..., -1:]
    x = torch.where(masked, 0.0, x - torch.where(pivot.isfinite(), pivot, 0.0))
    if isinstance(temperature, Tensor):
        temperature = temperature[..., None, None]
    y = torch.arange(anchors, -1, -1, dtype=x.dtype, device=x.device)
    logits = x.unsqueeze(-1) * y / temperature
    # Anchor 0 comes last: (..., k selected or 1 a slot, the rest). Empty slots have the target 0.
    selected = count.clamp(max=k).double()
    rank = torch.arange(1, anchors + 1, dtype=x.dtype, device=x.device)
    slots = selected if anchors == 1 else (rank <= selected).double()
    target = torch.cat((slots, count - selected), -1)
    log_target = target.log()
    log_scale = torch.zeros_like(target).masked_fill_(target == 0, _NOTHING)
    active = torch.ones_like(count, dtype=torch.bool)
    for _ in range(iterations):
        log_plan = _rows(logits + log_scale.unsqueeze(-2), masked)
        mass = log_plan.logsumexp(-2)
        active = active & ((mass.detach().exp() - target).abs().amax(-1, keepdim=True) > tolerance)
        if not bool(active.any()):
            break
        log_scale = torch.where(active & (target > 0), log_scale + log_target - mass, log_scale)
    return _rows(logits + log_scale.unsqueeze(-2), masked)[..., :-1].exp().to(scores.dtype)


def _rows(logits: Tensor, masked: Tensor) -> Tensor:
    return logits.log_softmax(-1).masked_fill(masked.unsqueeze(-1), _NOTHING)
