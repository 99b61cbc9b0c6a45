"""The decoder "luong" rearranged for decoding, see `nmt.models.fused`: the readout's share of a source position is part
of the memory, so that slots average numbers of the readout's size instead of the encoder's."""

from typing import Any

import torch
from torch import Tensor, nn

from nmt.models.attention import AdditiveAttention, ProductAttention
from nmt.models.cells import run_cell
from nmt.models.elementary import fast_tanh
from nmt.models.frozen import frozen
from nmt.models.fused import Fused, FusedMemory, linear, table
from nmt.models.luong import Luong, first_state, summarise
from nmt.models.recurrent import State
from nmt.models.seq2seq import Advance


class FusedLuong(Fused):
    """A `Luong` for decoding; features and state are the model's."""

    def __init__(self, model: Luong) -> None:
        super().__init__(model)
        config = self.config
        hidden, embedding = config.hidden, config.embedding
        self.bridges = nn.ModuleList(frozen(bridge) for bridge in model.bridges)
        cells: Any = list(model.cells)
        first, upper = cells[0], cells[1:]
        previous, fed = first.weight_ih.split([embedding, first.weight_ih.shape[1] - embedding], dim=1)
        # To the first cell's gates.
        self.table = table(model.target_embedding, previous, first.bias_ih)
        if config.input_feeding:
            self.fed = linear(fed, None)
        self.states = nn.ModuleList(linear(cell.weight_hh, cell.bias_hh) for cell in cells)
        self.inputs = nn.ModuleList(linear(cell.weight_ih, cell.bias_ih) for cell in upper)
        # What the top gives: its share of the readout, and before it the question to an additive attention.
        readout = model.readout
        assert isinstance(readout, nn.Linear)
        top, context = readout.weight.split([hidden, config.value_size], dim=1)
        attention = model.attention
        bias: Tensor = readout.bias
        if isinstance(attention, AdditiveAttention):
            query: Any = attention.query
            key: Any = attention.key
            top = torch.cat([query.weight, top])
            bias = torch.cat([torch.zeros_like(query.weight[:, 0]), bias])
            zeros = torch.zeros_like(readout.bias)
            self.look = linear(torch.cat([key.weight, context]), torch.cat([key.bias, zeros]))
        else:
            assert isinstance(attention, ProductAttention)
            rows = [attention.key.weight] if isinstance(attention.key, nn.Linear) else []
            self.look = linear(torch.cat([*rows, context]), None)
        self.middle = linear(top, bias)
        if config.output_size:
            self.output_input = frozen(model.output_input)
        self.requires_grad_(False).eval()

    @property
    def bounds(self) -> dict[str, float]:
        """What the inputs of some layers cannot exceed: states lie between -1 and 1, unless they begin elsewhere."""
        layers = ["look"]
        if self.config.bridge not in ("relu", "linear"):
            layers += ["states", "inputs", "middle"]
        if self.config.readout == "tanh":
            layers += ["fed", "output_input" if self.config.output_size else "output"]
        return dict.fromkeys(layers, 1.0)

    def begin(self, final: tuple[Tensor, ...], mean: Tensor | None) -> Tensor:
        """(batch, parts * layers * hidden)."""
        return summarise(self.config, self.bridges, final, mean)

    def start(self, memory: FusedMemory) -> State:
        return first_state(self.config, memory.initial)

    def advance(self, embedding: Tensor, state: State, memory: FusedMemory) -> Advance:
        inputs = embedding + self.fed(state[-1][0]) if self.config.input_feeding else embedding
        layers: list[tuple[Tensor, ...]] = []
        for number, (recurrent, before) in enumerate(zip(self.states, state, strict=False)):
            if number:
                inputs = self.inputs[number - 1](layers[-1][0])
            layers.append(run_cell(inputs, recurrent(before[0]), before))
        query, read = layers[-1][0], self.middle(layers[-1][0])
        if self.energy is not None:
            query, read = read.split([self.key_size, read.shape[2] - self.key_size], dim=2)
        found, attention = self.attend(query, memory)
        features = read + found
        if self.config.readout == "maxout":
            features = features.unflatten(-1, (-1, 2)).amax(dim=-1)
        elif self.config.readout == "tanh":
            features = fast_tanh(features)
        # Under autocast the readout may be narrower than what it is fed back as.
        fed = ((features.to(layers[0][0].dtype),),) if self.config.input_feeding else ()
        return Advance(features, (*layers, *fed), attention)

    def output_inputs(self, features: Tensor) -> Tensor:
        return self.output_input(features) if self.config.output_size else features
