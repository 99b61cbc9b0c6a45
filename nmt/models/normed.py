"""Recurrent layers with layer normalisation (Ba, Kiros, Hinton, arXiv:1607.06450, section 3.1) of what the input and
what the state gives to a cell's gates, each by itself, as Marian has it."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from nmt.models.cells import run_cell
from nmt.models.dropout import dropout
from nmt.models.recurrence import run_steps

# Marian's.
EPSILON = 1e-9


def normed_linear(inputs: int, outputs: int, *, bias: bool = True) -> nn.Sequential:
    """A layer without an activation, whose bias stands behind the normalisation."""
    return nn.Sequential(nn.Linear(inputs, outputs, bias=False), nn.LayerNorm(outputs, EPSILON, bias=bias))


class NormedCell(nn.Module):
    """What torch.nn.GRUCell or LSTMCell is, normalised."""

    def __init__(self, inputs: int, hidden: int, gates: int) -> None:
        """`gates` is 3 for a GRU and 4 for an LSTM."""
        super().__init__()
        self.hidden = hidden
        self.inputs, self.states = normed_linear(inputs, gates * hidden), normed_linear(hidden, gates * hidden)

    def forward(self, inputs: Tensor, state: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
        parts = state if isinstance(state, tuple) else (state,)
        new = run_cell(self.inputs(inputs), self.states(parts[0]), parts)
        return new if isinstance(state, tuple) else new[0]


class NormedSum(nn.Module):
    """A layer over several inputs side by side, each of which is normalised by itself."""

    def __init__(self, sizes: list[int], outputs: int) -> None:
        super().__init__()
        self.sizes, self.in_features = sizes, sum(sizes)
        self.parts = nn.ModuleList(normed_linear(size, outputs) for size in sizes)

    def forward(self, inputs: Tensor) -> Tensor:
        """(..., outputs) of (..., sum of the sizes)."""
        parts = zip(self.parts, inputs.split(self.sizes, dim=-1), strict=True)
        return torch.stack([layer(part) for layer, part in parts]).sum(dim=0)


class NormedRecurrent(nn.Module):
    """What a bidirectional nn.GRU or nn.LSTM over packed sequences is, normalised."""

    def __init__(self, inputs: int, hidden: int, gates: int, layers: int, share: float) -> None:
        """`share` of what a layer gives to the next one is set to zero in training."""
        super().__init__()
        self.hidden, self.parts, self.share = hidden, 2 if gates == 4 else 1, share
        sizes = [inputs, *[2 * hidden] * (layers - 1)]
        self.cells = nn.ModuleList(NormedCell(size, hidden, gates) for size in sizes for _ in range(2))

    def forward(self, packed: PackedSequence) -> tuple[PackedSequence, tuple[Tensor, ...]]:
        """The outputs, packed alike, and the parts of the final state, (2 * layers, batch, hidden) each."""
        sizes = packed.batch_sizes.tolist()
        values, ends = packed.data, []
        for number in range(0, len(self.cells), 2):
            if number:
                values = dropout(values, self.share, self.training)
            steps = range(len(sizes))
            pair: Any = self.cells[number : number + 2]
            first = tuple(values.new_zeros(sizes[0], self.hidden) for _ in range(self.parts))
            both = [
                run_steps(cell.inputs(values), cell.states, sizes, order, first)
                for cell, order in zip(pair, (steps, steps[::-1]), strict=True)
            ]
            values = torch.cat([outputs for outputs, _ in both], dim=1)
            ends += [end for _, end in both]
        final = tuple(torch.stack(part) for part in zip(*ends, strict=True))
        if packed.unsorted_indices is not None:
            final = tuple(part.index_select(1, packed.unsorted_indices) for part in final)
        return packed._replace(data=values), final
