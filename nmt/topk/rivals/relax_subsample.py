"""RelaxSubSample: a relaxed sample of k candidates without replacement."""

import torch
from torch import Tensor

from nmt.topk.rivals.arguments import prepare
from nmt.topk.rivals.successive_softmax import take


def relax_subsample(
    scores: Tensor, k: int, temperature: float | Tensor, *, generator: torch.Generator | None = None
) -> Tensor:
    """Successive softmax of scores with Gumbel noise: as T -> 0 a subset of k, drawn by weights exp(x).

    Source: Xie and Ermon, Reparameterizable Subset Sampling via Continuous Relaxations, IJCAI 2019
    (arXiv 1901.10517): keys r = x + Gumbel(0, 1), then the k softmaxes of `successive_softmax` at T, of which the
    sum is returned. The noise is not divided by T before the first.

    Args:
        scores: (..., n), finite: unnormalised log-weights.
        k: size of the subset, 1..n.
        temperature: T in nats: a number, 0-d or one value a row.
        generator: of the noise.

    Returns:
        (..., n), in the dtype of the scores, with the sum k.

    Raises:
        ValueError: as `prepare`.
    """
    x, T = prepare(scores, k, temperature)
    noise = torch.empty_like(x).exponential_(generator=generator).log()
    return take(x - noise, k, T).sum(-1).to(scores.dtype)
