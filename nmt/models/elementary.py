"""Elementary functions that are fast on the processors of every vendor.

Torch takes exp and tanh in float32 from MKL, whose kernels for another vendor's processors are several times as slow as
torch's own of 2^x and of the logistic function.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def exp_(x: Tensor) -> Tensor:
    """e^x, in place."""
    return x.mul_(1 / math.log(2)).exp2_() if x.device.type == "cpu" else x.exp_()


def tanh_(x: Tensor) -> Tensor:
    """tanh x as 2 / (1 + exp(-2 x)) - 1, in place; right to a rounding of 1, not of x where that is near 0."""
    return x.mul_(2).sigmoid_().mul_(2).sub_(1) if x.device.type == "cpu" else x.tanh_()


def fast_tanh(x: Tensor) -> Tensor:
    """`tanh_` in a new tensor, without a gradient."""
    return (2 * x).sigmoid_().mul_(2).sub_(1)


def maxout(x: Tensor) -> Tensor:
    """(..., n) of x (..., 2 n): the larger one of neighbours (Goodfellow et al., "Maxout networks", ICML 2013)."""
    result: Tensor = _Maxout.apply(x) if torch.is_grad_enabled() else x.unflatten(-1, (-1, 2)).amax(dim=-1)
    return result


class _Maxout(torch.autograd.Function):
    """Torch's own backward pass counts what is equal, in several passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.unflatten(-1, (-1, 2)).amax(dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        left, right = ctx.saved_tensors[0].unflatten(-1, (-1, 2)).unbind(dim=-1)
        # Equal ones share the gradient.
        share = (left > right).to(grad.dtype).add_((left >= right).to(grad.dtype)).mul_(0.5).mul_(grad)
        return torch.stack([share, grad - share], dim=-1).flatten(-2)
