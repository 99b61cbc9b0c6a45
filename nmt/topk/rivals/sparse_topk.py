"""The sparse top-k of a p-norm regulariser: a power of what exceeds a threshold."""

import torch
from torch import Tensor

from nmt.topk.rivals.arguments import prepare

_BISECTIONS = 100


def sparse_topk(scores: Tensor, k: int, temperature: float | Tensor, *, p: float = 4 / 3) -> Tensor:
    """argmax of <x, y> - T / p sum y^p over the permutahedron of k ones, which is {0 <= y <= 1, sum y = k}.

    The conditions of optimality give y_i = min(1, max(0, (x_i - tau) / T)^(1 / (p - 1))) with the one tau for which
    sum y = k. p = 2 is the projection (the gradient jumps); p = 4 / 3 has a continuous gradient. Source: Sander
    et al., Fast, Differentiable and Sparse Top-k: a Convex Analysis Perspective, ICML 2023 (arXiv 2302.01425),
    which solves it, for any weights, as isotonic regression; for k ones tau by bisection is the same. The paper has
    any p > 1; past 2 the derivative is infinite where a weight leaves 0.

    Args:
        scores: (..., n), finite.
        k: number of selected candidates, 1..n.
        temperature: T in units of the scores: a number, 0-d or one value a row.
        p: in (1, 2].

    Returns:
        (..., n), in the dtype of the scores.

    Raises:
        ValueError: as `prepare`; a p out of range.
    """
    if not 1 < p <= 2:
        raise ValueError(f"p must lie in (1, 2], not {p}: 4/3 is smooth, 2 the projection")
    x, T = prepare(scores, k, temperature)
    power = 1 / (p - 1)
    best = x.detach().topk(min(k + 1, x.shape[-1]), dim=-1).values
    # In units of T from the k-th best: at -1 it weighs 1, and all k do; at 0 at most k - 1 weigh anything.
    pivot = best[..., k - 1 : k]
    z = (x - pivot) / T
    low, high = torch.full_like(pivot, -1.0), z.detach().amax(-1, keepdim=True)
    for _ in range(_BISECTIONS):
        middle = low / 2 + high / 2
        enough = (z.detach() - middle).clamp(0, 1).pow(power).sum(-1, keepdim=True) >= k
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
    excess = (z.detach() - low).clamp(0, 1)
    # Weights of 0 and 1 do not move, on the very edge neither.
    slope = power * excess.pow(power - 1) * ((excess > 0) & (excess < 1))
    share = slope / slope.sum(-1, keepdim=True).clamp(min=1e-300)
    # The values found, with their derivative by the implicit function theorem: the change is 0 in value.
    change = z - z.detach()
    change = change - (share * change).sum(-1, keepdim=True)
    return (excess.pow(power) + slope * change).to(scores.dtype)
