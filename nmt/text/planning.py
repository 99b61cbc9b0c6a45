"""Which rows make a batch: packing under a token budget, bucketed by length, shuffled reproducibly."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nmt.errors import UserError
from nmt.text.encoding import EncodedCorpus

Rows = NDArray[np.int64]


def plan_batches(
    source_lengths: NDArray[np.int32],
    target_lengths: NDArray[np.int32],
    budget: int,
    *,
    seed: int,
    epoch: int,
    shuffle: bool = True,
    sort_window: int = 100,
) -> list[Rows]:
    """Splits the rows of a corpus into the batches of an epoch.

    The cost of a batch is rows * (longest source or target, EOS counted), so padding counts. Rows are
    shuffled, sorted by length inside windows, packed, and the batches shuffled. Each row is in exactly one
    batch. In epoch 0 the batch of the largest cost (the longest of those) comes first, so that lack of memory
    shows at once.

    Args:
        source_lengths: (rows,) pieces without EOS.
        target_lengths: (rows,) pieces without EOS.
        budget: largest cost of a batch, in tokens.
        seed: with `epoch`, decides the order.
        epoch: from 0.
        shuffle: False sorts all rows, longest first, and keeps that order.
        sort_window: size of a window, in batches. A larger one pads less and mixes less.

    Returns:
        The rows of each batch, (batch,) int64.

    Raises:
        UserError: a sentence alone is over the budget.
    """
    longest = np.maximum(source_lengths, target_lengths).astype(np.int64) + 1
    check_budget(longest, budget)
    generator = np.random.default_rng([seed % 2**63, epoch])
    order, window = _sorted_rows(longest, np.asarray(source_lengths), budget, generator, sort_window if shuffle else 0)
    batches = _pack(longest[order], order, window, budget)
    if shuffle:
        batches = [batches[i] for i in generator.permutation(len(batches))]
        if epoch == 0 and batches:
            # A batch's first row is its longest.
            costs = [(len(rows) * int(longest[rows[0]]), int(longest[rows[0]])) for rows in batches]
            batches.insert(0, batches.pop(costs.index(max(costs))))
    return batches


def evaluation_batches(corpus_or_lengths: EncodedCorpus | Sequence[int] | NDArray[np.int32], budget: int) -> list[Rows]:
    """Batches for decoding or scoring, sorted by length, longest first; put the results back by their rows.

    Args:
        corpus_or_lengths: a corpus (the longer side of each pair counts), or the lengths of sources in pieces
            without EOS.
        budget: largest cost of a batch in tokens, see `plan_batches`; a longer sentence makes its own batch.

    Returns:
        The rows of each batch, (batch,) int64.
    """
    if isinstance(corpus_or_lengths, EncodedCorpus):
        lengths = np.maximum(corpus_or_lengths.source_lengths, corpus_or_lengths.target_lengths)
    else:
        lengths = np.asarray(corpus_or_lengths, dtype=np.int32).reshape(-1)
    longest = lengths.astype(np.int64) + 1
    order = np.argsort(-longest, kind="stable")
    return _pack(longest[order], order, len(order), max(1, budget))


def check_budget(longest: Rows, budget: int, rows: Rows | None = None) -> None:
    """Raises UserError when a sentence alone is over the budget.

    Args:
        longest: (rows,) tokens of the longer side, EOS counted.
        budget: largest cost of a batch in tokens.
        rows: the rows' numbers in the corpus, for the message; by default 0, 1, ...
    """
    if len(longest) and longest.max() > budget:
        row = int(longest.argmax())
        number = int(rows[row]) if rows is not None else row
        raise UserError(
            f"Pair {number + 1:,} has {int(longest[row]):,} tokens with EOS, more than a batch may hold "
            f"({budget:,}); raise batch_tokens or set max_length to {budget - 1} or less."
        )


def _sorted_rows(
    longest: Rows,
    source_lengths: NDArray[np.int32],
    budget: int,
    generator: np.random.Generator,
    sort_window: int,
) -> tuple[Rows, int]:
    """Rows, shuffled, then sorted longest first inside windows; and the rows of a window."""
    if not sort_window:
        return np.lexsort((-source_lengths, -longest)), max(1, len(longest))
    shuffled = generator.permutation(len(longest))
    window = max(1, min(len(longest), int(sort_window * budget / max(1.0, longest.mean())))) if len(longest) else 1
    keys = (-source_lengths[shuffled], -longest[shuffled], np.arange(len(shuffled)) // window)
    return shuffled[np.lexsort(keys)], window


def _pack(longest: Rows, order: Rows, window: int, budget: int) -> list[Rows]:
    """Cuts rows that fall in length inside each window into batches: as many as fit beside the first."""
    batches = []
    start, lengths = 0, longest.tolist()
    while start < len(lengths):
        window_end = min(len(lengths), (start // window + 1) * window)
        end = min(window_end, start + max(1, budget // lengths[start]))
        batches.append(order[start:end])
        start = end
    return batches
