"""RNNsearch: bidirectional encoder, additive attention, conditional recurrent decoder.

Bahdanau, Cho, Bengio, "Neural machine translation by jointly learning to align and translate", ICLR 2015,
with the two-cell ("conditional") decoder of Sennrich et al., "Nematus", EACL 2017.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from nmt.models.attention import AdditiveAttention
from nmt.models.normed import NormedSum, normed_linear
from nmt.models.recurrent import Memory, Recurrent, RNNsearchConfig, State, average
from nmt.models.seq2seq import Advance


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
        outputs, final = self._run_encoder(packed)
        return outputs, average(outputs) if self.config.bridge == "mean" else final[0][-1]

    def start(self, memory: Memory) -> State:
        return first_state(self.config, torch.tanh(self.initial(memory.summary)))

    def _advance(
        self,
        embedding: Tensor,
        state: State,
        look: Callable[[Tensor], tuple[Tensor, Tensor]],
        locks: tuple[Tensor, ...],
    ) -> Advance:
        if locks:
            embedding = embedding * locks[0].unsqueeze(1)
        first = self._cell(self.reader, embedding, state[0])
        context, attention = look(first[0])
        layers = [self._cell(self.writer, context, first)]
        top = layers[0][0]
        for cell, before in zip(self.upper, state[1:], strict=True):
            layers.append(self._cell(cell, top if self.config.upper == "skip" else layers[-1][0], before))
            # A residual path around each further layer keeps deep decoders trainable.
            top = layers[-1][0] if self.config.upper == "last" else top + layers[-1][0]
        features = torch.cat([top, embedding, context], dim=2)
        if locks:
            features = features * locks[1].unsqueeze(1)
        return Advance(features, tuple(layers), attention)

    def output_inputs(self, features: Tensor) -> Tensor:
        hidden = self._read_out(features)
        return hidden if self.config.locked else self.dropout(hidden)


def first_state(config: RNNsearchConfig, hidden: Tensor) -> State:
    """The first state of all layers, of (batch, layers * hidden)."""
    layers = hidden.unsqueeze(1).chunk(config.decoder_layers, dim=2)
    if config.cell == "gru":
        return tuple((layer,) for layer in layers)
    return tuple((layer, layer if config.bridge == "mean" else torch.zeros_like(layer)) for layer in layers)
