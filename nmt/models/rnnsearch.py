"""RNNsearch: bidirectional encoder, additive attention, conditional recurrent decoder.

Bahdanau, Cho, Bengio, "Neural machine translation by jointly learning to align and translate", ICLR 2015,
with the two-cell ("conditional") decoder of Sennrich et al., "Nematus", EACL 2017.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from nmt.models.attention import AdditiveAttention
from nmt.models.kernels import by_rows
from nmt.models.normed import NormedSum, normed_linear
from nmt.models.recurrence import run_encoder
from nmt.models.recurrent import Memory, Recurrent, RNNsearchConfig, State, Steps, average
from nmt.models.seq2seq import Advance
from nmt.models.steps import StepCell
from nmt.tree import first_rows


class RNNsearch(Recurrent):
    """The recurrent model with the decoder "conditional". Its summary is the backward state at the first word, or the
    mean of what the encoder gives."""

    attention: AdditiveAttention
    initial: nn.Module

    def _add_decoder(self, cell: Callable[[int, int], nn.Module]) -> None:
        config = self.config
        embedding, hidden = config.embedding, config.hidden
        summary = config.value_size if config.bridge == "mean" else hidden
        linear: Any = normed_linear if config.layer_normalization else nn.Linear
        self.initial = linear(summary, config.decoder_layers * hidden)
        self.reader = cell(embedding, hidden)  # takes the previous target, asks the attention
        self.writer = cell(config.value_size, hidden)  # takes what the attention found
        self.upper = nn.ModuleList(cell(hidden, hidden) for _ in range(config.decoder_layers - 1))
        widen = 2 if config.readout == "maxout" else 1
        sizes = [hidden, embedding, config.value_size]
        outputs = widen * config.readout_size
        self.readout = NormedSum(sizes, outputs) if config.layer_normalization else nn.Linear(sum(sizes), outputs)

    def _read(self, packed: PackedSequence) -> tuple[PackedSequence, Tensor]:
        outputs, final = run_encoder(self.encoder, packed)
        return outputs, average(outputs) if self.config.bridge == "mean" else final[0][-1]

    def start(self, memory: Memory) -> State:
        return first_state(self.config, torch.tanh(by_rows(self.initial, memory.summary)))

    def _advance(
        self,
        embedding: Tensor,
        state: State,
        look: Callable[[Tensor], tuple[Tensor, Tensor]],
        locks: tuple[Tensor, ...],
    ) -> Advance:
        if locks:
            embedding = embedding * locks[0].unsqueeze(1)
        top, context, layers, attention = self._move(self.reader, embedding, state, look)
        features = torch.cat([top, embedding, context], dim=2)
        if locks:
            features = features * locks[1].unsqueeze(1)
        return Advance(features, layers, attention)

    def _move(
        self, reader: Any, inputs: Tensor, state: State, look: Callable[[Tensor], tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor, State, Tensor]:
        """What the readout takes of the states, the context, the new state, and the attention.

        Args:
            reader, inputs: the first cell, and its inputs (batch, slots, ...).
        """
        first = self._cell(reader, inputs, state[0])
        context, attention = look(first[0])
        layers = [self._cell(self.writer, context, first)]
        top = layers[0][0]
        for cell, before in zip(self.upper, state[1:], strict=True):
            layers.append(self._cell(cell, top if self.config.upper == "skip" else layers[-1][0], before))
            # A residual path around each further layer keeps deep decoders trainable.
            top = layers[-1][0] if self.config.upper == "last" else top + layers[-1][0]
        return top, context, tuple(layers), attention

    def _force(self, target: Steps, memory: Memory) -> Tensor:
        form: Any = self.unrolled()
        reader, given = form.reader, target.values
        if isinstance(form.reader, StepCell):
            reader, given = form.reader.move, form.reader.inputs(given)
        look = partial(form.attention, keys=memory.keys, values=memory.values, mask=memory.mask)
        state, tops, contexts = self.start(memory), [], []
        for inputs in given.split(target.sizes):
            state = first_rows(state, len(inputs))
            top, context, state, _ = form._move(reader, inputs.unsqueeze(1), state, look)
            tops.append(top.squeeze(1))
            contexts.append(context.squeeze(1))
        return torch.cat([torch.cat(tops), target.values, torch.cat(contexts)], dim=1)

    def output_inputs(self, features: Tensor) -> Tensor:
        hidden = self._read_out(features)
        return hidden if self.config.locked else self.dropout(hidden)


def first_state(config: RNNsearchConfig, hidden: Tensor) -> State:
    """The first state of all layers, of (batch, layers * hidden)."""
    layers = hidden.unsqueeze(1).chunk(config.decoder_layers, dim=2)
    if config.cell == "gru":
        return tuple((layer,) for layer in layers)
    return tuple((layer, layer if config.bridge == "mean" else torch.zeros_like(layer)) for layer in layers)
