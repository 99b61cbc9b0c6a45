"""The perturbed top-k: the mean of hard selections under Gaussian noise."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nmt.topk.rivals.arguments import prepare


def perturbed_topk(
    scores: Tensor,
    k: int,
    temperature: float | Tensor,
    *,
    samples: int = 500,
    generator: torch.Generator | None = None,
) -> Tensor:
    """A = E[y(x + T Z)] over standard normal Z, y the hard indicator of the k best, by a mean of samples.

    The derivative is an expectation of the same samples: dA_i/dx_j = E[y_i(x + T Z) Z_j] / T. Source: Berthet et
    al., Learning with Differentiable Perturbed Optimizers, NeurIPS 2020 (arXiv 2002.08676), with Gaussian noise. No
    gradient for the temperature.

    Args:
        scores: (..., n), finite.
        k: number of selected candidates, 1..n.
        temperature: T, the standard deviation of the noise in units of the scores: a number, 0-d or one value a
            row.
        samples: number of samples; the error falls with its root. 500 as for the top-k of Cordonnier et al.,
            Differentiable Patch Selection for Image Recognition, CVPR 2021; the code of Berthet et al. takes 1000.
        generator: of the noise.

    Returns:
        (..., n), in the dtype of the scores.

    Raises:
        ValueError: as `prepare`; fewer than one sample.
    """
    if samples < 1:
        raise ValueError(f"samples must be >= 1, not {samples}")
    x, T = prepare(scores, k, temperature)
    noise = torch.randn((samples, *x.shape), dtype=x.dtype, device=x.device, generator=generator)
    weights: Tensor = _Perturbed.apply(x, k, T, noise)
    return weights.to(scores.dtype)


class _Perturbed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, k: int, T: float | Tensor, noise: Tensor) -> Tensor:
        order = (x + T * noise).topk(k, dim=-1).indices
        ctx.T = T
        ctx.save_for_backward(noise, order)
        return torch.zeros_like(noise).scatter_(-1, order, 1.0).mean(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        noise, order = ctx.saved_tensors
        value = g.expand_as(noise).gather(-1, order).sum(-1, keepdim=True)
        return (value * noise).mean(0) / ctx.T, None, None, None
