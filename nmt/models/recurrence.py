"""Recurrent layers over packed sequences, spelled out.

The backward pass of torch's own GRU costs more than it must: it takes the inputs of step t as a slice of all of them;
the gradient of a slice is a tensor of zeros as large as the whole, so that it is quadratic in the length. (cuDNN has no
such trouble.) Here a layer of a GRU is one function, whose backward pass writes what the steps have to say side by
side, so that the gradient of a weight is one product over all of them.
"""

from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear
from torch.nn.utils.rnn import PackedSequence

from nmt.models.cells import differentiate_gru_cell, run_cell, run_gru_cell
from nmt.models.dropout import dropout
from nmt.models.kernels import by_rows, has_kernels, sum_of_outer_products
from nmt.models.steps import StepLinear


def run_encoder(encoder: nn.Module, packed: PackedSequence) -> tuple[PackedSequence, tuple[Tensor, ...]]:
    """The outputs, packed alike, and the parts of the final state, (layers * directions, batch, size) each."""
    spelled_out = torch.is_grad_enabled() or has_kernels(packed.data)
    if isinstance(encoder, nn.GRU) and packed.data.device.type == "cpu" and spelled_out:
        outputs, final = run_gru(encoder, packed)
    else:
        outputs, final = encoder(packed)
    return outputs, final if isinstance(final, tuple) else (final,)


def run_gru(gru: nn.GRU, packed: PackedSequence) -> tuple[PackedSequence, Tensor]:
    """What `gru(packed)` gives: the outputs (tokens, directions * hidden), packed alike, and the final states (layers *
    directions, batch, hidden).

    Args:
        gru: of one direction or two, of any number of layers, with biases.
        packed: sequences of (tokens, input).
    """
    sizes = packed.batch_sizes.tolist()
    steps = range(len(sizes))
    directions = {"": steps, "_reverse": steps[::-1]} if gru.bidirectional else {"": steps}
    values = packed.data
    finals: list[Tensor] = []
    for layer in range(gru.num_layers):
        if layer:
            values = dropout(values, gru.dropout, gru.training)
        outputs, final = zip(
            *(_run_direction(gru, f"_l{layer}{name}", values, sizes, order) for name, order in directions.items()),
            strict=True,
        )
        values = torch.cat(outputs, dim=1)
        finals += final
    unsorted = packed.unsorted_indices
    result = PackedSequence(values, packed.batch_sizes, packed.sorted_indices, unsorted)
    final_states = torch.stack(finals)
    return result, final_states if unsorted is None else final_states.index_select(1, unsorted)


def _run_direction(gru: nn.GRU, suffix: str, values: Tensor, sizes: list[int], steps: range) -> tuple[Tensor, Tensor]:
    """Outputs (tokens, hidden) of one direction of one layer and the last state of each sequence (batch, hidden)."""
    input_weight, input_bias = getattr(gru, f"weight_ih{suffix}"), getattr(gru, f"bias_ih{suffix}")
    state_weight, state_bias = getattr(gru, f"weight_hh{suffix}"), getattr(gru, f"bias_hh{suffix}")
    first = values.new_zeros(sizes[0], gru.hidden_size)
    given = by_rows(lambda rows: linear(rows, input_weight, input_bias), values)
    return run_gru_layer(given, first, state_weight, state_bias, sizes, steps)


def run_cells(cell: nn.GRUCell | nn.LSTMCell, values: Tensor, sizes: list[int], first: tuple[Tensor, ...]) -> Tensor:
    """The outputs (tokens, hidden) of a GRUCell or LSTMCell over a packed sequence.

    Args:
        values: (tokens, inputs).
        sizes: how many sequences have each step.
        first: the state before it, (batch, hidden) each.
    """
    given = by_rows(lambda rows: linear(rows, cell.weight_ih, cell.bias_ih), values)
    if isinstance(cell, nn.GRUCell):
        return run_gru_layer(given, first[0], cell.weight_hh, cell.bias_hh, sizes, range(len(sizes)))[0]
    return run_steps(given, StepLinear(cell.weight_hh, cell.bias_hh), sizes, range(len(sizes)), first)[0]


def run_gru_layer(
    inputs: Tensor, first: Tensor, weight: Tensor, bias: Tensor, sizes: list[int], order: range
) -> tuple[Tensor, Tensor]:
    """One direction of one layer, without its inputs' product; arguments and result are those of `run_steps`, where
    weight and bias are those of `recur`."""
    return _GRULayer.apply(inputs, first, weight, bias, sizes, order)


class _Walk:
    """How the steps of a packed sequence lie in it, in the order in which they are taken."""

    def __init__(self, sizes: list[int], order: range) -> None:
        starts = [0, *accumulate(sizes)]
        self.places = [slice(starts[step], starts[step + 1]) for step in order]
        self.rows = [sizes[step] for step in order]
        # Where the last state of a sequence lies. Forwards, those that end at a step are behind those that go on.
        self.forward = order.step > 0

    def last(self, outputs: Tensor) -> list[Tensor]:
        """The parts of `outputs` that are the last of their sequences, from the first sequence on."""
        if not self.forward:
            return [outputs[self.places[-1]]]
        after = [*self.rows[1:], 0]
        steps = list(zip(self.places, self.rows, after, strict=True))[::-1]
        return [outputs[place][left:] for place, rows, left in steps if rows > left]


class _GRULayer(torch.autograd.Function):
    """Products in the precision of autocast, states and what is made of them in that of the first state."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, first: Tensor, weight: Tensor, bias: Tensor, sizes: list[int], order: range
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        walk, (tokens, hidden) = _Walk(sizes, order), (len(inputs), first.shape[1])
        ctx.dtypes = inputs.dtype, weight.dtype
        device = inputs.device.type
        if torch.is_autocast_enabled(device):
            weight, bias = (part.to(torch.get_autocast_dtype(device)) for part in (weight, bias))
        outputs, before, fed, new = (first.new_empty(tokens, hidden) for _ in range(4))
        gates = first.new_empty(tokens, 2 * hidden)
        multiplied = before if weight.dtype == before.dtype else before.to(weight.dtype)
        state = first[:0]

        def multiply(states: Tensor) -> Tensor:
            return linear(states, weight, bias)

        for place, rows in zip(walk.places, walk.rows, strict=True):
            torch.cat([state[:rows], first[len(state) : rows]], out=before[place])
            if multiplied is not before:
                multiplied[place].copy_(before[place])
            recurrent = by_rows(multiply, multiplied[place]).to(first.dtype)
            out = outputs[place], gates[place], new[place]
            state = run_gru_cell(inputs[place].to(first.dtype), recurrent, before[place], out)[0]
            fed[place].copy_(recurrent[:, 2 * hidden :])
        ctx.walk = walk
        ctx.save_for_backward(before, multiplied, fed, gates, new, weight)
        return outputs, torch.cat(walk.last(outputs))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_outputs: Tensor | None, of_last: Tensor | None) -> tuple[Tensor | None, ...]:
        before, multiplied, fed, gates, new, weight = ctx.saved_tensors
        walk: _Walk = ctx.walk
        of_outputs = torch.zeros_like(before) if of_outputs is None else of_outputs.clone()
        if of_last is not None:
            parts = walk.last(of_outputs)
            for part, more in zip(parts, of_last.split([len(part) for part in parts]), strict=True):
                part += more
        hidden = before.shape[1]
        of_inputs = before.new_empty(len(before), 3 * hidden, dtype=ctx.dtypes[0])
        of_recurrent = before.new_empty(len(before), 3 * hidden, dtype=weight.dtype)
        entered: list[Tensor] = []
        of_state, plain = None, of_inputs.dtype == of_recurrent.dtype == before.dtype
        spare = before.new_empty(2, max(walk.rows), 3 * hidden)

        def multiply(grads: Tensor) -> Tensor:
            return grads @ weight

        for number in range(len(walk.rows) - 1, -1, -1):
            place, grad = walk.places[number], of_outputs[walk.places[number]]
            if of_state is not None:
                grad[: len(of_state)] += of_state[: len(grad)]
            out = of_inputs[place], of_recurrent[place]
            wide = out if plain else tuple(part[: len(grad)] for part in spare)
            of_state = differentiate_gru_cell(grad, fed[place], before[place], gates[place], new[place], *wide)
            if not plain:
                for part, result in zip(out, wide, strict=True):
                    part.copy_(result)
            of_state += by_rows(multiply, out[1])
            known = walk.rows[number - 1] if number else 0
            if len(of_state) > known:
                entered.append(of_state[known:])
        of_weight = None
        if ctx.needs_input_grad[2]:
            of_weight = sum_of_outer_products(of_recurrent, multiplied).to(ctx.dtypes[1])
        of_bias = of_recurrent.sum(dim=0, dtype=ctx.dtypes[1]) if ctx.needs_input_grad[3] else None
        return of_inputs, torch.cat(entered[::-1]), of_weight, of_bias, None, None


def run_steps(
    inputs: Tensor, recur: Callable[[Tensor], Tensor], sizes: list[int], order: range, first: tuple[Tensor, ...]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One direction of one layer over a packed sequence. Sequences leave the batch where the number of rows falls, and
    enter it with their first state where that rises.

    Args:
        inputs: (tokens, gates * hidden), what the inputs give to the gates.
        recur: what a hidden state gives to them.
        sizes: how many sequences have each step.
        order: of the steps.
        first: the state before all of them, (batch, hidden) each: one part for a GRU, two for an LSTM.

    Returns:
        outputs (tokens, hidden) and the last state of each sequence, (batch, hidden) each.
    """
    each = inputs.split(sizes)
    state = tuple(part[:0] for part in first)
    outputs: list[Tensor] = [inputs] * len(sizes)
    left: list[tuple[Tensor, ...]] = []
    for step in order:
        rows, known = sizes[step], len(state[0])
        if known > rows:
            left.append(tuple(part[rows:] for part in state))
            state = tuple(part[:rows] for part in state)
        elif known < rows:
            state = tuple(torch.cat([part, new[known:rows]]) for part, new in zip(state, first, strict=True))
        state = run_cell(each[step], recur(state[0]), state)
        outputs[step] = state[0]
    return torch.cat(outputs), tuple(torch.cat(of_all) for of_all in zip(state, *reversed(left), strict=True))
