"""Every step of a search as it was taken: who continues whom by which token; read backwards, the hypotheses."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Ints = NDArray[np.int64]


class Path(NamedTuple):
    """A hypothesis as a way through the lattice.

    Attributes:
        tokens: the ids, the last one included.
        log_probabilities: of each token, in nats.
        attention: (tokens, source length), or None.
    """

    tokens: Ints
    log_probabilities: NDArray[np.float32]
    attention: NDArray[np.float32] | None


class _Step(NamedTuple):
    rows: Tensor  # (open,), ascending
    parents: Tensor  # (open, slots)
    tokens: Tensor
    scores: Tensor  # of the hypotheses so far
    attention: Tensor | None  # (open, slots before, source length)


class Lattice:
    """The steps of a search over a batch whose sentences leave it one by one."""

    def __init__(self) -> None:
        self._steps: list[_Step] = []

    def add(self, rows: Tensor, parents: Tensor, tokens: Tensor, scores: Tensor, attention: Tensor | None) -> None:
        """Notes a step.

        Args:
            rows: (open,), the sentences that are still open, ascending.
            parents, tokens, scores: (open, slots), of the slots after the step; scores are log-probabilities of
                whole hypotheses.
            attention: (open, slots before the step, source length).
        """
        self._steps.append(_Step(rows, parents, tokens, scores, attention))

    def read(self, sentences: Ints, last: Ints, slots: Ints) -> list[Path]:
        """The hypotheses that ended at some places, all traced back together.

        Args:
            sentences: (paths,), the sentence of each.
            last: (paths,), the step that wrote its last token.
            slots: (paths,), the slot that it had then.
        """
        count, longest = len(sentences), int(last.max(initial=-1)) + 1
        tokens = np.zeros((count, longest), dtype=np.int64)
        totals = np.zeros((count, longest + 1), dtype=np.float32)
        seen: list[NDArray[np.float32]] = []
        slots = slots.copy()
        for number in range(longest - 1, -1, -1):
            step = self._steps[number]
            active = np.flatnonzero(last >= number)
            place = np.searchsorted(step.rows.cpu().numpy(), sentences[active]), slots[active]
            tokens[active, number] = step.tokens.cpu().numpy()[place]
            totals[active, number + 1] = step.scores.float().cpu().numpy()[place]
            slots[active] = step.parents.cpu().numpy()[place]
            if step.attention is not None:
                weights = np.zeros((count, step.attention.shape[2]), dtype=np.float32)
                weights[active] = step.attention.float().cpu().numpy()[place[0], slots[active]]
                seen.append(weights)
        attention = np.stack(seen[::-1], axis=1) if seen else None
        of_tokens = np.diff(totals, axis=1)
        return [
            Path(tokens[i, :length], of_tokens[i, :length], None if attention is None else attention[i, :length])
            for i, length in enumerate((last + 1).tolist())
        ]
