"""Batches of a text that need not fit into memory: read in order, encoded on the way, shuffled in a buffer."""

import dataclasses
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from nmt.errors import UserError
from nmt.text.batching import Batch, TrainingStream, fitting_rows, report_beyond, report_left_out, usable_rows
from nmt.text.encoding import HeldCorpus
from nmt.text.pairs import Bitext, Pairs
from nmt.text.vocabulary import Vocabulary


@dataclass(frozen=True)
class Place:
    """Where a buffer begins.

    Attributes:
        epoch: the pass over the text.
        pair: pairs of this pass before it.
        buffer: buffers before it, in all passes.
        batch: batches before it, in all passes.
        digest: sha256 (hexadecimal) of the pairs of this pass before it.
    """

    epoch: int = 0
    pair: int = 0
    buffer: int = 0
    batch: int = 0
    digest: str = hashlib.sha256().hexdigest()


class BufferedStream:
    """An endless iterable of batches, like `TrainingStream`: batch b is a function of (text, buffer, budget, seed, b).

    So many pairs at a time are read, encoded, shuffled, and packed into batches; those of a buffer are all dealt out
    before the next is read. In later epochs the first buffer has a size that is drawn, so that its borders, and with
    them which pairs can meet, move.

    What a resumed run needs beside the number of its next batch is where a buffer before it began (`state`,
    `restore`): the text is read up to there, without being encoded, and told from another one by its sha256.

    Args:
        text: what to train on.
        vocabularies: of source and target.
        buffer: pairs that are held.
        budget: largest cost of a batch in tokens, see `TrainingStream`.
        seed: decides order and sampling.
        max_length: pairs with more pieces on a side are left out.
        sampling: strength of subword regularisation, 0 is off.
        rank, world: this process takes the batches b with (b - start_batch) % world == rank. All read all of the text.
        sampled: which sides sampling is for, "both" or "source".

    Attributes:
        start_batch: number of the first batch, counted over all epochs and ranks from 0.
    """

    def __init__(
        self,
        text: Bitext | Pairs,
        vocabularies: tuple[Vocabulary, Vocabulary],
        buffer: int,
        budget: int,
        seed: int,
        max_length: int,
        sampling: float = 0.0,
        rank: int = 0,
        world: int = 1,
        sampled: str = "both",
    ) -> None:
        """Reads nothing yet.

        Raises:
            UserError: a sentence could be over the budget.
        """
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} of {world}: ranks count from 0")
        self.text, self.buffer, self.seed, self.max_length = text, buffer, seed, max_length
        self.rank, self.world, self.start_batch = rank, world, 0
        self._vocabularies, self._sampling, self._sampled = vocabularies, sampling, sampled
        # Those that batches after `start_batch` can be in, by their first batch.
        self._places = [Place()]
        self._held: TrainingStream | None = None
        self._positions: tuple[int | None, int | None] = None, None
        self.set_budget(budget)

    def leave_out_longer(self, source: int | None, target: int | None) -> None:
        """As that of `TrainingStream`; told, and refused where none is left, when the first pass is over."""
        self._positions = source, target
        self._held = None

    def set_budget(self, budget: int) -> None:
        """Another budget: other batches.

        Raises:
            UserError: a sentence could be over it. What is not read yet can be as long as max_length allows.
        """
        if self.longest > budget:
            raise UserError(
                f"data.max_length is {self.max_length}, and with its end a sentence may have more tokens than a batch "
                f"({budget:,}); raise data.batch_tokens or set data.max_length to {budget - 1} or less"
            )
        self.budget = budget
        self._held = None

    @property
    def usable(self) -> int:
        """Pairs of the first buffer to train on."""
        return self._first().usable

    @property
    def longest(self) -> int:
        """Tokens that the longer side of a pair may have, EOS counted: no budget may be smaller."""
        return self.max_length + 1

    def extreme_batches(self, budget: int) -> list[Batch]:
        """As those of `TrainingStream`, of the first buffer."""
        return self._first().extreme_batches(budget)

    def lines(self, row: int) -> tuple[str, str] | None:
        """The pair of that number of the text as it was read; None where it is not held any more."""
        return self._held.lines(row) if self._held is not None and self._holds(row) else None

    def length(self, row: int) -> int:
        """Pieces of the longer side of that pair, without EOS; 0 where it is not held any more."""
        return self._held.length(row) if self._held is not None and self._holds(row) else 0

    def state(self, batch: int) -> dict[str, Any]:
        """From where a run goes on whose next batch is that one; batches before it are not asked for again."""
        while len(self._places) > 1 and self._places[1].batch <= batch:
            del self._places[0]
        return dataclasses.asdict(self._places[0])

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from there; `start_batch` has to be set, too."""
        self._places = [Place(**state)]

    def __iter__(self) -> Iterator[Batch]:
        begin = self._places[0]
        self._places = []
        for place in self._buffers(begin):
            self._places.append(place)
            assert self._held is not None
            for number, rows in enumerate(self._held.plan(place.buffer), start=place.batch):
                turn = number - self.start_batch
                if turn >= 0 and turn % self.world == self.rank:
                    yield self._held.batch(rows, number, place.epoch)

    def _first(self) -> TrainingStream:
        if self._held is None:
            next(self._buffers(Place()))
        assert self._held is not None
        return self._held

    def _holds(self, row: int) -> bool:
        assert self._held is not None
        return 0 <= row - self._held.corpus.first < len(self._held.corpus)

    def _buffers(self, place: Place) -> Iterator[Place]:
        """Where each buffer begins that has pairs to train on; it is then what is held."""
        while True:
            pairs, digest = iter(self.text), hashlib.sha256()
            for pair in islice(pairs, place.pair):
                _add(digest, pair)
            if digest.hexdigest() != place.digest:
                raise UserError(
                    f"the first {place.pair:,} pairs of {self.text.name} are others than when the run was trained on "
                    "them; restore the text, or begin a new run with --from"
                )
            counted = np.zeros(5, int)
            while True:
                # The last buffer is let go before the next is read.
                self._held = None
                held, counts = self._read(pairs, place, digest)
                counted += counts
                if not counts[0]:
                    break
                batches = 0
                if held is not None:
                    self._held = held
                    yield place
                    batches = held.batches_in_epoch(place.buffer)
                place = Place(
                    place.epoch, place.pair + counts[0], place.buffer + 1, place.batch + batches, digest.hexdigest()
                )
                held = None
            if place.epoch == 0:
                total, used, too_long, empty, beyond = counted.tolist()
                report_beyond(total, used, beyond, *self._positions)
                report_left_out(total, used, too_long, empty, self.max_length)
            place = Place(place.epoch + 1, 0, place.buffer, place.batch)

    def _read(
        self, pairs: Iterator[tuple[str, str]], place: Place, digest: Any
    ) -> tuple[TrainingStream | None, tuple[int, int, int, int, int]]:
        """A buffer, None if it has nothing to train on; its pairs, and those used, too long, with an empty side, and
        beyond the model's positions."""
        size = self.buffer
        if place.epoch and not place.pair:
            size = int(np.random.default_rng([self.seed % 2**63, place.epoch]).integers(1, size + 1))
        corpus = HeldCorpus((_add(digest, pair) for pair in islice(pairs, size)), self._vocabularies, place.pair)
        usable, too_long, empty = usable_rows(corpus, self.max_length)
        rows = fitting_rows(corpus, usable, *self._positions)
        held = None
        if len(rows):
            held = TrainingStream(
                corpus,
                self.budget,
                self.seed,
                sampling=self._sampling,
                sampled=self._sampled,
                vocabularies=self._vocabularies,
                rows=rows,
            )
        return held, (len(corpus), len(rows), too_long, empty, len(usable) - len(rows))


def _add(digest: Any, pair: tuple[str, str]) -> tuple[str, str]:
    digest.update(f"{pair[0]}\n{pair[1]}\n".encode())
    return pair
