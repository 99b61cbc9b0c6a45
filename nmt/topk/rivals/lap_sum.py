"""LapSum: the plain operator with the distribution function of Laplace in the place of the sigmoid."""

import torch
from torch import Tensor

from nmt.topk.rivals.arguments import prepare


def lap_sum(scores: Tensor, k: int, temperature: float | Tensor) -> Tensor:
    """A_i = Lap((x_i - b) / T) with sum A = k; Lap(s) = exp(s) / 2 for s <= 0, else 1 - exp(-s) / 2.

    b has a closed form: between the scores of ranks j and j + 1, with P = sum_{i <= j} exp((x_(j) - x_(i)) / T),
    S = sum_{i > j} exp((x_(i) - x_(j)) / T) and E = exp((b - x_(j)) / T), the sum is j - P E / 2 + S / (2 E), a
    quadratic in E. Source: Struski et al., LapSum: One Method to Differentiate Them All, ICML 2025 (arXiv
    2503.06242), where T is -alpha: a negative alpha selects the largest. Gradients are those of the closed form.

    Args:
        scores: (..., n), finite.
        k: number of selected candidates, 1..n.
        temperature: T in units of the scores: a number, 0-d or one value a row.

    Returns:
        (..., n), in the dtype of the scores.

    Raises:
        ValueError: as `prepare`.
    """
    x, T = prepare(scores, k, temperature)
    n = x.shape[-1]
    if k == n:
        return torch.ones_like(scores) + 0 * scores
    z = (x - x.detach().amax(-1, keepdim=True)) / T
    best = z.sort(dim=-1, descending=True).values
    log_P = best + (-best).logcumsumexp(-1)
    # S without the rank itself.
    from_here = best.flip(-1).logcumsumexp(-1).flip(-1)
    log_S = torch.cat((from_here[..., 1:], torch.full_like(best[..., :1], -torch.inf)), -1) - best
    rank = torch.arange(1, n + 1, dtype=x.dtype, device=x.device)
    # The sum at b = x_(j): rank j itself counts one half.
    at_rank = rank - log_P.exp() / 2 + log_S.exp() / 2
    j = (at_rank <= k).sum(-1, keepdim=True)
    above = (j - 1).clamp(min=0)
    here, excess = best.gather(-1, above), (j - k).to(x.dtype)
    p, s = log_P.gather(-1, above), log_S.gather(-1, above)
    # With as many above as wanted the quadratic has no middle term, and P S may be too small to show.
    even = excess == 0
    root = torch.where(even, 1.0, excess.square() + (p + s).exp()).sqrt()
    # Two forms of the same root: neither subtracts.
    log_E = torch.where(excess > 0, (excess.clamp(min=0) + root).log() - p, s - (root - excess.clamp(max=0)).log())
    log_E = torch.where(even, (s - p) / 2, log_E)
    # Above the best score all terms are of one branch.
    first = from_here[..., :1] - torch.tensor(2.0 * k, dtype=x.dtype, device=x.device).log()
    b = torch.where(j == 0, first, here + log_E)
    gap = z - b
    half = (-gap.abs()).exp() / 2
    return torch.where(gap <= 0, half, 1 - half).to(scores.dtype)
