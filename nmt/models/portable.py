"""The decoding form as two graphs that ONNX can hold: one reads a batch of sources, one moves the decoder by a token.

A packed sequence cannot be exported. ONNX's own recurrent operators take the lengths instead: their backward direction
begins at the last token of each sentence, and what they give at padding is zero, as unpacking does.
"""

from typing import Any

import torch
from torch import Tensor, nn

from nmt.models.attention import FAR
from nmt.models.fused import FusedMemory, FusedRNNsearch

# Where ONNX keeps the gates of torch: GRU (reset, update, new) and LSTM (input, forget, cell, output).
_GATES = {"gru": (1, 0, 2), "lstm": (0, 3, 1, 2)}


class EncoderGraph(nn.Module):
    """(source ids (batch, source length), lengths (batch,)) to the memory's parts and those of the first state.

    Runs as a graph of ONNX only: in torch, its recurrent operators give zeros.
    """

    def __init__(self, form: FusedRNNsearch) -> None:
        super().__init__()
        self.form = form
        encoder, order = form.encoder, _GATES[form.config.cell]
        for layer in range(form.config.encoder_layers):

            def both(name: str, layer: int = layer) -> Tensor:
                """Of both directions, (2, gates * hidden, ...)."""
                sides = (getattr(encoder, f"{name}_l{layer}{suffix}").detach() for suffix in ("", "_reverse"))
                chunks = [side.chunk(len(order)) for side in sides]
                return torch.stack([torch.cat([side[gate] for gate in order]) for side in chunks])

            self.register_buffer(f"input{layer}", both("weight_ih"))
            self.register_buffer(f"recurrent{layer}", both("weight_hh"))
            self.register_buffer(f"bias{layer}", torch.cat([both("bias_ih"), both("bias_hh")], dim=1))

    def forward(self, source: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        form, config = self.form, self.form.config
        values = form.source_embedding(source).transpose(0, 1)
        steps, rows = values.shape[:2]
        attributes: dict[str, Any] = {"hidden_size": config.hidden, "direction": "bidirectional"}
        if config.cell == "gru":
            attributes["linear_before_reset"] = 1  # torch's definition
        final = [(2, rows, config.hidden)] * (1 if config.cell == "gru" else 2)
        summary = values
        for layer in range(config.encoder_layers):
            weights = (getattr(self, f"{part}{layer}") for part in ("input", "recurrent", "bias"))
            outputs, summary, *_ = torch.onnx.ops.symbolic_multi_out(
                config.cell.upper(),
                (values, *weights, lengths.to(torch.int32)),
                attributes,
                dtypes=[values.dtype] * (1 + len(final)),
                shapes=[(steps, 2, rows, config.hidden), *final],
            )
            values = outputs.transpose(1, 2).flatten(2)
        read, summary = values.transpose(0, 1), summary[1]
        if config.bridge == "mean":
            # What the operators give at padding is zero.
            summary = read.sum(dim=1) / lengths.unsqueeze(1)
        memory = form.remember(form.look(read), lengths, summary)
        return (memory.powers, memory.values, memory.mask, *_flatten(form.start(memory)))


class StepGraph(nn.Module):
    """(tokens (batch, slots), parts of the memory, parts of the state) to logits (batch, slots, target vocabulary) and
    the parts of the new state."""

    def __init__(self, form: FusedRNNsearch) -> None:
        super().__init__()
        self.form = _Portable(form)

    def forward(self, tokens: Tensor, memory: tuple[Tensor, ...], state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        powers, values, mask = memory
        parts = 2 if self.form.config.cell == "lstm" else 1
        layers = tuple(state[first : first + parts] for first in range(0, len(state), parts))
        # The first state is read by `start` alone.
        advanced = self.form.advance(self.form.embed(tokens), layers, FusedMemory(powers, values, mask, mask))
        return (self.form.project(advanced.features), *_flatten(advanced.state))


class _Portable(FusedRNNsearch):
    """The form itself, with an attention that suits onnxruntime: its product with a vector is several times slower
    than a sum."""

    def __init__(self, form: FusedRNNsearch) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(form.__dict__)

    def _attend(self, query: Tensor, memory: FusedMemory) -> Tensor:
        asked = (2 * query.clamp(-FAR, FAR)).exp()
        mixed = memory.powers.unsqueeze(1) * asked.unsqueeze(2) + 1.0
        return ((self.energy / mixed).sum(dim=3) + memory.mask.unsqueeze(1)).softmax(dim=2)


def _flatten(state: tuple[tuple[Tensor, ...], ...]) -> list[Tensor]:
    return [part for layer in state for part in layer]
