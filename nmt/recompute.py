"""Time for memory: what a function keeps for its backward pass is made once more instead."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.utils.checkpoint import checkpoint

_Result = TypeVar("_Result")


def recomputed(function: Callable[..., _Result], *inputs: Any) -> _Result:
    """function(*inputs), of which only inputs and results are kept; the backward pass runs it again, with the same
    random numbers (Chen et al., "Training deep nets with sublinear memory cost", 2016).

    Args:
        function: gives the same whenever it is run; what it does besides is done twice, but for hooks on gradients,
            which the second run registers where no gradient comes.
        inputs: among them a tensor on the device whose random numbers are drawn.
    """
    if not torch.is_grad_enabled():
        return function(*inputs)
    result: _Result = checkpoint(function, *inputs, use_reentrant=False)
    return result
