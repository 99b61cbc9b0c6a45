"""A recurrent model as two graphs that ONNX can hold: one reads a batch of sources, one moves the decoder by a token.

A packed sequence cannot be exported. ONNX's own recurrent operators take the lengths instead: their backward direction
begins at the last token of each sentence, and what they give at padding is zero, as unpacking does.
"""

from typing import Any

import torch
from torch import Tensor, nn

from nmt.models.attention import FAR, AdditiveAttention, average
from nmt.models.fused import FusedMemory, FusedRNNsearch
from nmt.models.luong import Luong
from nmt.models.recurrent import Memory, State
from nmt.models.seq2seq import Advance

Form = FusedRNNsearch | Luong
"""What there are graphs of."""

# Where ONNX keeps the gates of torch: GRU (reset, update, new) and LSTM (input, forget, cell, output).
_GATES = {"gru": (1, 0, 2), "lstm": (0, 3, 1, 2)}


class EncoderGraph(nn.Module):
    """(source ids (batch, source length), lengths (batch,)) to the memory's parts and those of the first state.

    Runs as a graph of ONNX only: in torch, its recurrent operators give zeros.
    """

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = form
        encoder, order = form.encoder, _GATES[form.config.cell]
        suffixes = ("", "_reverse") if form.config.bidirectional else ("",)
        for layer in range(form.config.encoder_layers):

            def every(name: str, layer: int = layer) -> Tensor:
                """Of all directions, (directions, gates * hidden, ...)."""
                sides = (getattr(encoder, f"{name}_l{layer}{suffix}").detach() for suffix in suffixes)
                chunks = [side.chunk(len(order)) for side in sides]
                return torch.stack([torch.cat([side[gate] for gate in order]) for side in chunks])

            self.register_buffer(f"input{layer}", every("weight_ih"))
            self.register_buffer(f"recurrent{layer}", every("weight_hh"))
            self.register_buffer(f"bias{layer}", torch.cat([every("bias_ih"), every("bias_hh")], dim=1))

    @property
    def memory_parts(self) -> int:
        """How many of the outputs are the memory's."""
        return 2 if self.form.config.attention == "dot" else 3

    def forward(self, source: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        form, config = self.form, self.form.config
        if not config.source_end:
            lengths = (lengths - 1).clamp_min(1)
        values = form.source_embedding(source).transpose(0, 1)
        steps, rows = values.shape[:2]
        size, directions = config.encoder_size, 2 if config.bidirectional else 1
        attributes: dict[str, Any] = {
            "hidden_size": size,
            "direction": "bidirectional" if config.bidirectional else "forward",
        }
        if config.cell == "gru":
            attributes["linear_before_reset"] = 1  # torch's definition
        final = [(directions, rows, size)] * (1 if config.cell == "gru" else 2)
        finals: list[list[Tensor]] = [[] for _ in final]
        for layer in range(config.encoder_layers):
            weights = (getattr(self, f"{part}{layer}") for part in ("input", "recurrent", "bias"))
            outputs, *last = torch.onnx.ops.symbolic_multi_out(
                config.cell.upper(),
                (values, *weights, lengths.to(torch.int32)),
                attributes,
                dtypes=[values.dtype] * (1 + len(final)),
                shapes=[(steps, directions, rows, size), *final],
            )
            values = outputs.transpose(1, 2).flatten(2)
            for part, state in zip(finals, last, strict=True):
                part.append(state)
        read = values.transpose(0, 1)
        # What the operators give at padding is zero.
        mean = read.sum(dim=1) / lengths.unsqueeze(1) if config.bridge == "mean" else None
        if isinstance(form, FusedRNNsearch):
            fused = form.remember(form.look(read), lengths, finals[0][-1][1] if mean is None else mean)
            return (fused.powers, fused.values, fused.mask, *_flatten(form.start(fused)))
        summary = form.summarise(tuple(torch.cat(part) for part in finals), mean)
        mask = torch.arange(read.shape[1], device=read.device) < lengths.unsqueeze(1)
        memory = Memory(read, form.attention.keys(read), mask, summary)
        # Where values are compared as they are they are keys, too.
        parts = (read, mask) if config.attention == "dot" else (read, memory.keys, mask)
        return (*parts, *_flatten(form.start(memory)))


class StepGraph(nn.Module):
    """(tokens (batch, slots), parts of the memory, parts of the state) to logits (batch, slots, target vocabulary) and
    the parts of the new state."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = _Portable(form) if isinstance(form, FusedRNNsearch) else _PortableLuong(form)

    def forward(self, tokens: Tensor, memory: tuple[Tensor, ...], state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        parts = 2 if self.form.config.cell == "lstm" else 1
        # What is fed back, where that is part of the state, is the last layer and a single part.
        layers = tuple(state[first : first + parts] for first in range(0, len(state), parts))
        *_, mask = memory
        # The first state and what it is made of are read by `start` alone.
        known = memory[0], memory[-2], mask, mask
        embedded = self.form.embed(tokens)
        if isinstance(self.form, FusedRNNsearch):
            advanced = self.form.advance(embedded, layers, FusedMemory(*known))
        else:
            advanced = self.form.advance(embedded, layers, Memory(*known))
        return (self.form.project(advanced.features), *_flatten(advanced.state))


class _Portable(FusedRNNsearch):
    """The form itself, with an attention that suits onnxruntime: its product with a vector is several times slower
    than a sum."""

    def __init__(self, form: FusedRNNsearch) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(form.__dict__)

    def _attend(self, query: Tensor, memory: FusedMemory) -> Tensor:
        return (_energies(query, memory.powers, self.energy) + memory.mask.unsqueeze(1)).softmax(dim=2)


class _PortableLuong(Luong):
    """The model itself, with such an attention, too."""

    def __init__(self, form: Luong) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(form.__dict__)

    def advance(self, embedding: Tensor, state: State, memory: Memory) -> Advance:
        def look(query: Tensor) -> tuple[Tensor, Tensor]:
            if not isinstance(self.attention, AdditiveAttention):
                return self.attention(query, memory.keys, memory.values, memory.mask)
            energies = _energies(self.attention.query(query), memory.keys, -2 * self.attention.energy.weight[0])
            return average(energies, memory.values, memory.mask)

        return self._advance(embedding, state, look, ())


def _energies(query: Tensor, keys: Tensor, weight: Tensor) -> Tensor:
    """(batch, slots, source length), of powers of keys and -2 v; see `AdditiveAttention`."""
    asked = (2 * query.clamp(-FAR, FAR)).exp()
    return (weight / (keys.unsqueeze(1) * asked.unsqueeze(2) + 1.0)).sum(dim=3)


def _flatten(state: tuple[tuple[Tensor, ...], ...]) -> list[Tensor]:
    return [part for layer in state for part in layer]
