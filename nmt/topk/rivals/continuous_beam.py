"""The soft k-argmax of the continuous beam search."""

from torch import Tensor

from nmt.topk.rivals.arguments import prepare


def soft_k_argmax(scores: Tensor, k: int, temperature: float | Tensor) -> Tensor:
    """A softmax of the squared distances to each of the k best scores.

    Column i is softmax_j(-(x_j - x_(i))^2 / T). Source: the continuous top-k-argmax of Goyal et al., A
    Continuous Relaxation of Beam Search for End-to-end Training of Neural Sequence Models, AAAI 2018 (arXiv
    1708.00111), with alpha = 1 / T.

    Args:
        scores: (..., n), finite.
        k: number of ranks, 1..n.
        temperature: T in squared units of the scores: a number, 0-d or one value a row.

    Returns:
        (..., n, k), in the dtype of the scores.

    Raises:
        ValueError: as `prepare`.
    """
    x, T = prepare(scores, k, temperature)
    best = x.topk(k, dim=-1).values
    T = T.unsqueeze(-1) if isinstance(T, Tensor) else T
    return (-(x.unsqueeze(-1) - best.unsqueeze(-2)).square() / T).softmax(-2).to(scores.dtype)
