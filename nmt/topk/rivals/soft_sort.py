"""SoftSort: a softmax of the distances to the sorted scores."""

from torch import Tensor

from nmt.topk.rivals.arguments import prepare


def soft_sort(scores: Tensor, k: int, temperature: float | Tensor) -> Tensor:
    """The first k ranks of SoftSort.

    Column i is softmax_j(-|x_(i) - x_j| / T). Source: Prillo and Eisenschlos, SoftSort: A
    Continuous Relaxation for the argsort Operator, ICML 2020 (arXiv 2006.16038), with d = | |, the default of its
    code; d = | |^2, the other one there, is `soft_k_argmax`.

    Args:
        scores: (..., n), finite.
        k: number of ranks, 1..n.
        temperature: T in units of the scores: a number, 0-d or one value a row.

    Returns:
        (..., n, k), in the dtype of the scores.

    Raises:
        ValueError: as `prepare`.
    """
    x, T = prepare(scores, k, temperature)
    best = x.topk(k, dim=-1).values
    T = T.unsqueeze(-1) if isinstance(T, Tensor) else T
    return (-(x.unsqueeze(-1) - best.unsqueeze(-2)).abs() / T).softmax(-2).to(scores.dtype)
