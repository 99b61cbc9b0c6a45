"""NeuralSort: the permutation matrix of a sort, relaxed to a row-stochastic one."""

import torch
from torch import Tensor

from nmt.topk.rivals.arguments import prepare


def neural_sort(scores: Tensor, k: int, temperature: float | Tensor) -> Tensor:
    """The first k ranks of NeuralSort.

    Column i is softmax_j(((n + 1 - 2 i) x_j - sum_m |x_j - x_m|) / T), i = 1..k. Source: Grover et
    al., Stochastic Optimization of Sorting Networks via Continuous Relaxations, ICLR 2019 (arXiv 1903.08850).

    Args:
        scores: (..., n), finite.
        k: number of ranks, 1..n.
        temperature: T, a number, 0-d or one value a row; the exponents grow with n.

    Returns:
        (..., n, k), in the dtype of the scores.

    Raises:
        ValueError: as `prepare`.
    """
    x, T = prepare(scores, k, temperature)
    n = x.shape[-1]
    spread = (x.unsqueeze(-1) - x.unsqueeze(-2)).abs().sum(-1)
    rank = torch.arange(1, k + 1, dtype=x.dtype, device=x.device)
    logits = (n + 1 - 2 * rank) * x.unsqueeze(-1) - spread.unsqueeze(-1)
    T = T.unsqueeze(-1) if isinstance(T, Tensor) else T
    return (logits / T).softmax(-2).to(scores.dtype)
