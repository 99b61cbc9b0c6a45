"""Beam search in numpy: what `nmt.search.beam_search` defines, for a model that is two graphs."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nmt.runner.folder import Special
from nmt.runner.graphs import Encoded, Floats, Graphs, Ints
from nmt.runner.settings import Settings

# So many entries share a maximum; below so many entries, one pass is as fast.
_MEMBERS, _LEAST = 32, 2048
# The exponential of the lowest is a normal number, and nothing beside that of the highest, which is 1.
_LOWEST = np.float32(-80)
# Rows that are worked on at once, so that what one operation writes is in the cache when the next one reads it.
_ROWS = 32


@dataclass(frozen=True)
class Hypothesis:
    """One translation.

    Attributes:
        tokens: target ids, EOS not among them.
        log_probability: sum over the tokens and EOS, in nats.
        score: the log-probability after length normalisation.
    """

    tokens: list[int]
    log_probability: float
    score: float


class _Pool(NamedTuple):
    """The best finished hypotheses of each sentence, (batch, n_best), best first: scores, -inf where there is none,
    log-probabilities, and where they ended."""

    scores: Floats
    totals: Floats
    steps: Ints
    slots: Ints

    @classmethod
    def empty(cls, rows: int, places: int) -> "_Pool":
        scores = np.full((rows, places), -np.inf, dtype=np.float32)
        steps = np.zeros((rows, places), dtype=np.int64)
        return cls(scores, scores.copy(), steps, steps.copy())

    def add(self, other: "_Pool") -> "_Pool":
        """Keeps the best of both."""
        scores = np.concatenate([self.scores, other.scores], axis=1)
        order = np.argsort(-scores, axis=1, kind="stable")[:, : self.scores.shape[1]]

        def best(one: NDArray[Any], two: NDArray[Any]) -> NDArray[Any]:
            return np.take_along_axis(np.concatenate([one, two], axis=1), order, axis=1)

        return _Pool(
            np.take_along_axis(scores, order, axis=1),
            best(self.totals, other.totals),
            best(self.steps, other.steps),
            best(self.slots, other.slots),
        )

    def take(self, rows: NDArray[np.bool_]) -> "_Pool":
        """Those of some sentences."""
        return _Pool(self.scores[rows], self.totals[rows], self.steps[rows], self.slots[rows])

    def put(self, rows: Ints, other: "_Pool") -> None:
        """Those of some sentences become the others."""
        self.scores[rows], self.totals[rows], self.steps[rows], self.slots[rows] = other


class _Chosen(NamedTuple):
    """The slots after a step, (batch, slots): whom they continue, by which token, and their log-probability; -inf where
    a slot holds nothing."""

    parents: Ints
    tokens: Ints
    scores: Floats


class _Step(NamedTuple):
    rows: Ints  # the sentences that were open, ascending
    chosen: _Chosen


def beam_search(
    graphs: Graphs, source: Ints, lengths: Ints, settings: Settings, special: Special
) -> list[list[Hypothesis]]:
    """Translates a batch.

    A hypothesis that ends leaves its slot for the pool. A sentence is done, and leaves the batch, when the best that an
    open hypothesis can reach, its log-probability over the divisor of the longest length allowed, is not above the
    worst of its pool. At that length a hypothesis must end.

    Args:
        graphs: the model.
        source: (batch, source length) ids, padded behind lengths (batch,), each at least 1.
        lengths: see source.
        settings: the search.
        special: the special ids.

    Returns:
        For each sentence its n best hypotheses (fewer when fewer exist), best first.
    """
    count = len(source)
    encoded = graphs.encode(source, lengths)
    limits = np.array([settings.max_length(length) for length in lengths.tolist()])
    least = np.array([settings.min_length(length) for length in lengths.tolist()])
    tokens = np.full((count, 1), special.bos, dtype=np.int64)
    scores = np.zeros((count, 1), dtype=np.float32)
    pool, results = _Pool.empty(count, settings.n_best), _Pool.empty(count, settings.n_best)
    open_rows, steps = np.arange(count), list[_Step]()

    for step in range(int(limits.max())):
        logits, state = graphs.step(tokens, encoded)
        chosen = _expand(logits, scores, settings.beam_size, limits == step + 1, least > step + 1, special)
        steps.append(_Step(open_rows, chosen))
        parents, tokens, totals = chosen
        state = [part[np.arange(len(part))[:, None], parents] for part in state]
        encoded = encoded._replace(state=state)

        ended = (tokens == special.eos) & (totals > -np.inf)
        if ended.any():
            ranked = np.where(ended, totals / settings.divisor(np.array([step + 1])), -np.inf)
            slots = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
            pool = pool.add(_Pool(ranked, totals, np.full(tokens.shape, step), slots))
        scores = np.where(ended, -np.inf, totals)
        reachable = scores.max(axis=1) / settings.divisor(limits)
        done = reachable <= pool.scores[:, -1]
        if done.any():
            results.put(open_rows[done], pool.take(done))
            keep = ~done
            if not keep.any():
                break
            open_rows, limits, least, tokens, scores = (
                part[keep] for part in (open_rows, limits, least, tokens, scores)
            )
            pool = pool.take(keep)
            encoded = Encoded(*([part[keep] for part in parts] for parts in encoded))
    return _read(results, steps)


def _expand(
    logits: Floats,
    scores: Floats,
    size: int,
    only_eos: NDArray[np.bool_],
    no_eos: NDArray[np.bool_],
    special: Special,
) -> _Chosen:
    """The `size` best continuations of the slots, best first, or as many as there are.

    Padding and BOS are no candidates but keep their probability, so that a score is the model's own.

    Args:
        logits: (batch, slots, vocabulary).
        scores: (batch, slots), log-probabilities; -inf where a slot holds nothing.
        size: how many.
        only_eos, no_eos: (batch,), where a hypothesis must end now, and where it must not.
        special: the special ids.
    """
    rows, _, vocabulary = logits.shape
    normaliser = _log_normaliser(logits)
    tokens = _largest(logits, min(size + 3, vocabulary))
    found = np.take_along_axis(logits, tokens, axis=2)
    banned = (tokens == special.eos) | (tokens == special.pad) | (tokens == special.bos) | only_eos[:, None, None]
    found[banned] = -np.inf
    ends = np.where(no_eos[:, None], np.float32(-np.inf), logits[..., special.eos])
    tokens = np.concatenate([tokens, np.full((*tokens.shape[:2], 1), special.eos)], axis=2)
    totals = np.concatenate([found, ends[..., None]], axis=2) + (scores - normaliser)[..., None]
    width = tokens.shape[2]
    flat = totals.reshape(rows, -1)
    order = np.argsort(-flat, axis=1, kind="stable")[:, :size]
    return _Chosen(
        order // width,
        np.take_along_axis(tokens.reshape(rows, -1), order, axis=1),
        np.take_along_axis(flat, order, axis=1),
    )


def _largest(logits: Floats, size: int) -> Ints:
    """The positions (..., size) of the largest entries of logits (..., vocabulary), in no order; the maxima of groups
    are read first, and then the groups with the best alone."""
    vocabulary = logits.shape[-1]
    groups = vocabulary // _MEMBERS
    rows = logits.reshape(-1, vocabulary)
    if vocabulary < _LEAST or size > groups // 4:
        return _best(rows, size).reshape(*logits.shape[:-1], size)
    maxima = rows[:, : groups * _MEMBERS].reshape(len(rows), _MEMBERS, groups).max(axis=1)
    members = np.arange(0, groups * _MEMBERS, groups)
    places = (_best(maxima, size)[:, :, None] + members).reshape(len(rows), -1)
    rest = np.arange(groups * _MEMBERS, vocabulary)
    places = np.concatenate([places, np.broadcast_to(rest, (len(rows), len(rest)))], axis=1)
    order = _best(np.take_along_axis(rows, places, axis=1), size)
    return np.take_along_axis(places, order, axis=1).reshape(*logits.shape[:-1], size)


def _best(rows: Floats, size: int) -> Ints:
    """The positions of the largest entries of each row, in no order."""
    if size >= rows.shape[1]:
        return np.broadcast_to(np.arange(rows.shape[1]), rows.shape)
    return np.argpartition(rows, rows.shape[1] - size, axis=1)[:, -size:]


def _log_normaliser(logits: Floats) -> Floats:
    """log sum exp (...) of logits (..., vocabulary)."""
    rows = logits.reshape(-1, logits.shape[-1])
    result = np.empty(len(rows), dtype=np.float32)
    for first in range(0, len(rows), _ROWS):
        part = rows[first : first + _ROWS]
        highest = part.max(axis=1)
        # What is far below is cut off: exp is many times slower where its result is nearly 0.
        shifted = np.maximum(part - highest[:, None], _LOWEST)
        result[first : first + _ROWS] = np.log(np.exp(shifted, out=shifted).sum(axis=1)) + highest
    return result.reshape(logits.shape[:-1])


def _read(pool: _Pool, steps: list[_Step]) -> list[list[Hypothesis]]:
    """The hypotheses of the pools, all traced back together."""
    sentences, places = np.nonzero(pool.scores > -math.inf)
    last, slots = pool.steps[sentences, places], pool.slots[sentences, places]
    tokens = np.zeros((len(sentences), int(last.max(initial=-1)) + 1), dtype=np.int64)
    for number in range(tokens.shape[1] - 1, -1, -1):
        rows, chosen = steps[number]
        active = np.flatnonzero(last >= number)
        where = np.searchsorted(rows, sentences[active]), slots[active]
        tokens[active, number], slots[active] = chosen.tokens[where], chosen.parents[where]
    found: list[list[Hypothesis]] = [[] for _ in pool.scores]
    for path, (sentence, place) in enumerate(zip(sentences.tolist(), places.tolist(), strict=True)):
        total, score = float(pool.totals[sentence, place]), float(pool.scores[sentence, place])
        found[sentence].append(Hypothesis(tokens[path, : last[path]].tolist(), total, score))
    return found
