"""Recurrent layers spelled out: a cell, and a bidirectional GRU over packed sequences.

The backward pass of torch's own GRU costs more than it must: it takes the inputs of step t as a slice of all of them;
the gradient of a slice is a tensor of zeros as large as the whole, so that it is quadratic in the length. (cuDNN has no
such trouble.) Here the inputs are split once, and the gradient of a split is one concatenation. The values are torch's,
bit for bit.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, linear
from torch.nn.utils.rnn import PackedSequence


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
    state = values.new_zeros(sizes[steps[0]], hidden)
    outputs: list[Tensor] = [state] * len(sizes)
    for step in steps:
        rows = sizes[step]
        if state.shape[0] > rows:
            state = state[:rows]
        elif state.shape[0] < rows:
            state = torch.cat([state, values.new_zeros(rows - state.shape[0], hidden)])
        gates_in, new_in = inputs[step].split([2 * hidden, hidden], dim=1)
        gates, new = linear(state, state_weight, state_bias).split([2 * hidden, hidden], dim=1)
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
