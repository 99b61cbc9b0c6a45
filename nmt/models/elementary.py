"""Elementary functions that are fast on the processors of every vendor.

Torch takes exp and tanh in float32 from MKL, whose kernels for another vendor's processors are several times as slow as
torch's own of 2^x and of the logistic function.
"""

import math

from torch import Tensor


def exp_(x: Tensor) -> Tensor:
    """e^x, in place."""
    return x.mul_(1 / math.log(2)).exp2_() if x.device.type == "cpu" else x.exp_()


def tanh_(x: Tensor) -> Tensor:
    """tanh x as 2 / (1 + exp(-2 x)) - 1, in place; right to a rounding of 1, not of x where that is near 0."""
    return x.mul_(2).sigmoid_().mul_(2).sub_(1) if x.device.type == "cpu" else x.tanh_()


def fast_tanh(x: Tensor) -> Tensor:
    """`tanh_` in a new tensor, without a gradient."""
    return (2 * x).sigmoid_().mul_(2).sub_(1)
