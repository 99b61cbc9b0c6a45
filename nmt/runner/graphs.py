"""Encoder and step of the decoder as onnxruntime runs them."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nmt.errors import UserError

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


class Encoded(NamedTuple):
    """What the encoder leaves: the parts of the memory, (batch, source length, ...), and those of the decoder's first
    state, (batch, 1, ...)."""

    memory: list[Floats]
    state: list[Floats]


class Graphs:
    """The two graphs of an exported model. Inputs and outputs have names: `source` and `lengths` to `memory_i` and
    `state_i`; `tokens`, `memory_i` and `state_i` to `logits` and `new_state_i`."""

    def __init__(self, encoder: bytes, step: bytes, threads: int = 0) -> None:
        """Opens the graphs.

        Args:
            encoder, step: as ONNX writes them to files.
            threads: of an operator; 0 is onnxruntime's choice.

        Raises:
            UserError: onnxruntime is missing or cannot take the graphs.
        """
        self._encoder, self._step = _open(encoder, threads), _open(step, threads)
        wanted = [one.name for one in self._step.get_inputs()]
        given = [one.name for one in self._encoder.get_outputs()]
        if wanted != ["tokens", *given]:
            raise UserError(
                f"The graphs do not fit: one gives {', '.join(given)}, the other takes {', '.join(wanted)}; "
                "export again."
            )
        self._names = given
        self._parts = sum(name.startswith("memory_") for name in given)

    def encode(self, source: Ints, lengths: Ints) -> Encoded:
        """Reads sources (batch, source length), padded behind lengths (batch,)."""
        parts = self._encoder.run(self._names, {"source": source, "lengths": lengths})
        return Encoded(parts[: self._parts], parts[self._parts :])

    def step(self, tokens: Ints, encoded: Encoded) -> tuple[Floats, list[Floats]]:
        """Logits (batch, slots, target vocabulary) and the new state when tokens (batch, slots) are read."""
        inputs = dict(zip(self._names, (*encoded.memory, *encoded.state), strict=True))
        logits, *state = self._step.run(None, {"tokens": tokens, **inputs})
        return logits, state


def _open(graph: bytes, threads: int) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise UserError("An exported model needs onnxruntime; install it (pip install onnxruntime).") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its own kinds have no other parent in common
        message = " ".join(str(error).split())[:200]
        raise UserError(
            f"onnxruntime {onnxruntime.__version__} cannot take the graph ({message}); install a newer one."
        ) from None
