"""Recurrent layers spelled out: a layer for every step, a cell, and a bidirectional GRU over packed sequences.

The backward pass of torch's own GRU costs more than it must: it takes the inputs of step t as a slice of all of them;
the gradient of a slice is a tensor of zeros as large as the whole, so that it is quadratic in the length. (cuDNN has no
such trouble.) Here the inputs are split once, and the gradient of a split is one concatenation. The values are torch's,
bit for bit.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear
from torch.nn.utils.rnn import PackedSequence

from nmt.models.dropout import dropout


class StepLinear:
    """A linear layer that the steps of a recurrence share: the gradient of its weights is one product over all steps.

    By autograd alone each step has a product of its own, as large as the weights, and adds it to the others' sum.
    The layer lives for one forward pass, and its weights are read, and cast under autocast, once.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._steps: _Steps = []
        self._weight, self._bias = _Shared.apply(self._steps, weight, bias)

    def __call__(self, inputs: Tensor) -> Tensor:
        """(rows, outputs) of (rows, inputs)."""
        return _Step.apply(self._steps, inputs, self._weight, self._bias)


_Steps = list[tuple[int, Tensor, Tensor]]
"""Of steps whose backward pass is done: which pass that was, gradients of the outputs, inputs."""


class _Shared(torch.autograd.Function):
    """The weights as they are. No gradient comes back to them, but autograd calls the backward pass after that of all
    steps, which have left here what their gradient is made of."""

    @staticmethod
    def forward(ctx: Any, steps: _Steps, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        ctx.set_materialize_grads(False)
        ctx.steps, ctx.biased, ctx.dtype = steps, bias is not None, weight.dtype
        device = weight.device.type
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
        return weight.view_as(weight), None if bias is None else bias.view_as(bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        # A pass that asked for the gradient of inputs alone has left its own, which nobody came for.
        own = [step for step in ctx.steps if step[0] == torch._C._current_graph_task_id()]
        ctx.steps.clear()
        if not own:
            return None, None, None
        _, grads, inputs = zip(*own, strict=True)
        grad = torch.cat(grads)
        of_weight = (grad.t() @ torch.cat(inputs)).to(ctx.dtype)
        return None, of_weight, grad.sum(dim=0, dtype=ctx.dtype) if ctx.biased else None


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, steps: _Steps, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.steps, ctx.dtype = steps, inputs.dtype
        inputs = inputs.to(weight.dtype)
        ctx.save_for_backward(inputs, weight)
        return linear(inputs, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight = ctx.saved_tensors
        ctx.steps.append((torch._C._current_graph_task_id(), grad, inputs))
        return None, (grad @ weight).to(ctx.dtype), None, None


def run_bidirectional_gru(gru: nn.GRU, packed: PackedSequence) -> tuple[PackedSequence, Tensor]:
    """What `gru(packed)` gives, but for the final states.

    Args:
        gru: bidirectional, of any number of layers, with biases.
        packed: sequences of (tokens, input).

    Returns:
        the outputs (tokens, 2 hidden), packed alike, and the top layer's backward state at the first token of each
        sequence, (batch, hidden), in the order of the unpacked batch.
    """
    sizes = packed.batch_sizes.tolist()
    values = packed.data
    first = values
    for layer in range(gru.num_layers):
        if layer:
            values = dropout(values, gru.dropout, gru.training)
        forward, _ = _run_direction(gru, f"_l{layer}", values, sizes, range(len(sizes)))
        backward, first = _run_direction(gru, f"_l{layer}_reverse", values, sizes, range(len(sizes) - 1, -1, -1))
        values = torch.cat([forward, backward], dim=1)
    unsorted = packed.unsorted_indices
    result = PackedSequence(values, packed.batch_sizes, packed.sorted_indices, unsorted)
    return result, first if unsorted is None else first.index_select(0, unsorted)


def _run_direction(gru: nn.GRU, suffix: str, values: Tensor, sizes: list[int], steps: range) -> tuple[Tensor, Tensor]:
    """Outputs (tokens, hidden) of one direction of one layer and its last state. Sequences leave the batch where
    the number of rows falls, and enter it with a state of zeros where that rises."""
    hidden = gru.hidden_size
    input_weight, input_bias = getattr(gru, f"weight_ih{suffix}"), getattr(gru, f"bias_ih{suffix}")
    state_weight, state_bias = getattr(gru, f"weight_hh{suffix}"), getattr(gru, f"bias_hh{suffix}")
    inputs = linear(values, input_weight, input_bias).split(sizes)
    recur = StepLinear(state_weight, state_bias)
    state = values.new_zeros(sizes[steps[0]], hidden)
    outputs: list[Tensor] = [state] * len(sizes)
    for step in steps:
        rows = sizes[step]
        if state.shape[0] > rows:
            state = state[:rows]
        elif state.shape[0] < rows:
            state = torch.cat([state, values.new_zeros(rows - state.shape[0], hidden)])
        gates_in, new_in = inputs[step].split([2 * hidden, hidden], dim=1)
        gates, new = recur(state).split([2 * hidden, hidden], dim=1)
        reset, keep = torch.sigmoid(gates_in + gates).chunk(2, dim=1)
        proposal = torch.tanh(new_in + reset * new)
        state = proposal + keep * (state - proposal)
        outputs[step] = state
    return torch.cat(outputs), state


def run_cell(inputs: Tensor, recurrent: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """One recurrent cell of which both products are there; as torch.nn.GRUCell and LSTMCell define them.

    Args:
        inputs, recurrent: (..., gates * hidden), what the input and the state give, biases added.
        state: (hidden state,) of a GRU, or (hidden state, cell) of an LSTM, (..., hidden) each.

    Returns:
        the new state.
    """
    inputs, recurrent = inputs.to(state[0].dtype), recurrent.to(state[0].dtype)  # autocast may have changed one
    if len(state) == 1:
        hidden = state[0].shape[-1]
        reset, keep = torch.sigmoid(inputs[..., : 2 * hidden] + recurrent[..., : 2 * hidden]).chunk(2, dim=-1)
        new = torch.tanh(torch.addcmul(inputs[..., 2 * hidden :], reset, recurrent[..., 2 * hidden :]))
        return (torch.lerp(new, state[0], keep),)
    entering, forget, proposal, leaving = (inputs + recurrent).chunk(4, dim=-1)
    cell = torch.sigmoid(forget) * state[1] + torch.sigmoid(entering) * torch.tanh(proposal)
    return torch.sigmoid(leaving) * torch.tanh(cell), cell
