"""What the recurrent models share: a recurrent encoder, attention over what it has read, and an output layer."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple, Self, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from nmt.errors import UserError
from nmt.models.attention import AdditiveAttention, ProductAttention
from nmt.models.dropout import Dropout
from nmt.models.elementary import maxout
from nmt.models.kernels import by_rows
from nmt.models.normed import NormedCell, NormedRecurrent, NormedSum
from nmt.models.seq2seq import Advance, Seq2Seq, node_places, pad_nodes
from nmt.models.steps import for_steps
from nmt.text.vocabulary import BOS, EOS, PAD
from nmt.tree import take_rows

State = tuple[tuple[Tensor, ...], ...]


# Of the configuration: what training alone does, and no shape and no output depends on.
REGULARISATION = ("dropout", "locked")


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
    readout: Literal["maxout", "tanh", "linear"] = "maxout"
    """What stands between the decoder's state and the output layer; its size is the embedding's, with decoder luong
    that of the hidden state. linear is for decoder luong."""
    dropout: float = 0.2
    """Share of the embeddings, encoder outputs and readout inputs that is set to zero in training."""
    locked: bool = False
    """What dropout sets to zero is drawn once a sentence and is the same at every step and in every slot (Gal and
    Ghahramani, NeurIPS 2016), so that a search, too, runs the network that is trained; the last layer's input is
    left alone."""
    tied_embeddings: Literal["none", "output", "all"] = "none"
    """output: the output layer is the target embedding; all: source too (needs a joint vocabulary)."""
    attention_hidden: int = 0
    """Size of the layer in which additive attention compares; 0: hidden."""
    upper: Literal["sum", "last", "skip"] = "sum"
    """How further layers of the conditional decoder are joined. sum: each reads the one below, and the readout takes
    the sum of all; last: it takes the last one; skip: each reads the sum so far and adds to it (Marian)."""
    layer_normalization: bool = False
    """Whether what enters a cell, the attention, the readout and the first state of the conditional decoder, and a cell
    of the encoder, is normalised (Marian)."""
    start: Literal["bos", "eos"] = "bos"
    """What the decoder reads before the first token; eos: the end of a sentence (fairseq)."""
    decoder: Literal["conditional", "luong"] = "conditional"
    """conditional: two cells around the attention (Nematus); luong: a stack of cells whose top asks the attention
    (Luong, Pham, Manning, EMNLP 2015), as joeynmt, OpenNMT-py and fairseq have it. The settings below are for luong
    alone, except that bridge may be mean in both."""
    attention: Literal["additive", "general", "dot"] = "additive"
    """How a state and a source position are compared: by a layer of tanh, by a matrix, or by their product."""
    input_feeding: bool = False
    """Whether the readout of a step is an input of the next one."""
    bridge: Literal["tanh", "mean", "last", "layers", "linear", "relu", "zero"] = "tanh"
    """The decoder's first state. tanh: a layer over the last states of the encoder's top, for all layers; mean: a layer
    over the mean of what the encoder gives, for cells, too (Nematus, Marian); last: those last states themselves (the
    forward one where that alone fits); layers: those of each layer for each layer; linear, relu: the same behind a
    layer, linear: of one for all layers; zero: zeros."""
    output_size: int = 0
    """Size of a layer between the readout and the output layer; 0: none."""
    encoder_hidden: int = 0
    """Size of each direction of the encoder; 0: hidden."""
    source_embedding: int = 0
    """Size of the source embeddings; 0: embedding."""
    bidirectional: bool = True
    """Whether the encoder also reads backwards."""
    source_end: bool = True
    """Whether the encoder reads the end of the sentence, too."""

    def __post_init__(self) -> None:
        for name in ("embedding", "hidden", "encoder_layers", "decoder_layers"):
            if getattr(self, name) < 1:
                raise UserError(f"model.{name} is {getattr(self, name)}; give at least 1")
        for name in ("encoder_hidden", "source_embedding", "attention_hidden", "output_size"):
            if getattr(self, name) < 0:
                raise UserError(f"model.{name} is {getattr(self, name)}; give 0 or more")
        for name in ("embedding", "hidden", "encoder_hidden", "source_embedding", "attention_hidden", "output_size"):
            # Products of larger numbers are none that torch can hold.
            if getattr(self, name) > 2**20:
                raise UserError(f"model.{name} is {getattr(self, name)}; give {2**20:,} or less")
        if not 0 <= self.dropout < 1:
            raise UserError(f"model.dropout is {self.dropout}; give a share from 0 up to, not including, 1")
        for field in fields(self):
            value, choices = getattr(self, field.name), get_args(field.type)
            if choices and value not in choices:
                raise UserError(f"model.{field.name} is '{value}'; choose one of {', '.join(choices)}")
        if self.attention_hidden and self.attention != "additive":
            raise UserError(f"model.attention_hidden is {self.attention_hidden}, which needs model.attention=additive")
        if self.decoder == "conditional":
            self._check_conditional()
        else:
            self._check_luong()

    @property
    def encoder_size(self) -> int:
        """Of each direction of the encoder."""
        return self.encoder_hidden or self.hidden

    @property
    def value_size(self) -> int:
        """Of what the encoder gives for a source position."""
        return (2 if self.bidirectional else 1) * self.encoder_size

    @property
    def source_size(self) -> int:
        """Of the source embeddings."""
        return self.source_embedding or self.embedding

    @property
    def attention_size(self) -> int:
        """Of the layer in which additive attention compares."""
        return self.attention_hidden or self.hidden

    @property
    def readout_size(self) -> int:
        """Of what the output layer multiplies."""
        return self.embedding if self.decoder == "conditional" else self.output_size or self.hidden

    def _check_conditional(self) -> None:
        defaults = {field.name: field.default for field in fields(self)}
        names = list(defaults)
        for name in names[names.index("decoder") + 1 :]:
            if getattr(self, name) != defaults[name] and (name, self.bridge) != ("bridge", "mean"):
                raise UserError(f"model.{name} is {getattr(self, name)}, which needs model.decoder=luong")
        if self.readout == "linear":
            raise UserError("model.readout is linear, which needs model.decoder=luong")

    def _check_luong(self) -> None:
        values, hidden = self.value_size, self.hidden
        for name, off in (("upper", "sum"), ("layer_normalization", False)):
            if getattr(self, name) != off:
                raise UserError(f"model.{name} is {getattr(self, name)}, which needs model.decoder=conditional")
        if self.attention == "dot" and values != hidden:
            raise UserError(
                f"model.attention is dot, but the encoder gives {values} numbers and model.hidden is {hidden}"
            )
        if self.bridge == "last" and hidden not in (values, self.encoder_size):
            raise UserError(
                f"model.bridge is last, but the encoder gives {values} numbers and model.hidden is {hidden}"
            )
        if self.bridge in ("layers", "relu") and (values != hidden or self.encoder_layers != self.decoder_layers):
            raise UserError(
                f"model.bridge is {self.bridge}, which needs as many decoder_layers as encoder_layers, and a hidden as "
                f"large as what the encoder gives ({values} numbers)"
            )
        if self.bridge == "linear" and self.encoder_layers != self.decoder_layers:
            raise UserError("model.bridge is linear, which needs as many decoder_layers as encoder_layers")
        if self.tied_embeddings != "none" and self.embedding != self.readout_size:
            name = "output_size" if self.output_size else "hidden"
            raise UserError(
                f"model.tied_embeddings is '{self.tied_embeddings}', but model.embedding is {self.embedding} and "
                f"model.{name} {self.readout_size}; with model.decoder=luong both must be equal"
            )
        if self.tied_embeddings == "all" and self.source_size != self.embedding:
            raise UserError(
                "model.tied_embeddings is 'all', but model.source_embedding is another than model.embedding"
            )


class Memory(NamedTuple):
    """What the encoder leaves: values (batch, source length, value size), what the attention makes of them (batch,
    source length, key size), mask (batch, source length), summary (batch, ...): what the decoder's first state is made
    of. Of a model with locked dropout in training also `locks`, what the decoder's embeddings (batch, embedding) and
    features (batch, features) are multiplied by."""

    values: Tensor
    keys: Tensor
    mask: Tensor
    summary: Tensor
    locks: tuple[Tensor, ...] = ()


class Steps(NamedTuple):
    """A target without its padding, step by step: embeddings (tokens, embedding), how many sentences have each step,
    the first ones, and of each token its sentence and its step, (tokens,)."""

    values: Tensor
    sizes: list[int]
    rows: Tensor
    steps: Tensor


class Recurrent(Seq2Seq):
    """A recurrent model. Its state is a tuple of layers, each (h,) or (h, c) of (batch, slots, hidden)."""

    readout: nn.Linear | NormedSum
    row_sides: ClassVar[dict[str, str]] = {
        "source_embedding.weight": "source",
        "target_embedding.weight": "target",
        "output.weight": "target",
        "output.bias": "target",
    }
    """Tensors with a row a piece, and of which side's vocabulary."""

    def __init__(
        self,
        config: RNNsearchConfig,
        source_vocabulary: int,
        target_vocabulary: int,
        *,
        padding: int = PAD,
        bos: int = BOS,
        eos: int = EOS,
        draw: bool = True,
    ) -> None:
        """Builds the layers, with fresh weights unless `draw` is false: then others are about to be loaded.

        Raises:
            UserError: all embeddings are to be tied and the vocabularies differ in size.
        """
        super().__init__(padding, eos if config.start == "eos" else bos, eos)
        if config.tied_embeddings == "all" and source_vocabulary != target_vocabulary:
            raise UserError(
                f"model.tied_embeddings is 'all', but the vocabularies have {source_vocabulary} and "
                f"{target_vocabulary} pieces; use a joint vocabulary or model.tied_embeddings=output"
            )
        self.config = config
        self.source_embedding = nn.Embedding(source_vocabulary, config.source_size, padding_idx=padding)
        self.target_embedding = nn.Embedding(target_vocabulary, config.embedding, padding_idx=padding)
        self.encoder = _encoder(config)
        self.attention = (
            AdditiveAttention(
                config.hidden, config.value_size, config.attention_size, normed=config.layer_normalization
            )
            if config.attention == "additive"
            else ProductAttention(config.hidden, config.value_size, learned=config.attention == "general")
        )
        self._add_decoder(_cell_of(config))
        self.output = nn.Linear(config.readout_size, target_vocabulary)
        self.dropout = Dropout(config.dropout)
        if draw:
            self._initialise()
        if config.tied_embeddings != "none":
            self.output.weight = self.target_embedding.weight
        if config.tied_embeddings == "all":
            self.source_embedding.weight = self.target_embedding.weight

    @abstractmethod
    def _add_decoder(self, cell: Callable[[int, int], nn.Module]) -> None:
        """Makes the layers of the decoder, the readout the last of them, of cells of this kind."""

    def _initialise(self) -> None:
        for name, parameter in self.named_parameters():
            if "embedding" in name or name == "output.weight":
                # Variance 1/size keeps the logits near 1, be the output layer the embedding (tied) or one of its own.
                # Xavier's, a third of that or less, learns more slowly at first.
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
                if "embedding" in name:
                    with torch.no_grad():
                        parameter[self.padding].zero_()
            elif parameter.dim() < 2:
                nn.init.zeros_(parameter)
            elif "weight_hh" in name:
                for gate in parameter.chunk(parameter.shape[0] // parameter.shape[1]):
                    nn.init.orthogonal_(gate)
            else:
                nn.init.xavier_uniform_(parameter)
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                module.reset_parameters()

    def encode(self, source: Tensor, lengths: Tensor) -> Memory:
        if not self.config.source_end:
            lengths = (lengths - 1).clamp_min(1)
        embedded = self._drop(self.source_embedding(source))
        # Packing keeps padding out of the backward direction; it wants the lengths on the CPU.
        packed = pack_padded_sequence(embedded, lengths.cpu(), batch_first=True, enforce_sorted=False)
        outputs, summary = self._read(packed)
        values, _ = pad_packed_sequence(outputs, batch_first=True, total_length=source.shape[1])
        positions = torch.arange(source.shape[1], device=source.device)
        mask = positions.unsqueeze(0) < lengths.to(source.device).unsqueeze(1)
        # What lies step by step would be copied whenever the attention reads it.
        values = self._drop(values.contiguous())
        return Memory(values, self.attention.keys(values), mask, summary, self._draw_locks(values))

    @abstractmethod
    def _read(self, packed: PackedSequence) -> tuple[PackedSequence, Tensor]:
        """The encoder's outputs, packed alike, and the summary (see `Memory`)."""

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

    def embed(self, tokens: Tensor) -> Tensor:
        embedded = self.target_embedding(tokens)
        return embedded if self.config.locked else self.dropout(embedded)

    @property
    def output_layer(self) -> nn.Linear:
        return self.output

    def project(self, features: Tensor) -> Tensor:
        return self.output(self.output_inputs(features))

    def unrolled(self) -> Self:
        # On a GPU the cells have kernels of their own.
        on_cpu = self.output.weight.device.type == "cpu"
        return for_steps(self) if on_cpu and torch.is_grad_enabled() else self

    def advance(self, embedding: Tensor, state: State, memory: Memory) -> Advance:
        def look(query: Tensor) -> tuple[Tensor, Tensor]:
            return self.attention(query, memory.keys, memory.values, memory.mask)

        return self._advance(embedding, state, look, memory.locks)

    def advance_nodes(self, embedding: Tensor, state: State, memory: Memory, sentences: Tensor) -> Advance:
        # The cells cost most, and they need no padding; the attention reads a sentence for all its slots at once.
        rows = memory.mask.shape[0]
        places, slots = node_places(sentences, rows)

        def look(query: Tensor) -> tuple[Tensor, Tensor]:
            padded = pad_nodes(query.squeeze(1), places, rows, slots)
            found = self.attention(padded, memory.keys, memory.values, memory.mask)
            context, attention = (part.flatten(0, 1).index_select(0, places).unsqueeze(1) for part in found)
            return context, attention

        return self._advance(embedding, state, look, take_rows(memory.locks, sentences))

    def forced_features(self, tokens: Tensor, there: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        if not self._forces_packed:
            return super().forced_features(tokens, there, memory)
        # Step by step, the longest sentences first: those of a step are the first of the step before.
        order = there.sum(dim=1).argsort(descending=True, stable=True)
        steps, rows = there.index_select(0, order).t().nonzero(as_tuple=True)
        memory = take_rows(memory, order)
        places = order.index_select(0, rows) * tokens.shape[1] + steps
        embedded = self.embed(tokens.flatten().index_select(0, places))
        if memory.locks:
            embedded = embedded * memory.locks[0].index_select(0, rows)
        target = Steps(embedded, there.sum(dim=0).tolist(), rows, steps)
        features = self._force(target, memory)
        if memory.locks:
            features = features * memory.locks[1].index_select(0, rows)
        return self._forced(features), places

    @property
    def _forces_packed(self) -> bool:
        """Whether `_force` knows how."""
        return self.output.weight.device.type == "cpu"

    @abstractmethod
    def _force(self, target: Steps, memory: Memory) -> Tensor:
        """What the readout takes, (tokens, size), where the decoder reads `target`."""

    def _forced(self, read: Tensor) -> Tensor:
        """The features, of what the readout takes."""
        return read

    @abstractmethod
    def _advance(
        self,
        embedding: Tensor,
        state: State,
        look: Callable[[Tensor], tuple[Tensor, Tensor]],
        locks: tuple[Tensor, ...],
    ) -> Advance:
        """`look` asks the attention; the locks are those of the rows."""

    def _read_out(self, features: Tensor) -> Tensor:
        """The readout (..., readout size) of its inputs."""
        hidden = by_rows(self.readout, features if self.config.locked else self.dropout(features))
        if self.config.readout == "maxout":
            return maxout(hidden)
        return torch.tanh(hidden) if self.config.readout == "tanh" else hidden

    def _cell(self, cell: nn.Module, inputs: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """One recurrent cell over (batch, slots); the cells of torch know only one leading dimension."""
        flat = tuple(part.flatten(0, 1) for part in state)
        new: Any = cell(inputs.flatten(0, 1), flat[0] if len(flat) == 1 else flat)
        parts = new if isinstance(new, tuple) else (new,)
        return tuple(part.view(*inputs.shape[:2], -1) for part in parts)


def average(packed: PackedSequence) -> Tensor:
    """The mean of each sequence (batch, size)."""
    values, lengths = pad_packed_sequence(packed, batch_first=True)
    return values.sum(dim=1) / lengths.to(values).unsqueeze(1)


def _encoder(config: RNNsearchConfig) -> nn.Module:
    if config.layer_normalization:
        gates = {"gru": 3, "lstm": 4}[config.cell]
        return NormedRecurrent(config.source_size, config.encoder_size, gates, config.encoder_layers, config.dropout)
    return {"gru": nn.GRU, "lstm": nn.LSTM}[config.cell](
        config.source_size,
        config.encoder_size,
        num_layers=config.encoder_layers,
        bidirectional=config.bidirectional,
        batch_first=True,
        dropout=config.dropout if config.encoder_layers > 1 else 0.0,
    )


def _cell_of(config: RNNsearchConfig) -> Callable[[int, int], nn.Module]:
    """What makes a cell of the decoder, of the sizes of its input and its state."""
    if config.layer_normalization:
        return partial(NormedCell, gates={"gru": 3, "lstm": 4}[config.cell])
    return {"gru": nn.GRUCell, "lstm": nn.LSTMCell}[config.cell]
