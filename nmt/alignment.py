"""Which pieces translate which: IBM Model 1, learned from sentence pairs.

Brown, Della Pietra, Della Pietra, Mercer, "The Mathematics of Statistical Machine Translation", 1993.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# Pairs of positions that are held at once; each takes some 30 bytes.
_BLOCK = 4_000_000


class Lexicon(NamedTuple):
    """t(target | source) of the pairs of pieces that stand in a sentence pair; the empty word is not among them.

    Attributes:
        source, target: (pairs,) ids, sorted by source, then by target.
        probability: (pairs,), the sum over the targets of a source is at most 1.
    """

    source: Ints
    target: Ints
    probability: Floats


def learn_lexicon(
    sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], vocabulary: int, *, iterations: int = 5
) -> Lexicon:
    """Expectation maximisation of IBM Model 1 with an empty source word.

    Every target piece is explained by the source pieces of its sentence, and by the empty word, in proportion to
    t(target | source); t is what it explained, normalised; it begins uniform.

    Args:
        sources, targets: ids of pairs of sentences.
        vocabulary: more than any id.
        iterations: of expectation and maximisation.
    """
    if not sources:
        return Lexicon(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    keys = np.unique(np.concatenate([np.unique(block.keys) for block in _blocks(sources, targets, vocabulary)]))
    source, target = keys // vocabulary, keys % vocabulary
    probability = np.full(len(keys), 1.0)
    for _ in range(iterations):
        explained = np.zeros(len(keys))
        for block in _blocks(sources, targets, vocabulary):
            place = np.searchsorted(keys, block.keys)
            share = probability[place]
            total = np.bincount(block.word, weights=share, minlength=block.words)
            explained += np.bincount(place, weights=share / total[block.word], minlength=len(keys))
        whole = np.bincount(source, weights=explained)
        probability = explained / np.maximum(whole[source], 1e-300)
    # The empty word is the last source.
    real = source < vocabulary
    return Lexicon(source[real], target[real], probability[real])


class _Block(NamedTuple):
    keys: Ints  # source * vocabulary + target, for each pair of positions
    word: Ints  # which target position of the block each belongs to
    words: int


def _blocks(sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], vocabulary: int) -> Iterable[_Block]:
    """The pairs of positions of all sentences, some sentences at a time."""
    keys: list[Ints] = []
    word: list[Ints] = []
    words = held = 0
    for source, target in zip(sources, targets, strict=True):
        with_empty = np.asarray([*source, vocabulary], dtype=np.int64)
        pairs = with_empty[None, :] * vocabulary + np.asarray(target, dtype=np.int64)[:, None]
        keys.append(pairs.ravel())
        word.append(np.repeat(np.arange(words, words + len(target)), len(with_empty)))
        words, held = words + len(target), held + pairs.size
        if held >= _BLOCK:
            yield _Block(np.concatenate(keys), np.concatenate(word), words)
            keys, word, words, held = [], [], 0, 0
    if keys:
        yield _Block(np.concatenate(keys), np.concatenate(word), words)
