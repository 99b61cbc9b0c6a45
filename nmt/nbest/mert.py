"""Minimum error rate training: weights of features such that the best of each n-best list make the best corpus BLEU.

Och, ACL 2003: along a line through the space of weights the score of every hypothesis is a line, too, so the best of a
list changes where the upper envelope of its lines has corners, and there alone. All corners of all lists, in order,
with the statistics of BLEU that change at each, give BLEU everywhere on the line, exactly.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nmt.errors import UserError
from nmt.nbest.ngrams import Floats, bleu_of

logger = logging.getLogger(__name__)

_NARROW = 1e-9
"""Where two corners are as near as this in relation to where they are, nothing is between them: rounding alone would
decide which hypothesis is best."""
_GAIN = 1e-6
"""BLEU that a step must gain."""


@dataclass(frozen=True)
class Lists:
    """N-best lists, padded.

    Attributes:
        features: (sentences, hypotheses, features).
        statistics: (sentences, hypotheses, 10), see `nmt.nbest.ngrams.bleu_statistics`.
        there: (sentences, hypotheses), false where a list is shorter.
    """

    features: Floats
    statistics: NDArray[np.int32]
    there: NDArray[np.bool_]

    @classmethod
    def of(cls, features: Sequence[Floats], statistics: Sequence[NDArray]) -> "Lists":
        """Pads lists.

        Args:
            features: (hypotheses, features) of each sentence, at least one hypothesis.
            statistics: (hypotheses, 10) of each.
        """
        sizes = np.array([len(one) for one in features])
        shape = len(sizes), int(sizes.max(initial=0))
        there = np.arange(shape[1]) < sizes[:, None]
        padded = np.zeros((*shape, features[0].shape[1]))
        counts = np.zeros((*shape, statistics[0].shape[1]), dtype=np.int32)
        padded[there], counts[there] = np.concatenate(features), np.concatenate(statistics)
        return cls(padded, counts, there)


@dataclass(frozen=True)
class Tuned:
    """What tuning found.

    Attributes:
        weights: (features,).
        bleu, start_bleu: of the best hypotheses by these and by the first weights, 0 to 100.
    """

    weights: Floats
    bleu: float
    start_bleu: float


def best_of(lists: Lists, weights: Floats) -> NDArray[np.int64]:
    """(sentences,): the place of the best hypothesis of each list, of equal ones the first."""
    return np.where(lists.there, lists.features @ weights, -np.inf).argmax(axis=1)


def bleu_at(lists: Lists, weights: Floats) -> float:
    """Corpus BLEU of the best hypotheses, as sacreBLEU has it."""
    return float(bleu_of(_summed(lists, best_of(lists, weights))))


def line_search(lists: Lists, weights: Floats, direction: Floats) -> tuple[float, float]:
    """The best step along a line of weights.

    Args:
        lists: the hypotheses.
        weights, direction: (features,); the line is weights + step * direction.

    Returns:
        The step, in the middle of its interval, and BLEU there, the largest of the line (but for intervals so narrow
        that rounding decides). Of equal ones the nearest to 0.
    """
    offsets, slopes = lists.features @ weights, lists.features @ direction
    first, sentences, points, before, after = envelopes(offsets, slopes, lists.there)
    base = _summed(lists, first)
    if not len(points):
        return 0.0, float(bleu_of(base))
    order = np.argsort(points, kind="stable")
    points = points[order]
    change = lists.statistics[sentences, after].astype(np.int64) - lists.statistics[sentences, before]
    values = bleu_of(np.vstack([base, base + change[order].cumsum(axis=0)]))
    # Outside of the first and the last corner one step is as good as another.
    margin = np.maximum(1.0, np.abs(points[[0, -1]]))
    edges = np.concatenate([[points[0] - 2 * margin[0]], points, [points[-1] + 2 * margin[1]]])
    left, right = edges[:-1], edges[1:]
    wide = right - left > _NARROW * np.maximum(1.0, np.abs(left))
    best = np.flatnonzero(wide & (values >= values[wide].max() - 1e-12))
    middles = (left[best] + right[best]) / 2
    # Where the weights stand already is better than the middle of the same interval.
    middles[(left[best] < 0) & (right[best] > 0)] = 0.0
    nearest = int(np.abs(middles).argmin())
    return float(middles[nearest]), float(values[best[nearest]])


def envelopes(
    offsets: Floats, slopes: Floats, there: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats, NDArray[np.int64], NDArray[np.int64]]:
    """The upper envelopes of the lines offset + x * slope of each list, for x from -inf to inf.

    All lists are walked at once: each goes on to the line that crosses its present one first, of several the steepest.

    Args:
        offsets, slopes, there: (sentences, hypotheses).

    Returns:
        The hypothesis that is best at -inf, (sentences,); and of each corner, (corners,), the sentence, x, the
        hypothesis before it and that after it. The corners of one sentence stand in order.
    """
    masked = np.where(there, slopes, np.inf)
    flattest = masked == masked.min(axis=1, keepdims=True)
    first = np.where(flattest & there, offsets, -np.inf).argmax(axis=1)
    rows, current = np.arange(len(offsets)), first
    corners: list[tuple[NDArray, ...]] = []
    while len(rows):
        here = np.arange(len(rows))
        slope, offset, usable = slopes[rows], offsets[rows], there[rows]
        rise = slope - slope[here, current][:, None]
        crossing = np.full(rise.shape, np.inf)
        with np.errstate(over="ignore"):
            np.divide(offset[here, current][:, None] - offset, rise, out=crossing, where=usable & (rise > 0))
        crossing[np.isnan(crossing)] = np.inf
        point = crossing.min(axis=1)
        going = np.isfinite(point)
        following = np.where(crossing == point[:, None], slope, -np.inf).argmax(axis=1)
        corners.append((rows[going], point[going], current[going], following[going]))
        rows, current = rows[going], following[going]
    if not corners:
        empty = np.zeros(0, dtype=np.int64)
        return first, empty, np.zeros(0), empty, empty
    sentences, points, before, after = (np.concatenate(parts) for parts in zip(*corners, strict=True))
    return first, sentences, points, before, after


def tune(lists: Lists, start: Floats, *, restarts: int = 20, seed: int = 1) -> Tuned:
    """Climbs from the first weights, and from random ones, by the best line search of many directions at a time.

    Directions are those of the features and as many random ones, in units of the features' deviations inside the lists.
    A feature that never varies there gets the weight 0.

    Args:
        lists: the hypotheses of the dev set.
        start: (features,).
        restarts: from how many random weights it climbs, too.
        seed: of these and of the random directions.

    Returns:
        Weights that give the highest BLEU found, their absolute values summing to 1; the first ones as they are where
        nothing is better.

    Raises:
        UserError: no list, or an impossible number.
    """
    if not len(lists.features):
        raise UserError("There are 0 n-best lists to tune on; give at least one.")
    for name, number in (("restarts", restarts), ("seed", seed)):
        if number < 0:
            raise UserError(f"{name} is {number}; give 0 or more.")
    spread = _spread(lists)
    moving = np.flatnonzero(spread)
    start_bleu = bleu_at(lists, start)
    best = Tuned(start, start_bleu, start_bleu)
    # One that does not vary has nothing to say: 0.
    unit = np.divide(1.0, spread, out=np.zeros_like(spread), where=spread > 0)
    scaled = Lists(lists.features * unit, lists.statistics, lists.there)
    for number in range(restarts + 1 if len(moving) else 0):
        generator = np.random.default_rng([seed, number])
        weights = start * spread
        if number:
            weights = np.zeros_like(start)
            weights[moving] = generator.uniform(-1, 1, len(moving))
        found = _climb(scaled, weights, moving, generator) * unit
        final = found / max(float(np.abs(found).sum()), np.finfo(float).tiny)
        value = bleu_at(lists, final)
        logger.info("%s: BLEU %.2f", f"random weights {number}" if number else "given weights", value)
        if value > best.bleu + _GAIN:
            best = Tuned(final, value, start_bleu)
    return best


def _climb(lists: Lists, weights: Floats, moving: NDArray[np.int64], generator: np.random.Generator) -> Floats:
    value = bleu_at(lists, weights)
    axes = np.eye(lists.features.shape[2])[moving]
    while True:
        drawn = np.zeros_like(axes)
        drawn[:, moving] = generator.normal(size=(len(axes), len(moving)))
        tried = [(*line_search(lists, weights, direction), direction) for direction in (*axes, *drawn)]
        step, _, direction = max(tried, key=lambda one: one[1])
        following = weights + step * direction
        following = following / max(float(np.abs(following).max()), np.finfo(float).tiny)
        # By what the weights themselves choose: along the line ties may have been resolved otherwise.
        reached = bleu_at(lists, following)
        if reached < value + _GAIN:
            return weights
        weights, value = following, reached


def _spread(lists: Lists) -> Floats:
    """(features,): the deviation inside the lists."""
    counts = lists.there.sum(axis=1)
    means = (lists.features * lists.there[:, :, None]).sum(axis=1) / counts[:, None]
    squares = ((lists.features - means[:, None]) ** 2 * lists.there[:, :, None]).sum(axis=(0, 1))
    deviation = np.sqrt(squares / counts.sum())
    # A mean of equal numbers may differ from them in the last digit.
    noise = 1e-12 * np.abs(lists.features).max(axis=(0, 1), initial=0.0)
    return np.where(deviation > noise, deviation, 0.0)


def _summed(lists: Lists, places: NDArray[np.int64]) -> NDArray[np.int64]:
    return lists.statistics[np.arange(len(places)), places].sum(axis=0, dtype=np.int64)
