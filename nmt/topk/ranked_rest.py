"""The candidates outside the screen of the sorted operator, in the rows where they reach more than the last slot.

With p_l the weight of anchor l = 1..k, and 1 - sum p that of anchor 0, all that the solver and the derivatives need are
sums of p and of products of two of them; so c_j = sum_{l >= j} p_l is never written out. No such candidate holds more
than a small part of a slot, and so 1 - c_j loses no digits.

Shapes: powers, p (rows, k, m), in the dtype of the exponentials; what is summed over the candidates is float64.
"""

import torch
from torch import Tensor

# exp(60): no weight comes near it, but a step of the solver might.
_FAR = 60.0


def powers_of(e: Tensor, k: int) -> Tensor:
    """e, e^2, ..., e^k of exponentials e (rows, m): (rows, k, m)."""
    powers = e.new_empty(len(e), k, e.shape[1])
    powers[:, 0] = e
    for level in range(1, k):
        torch.mul(powers[:, level - 1], e, out=powers[:, level])
    return powers


def weights_of(powers: Tensor, steps: Tensor) -> Tensor:
    """p (rows, k, m) from the powers and steps (rows, k), (reference - tau_j) / T for j = 1..k."""
    p = powers * steps.cumsum(1).clamp(max=_FAR).exp().to(powers.dtype).unsqueeze(2)
    return p.mul_((1 + p.sum(1, keepdim=True)).reciprocal_())


def masses(p: Tensor) -> tuple[Tensor, Tensor]:
    """The sums of c_j (rows, k), and of M_jm = c_max(j,m) - c_j c_m (rows, k, k)."""
    mass = _upwards(p.sum(-1).double(), 1)
    squares = _upwards(_upwards((p @ p.mT).double(), 1), 2)
    level = torch.arange(mass.shape[1], device=p.device)
    return mass, mass[:, torch.maximum(level, level.unsqueeze(1))] - squares


def pull_sums(p: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """b_j (rows, k), the sums of sum_{l >= j} g_l p_l - c_j sum_l g_l p_l, and gp = g p (rows, k, m).

    Args:
        p: weights.
        g: (rows, k, m), or (rows, k, 1), dL/dp.
    """
    gp = g * p
    through = (p @ gp.sum(1).unsqueeze(2)).squeeze(2)
    return _upwards(gp.sum(-1).double() - through.double(), 1), gp


def pull(p: Tensor, gp: Tensor, y: Tensor, of_temperature: bool) -> tuple[Tensor, Tensor]:
    """T dL/dx of each candidate, the covariance under p of the level l and h_l = g_l - sum_{j <= l} y_j, as a threshold
    moves all anchors from its own on; and T dL/dT (rows,) of them, minus that of log(p_l / p_0) and h, 0 if not wanted.

    Args:
        p, gp: as above; gp is overwritten.
        y: (rows, k) of `thresholds.balance`.
    """
    hp = gp.sub_(p * y.cumsum(1).to(p.dtype).unsqueeze(2))
    total = hp.sum(1)
    level = torch.arange(1, p.shape[1] + 1, dtype=p.dtype, device=p.device)
    to_scores = (level @ hp).sub_(total * (level @ p))
    if not of_temperature:
        return to_scores, y.new_zeros(len(y))
    rest = 1 - p.sum(1, keepdim=True)
    log = torch.where(p > 0, p / rest, 1.0).log_()
    covariance = (hp * log).sum(1) - total * (p * log).sum(1)
    return to_scores, -covariance.sum(-1).double()


def _upwards(x: Tensor, dim: int) -> Tensor:
    """Sums over l >= j."""
    return x.flip(dim).cumsum(dim).flip(dim)
