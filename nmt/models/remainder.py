"""The tokens of an output layer that are not computed, as if they were one."""

from typing import NamedTuple

import torch
from torch import Tensor


class Remainder(NamedTuple):
    """A linear function of what the output layer multiplies, whose exponential stands for the sum of exp(logit) over
    the tokens left out: weight (inputs,), bias (), float32. See `nmt.remainder` for how it is learned."""

    weight: Tensor
    bias: Tensor

    def logit(self, inputs: Tensor) -> Tensor:
        """(...) of inputs (..., inputs), in float32."""
        return inputs.float() @ self.weight + self.bias

    def to(self, device: torch.device) -> "Remainder":
        """The same on a device."""
        return Remainder(self.weight.to(device), self.bias.to(device))
