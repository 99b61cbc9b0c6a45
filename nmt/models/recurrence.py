"""A GRU over packed sequences, spelled out.

The backward pass of torch's own GRU costs more than it must: it takes the inputs of step t as a slice of all of them;
the gradient of a slice is a tensor of zeros as large as the whole, so that it is quadratic in the length. (cuDNN has no
such trouble.) Here the inputs are split once, and the gradient of a split is one concatenation. The values are torch's,
bit for bit.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.nn.utils.rnn import PackedSequence

from nmt.models.cells import run_cell
from nmt.models.dropout import dropout
from nmt.models.steps import StepLinear


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
    """Outputs (tokens, hidden) of one direction of one layer and the last state of each sequence (batch, hidden).
    Sequences leave the batch where the number of rows falls, and enter it with a state of zeros where that rises."""
    hidden = gru.hidden_size
    input_weight, input_bias = getattr(gru, f"weight_ih{suffix}"), getattr(gru, f"bias_ih{suffix}")
    state_weight, state_bias = getattr(gru, f"weight_hh{suffix}"), getattr(gru, f"bias_hh{suffix}")
    inputs = linear(values, input_weight, input_bias).split(sizes)
    recur = StepLinear(state_weight, state_bias)
    state = values.new_zeros(sizes[steps[0]], hidden)
    outputs: list[Tensor] = [state] * len(sizes)
    left: list[Tensor] = []
    for step in steps:
        rows = sizes[step]
        if state.shape[0] > rows:
            state, gone = state.split([rows, state.shape[0] - rows])
            left.append(gone)
        elif state.shape[0] < rows:
            state = torch.cat([state, values.new_zeros(rows - state.shape[0], hidden)])
        (state,) = run_cell(inputs[step], recur(state), (state,))
        outputs[step] = state
    return torch.cat(outputs), torch.cat([state, *left[::-1]])


def run_steps(
    inputs: Tensor, recur: Callable[[Tensor], Tensor], sizes: list[int], order: range, hidden: int, parts: int
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One direction of one layer over a packed sequence. Sequences leave the batch where the number of rows falls, and
    enter it with a state of zeros where that rises.

    Args:
        inputs: (tokens, gates * hidden), what the inputs give to the gates.
        recur: what a hidden state gives to them.
        sizes: how many sequences have each step.
        order: of the steps.
        hidden: size of the state.
        parts: of the state: 1 for a GRU, 2 for an LSTM.

    Returns:
        outputs (tokens, hidden) and the last state of each sequence, (batch, hidden) each.
    """
    each = inputs.split(sizes)
    state = tuple(inputs.new_zeros(sizes[order[0]], hidden) for _ in range(parts))
    outputs: list[Tensor] = [inputs] * len(sizes)
    left: list[tuple[Tensor, ...]] = []
    for step in order:
        rows = sizes[step]
        if len(state[0]) > rows:
            left.append(tuple(part[rows:] for part in state))
        state = tuple(
            part[:rows] if len(part) >= rows else torch.cat([part, part.new_zeros(rows - len(part), hidden)])
            for part in state
        )
        state = run_cell(each[step], recur(state[0]), state)
        outputs[step] = state[0]
    return torch.cat(outputs), tuple(torch.cat(of_all) for of_all in zip(state, *reversed(left), strict=True))
