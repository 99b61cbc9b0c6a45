"""A recurrent model as two graphs that ONNX can hold: one reads a batch of sources, one moves the decoder by a token.

A packed sequence cannot be exported. ONNX's own recurrent operators take the lengths instead: their backward direction
begins at the last token of each sentence, and what they give at padding is zero, as unpacking does.
"""

from typing import Any

import torch
from torch import Tensor, nn

from nmt.models.attention import FAR
from nmt.models.fused import Fused, FusedMemory, FusedRNNsearch
from nmt.models.fused_luong import FusedLuong

Form = FusedRNNsearch | FusedLuong
"""What there are graphs of."""

MEMORY = 3
"""How many of the outputs of the first graph are the memory's."""

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
        initial = form.begin(tuple(torch.cat(part) for part in finals), mean)
        memory = form.remember(form.looked(read), lengths, initial)
        return (*memory[:MEMORY], *_flatten(form.start(memory)))


class StepGraph(nn.Module):
    """(tokens (batch, slots), parts of the memory, parts of the state) to logits (batch, slots, target vocabulary) and
    the parts of the new state."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = (_PortableRNNsearch if isinstance(form, FusedRNNsearch) else _PortableLuong)(form)

    def forward(self, tokens: Tensor, memory: tuple[Tensor, ...], state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        parts = 2 if self.form.config.cell == "lstm" else 1
        # What is fed back, where that is part of the state, is the last layer and a single part.
        layers = tuple(state[first : first + parts] for first in range(0, len(state), parts))
        keys, values, mask = memory
        # What the first state is made of is read by `start` alone.
        advanced = self.form.advance(self.form.embed(tokens), layers, FusedMemory(keys, values, mask, mask))
        return (self.form.project(advanced.features), *_flatten(advanced.state))


class _Portable(Fused):
    """The form itself, with an attention that suits onnxruntime: its product with a vector is several times slower
    than a sum."""

    def __init__(self, form: Fused) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(form.__dict__)

    def compare(self, energy: Tensor, query: Tensor, memory: FusedMemory) -> Tensor:
        asked = (2 * query.clamp(-FAR, FAR)).exp()
        return (energy / (memory.keys.unsqueeze(1) * asked.unsqueeze(2) + 1.0)).sum(dim=3)


class _PortableRNNsearch(_Portable, FusedRNNsearch):
    pass


class _PortableLuong(_Portable, FusedLuong):
    pass


def _flatten(state: tuple[tuple[Tensor, ...], ...]) -> list[Tensor]:
    return [part for layer in state for part in layer]
