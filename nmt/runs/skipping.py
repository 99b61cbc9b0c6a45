"""Updates whose loss or gradient is no number: they are skipped and counted, and so many in a row end the run."""

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from nmt.runs.world import World


class Skipping:
    """Decides, in all processes alike, whether an update is made.

    A skipped update keeps its number and its learning rate; weights and optimiser stay as they are.

    Args:
        limit: how many in a row end the run.
        world: the processes.

    Attributes:
        total, in_a_row: how many were skipped, in the run and just now.
        rows: of the corpus, ascending, in the present update if it is skipped; those of the batches whose loss is no
            number, or of all where that is the gradient alone.
    """

    def __init__(self, limit: int, world: World) -> None:
        self.limit = limit
        self.world = world
        self.total = self.in_a_row = 0
        self.rows: list[int] = []
        self._seen: list[tuple[Tensor, Sequence[int]]] = []

    @property
    def is_over(self) -> bool:
        """Whether as many in a row were skipped as may be."""
        return self.in_a_row >= self.limit

    def note(self, value: Tensor, rows: Sequence[int], first: bool) -> None:
        """Keeps the loss of a batch in mind.

        Args:
            value: a scalar.
            rows: the batch's.
            first: whether the batch is the first of its update in this process.
        """
        self._seen = [*([] if first else self._seen), (value.detach(), rows)]

    def decide(self, finite: Tensor) -> bool:
        """Whether the update is to be skipped. Waits for the device, once an update.

        Args:
            finite: a scalar, whether losses and gradient are numbers; equal in all processes.
        """
        bad = not finite.item()
        self.rows = self._guilty() if bad else []
        self.total += bad
        self.in_a_row = self.in_a_row + 1 if bad else 0
        return bad

    def _guilty(self) -> list[int]:
        here = [(bool(torch.isfinite(value)), list(rows)) for value, rows in self._seen]
        seen = list(chain.from_iterable(self.world.gather(here)))
        guilty = [rows for finite, rows in seen if not finite] or [rows for _, rows in seen]
        return sorted(chain.from_iterable(guilty))

    def state_dict(self) -> dict[str, int]:
        return {"total": self.total, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.total, self.in_a_row = state["total"], state["in_a_row"]
