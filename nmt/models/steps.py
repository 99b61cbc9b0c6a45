"""Layers for the many steps of one forward pass: what the steps share is made once."""

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from nmt.models.cells import run_cell
from nmt.models.kernels import by_rows, sum_of_outer_products

_Module = TypeVar("_Module", bound=nn.Module)


def for_steps(module: _Module) -> _Module:
    """A form of a module, with the same weights, whose linear layers and cells are `StepLinear` and `StepCell`."""
    form = copy.copy(module)
    form._modules = {name: step_form(child) for name, child in module._modules.items()}
    return form


def step_form(child: Any) -> Any:
    """The form of a part of a module, see `for_steps`; what has a form of its own tells it."""
    # Of the very class: what something was added to stays as it is.
    if type(child) is nn.Linear:
        return StepLinear(child.weight, child.bias)
    if type(child) in (nn.GRUCell, nn.LSTMCell):
        return StepCell(child)
    if hasattr(child, "for_steps"):
        return child.for_steps()
    return for_steps(child) if isinstance(child, nn.Module) and child._modules else child


class StepLinear:
    """A linear layer that the steps of a recurrence share: the gradient of its weights is one product over all steps.

    By autograd alone each step has a product of its own, as large as the weights, and adds it to the others' sum.
    The layer lives for one forward pass, and its weights are read, and cast under autocast, once.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._steps: _Steps = []
        self.weight, self.bias = _Shared.apply(self._steps, weight, bias)

    def __call__(self, inputs: Tensor) -> Tensor:
        """(..., outputs) of (..., inputs)."""
        return _Step.apply(self._steps, inputs, self.weight, self.bias)


_Steps = list[tuple[int, Tensor, Tensor]]
"""Of steps whose backward pass is done: which pass that was, gradients of the outputs, inputs."""


class _Shared(torch.autograd.Function):
    """The weights as they are. From the steps no gradient comes back to them, but autograd calls the backward pass
    after that of all steps, which have left here what their gradient is made of."""

    @staticmethod
    def forward(ctx: Any, steps: _Steps, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        ctx.set_materialize_grads(False)
        ctx.steps, ctx.dtype = steps, weight.dtype
        device = weight.device.type
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
        return weight.view_as(weight), None if bias is None else bias.view_as(bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_weight: Tensor | None, of_bias: Tensor | None) -> tuple[Tensor | None, ...]:
        # A pass that asked for the gradient of inputs alone has left its own, which nobody came for.
        own = [step for step in ctx.steps if step[0] == torch._C._current_graph_task_id()]
        ctx.steps.clear()
        if own:
            grad, inputs = (torch.cat(parts) for parts in zip(*(step[1:] for step in own), strict=True))
            # Of a frozen one nothing is asked for.
            if ctx.needs_input_grad[1]:
                of_weight = _add(of_weight, sum_of_outer_products(grad, inputs).to(ctx.dtype))
            else:
                of_weight = None
            of_bias = _add(of_bias, grad.sum(dim=0, dtype=ctx.dtype)) if ctx.needs_input_grad[2] else None
        return None, of_weight, of_bias


def _add(known: Tensor | None, more: Tensor) -> Tensor:
    return more if known is None else known.to(more.dtype) + more


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, steps: _Steps, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.steps, ctx.dtype = steps, inputs.dtype
        inputs = inputs.to(weight.dtype)
        ctx.save_for_backward(inputs, weight)
        return by_rows(lambda rows: linear(rows, weight, bias), inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight = ctx.saved_tensors
        if ctx.needs_input_grad[2]:
            ctx.steps.append((torch._C._current_graph_task_id(), grad.flatten(0, -2), inputs.flatten(0, -2)))
        return None, by_rows(lambda rows: rows @ weight, grad).to(ctx.dtype), None, None


class StepCell:
    """A GRUCell or LSTMCell whose layers are `StepLinear`.

    Attributes:
        inputs: what makes of an input what it gives to the gates; of the inputs of all steps, where they are there.
    """

    def __init__(self, cell: nn.GRUCell | nn.LSTMCell) -> None:
        self.inputs = StepLinear(cell.weight_ih, cell.bias_ih)
        self._states = StepLinear(cell.weight_hh, cell.bias_hh)

    def __call__(self, inputs: Tensor, state: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
        return self.move(self.inputs(inputs), state)

    def move(self, given: Tensor, state: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
        """The new state, of what the input gives to the gates (batch, gates * hidden)."""
        parts = state if isinstance(state, tuple) else (state,)
        new = run_cell(given, self._states(parts[0]), parts)
        return new if isinstance(state, tuple) else new[0]
