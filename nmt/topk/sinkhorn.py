"""The operators by Sinkhorn iterations, as their paper has them: slow, plain to read, and the reference of
the tests.

Source: Algorithm 1 of Xie et al., Differentiable Top-k with Optimal Transport, NeurIPS 2020 (arXiv
2002.06504), a row at a time and in the log domain, with the raw cost (x - y)^2 and eps = 2 T. The squares x^2
and y^2 belong to one candidate or one anchor, where the scaling removes whatever is there; only x y / T is
left of the kernel. The released code divides the cost by its maximum over the batch instead, which is T = eps
max C / 2 here. Gradients are those of the iterations, or by Algorithm 2.
"""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

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
    backward: Literal["iterations", "kkt"] = "iterations",
) -> Tensor:
    """`soft_topk` by at most `iterations` Sinkhorn iterations.

    Args:
        scores: (..., n); -inf (with `largest=False`: +inf) masks a candidate.
        k: number of selected candidates, 1..n.
        temperature: T in the units of the scores; a number, a 0-d tensor or one value a row.
        largest: False selects the smallest.
        iterations: at most so many.
        tolerance: a row stops when no anchor's mass, in candidates, is further from its target.
        backward: "iterations" differentiates the iterations, "kkt" the conditions of optimality (Algorithm 2),
            which is right where they hold: after enough iterations.

    Returns:
        (..., n), in the dtype of the scores.

    Raises:
        ValueError: as `soft_topk`, and for fewer than one iteration, a negative tolerance or another backward.
    """
    return _run(scores, k, temperature, largest, iterations, tolerance, backward, anchors=1).squeeze(-1)


def sorted_sinkhorn_topk(
    scores: Tensor,
    k: int,
    temperature: float | Tensor,
    *,
    largest: bool = True,
    iterations: int = 200,
    tolerance: float = 0.0,
    backward: Literal["iterations", "kkt"] = "iterations",
) -> Tensor:
    """`sorted_soft_topk` by at most `iterations` Sinkhorn iterations; arguments and errors as
    `sinkhorn_topk`.

    Returns:
        (..., n, k), in the dtype of the scores.
    """
    return _run(scores, k, temperature, largest, iterations, tolerance, backward, anchors=k)


def _run(
    scores: Tensor,
    k: int,
    temperature: float | Tensor,
    largest: bool,
    iterations: int,
    tolerance: float,
    backward: str,
    anchors: int,
) -> Tensor:
    check_scores(scores)
    check_k(k, scores.shape[-1])
    temperature = check_temperature(temperature, scores)
    refuse_temperature(temperature)
    if iterations < 1 or not tolerance >= 0:
        raise ValueError(f"iterations must be >= 1 and tolerance >= 0, not {iterations} and {tolerance}")
    if backward not in ("iterations", "kkt"):
        raise ValueError(f"backward must be 'iterations' or 'kkt', not {backward!r}")
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
    arguments = (target, masked, iterations, tolerance)
    plan: Tensor = _Transport.apply(logits, *arguments) if backward == "kkt" else _iterate(logits, *arguments)
    return plan[..., :-1].to(scores.dtype)


def _iterate(logits: Tensor, target: Tensor, masked: Tensor, iterations: int, tolerance: float) -> Tensor:
    """Algorithm 1: the plan (..., n, anchors + 1) of logits -C / eps, with rows of 1 and columns of `target`."""
    log_target = target.log()
    log_scale = torch.zeros_like(target).masked_fill_(target == 0, _NOTHING)
    active = torch.ones_like(target[..., :1], dtype=torch.bool)
    for _ in range(iterations):
        log_plan = _rows(logits + log_scale.unsqueeze(-2), masked)
        mass = log_plan.logsumexp(-2)
        active = active & ((mass.detach().exp() - target).abs().amax(-1, keepdim=True) > tolerance)
        if not bool(active.any()):
            break
        log_scale = torch.where(active & (target > 0), log_scale + log_target - mass, log_scale)
    return _rows(logits + log_scale.unsqueeze(-2), masked).exp()


class _Transport(torch.autograd.Function):
    """Algorithm 1 forward, Algorithm 2 backward: the conditions of optimality (KKT), differentiated.

    With h = Gamma * dL/dGamma, the multipliers p of the rows and q of the columns solve

        [diag(mu), Gamma; Gamma^T, diag(nu)] [p; q] = [h 1; h^T 1],   dL/dlogits = h - Gamma * (p 1^T + 1 q^T),

    with one column taken out, as its constraint follows from the others, and q = K^-1 (...) by the Schur
    complement K = diag(nu) - Gamma^T diag(mu)^-1 Gamma. The paper drops the last column; the first slot is
    never empty, and the last column is where all candidates are selected. It also writes K^-1 out: that costs
    more than the solve.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, masked: Tensor, iterations: int, tolerance: float) -> Tensor:
        plan = _iterate(logits, target, masked, iterations, tolerance)
        ctx.save_for_backward(plan, target)
        return plan

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        plan, target = ctx.saved_tensors
        h = plan * grad
        # mu = 1: the plan is in units of candidates.
        of_rows, kept, nu = h.sum(-1, keepdim=True), plan[..., 1:], target[..., 1:]
        K = (nu + (nu == 0)).diag_embed() - kept.mT @ kept
        b = h[..., 1:].sum(-2).unsqueeze(-1) - kept.mT @ of_rows
        q = torch.linalg.solve_ex(K, b).result
        p = of_rows - kept @ q
        return h - plan * (p + pad(q, (0, 0, 1, 0)).mT), None, None, None, None


def _rows(logits: Tensor, masked: Tensor) -> Tensor:
    return logits.log_softmax(-1).masked_fill(masked.unsqueeze(-1), _NOTHING)
