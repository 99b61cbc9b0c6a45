"""A bidirectional GRU over packed sequences, spelled out.

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
        (state,) = run_cell(inputs[step], recur(state), (state,))
        outputs[step] = state
    return torch.cat(outputs), state
