"""Recurrent models rearranged for decoding: the same function with fewer and larger products, and without gradients.

What is linear in something that is there once is computed once: what the next token adds to gates and readout is a
table over the vocabulary, and what a source position adds to them is part of the memory, where slots only average it.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from nmt.models.attention import AdditiveAttention, powers
from nmt.models.cells import run_cell
from nmt.models.elementary import fast_tanh
from nmt.models.frozen import frozen
from nmt.models.int8 import take_outputs
from nmt.models.kernels import by_rows, row_linear
from nmt.models.recurrence import run_encoder
from nmt.models.recurrent import Recurrent, average
from nmt.models.rnnsearch import RNNsearch, first_state
from nmt.models.seq2seq import Advance, Seq2Seq

# Sentences whose attention a CPU computes at once, so that the terms of each pair stay in its cache.
_SENTENCES = 4


class FusedMemory(NamedTuple):
    """What a sentence leaves: keys (batch, source length, key size), of additive attention exp(2 keys); values (batch,
    source length, value size), what its positions add to what the decoder makes of them; mask (batch, source length), 0
    or -inf; and what the first state is made of, (batch, ...)."""

    keys: Tensor
    values: Tensor
    mask: Tensor
    initial: Tensor


class Fused(Seq2Seq):
    """A recurrent model for decoding: the encoder, the attention and the output layer; a decoder adds the rest.

    The weights that stay as they are share the memory of the model's, which is left alone.
    """

    one: Tensor
    table: nn.Parameter
    """(vocabulary, n), what a token adds to what the decoder makes of it. Perhaps narrower than the weights."""
    look: nn.Module
    """What it makes of what the encoder gives: keys, and behind them values."""

    def __init__(self, model: Recurrent) -> None:
        super().__init__(model.padding, model.bos, model.eos)
        self.config = model.config
        self.source_embedding, self.encoder = frozen(model.source_embedding), frozen(model.encoder)
        output = model.output
        # What something was added to stays as it is.
        self.output = row_linear(output.weight, output.bias) if type(output) is nn.Linear else frozen(output)
        self.energy: nn.Parameter | None = None
        if isinstance(model.attention, AdditiveAttention):
            self.energy = nn.Parameter(-2 * model.attention.energy.weight[0].detach(), requires_grad=False)
        self.register_buffer("one", torch.ones(()), persistent=False)

    @property
    def key_size(self) -> int:
        return self.config.hidden if self.energy is None else self.config.attention_size

    @abstractmethod
    def begin(self, final: tuple[Tensor, ...], mean: Tensor | None) -> Tensor:
        """What the memory has for the first state.

        Args:
            final: parts of the encoder's last state, (layers * directions, batch, size) each.
            mean: of what the encoder gives, (batch, size), where the bridge is "mean".
        """

    def encode(self, source: Tensor, lengths: Tensor) -> FusedMemory:
        if not self.config.source_end:
            lengths = (lengths - 1).clamp_min(1)
        packed = pack_padded_sequence(
            self.source_embedding(source), lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        outputs, final = run_encoder(self.encoder, packed)
        # Before padding: what padding would cost in products is saved.
        looked = self.looked(outputs.data)
        looked, _ = pad_packed_sequence(outputs._replace(data=looked), batch_first=True, total_length=source.shape[1])
        mean = average(outputs) if self.config.bridge == "mean" else None
        initial = self.begin(final, mean)
        return self.remember(looked, lengths.to(source.device), initial)

    def embed(self, tokens: Tensor) -> Tensor:
        """The rows (..., n) of the tokens in the table."""
        return nn.functional.embedding(tokens, self.table).to(self.source_embedding.weight.dtype)

    def looked(self, read: Tensor) -> Tensor:
        """Keys and values (..., key size + value size) of what the encoder gives, (..., size)."""
        looked: Tensor = self.look(read)
        return torch.cat([read, looked], dim=-1) if self.config.attention == "dot" else looked

    def remember(self, looked: Tensor, lengths: Tensor, initial: Tensor) -> FusedMemory:
        """What a sentence leaves, from what `looked` gives (batch, source length, key size + value size), whatever it
        is at padding, lengths (batch,), and what `begin` gives."""
        keys, values = looked.split([self.key_size, looked.shape[2] - self.key_size], dim=2)
        positions = torch.arange(looked.shape[1], device=looked.device)
        mask = torch.zeros(looked.shape[:2], device=looked.device)
        mask = mask.masked_fill(positions >= lengths.unsqueeze(1), -torch.inf)
        keys = keys.contiguous() if self.energy is None else powers(keys.float())
        return FusedMemory(keys, values.contiguous(), mask, initial)

    def attend(self, query: Tensor, memory: FusedMemory) -> tuple[Tensor, Tensor]:
        """The mean of the values (batch, slots, value size), and the weights (batch, slots, source length), float32."""
        energies = self._multiply(query, memory) if self.energy is None else self.compare(self.energy, query, memory)
        attention = energies.add_(memory.mask.unsqueeze(1)).softmax(dim=2)
        return torch.bmm(attention.to(memory.values.dtype), memory.values), attention

    def _multiply(self, query: Tensor, memory: FusedMemory) -> Tensor:
        return torch.bmm(query.to(memory.keys.dtype), memory.keys.transpose(1, 2)).float()

    def compare(self, energy: Tensor, query: Tensor, memory: FusedMemory) -> Tensor:
        """The energies of an additive attention, (batch, slots, source length)."""
        asked = powers(query.float())
        weight, size = energy.float(), len(asked) if asked.is_cuda else _SENTENCES
        energies = [
            torch.addcmul(self.one, keys.unsqueeze(1), part.unsqueeze(2)).reciprocal_() @ weight
            for keys, part in zip(memory.keys.split(size), asked.split(size), strict=True)
        ]
        return torch.cat(energies)

    def project(self, features: Tensor) -> Tensor:
        return self.output(self.output_inputs(features))

    def narrow(self, candidates: Tensor) -> Callable[[Tensor], Tensor]:
        return take_outputs(self.output, candidates)


class FusedRNNsearch(Fused):
    """An RNNsearch without layer normalisation, for decoding. Its features are what the readout's maximum or tanh
    takes."""

    def __init__(self, model: RNNsearch) -> None:
        super().__init__(model)
        hidden, embedding = self.config.hidden, self.config.embedding
        reader, writer, readout = model.reader, model.writer, model.readout
        query: Any = model.attention.query
        assert isinstance(reader, (nn.GRUCell, nn.LSTMCell)) and isinstance(writer, (nn.GRUCell, nn.LSTMCell))
        assert isinstance(readout, nn.Linear)
        top, previous, context = readout.weight.split([hidden, embedding, 2 * hidden], dim=1)
        self.gates = len(reader.weight_ih)
        self.initial = frozen(model.initial)
        # To the reader's gates, and behind them to the readout.
        self.table = table(
            model.target_embedding,
            torch.cat([reader.weight_ih, previous]),
            torch.cat([reader.bias_ih, readout.bias]),
        )
        self.reader = linear(reader.weight_hh, reader.bias_hh)
        # What the reader's state gives: the question to the attention, and its share of the writer's gates.
        zeros = torch.zeros_like(query.weight[:, 0])
        self.middle = linear(torch.cat([query.weight, writer.weight_hh]), torch.cat([zeros, writer.bias_hh]))
        key = model.attention.key
        self.look = linear(
            torch.cat([key.weight, writer.weight_ih, context]),
            torch.cat([key.bias, writer.bias_ih, torch.zeros_like(readout.bias)]),
        )
        self.readout = linear(top, None)
        upper: Any = model.upper
        self.upper_inputs = nn.ModuleList(linear(cell.weight_ih, cell.bias_ih) for cell in upper)
        self.upper_states = nn.ModuleList(linear(cell.weight_hh, cell.bias_hh) for cell in upper)
        self.requires_grad_(False).eval()

    @property
    def bounds(self) -> dict[str, float]:
        """What the inputs of some layers cannot exceed: states lie between -1 and 1."""
        states = ("initial", "reader", "middle", "look", "upper_inputs", "upper_states")
        sums = ("readout", "upper_inputs") if self.config.upper == "skip" else ("readout",)
        top = dict.fromkeys(sums, float(self.config.decoder_layers))
        return {**dict.fromkeys(states, 1.0), **top, **({"output": 1.0} if self.config.readout == "tanh" else {})}

    def begin(self, final: tuple[Tensor, ...], mean: Tensor | None) -> Tensor:
        """(batch, layers * hidden)."""
        return torch.tanh(by_rows(self.initial, final[0][-1] if mean is None else mean))

    def start(self, memory: FusedMemory) -> tuple[tuple[Tensor, ...], ...]:
        return first_state(self.config, memory.initial)

    def advance(self, embedding: Tensor, state: tuple[tuple[Tensor, ...], ...], memory: FusedMemory) -> Advance:
        gates = self.gates
        token_gates, token_readout = embedding.split([gates, embedding.shape[2] - gates], dim=2)
        first = run_cell(token_gates, self.reader(state[0][0]), state[0])
        query, own_gates = self.middle(first[0]).split([self.config.attention_size, gates], dim=2)
        found, attention = self.attend(query, memory)
        found_gates, found_readout = found.split([gates, found.shape[2] - gates], dim=2)
        layers = [run_cell(found_gates, own_gates, first)]
        top = layers[0][0]
        for inputs, recurrent, before in zip(self.upper_inputs, self.upper_states, state[1:], strict=True):
            below = top if self.config.upper == "skip" else layers[-1][0]
            layers.append(run_cell(inputs(below), recurrent(before[0]), before))
            top = layers[-1][0] if self.config.upper == "last" else top + layers[-1][0]
        features = self.readout(top) + token_readout + found_readout
        return Advance(features, tuple(layers), attention)

    def output_inputs(self, features: Tensor) -> Tensor:
        if self.config.readout == "maxout":
            return features.unflatten(-1, (-1, 2)).amax(dim=-1)
        return fast_tanh(features)


def table(embedding: nn.Embedding, weight: Tensor, bias: Tensor) -> nn.Parameter:
    """What a layer makes of the embedding of each token, (vocabulary, outputs)."""
    rows = nn.functional.linear(embedding.weight.detach(), weight.detach(), bias.detach())
    return nn.Parameter(rows, requires_grad=False)


def linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A layer of copies of weight and bias."""
    return row_linear(weight.clone(), None if bias is None else bias.clone())
