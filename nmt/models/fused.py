"""RNNsearch rearranged for decoding: the same function with fewer and larger products, and without gradients.

What is linear in something that is there once is computed once: what the next token adds to gates and readout is a
table over the vocabulary, and what a source position adds to them is part of the memory, where slots only average it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from nmt.models.attention import powers
from nmt.models.cells import run_cell
from nmt.models.elementary import fast_tanh
from nmt.models.frozen import frozen
from nmt.models.int8 import take_outputs
from nmt.models.recurrent import average
from nmt.models.rnnsearch import RNNsearch, first_state
from nmt.models.seq2seq import Advance, Seq2Seq

# Sentences whose attention a CPU computes at once, so that the terms of each pair stay in its cache.
_SENTENCES = 4


class FusedMemory(NamedTuple):
    """What a sentence leaves: exp(2 keys) (batch, source length, attention size); what its positions add to the
    writer's gates and to the readout (batch, source length, gates + readout); mask (batch, source length), 0 or -inf;
    first state (batch, layers * hidden)."""

    powers: Tensor
    values: Tensor
    mask: Tensor
    initial: Tensor


class FusedRNNsearch(Seq2Seq):
    """An RNNsearch without layer normalisation, for decoding. Its features are what the readout's maximum or tanh
    takes."""

    one: Tensor

    def __init__(self, model: RNNsearch) -> None:
        """Rearranges the weights; those that stay as they are share the memory of the model's, which is left alone."""
        super().__init__(model.padding, model.bos, model.eos)
        self.config = model.config
        hidden, embedding = self.config.hidden, self.config.embedding
        reader, writer, readout = model.reader, model.writer, model.readout
        query: Any = model.attention.query
        assert isinstance(reader, (nn.GRUCell, nn.LSTMCell)) and isinstance(writer, (nn.GRUCell, nn.LSTMCell))
        assert isinstance(readout, nn.Linear)
        top, previous, context = readout.weight.split([hidden, embedding, 2 * hidden], dim=1)
        self.gates = len(reader.weight_ih)
        self.source_embedding, self.encoder = frozen(model.source_embedding), frozen(model.encoder)
        self.initial, self.output = frozen(model.initial), frozen(model.output)
        self.energy = nn.Parameter(-2 * model.attention.energy.weight[0].detach(), requires_grad=False)
        self.table = nn.Parameter(
            nn.functional.linear(
                model.target_embedding.weight.detach(),
                torch.cat([reader.weight_ih, previous]).detach(),
                torch.cat([reader.bias_ih, readout.bias]).detach(),
            ),
            requires_grad=False,
        )
        self.reader = _linear(reader.weight_hh, reader.bias_hh)
        # What the reader's state gives: the question to the attention, and its share of the writer's gates.
        zeros = torch.zeros_like(query.weight[:, 0])
        self.middle = _linear(torch.cat([query.weight, writer.weight_hh]), torch.cat([zeros, writer.bias_hh]))
        key = model.attention.key
        self.look = _linear(
            torch.cat([key.weight, writer.weight_ih, context]),
            torch.cat([key.bias, writer.bias_ih, torch.zeros_like(readout.bias)]),
        )
        self.readout = _linear(top, None)
        upper: Any = model.upper
        self.upper_inputs = nn.ModuleList(_linear(cell.weight_ih, cell.bias_ih) for cell in upper)
        self.upper_states = nn.ModuleList(_linear(cell.weight_hh, cell.bias_hh) for cell in upper)
        self.register_buffer("one", torch.ones(()), persistent=False)
        self.requires_grad_(False).eval()

    @property
    def bounds(self) -> dict[str, float]:
        """What the inputs of some layers cannot exceed: states lie between -1 and 1."""
        states = ("initial", "reader", "middle", "look", "upper_inputs", "upper_states")
        sums = ("readout", "upper_inputs") if self.config.upper == "skip" else ("readout",)
        top = dict.fromkeys(sums, float(self.config.decoder_layers))
        return {**dict.fromkeys(states, 1.0), **top, **({"output": 1.0} if self.config.readout == "tanh" else {})}

    def encode(self, source: Tensor, lengths: Tensor) -> FusedMemory:
        packed = pack_padded_sequence(
            self.source_embedding(source), lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        outputs, final = self.encoder(packed)
        # Before padding: what padding would cost in products is saved.
        looked = self.look(outputs.data)
        looked, _ = pad_packed_sequence(outputs._replace(data=looked), batch_first=True, total_length=source.shape[1])
        summary = (final[0] if isinstance(final, tuple) else final)[-1]
        if self.config.bridge == "mean":
            summary = average(outputs)
        return self.remember(looked, lengths.to(source.device), summary)

    def remember(self, looked: Tensor, lengths: Tensor, summary: Tensor) -> FusedMemory:
        """What a sentence leaves, from what `look` makes of the encoder's outputs (batch, source length, attention size
        + gates + readout), whatever it is at padding, lengths (batch,), and the summary, which `initial` takes."""
        size = self.config.attention_size
        keys, values = looked.split([size, looked.shape[2] - size], dim=2)
        positions = torch.arange(looked.shape[1], device=looked.device)
        mask = torch.zeros(looked.shape[:2], device=looked.device)
        mask = mask.masked_fill(positions >= lengths.unsqueeze(1), -torch.inf)
        return FusedMemory(powers(keys.float()), values.contiguous(), mask, torch.tanh(self.initial(summary)))

    def start(self, memory: FusedMemory) -> tuple[tuple[Tensor, ...], ...]:
        return first_state(self.config, memory.initial)

    def embed(self, tokens: Tensor) -> Tensor:
        """What the tokens add to the reader's gates and to the readout, (..., gates + readout)."""
        return nn.functional.embedding(tokens, self.table)

    def advance(self, embedding: Tensor, state: tuple[tuple[Tensor, ...], ...], memory: FusedMemory) -> Advance:
        gates = self.gates
        token_gates, token_readout = embedding.split([gates, embedding.shape[2] - gates], dim=2)
        first = run_cell(token_gates, self.reader(state[0][0]), state[0])
        query, own_gates = self.middle(first[0]).split([self.config.attention_size, gates], dim=2)
        attention = self._attend(query, memory)
        found = torch.bmm(attention.to(memory.values.dtype), memory.values)
        found_gates, found_readout = found.split([gates, found.shape[2] - gates], dim=2)
        layers = [run_cell(found_gates, own_gates, first)]
        top = layers[0][0]
        for inputs, recurrent, before in zip(self.upper_inputs, self.upper_states, state[1:], strict=True):
            below = top if self.config.upper == "skip" else layers[-1][0]
            layers.append(run_cell(inputs(below), recurrent(before[0]), before))
            top = layers[-1][0] if self.config.upper == "last" else top + layers[-1][0]
        features = self.readout(top) + token_readout + found_readout
        return Advance(features, tuple(layers), attention)

    def _attend(self, query: Tensor, memory: FusedMemory) -> Tensor:
        """Weights (batch, slots, source length), float32."""
        asked = powers(query.float())
        weight, size = self.energy.float(), len(asked) if asked.is_cuda else _SENTENCES
        energies = [
            torch.addcmul(self.one, keys.unsqueeze(1), part.unsqueeze(2)).reciprocal_() @ weight
            for keys, part in zip(memory.powers.split(size), asked.split(size), strict=True)
        ]
        return torch.cat(energies).add_(memory.mask.unsqueeze(1)).softmax(dim=2)

    def project(self, features: Tensor) -> Tensor:
        return self.output(self.output_inputs(features))

    def narrow(self, candidates: Tensor) -> Callable[[Tensor], Tensor]:
        return take_outputs(self.output, candidates)

    def output_inputs(self, features: Tensor) -> Tensor:
        if self.config.readout == "maxout":
            return features.unflatten(-1, (-1, 2)).amax(dim=-1)
        return fast_tanh(features)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return layer
