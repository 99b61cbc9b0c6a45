"""What every rival demands of its arguments."""

import torch
from torch import Tensor

from nmt.topk.arguments import check_k, check_scores, check_temperature, refuse_temperature, refuse_values


def prepare(scores: Tensor, k: int, temperature: float | Tensor) -> tuple[Tensor, float | Tensor]:
    """The scores in float64, and a temperature that divides them: a number, or (..., 1) or () float64.

    Raises:
        ValueError: k or a temperature out of range, shapes that do not fit, or scores that are not finite: most
            rivals have no way to mask a candidate.
    """
    check_scores(scores)
    check_k(k, scores.shape[-1])
    temperature = check_temperature(temperature, scores)
    refuse_temperature(temperature)
    refuse_values(scores.detach().amax(-1).reshape(-1), scores.shape[:-1], True)
    if not bool((scores > -torch.inf).all()):
        raise ValueError("scores hold -inf, which only soft_topk and sorted_soft_topk take as a mask: leave it out")
    return scores.double(), temperature.unsqueeze(-1) if isinstance(temperature, Tensor) else temperature
