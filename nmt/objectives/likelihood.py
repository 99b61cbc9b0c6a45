"""Weighted sums of log-probabilities, with one buffer for the gradient of the logits."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class _WeightedLogLikelihood(torch.autograd.Function):
    """sum over q of w_q log p(token_q | row_q) + sum over rows of u_r * mean over v of log p(v | r).

    With z the log-sum-exp and W_r the weights of a row, sum_q w_q x_q + sum_r (u_r mean(x_r) - (W_r + u_r) z_r). Kept
    for the backward pass are the logits, which exist anyway, and z; the gradient is made in one buffer. The chain of
    torch's own operations would keep a second tensor of that size and walk it several times more.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, rows: Tensor, tokens: Tensor, weights: Tensor, uniform: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        x = logits.to(torch.promote_types(logits.dtype, torch.float32))
        z = x.logsumexp(dim=1)
        weights = weights.to(z.dtype)
        total = torch.zeros_like(z).index_add_(0, rows, weights)
        log_probability = x[rows, tokens] - z.index_select(0, rows)
        value = (weights * log_probability).sum()
        if uniform is not None:
            uniform = uniform.to(z.dtype)
            total = total + uniform
            value = value + (uniform * (x.mean(dim=1) - z)).sum()
        ctx.save_for_backward(logits, z, rows, tokens, weights, total, uniform)
        ctx.mark_non_differentiable(log_probability)
        return value, log_probability

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None, None, None]:
        logits, z, rows, tokens, weights, total, uniform = ctx.saved_tensors
        result = (logits - z.unsqueeze(1)).exp_()
        result *= -total.unsqueeze(1)
        if uniform is not None:
            result += (uniform / logits.shape[1]).unsqueeze(1)
        result.index_put_((rows, tokens), weights, accumulate=True)
        result *= grad
        return result.to(logits.dtype), None, None, None, None


def weighted_log_likelihood(
    logits: Tensor, rows: Tensor, tokens: Tensor, weights: Tensor, uniform: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """A weighted sum of log-probabilities, in nats.

    Args:
        logits: (rows, vocabulary).
        rows, tokens, weights: (queries,): log p(token | row) counts `weight` times. Weights carry no gradient.
        uniform: (rows,), weight of the mean of the row's log-probabilities, as label smoothing has it.

    Returns:
        the sum, which carries the gradient, and log p (queries,), which does not.
    """
    return _WeightedLogLikelihood.apply(logits, rows, tokens, weights, uniform)
