"""RNNsearch: bidirectional encoder, additive attention, conditional recurrent decoder.

Bahdanau, Cho, Bengio, "Neural machine translation by jointly learning to align and translate", ICLR 2015,
with the two-cell ("conditional") decoder of Sennrich et al., "Nematus", EACL 2017.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from nmt.errors import UserError
from nmt.models.attention import AdditiveAttention
from nmt.models.dropout import Dropout
from nmt.models.recurrence import run_bidirectional_gru
from nmt.models.seq2seq import Advance, Seq2Seq, node_places, pad_nodes
from nmt.models.steps import for_steps
from nmt.tree import take_rows
from nmt.vocabulary import BOS, EOS, PAD


@dataclass
class RNNsearchConfig:
    """The size and the shape of the model."""

    embedding: int = 256
    """Size of the source and target embeddings."""
    hidden: int = 512
    """Size of each direction of the encoder, of the decoder and of the attention."""
    encoder_layers: int = 1
    """Bidirectional layers of the encoder."""
    decoder_layers: int = 1
    """Layers of the decoder; the first holds the attention."""
    cell: Literal["gru", "lstm"] = "gru"
    """Recurrent cell of the encoder and of the decoder."""
    readout: Literal["maxout", "tanh"] = "maxout"
    """What stands between the decoder's state and the output layer; its size is the embedding's."""
    dropout: float = 0.2
    """Share of the embeddings, encoder outputs and readout inputs that is set to zero in training."""
    locked: bool = False
    """What dropout sets to zero is drawn once a sentence and is the same at every step and in every slot (Gal and
    Ghahramani, NeurIPS 2016), so that a search, too, runs the network that is trained; the last layer's input is
    left alone."""
    tied_embeddings: Literal["none", "output", "all"] = "none"
    """output: the output layer is the target embedding; all: source too (needs a joint vocabulary)."""

    def __post_init__(self) -> None:
        for name in ("embedding", "hidden", "encoder_layers", "decoder_layers"):
            if getattr(self, name) < 1:
                raise UserError(f"model.{name} is {getattr(self, name)}; give at least 1")
        if not 0 <= self.dropout < 1:
            raise UserError(f"model.dropout is {self.dropout}; give a share from 0 up to, not including, 1")
        for name, choices in (
            ("cell", ("gru", "lstm")),
            ("readout", ("maxout", "tanh")),
            ("tied_embeddings", ("none", "output", "all")),
        ):
            if getattr(self, name) not in choices:
                raise UserError(f"model.{name} is '{getattr(self, name)}'; choose one of {', '.join(choices)}")


class Memory(NamedTuple):
    """What the encoder leaves: values (batch, source length, 2 hidden), the attention's keys (batch, source length,
    hidden), mask (batch, source length), summary (batch, hidden): the backward state at the first word. Of a model with
    locked dropout in training also `locks`, what the decoder's embeddings (batch, embedding) and features (batch,
    features) are multiplied by."""

    values: Tensor
    keys: Tensor
    mask: Tensor
    summary: Tensor
    locks: tuple[Tensor, ...] = ()


class RNNsearch(Seq2Seq):
    """The recurrent model. Its state is a tuple of layers, each (h,) or (h, c) of (batch, slots, hidden)."""

    def __init__(
        self,
        config: RNNsearchConfig,
        source_vocabulary: int,
        target_vocabulary: int,
        *,
        padding: int = PAD,
        bos: int = BOS,
        eos: int = EOS,
    ) -> None:
        super().__init__(padding, bos, eos)
        if config.tied_embeddings == "all" and source_vocabulary != target_vocabulary:
            raise UserError(
                f"model.tied_embeddings is 'all', but the vocabularies have {source_vocabulary} and "
                f"{target_vocabulary} pieces; use a joint vocabulary or model.tied_embeddings=output"
            )
        self.config = config
        embedding, hidden = config.embedding, config.hidden
        self.source_embedding = nn.Embedding(source_vocabulary, embedding, padding_idx=padding)
        self.target_embedding = nn.Embedding(target_vocabulary, embedding, padding_idx=padding)
        recurrent = {"gru": nn.GRU, "lstm": nn.LSTM}[config.cell]
        self.encoder = recurrent(
            embedding,
            hidden,
            num_layers=config.encoder_layers,
            bidirectional=True,
            batch_first=True,
            dropout=config.dropout if config.encoder_layers > 1 else 0.0,
        )
        self.attention = AdditiveAttention(hidden, 2 * hidden, hidden)
        cell = {"gru": nn.GRUCell, "lstm": nn.LSTMCell}[config.cell]
        self.initial = nn.Linear(hidden, config.decoder_layers * hidden)
        self.reader = cell(embedding, hidden)  # takes the previous target, asks the attention
        self.writer = cell(2 * hidden, hidden)  # takes what the attention found
        self.upper = nn.ModuleList(cell(hidden, hidden) for _ in range(config.decoder_layers - 1))
        widen = 2 if config.readout == "maxout" else 1
        self.readout = nn.Linear(hidden + embedding + 2 * hidden, widen * embedding)
        self.output = nn.Linear(embedding, target_vocabulary)
        self.dropout = Dropout(config.dropout)
        self._initialise()
        if config.tied_embeddings != "none":
            self.output.weight = self.target_embedding.weight
        if config.tied_embeddings == "all":
            self.source_embedding.weight = self.target_embedding.weight

    def _initialise(self) -> None:
        for name, parameter in self.named_parameters():
            if "embedding" in name:
                # Tied, the embedding is the output layer too: variance 1/size keeps the logits near 1.
                nn.init.normal_(parameter, std=self.config.embedding**-0.5)
                with torch.no_grad():
                    parameter[self.padding].zero_()
            elif parameter.dim() < 2:
                nn.init.zeros_(parameter)
            elif "weight_hh" in name:
                for gate in parameter.chunk(parameter.shape[0] // self.config.hidden):
                    nn.init.orthogonal_(gate)
            else:
                nn.init.xavier_uniform_(parameter)

    def encode(self, source: Tensor, lengths: Tensor) -> Memory:
        embedded = self._drop(self.source_embedding(source))
        # Packing keeps padding out of the backward direction; it wants the lengths on the CPU.
        packed = pack_padded_sequence(embedded, lengths.cpu(), batch_first=True, enforce_sorted=False)
        if isinstance(self.encoder, nn.GRU) and source.device.type == "cpu" and torch.is_grad_enabled():
            outputs, first = run_bidirectional_gru(self.encoder, packed)
        else:
            outputs, final = self.encoder(packed)
            first = (final[0] if isinstance(final, tuple) else final)[-1]
        values, _ = pad_packed_sequence(outputs, batch_first=True, total_length=source.shape[1])
        positions = torch.arange(source.shape[1], device=source.device)
        mask = positions.unsqueeze(0) < lengths.to(source.device).unsqueeze(1)
        values = self._drop(values)
        return Memory(values, self.attention.keys(values), mask, first, self._draw_locks(values))

    def _drop(self, sequence: Tensor) -> Tensor:
        """Dropout of (batch, length, size), locked or not."""
        if not (self.config.locked and self.training):
            return self.dropout(sequence)
        return sequence * self.dropout(torch.ones_like(sequence[:, :1]))

    def _draw_locks(self, values: Tensor) -> tuple[Tensor, ...]:
        if not (self.config.locked and self.training and self.dropout.p > 0):
            return ()
        sizes = (self.config.embedding, self.readout.in_features)
        return tuple(self.dropout(values.new_ones(len(values), size)) for size in sizes)

    @property
    def steps_draw(self) -> bool:
        return self.dropout.p > 0 and not self.config.locked

    def unrolled(self) -> "RNNsearch":
        # On a GPU the cells have kernels of their own.
        on_cpu = self.output.weight.device.type == "cpu"
        return for_steps(self) if on_cpu and torch.is_grad_enabled() else self

    def start(self, memory: Memory) -> tuple[tuple[Tensor, ...], ...]:
        hidden = torch.tanh(self.initial(memory.summary)).unsqueeze(1)
        layers = hidden.chunk(self.config.decoder_layers, dim=2)
        if self.config.cell == "lstm":
            return tuple((layer, torch.zeros_like(layer)) for layer in layers)
        return tuple((layer,) for layer in layers)

    def embed(self, tokens: Tensor) -> Tensor:
        embedded = self.target_embedding(tokens)
        return embedded if self.config.locked else self.dropout(embedded)

    def advance(self, embedding: Tensor, state: tuple[tuple[Tensor, ...], ...], memory: Memory) -> Advance:
        def look(query: Tensor) -> tuple[Tensor, Tensor]:
            return self.attention(query, memory.keys, memory.values, memory.mask)

        return self._advance(embedding, state, look, memory.locks)

    def advance_nodes(
        self, embedding: Tensor, state: tuple[tuple[Tensor, ...], ...], memory: Memory, sentences: Tensor
    ) -> Advance:
        # The cells cost most, and they need no padding; the attention reads a sentence for all its slots at once.
        rows = memory.mask.shape[0]
        places, slots = node_places(sentences, rows)

        def look(query: Tensor) -> tuple[Tensor, Tensor]:
            padded = pad_nodes(query.squeeze(1), places, rows, slots)
            found = self.attention(padded, memory.keys, memory.values, memory.mask)
            context, attention = (part.flatten(0, 1).index_select(0, places).unsqueeze(1) for part in found)
            return context, attention

        return self._advance(embedding, state, look, take_rows(memory.locks, sentences))

    def _advance(
        self,
        embedding: Tensor,
        state: tuple[tuple[Tensor, ...], ...],
        look: Callable[[Tensor], tuple[Tensor, Tensor]],
        locks: tuple[Tensor, ...],
    ) -> Advance:
        """`look` asks the attention; the locks are those of the rows."""
        if locks:
            embedding = embedding * locks[0].unsqueeze(1)
        first = self._cell(self.reader, embedding, state[0])
        context, attention = look(first[0])
        layers = [self._cell(self.writer, context, first)]
        for cell, before in zip(self.upper, state[1:], strict=True):
            # A residual path around each further layer keeps deep decoders trainable.
            layers.append(self._cell(cell, layers[-1][0], before))
        top = layers[0][0]
        for layer in layers[1:]:
            top = top + layer[0]
        features = torch.cat([top, embedding, context], dim=2)
        if locks:
            features = features * locks[1].unsqueeze(1)
        return Advance(features, tuple(layers), attention)

    @property
    def output_layer(self) -> nn.Linear:
        return self.output

    def project(self, features: Tensor) -> Tensor:
        return self.output(self.output_inputs(features))

    def output_inputs(self, features: Tensor) -> Tensor:
        locked = self.config.locked
        hidden = self.readout(features if locked else self.dropout(features))
        if self.config.readout == "maxout":
            hidden = hidden.unflatten(-1, (-1, 2)).amax(dim=-1)
        else:
            hidden = torch.tanh(hidden)
        return hidden if locked else self.dropout(hidden)

    def _cell(self, cell: nn.Module, inputs: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """One recurrent cell over (batch, slots); the cells of torch know only one leading dimension."""
        flat = tuple(part.flatten(0, 1) for part in state)
        new = cell(inputs.flatten(0, 1), flat[0] if len(flat) == 1 else flat)
        parts = new if isinstance(new, tuple) else (new,)
        return tuple(part.view(*inputs.shape[:2], -1) for part in parts)
