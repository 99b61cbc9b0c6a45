"""Dropout, with masks that are cheap to draw."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class Dropout(nn.Dropout):
    """What torch.nn.Dropout is. On a CPU it draws 16 bits an entry, not a number of its own: three times as fast, and
    the share that is set to zero is p to 1 in 65,536."""

    def forward(self, inputs: Tensor) -> Tensor:
        return dropout(inputs, self.p, self.training)


def dropout(inputs: Tensor, p: float, training: bool) -> Tensor:
    """The inputs, in training each with probability p zero and otherwise divided by 1 - p."""
    if not training or p == 0 or inputs.device.type != "cpu":
        return functional.dropout(inputs, p, training)
    bits = torch.empty((inputs.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    kept = bits.view(torch.int16)[: inputs.numel()].view(inputs.shape) >= min(round(p * 2**16), 2**16 - 1) - 2**15
    return inputs * kept.to(inputs.dtype).mul_(1 / (1 - p))
