"""The decoder of Luong, Pham, Manning, "Effective approaches to attention-based neural machine translation", EMNLP
2015: a stack of cells whose top asks the attention, and a readout of both that may be fed back (section 3.3).

joeynmt, OpenNMT-py and fairseq have it, with another first state each.
"""

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from nmt.models.int8 import take_outputs
from nmt.models.recurrence import run_cells, run_encoder
from nmt.models.recurrent import Memory, Recurrent, RNNsearchConfig, State, Steps, average
from nmt.models.seq2seq import Advance


class Luong(Recurrent):
    """The recurrent model with the decoder "luong". Its features are the readout; with input feeding that is the last
    part of the state. Its summary is the first state, (batch, parts * layers * hidden)."""

    def _add_decoder(self, cell: Callable[[int, int], nn.Module]) -> None:
        config = self.config
        hidden, layers = config.hidden, config.decoder_layers
        if config.bridge in ("tanh", "mean"):
            self.initial = nn.Linear(config.value_size, hidden)
        elif config.bridge == "linear":
            self.initials = nn.ModuleList(nn.Linear(config.value_size, hidden) for _ in range(_parts(config)))
        elif config.bridge == "relu":
            size = layers * config.encoder_size
            self.initials = nn.ModuleList(nn.Linear(size, size) for _ in range(_parts(config)))
        below = config.embedding + (hidden if config.input_feeding else 0)
        self.cells = nn.ModuleList(cell(hidden if layer else below, hidden) for layer in range(layers))
        widen = 2 if config.readout == "maxout" else 1
        self.readout = nn.Linear(hidden + config.value_size, widen * hidden)
        if config.output_size:
            self.output_input = nn.Linear(hidden, config.output_size)

    @property
    def bridges(self) -> list[nn.Module]:
        """The layers in front of the first state."""
        if self.config.bridge in ("tanh", "mean"):
            return [self.initial]
        return list(self.initials) if self.config.bridge in ("linear", "relu") else []

    def _read(self, packed: PackedSequence) -> tuple[PackedSequence, Tensor]:
        outputs, final = run_encoder(self.encoder, packed)
        mean = average(outputs) if self.config.bridge == "mean" else None
        return outputs, summarise(self.config, self.bridges, final, mean)

    def start(self, memory: Memory) -> State:
        return first_state(self.config, memory.summary)

    def _advance(
        self,
        embedding: Tensor,
        state: State,
        look: Callable[[Tensor], tuple[Tensor, Tensor]],
        locks: tuple[Tensor, ...],
    ) -> Advance:
        if locks:
            embedding = embedding * locks[0].unsqueeze(1)
        inputs = torch.cat([embedding, state[-1][0]], dim=2) if self.config.input_feeding else embedding
        layers: list[tuple[Tensor, ...]] = []
        for cell, before in zip(self.cells, state, strict=False):
            if layers and not self.config.locked:
                inputs = self.dropout(inputs)
            layers.append(self._cell(cell, inputs, before))
            inputs = layers[-1][0]
        context, attention = look(inputs)
        both = torch.cat([inputs, context], dim=2)
        features = self._read_out(both * locks[1].unsqueeze(1) if locks else both)
        fed = ((features,),) if self.config.input_feeding else ()
        return Advance(features, (*layers, *fed), attention)

    @property
    def _forces_packed(self) -> bool:
        return super()._forces_packed and not self.config.input_feeding

    def _force(self, target: Steps, memory: Memory) -> Tensor:
        # Nothing that the attention gives is read by the cells: they run first, and ask for all steps at once.
        values, cells = target.values, cast("Any", self.cells)
        for number, (cell, state) in enumerate(zip(cells, self.start(memory), strict=True)):
            if number and not self.config.locked:
                values = self.dropout(values)
            values = run_cells(cell, values, target.sizes, tuple(part.squeeze(1) for part in state))
        length = len(target.sizes)
        places = target.rows * length + target.steps
        padded = values.new_zeros(len(memory.mask) * length, values.shape[1]).index_copy(0, places, values)
        context, _ = self.attention(padded.unflatten(0, (-1, length)), memory.keys, memory.values, memory.mask)
        return torch.cat([values, context.flatten(0, 1).index_select(0, places)], dim=1)

    def _forced(self, read: Tensor) -> Tensor:
        return self._read_out(read)

    def output_inputs(self, features: Tensor) -> Tensor:
        if not self.config.output_size:
            return features
        inputs = self.output_input(features)
        return inputs if self.config.locked else self.dropout(inputs)

    def narrow(self, candidates: Tensor) -> Callable[[Tensor], Tensor]:
        return take_outputs(self.output, candidates)


def summarise(
    config: RNNsearchConfig, bridges: Iterable[nn.Module], final: tuple[Tensor, ...], mean: Tensor | None
) -> Tensor:
    """The first state, (batch, parts * layers * hidden).

    Args:
        bridges: the layers in front of it, as `config.bridge` has them.
        final: parts of the encoder's last state, (layers * directions, batch, size) each.
        mean: of what the encoder gives, (batch, size); the bridge "mean" takes it.
    """
    # (batch, layers * directions, size) each
    states = [part.transpose(0, 1) for part in final]
    copies = _parts(config) * config.decoder_layers
    if mean is not None:
        (bridge,) = bridges
        return torch.tanh(bridge(mean)).repeat(1, copies)
    if config.bridge == "relu":
        # As OpenNMT-py cuts them: a row holds as many states as there are layers, of whichever direction.
        size = config.decoder_layers * config.encoder_size
        pairs = zip(states, bridges, strict=True)
        states = [torch.relu(layer(state.reshape(state.shape[0], -1, size))) for state, layer in pairs]
    if config.bridge == "linear":
        pairs = zip(states, bridges, strict=True)
        states = [layer(state.reshape(state.shape[0], -1, config.value_size)) for state, layer in pairs]
    if config.bridge in ("relu", "linear", "layers"):
        return torch.cat([state.flatten(1) for state in states], dim=1)
    top = states[0][:, -(2 if config.bidirectional else 1) :].flatten(1)
    if config.bridge == "tanh":
        (bridge,) = bridges
        first = torch.tanh(bridge(top))
    else:
        first = top[:, : config.hidden] if config.bridge == "last" else top.new_zeros(top.shape[0], config.hidden)
    return first.repeat(1, copies)


def first_state(config: RNNsearchConfig, summary: Tensor) -> State:
    """The state before the first token, of what `summarise` gives."""
    parts = summary.unsqueeze(1).unflatten(2, (_parts(config), config.decoder_layers, -1))
    layers = tuple(tuple(part.unbind(dim=2)) for part in parts.unbind(dim=3))
    return (*layers, (torch.zeros_like(layers[0][0]),)) if config.input_feeding else layers


def _parts(config: RNNsearchConfig) -> int:
    return 2 if config.cell == "lstm" else 1
