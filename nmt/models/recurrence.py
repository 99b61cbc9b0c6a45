"""A GRU over packed sequences, spelled out.

The backward pass of torch's own GRU costs more than it must: it takes the inputs of step t as a slice of all of them;
the gradient of a slice is a tensor of zeros as large as the whole, so that it is quadratic in the length. (cuDNN has no
such trouble.) Here the inputs are split once, and the gradient of a split is one concatenation. The values are torch's,
bit for bit.
"""

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
