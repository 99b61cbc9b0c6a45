"""Copies of modules that hold the tensors of the original."""

import copy
from typing import TypeVar

from torch import nn

_Module = TypeVar("_Module", bound=nn.Module)


def frozen(module: _Module) -> _Module:
    """A copy that can be taken apart, for results alone: its weights are those of the module, in the same memory, and
    take no gradients."""
    shared = {id(one): nn.Parameter(one.detach(), requires_grad=False) for one in module.parameters()}
    return copy.deepcopy(module, {**shared, **{id(one): one for one in module.buffers()}})
