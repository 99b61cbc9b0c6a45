"""The straight-through estimator: the hard selection forward, the gradient of the soft one backward."""

from torch import Tensor

from nmt.topk.hard import hard_topk
from nmt.topk.plain import soft_topk
from nmt.topk.rivals.arguments import prepare


def straight_through(scores: Tensor, k: int, temperature: float | Tensor) -> Tensor:
    """The indicator of the k best, with the gradient of `soft_topk` at T.

    Source: Bengio et al., Estimating or Propagating Gradients Through Stochastic Neurons, 2013
    (arXiv 1308.3432), with a soft top-k in the place of the identity.

    Args:
        scores: (..., n), finite.
        k: number of selected candidates, 1..n.
        temperature: T of the gradient, in units of the scores: a number, 0-d or one value a row.

    Returns:
        (..., n), in the dtype of the scores; of tied candidates the first come first.

    Raises:
        ValueError: as `prepare`.
    """
    prepare(scores, k, temperature)
    soft = soft_topk(scores, k, temperature)
    return hard_topk(scores, k).sum(-1) + (soft - soft.detach())
