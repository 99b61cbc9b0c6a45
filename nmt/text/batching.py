"""Batches of a token budget, bucketed by length, reproducible from (seed, number of the batch)."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nmt.errors import UserError
from nmt.text.encoding import Encoded
from nmt.text.planning import Rows, check_budget, evaluation_batches, plan_batches
from nmt.text.vocabulary import EOS, PAD, Special, Vocabulary

__all__ = [
    "Batch",
    "TrainingStream",
    "collate",
    "cut_longer",
    "evaluation_batches",
    "fitting_rows",
    "pad",
    "plan_batches",
    "report_beyond",
    "report_left_out",
    "usable_rows",
]

logger = logging.getLogger(__name__)

Sampler = Callable[[Sequence[int]], tuple[list[list[int]], list[list[int]]]]


@dataclass
class Batch:
    """Padded ids of some rows of a corpus.

    Attributes:
        source: (batch, source length) int64, each row ends in EOS, then PAD.
        source_lengths: (batch,) int64, EOS counted.
        target: (batch, target length) int64, each row ends in EOS, then PAD; no BOS.
        target_lengths: (batch,) int64, EOS counted.
        indices: row of the corpus for each row of the batch.
        epoch: the epoch that the batch belongs to.
    """

    source: Tensor
    source_lengths: Tensor
    target: Tensor
    target_lengths: Tensor
    indices: list[int]
    epoch: int = 0

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def source_tokens(self) -> int:
        """Source tokens without padding, EOS counted."""
        return int(self.source_lengths.sum())

    @property
    def target_tokens(self) -> int:
        """Target tokens without padding, EOS counted."""
        return int(self.target_lengths.sum())

    @property
    def padding_share(self) -> float:
        """The share of PAD in source and target together, in [0, 1)."""
        return 1 - (self.source_tokens + self.target_tokens) / (self.source.numel() + self.target.numel())

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """The batch on another device."""
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory, from where it copies to a GPU without waiting."""
        return self._mapped(lambda tensor: tensor.pin_memory())

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        return replace(
            self,
            source=change(self.source),
            source_lengths=change(self.source_lengths),
            target=change(self.target),
            target_lengths=change(self.target_lengths),
        )


def collate(
    corpus: Encoded,
    rows: Sequence[int] | Rows,
    epoch: int,
    sampler: Sampler | None = None,
    vocabularies: tuple[Vocabulary, Vocabulary] | None = None,
) -> Batch:
    """Makes a batch of rows of a corpus.

    Args:
        corpus: the ids.
        rows: which rows, in the order of the batch.
        epoch: noted in the batch.
        sampler: gives the ids of source and target of the rows instead of the corpus.
        vocabularies: of source and target, whose EOS and padding are used; PAD and EOS without them.
    """
    indices = [int(row) for row in rows]
    sources: Sequence[Sequence[int] | NDArray[np.int32]]
    targets: Sequence[Sequence[int] | NDArray[np.int32]]
    if sampler is None:
        sources, targets = [corpus.source(i) for i in indices], [corpus.target(i) for i in indices]
    else:
        sources, targets = sampler(indices)
    first, second = (v.special for v in vocabularies) if vocabularies else (Special(), Special())
    return Batch(*pad(sources, first.padding, first.eos), *pad(targets, second.padding, second.eos), indices, epoch)


def pad(
    sentences: Sequence[Sequence[int] | NDArray[np.int32]], padding: int = PAD, eos: int = EOS
) -> tuple[Tensor, Tensor]:
    """Appends EOS to each sentence and pads.

    Returns:
        ids (batch, length) int64 and lengths (batch,) int64, EOS counted.
    """
    lengths = np.array([len(sentence) + 1 for sentence in sentences], dtype=np.int64)
    ids = np.full((len(sentences), int(lengths.max(initial=0))), padding, dtype=np.int64)
    for row, sentence in enumerate(sentences):
        ids[row, : len(sentence)] = sentence
        ids[row, len(sentence)] = eos
    return torch.from_numpy(ids), torch.from_numpy(lengths)


class TrainingStream:
    """An endless or finite iterable of batches; batch b is a function of (corpus, budget, seed, b) alone.

    So a run that resumes at batch b sees what it would have seen. Each iteration starts at `start_batch`.
    """

    def __init__(
        self,
        corpus: Encoded,
        budget: int,
        seed: int,
        start_batch: int = 0,
        epochs: int | None = None,
        max_length: int | None = None,
        sampling: float = 0.0,
        vocabularies: tuple[Vocabulary, Vocabulary] | None = None,
        rank: int = 0,
        world: int = 1,
        rows: Rows | None = None,
        sampled: str = "both",
    ) -> None:
        """Checks the corpus against the limits.

        Args:
            corpus: what to train on.
            budget: largest cost of a batch in tokens, padding and EOS counted; see `plan_batches`.
                Sampling makes sentences longer than the plan knows.
            seed: decides order and sampling.
            start_batch: number of the first batch, counted over all epochs (and all ranks) from 0.
            epochs: None never ends.
            max_length: pairs with more pieces on a side are left out; None keeps all.
            sampling: strength of subword regularisation, 0 is off; see `Vocabulary.sample`.
            vocabularies: of source and target, needed for sampling and for special ids other than PAD and EOS.
            rank: this process takes the batches b with (b - start_batch) % world == rank.
            world: number of processes; an incomplete last round of a finite stream is left out, so that all
                have equally many.
            rows: the rows that are used, instead of those that max_length leaves and that have no empty side.
            sampled: which sides sampling is for, "both" or "source".

        Raises:
            UserError: no pair is left, a sentence is over the budget, or sampling without vocabularies.
        """
        if sampling and vocabularies is None:
            raise UserError(f"sampling is {sampling}, which needs the vocabularies; pass them or set sampling to 0.")
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} of {world}: ranks count from 0")
        self.corpus, self.seed = corpus, seed
        self.start_batch, self.epochs = start_batch, epochs
        self.sampling, self.sampled, self._vocabularies = sampling, sampled, vocabularies
        self.rank, self.world = rank, world
        self._keep(_reported_rows(corpus, max_length) if rows is None else rows)
        self.set_budget(budget)

    def _keep(self, rows: Rows) -> None:
        self.rows = rows
        self._source_lengths = self.corpus.source_lengths[rows - self.corpus.first]
        self._target_lengths = self.corpus.target_lengths[rows - self.corpus.first]

    def leave_out_longer(self, source: int | None, target: int | None) -> None:
        """Leaves pairs out that have more pieces, EOS not counted, than a model has positions for; None for no limit.

        Raises:
            UserError: none is left.
        """
        fitting = fitting_rows(self.corpus, self.rows, source, target)
        beyond = len(self.rows) - len(fitting)
        report_beyond(len(self.corpus), len(fitting), beyond, source, target)
        if beyond:
            self._keep(fitting)
            self.set_budget(self.budget)

    def set_budget(self, budget: int) -> None:
        """Another budget: another plan of all batches.

        Raises:
            UserError: a sentence is over it.
        """
        check_budget(np.maximum(self._source_lengths, self._target_lengths).astype(np.int64) + 1, budget, self.rows)
        self.budget = budget
        self._counts: dict[int, int] = {}

    @property
    def usable(self) -> int:
        """Pairs to train on."""
        return len(self.rows)

    @property
    def longest(self) -> int:
        """Tokens of the longer side of the longest pair, EOS counted: no budget may be smaller."""
        return int(max(self._source_lengths.max(), self._target_lengths.max())) + 1

    def extreme_batches(self, budget: int) -> list[Batch]:
        """The largest batch of the longest pairs and the largest of the shortest that a budget allows, whatever the
        stream's own. Of a sampled vocabulary the pieces are drawn."""
        lengths = np.maximum(self._source_lengths, self._target_lengths).astype(np.int64) + 1
        order = np.argsort(lengths, kind="stable")
        fit = int((np.arange(1, len(order) + 1) * lengths[order] <= budget).sum())
        sampler = self._sampler(0) if self.sampling else None
        places = order[::-1][: budget // lengths[order[-1]]], order[:fit][::-1]
        return [collate(self.corpus, self.rows[rows], 0, sampler, self._vocabularies) for rows in places]

    def batches_in_epoch(self, epoch: int) -> int:
        """The number of batches of an epoch (of all ranks together); epochs differ a little."""
        if epoch not in self._counts:
            self.plan(epoch)
        return self._counts[epoch]

    def __iter__(self) -> Iterator[Batch]:
        epoch, first = self._locate(self.start_batch)
        while self.epochs is None or epoch < self.epochs:
            plan = self.plan(epoch)
            for number, rows in enumerate(plan, start=first):
                place = number - self.start_batch
                if place >= 0 and place % self.world == self.rank:
                    round_end = number - self.rank + self.world - 1
                    if round_end >= first + len(plan) and not self._holds(round_end):
                        return
                    yield self.batch(rows, number, epoch)
            first += len(plan)
            epoch += 1

    def _holds(self, number: int) -> bool:
        return self.epochs is None or self._locate(number)[0] < self.epochs

    def _locate(self, number: int) -> tuple[int, int]:
        """The epoch of a batch and the number of that epoch's first batch."""
        epoch = first = 0
        while (self.epochs is None or epoch < self.epochs) and first + self.batches_in_epoch(epoch) <= number:
            first += self.batches_in_epoch(epoch)
            epoch += 1
        return epoch, first

    def plan(self, epoch: int) -> list[Rows]:
        """The rows of each batch of an epoch."""
        plan = plan_batches(self._source_lengths, self._target_lengths, self.budget, seed=self.seed, epoch=epoch)
        self._counts[epoch] = len(plan)
        return [self.rows[rows] for rows in plan]

    def batch(self, rows: Rows, number: int, epoch: int) -> Batch:
        """The batch of that number, of these rows."""
        sampler = self._sampler(number) if self.sampling else None
        return collate(self.corpus, rows, epoch, sampler, self._vocabularies)

    def lines(self, row: int) -> tuple[str, str] | None:
        """The pair of a row as it was read."""
        return self.corpus.source_line(row), self.corpus.target_line(row)

    def length(self, row: int) -> int:
        """Pieces of the longer side of the pair of a row, without EOS."""
        return int(max(len(self.corpus.source(row)), len(self.corpus.target(row))))

    def state(self, batch: int) -> dict[str, Any]:
        """What a resumed run needs beside the number of its next batch: nothing."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from a state."""

    def _sampler(self, number: int) -> Sampler:
        source_seed, target_seed = np.random.SeedSequence([self.seed % 2**63, number]).generate_state(2)

        def sample(rows: Sequence[int]) -> tuple[list[list[int]], list[list[int]]]:
            assert self._vocabularies is not None
            source, target = self._vocabularies
            sources = source.sample([self.corpus.source_line(i) for i in rows], int(source_seed), self.sampling)
            if self.sampled == "source":
                return sources, [self.corpus.target(i).tolist() for i in rows]
            targets = target.sample([self.corpus.target_line(i) for i in rows], int(target_seed), self.sampling)
            return sources, targets

        return sample


def cut_longer(corpus: Encoded, source: int | None, target: int | None, name: str) -> Sampler | None:
    """For `collate`, the ids of pairs up to what a model has positions for (EOS not counted; None for no limit). How
    many are longer is told; where none is, there is nothing to cut.

    Args:
        corpus, source, target: of the pairs, and the most pieces.
        name: of the text, for the message.
    """
    longer = _beyond(corpus.source_lengths, source) | _beyond(corpus.target_lengths, target)
    if not longer.any():
        return None
    told = "%s of %s pairs of %s are longer than %s: read up to there"
    logger.warning(told, f"{longer.sum():,}", f"{len(corpus):,}", name, _tell_positions(source, target))

    def cut(rows: Sequence[int]) -> tuple[list[list[int]], list[list[int]]]:
        sides = (corpus.source, source), (corpus.target, target)
        sources, targets = ([of(row)[:most].tolist() for row in rows] for of, most in sides)
        return sources, targets

    return cut


def _beyond(lengths: NDArray[np.int32], most: int | None) -> NDArray[np.bool_]:
    return np.zeros(len(lengths), bool) if most is None else lengths > most


def _tell_positions(source: int | None, target: int | None) -> str:
    sides = [
        f"{most:,} pieces of a {side}" for side, most in (("source", source), ("target", target)) if most is not None
    ]
    return f"the model has positions for, {' and '.join(sides)}"


def usable_rows(corpus: Encoded, max_length: int | None) -> tuple[Rows, int, int]:
    """The rows that can be trained on; and how many others are too long, and how many have an empty side."""
    shorter = np.minimum(corpus.source_lengths, corpus.target_lengths)
    longer = np.maximum(corpus.source_lengths, corpus.target_lengths)
    too_long = np.zeros(len(corpus), bool) if max_length is None else longer > max_length
    empty = shorter == 0
    return np.flatnonzero(~(too_long | empty)) + corpus.first, int(too_long.sum()), int(empty.sum())


def report_left_out(pairs: int, used: int, too_long: int, empty: int, max_length: int | None) -> None:
    """Logs how many pairs are not trained on.

    Raises:
        UserError: none is.
    """
    if too_long:
        logger.info("Left out %s of %s pairs: longer than max_length = %s pieces on a side",
                    f"{too_long:,}", f"{pairs:,}", max_length)  # fmt: skip
    if empty:
        logger.info("Left out %s of %s pairs: a side is empty", f"{empty:,}", f"{pairs:,}")
    if not used:
        raise UserError(f"No pair is left to train on: of {pairs:,}, {too_long:,} are over "
                        f"max_length = {max_length} pieces and {empty:,} have an empty side.")  # fmt: skip


def fitting_rows(corpus: Encoded, rows: Rows, source: int | None, target: int | None) -> Rows:
    """Those of the rows that a model has positions for: at most so many pieces, EOS not counted; None for no limit."""
    places = rows - corpus.first
    beyond = _beyond(corpus.source_lengths[places], source) | _beyond(corpus.target_lengths[places], target)
    return rows[~beyond]


def report_beyond(pairs: int, used: int, beyond: int, source: int | None, target: int | None) -> None:
    """Tells how many pairs are not trained on because a model has no positions for them.

    Raises:
        UserError: no other is left.
    """
    if not beyond:
        return
    limits = _tell_positions(source, target)
    if not used:
        raise UserError(f"No pair is left to train on: all {beyond:,} are longer than {limits}; give shorter lines.")
    logger.warning("Left out %s of %s pairs: longer than %s", f"{beyond:,}", f"{pairs:,}", limits)


def _reported_rows(corpus: Encoded, max_length: int | None) -> Rows:
    rows, too_long, empty = usable_rows(corpus, max_length)
    report_left_out(len(corpus), len(rows), too_long, empty, max_length)
    return rows
