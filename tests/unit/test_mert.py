"""The line search of MERT against brute force, and tuning against its start and against what can be had at all."""

import itertools

import numpy as np
import pytest
from sacrebleu.metrics.bleu import BLEU

from nmt.errors import UserError
from nmt.nbest.mert import Lists, best_of, bleu_at, envelopes, line_search, tune
from nmt.nbest.ngrams import bleu_of, bleu_statistics
from tests.unit.test_mbr import sentences


def random_lists(seed, count=6, size=5, features=3, whole=False):
    """Lists of unequal length; `whole` numbers make lines that coincide, are parallel, and cross in one point."""
    generator = np.random.default_rng(seed)
    texts = [sentences(1 + (seed + 3 * s) % size, seed=100 * seed + s) for s in range(count)]
    references = [[line] for line in sentences(count, seed=7 + seed)]
    of = [generator.integers(-2, 3, (len(t), features)).astype(float) if whole else generator.normal(
        size=(len(t), features)) for t in texts]  # fmt: skip
    statistics = [bleu_statistics(t, r) for t, r in zip(texts, references, strict=True)]
    return Lists.of(of, statistics), texts, references


def brute_force(lists, weights, direction):
    """BLEU between all crossings of any two lines of a list, as argmax sees it."""
    offsets, slopes = lists.features @ weights, lists.features @ direction
    points = {0.0}
    for row, there in enumerate(lists.there):
        for one, other in itertools.combinations(np.flatnonzero(there), 2):
            if slopes[row, one] != slopes[row, other]:
                points.add((offsets[row, other] - offsets[row, one]) / (slopes[row, one] - slopes[row, other]))
    edges = sorted(points)
    middles = [edges[0] - 1, *((a + b) / 2 for a, b in itertools.pairwise(edges) if b - a > 1e-7), edges[-1] + 1]
    return max(bleu_at(lists, weights + step * direction) for step in middles)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("seed", range(25))
def test_the_line_search_is_exact(seed, whole):
    lists, _, _ = random_lists(seed, whole=whole)
    generator = np.random.default_rng(seed)
    for _ in range(3):
        if whole:
            weights, direction = generator.integers(-2, 3, (2, 3)).astype(float)
        else:
            weights, direction = generator.normal(size=(2, 3))
        step, value = line_search(lists, weights, direction)
        assert value == pytest.approx(brute_force(lists, weights, direction), abs=1e-9)
        # Between corners the weights choose what the sweep said; lines that coincide choose the first in either.
        assert bleu_at(lists, weights + step * direction) == pytest.approx(value, abs=1e-9)


def test_envelopes_are_the_largest_of_the_lines():
    generator = np.random.default_rng(3)
    offsets, slopes = generator.normal(size=(2, 8, 6))
    there = np.arange(6) < np.array([1, 2, 3, 4, 5, 6, 6, 6])[:, None]
    first, sentences_, points, before, after = envelopes(offsets, slopes, there)
    for x in np.concatenate([points - 1e-6, points + 1e-6, [-1e6, 1e6, 0.0]]):
        expected = np.where(there, offsets + x * slopes, -np.inf).argmax(axis=1)
        current = first.copy()
        for sentence, point, old, new in zip(sentences_, points, before, after, strict=True):
            if point < x:
                assert current[sentence] == old
                current[sentence] = new
        assert current.tolist() == expected.tolist()


def test_bleu_of_the_best_is_that_of_sacrebleu():
    lists, texts, references = random_lists(5)
    weights = np.array([0.3, -1.0, 0.5])
    chosen = [t[place] for t, place in zip(texts, best_of(lists, weights), strict=True)]
    expected = BLEU().corpus_score(chosen, [[line for (line,) in references]])
    assert bleu_at(lists, weights) == pytest.approx(expected.score, abs=1e-9)


def test_a_direction_that_changes_nothing():
    lists, _, _ = random_lists(1)
    weights = np.array([1.0, 0.0, 0.0])
    assert line_search(lists, weights, np.zeros(3)) == (0.0, pytest.approx(bleu_at(lists, weights)))
    # The best interval is where the weights are: nothing is to move.
    tuned = tune(lists, weights, restarts=0).weights
    assert line_search(lists, tuned, np.array([0.0, 1.0, 0.0]))[1] >= bleu_at(lists, tuned) - 1e-9


@pytest.mark.parametrize("seed", range(10))
def test_tuning_never_ends_below_its_start(seed):
    lists, _, _ = random_lists(seed, count=8, whole=seed % 2 == 0)
    start = np.random.default_rng(seed).normal(size=3)
    found = tune(lists, start, restarts=2, seed=seed)
    assert found.start_bleu == bleu_at(lists, start)
    assert found.bleu == bleu_at(lists, found.weights) >= found.start_bleu
    again = tune(lists, start, restarts=2, seed=seed)
    assert (again.weights == found.weights).all()
    # From its own end nothing is left that an axis could gain.
    for axis in np.eye(3):
        assert line_search(lists, found.weights, axis)[1] <= found.bleu + 1e-5


def test_tuning_finds_what_there_is():
    """Two features whose sum tells the better hypothesis, a third that misleads, a fourth that is the same for all."""
    generator = np.random.default_rng(0)
    features, statistics, ceiling = [], [], []
    for sentence in range(30):
        texts = sentences(6, seed=sentence)
        rows = bleu_statistics(texts, [texts[0]])
        quality = bleu_of(rows, effective_order=True) / 100
        noise, other = generator.normal(size=(2, 6))
        features.append(np.stack([quality + noise, quality - noise, 50 * other, np.full(6, 3.0)], axis=1))
        statistics.append(rows)
        ceiling.append(rows[0])
    lists = Lists.of(features, statistics)
    start = np.array([0.0, 0.0, 1.0, 2.0])
    found = tune(lists, start, restarts=5)
    assert found.start_bleu < 80 and found.bleu == pytest.approx(float(bleu_of(np.sum(ceiling, axis=0)))) == 100
    first, second = found.weights[:2]
    assert first > 0 and second > 0 and found.weights[3] == 0 and np.abs(found.weights).sum() == pytest.approx(1)
    # One feature alone does not do: random starts and directions are needed, and used.
    axes = [line_search(lists, start, axis)[1] for axis in np.eye(4)]
    assert max(axes) < found.bleu


def test_scales_of_features_do_not_matter_much():
    lists, _, _ = random_lists(4, count=12)
    scale = np.array([1e-4, 1.0, 1e5])
    other = Lists(lists.features * scale, lists.statistics, lists.there)
    start = np.array([1.0, 1.0, 1.0])
    assert tune(other, start / scale, restarts=5).bleu == pytest.approx(tune(lists, start, restarts=5).bleu, abs=1e-6)


def test_nothing_to_tune():
    lists, _, _ = random_lists(2)
    constant = Lists(np.ones_like(lists.features), lists.statistics, lists.there)
    start = np.array([0.1, 0.2, 0.7])
    found = tune(constant, start)
    assert (found.weights == start).all() and found.bleu == found.start_bleu
    with pytest.raises(UserError, match="0 n-best lists"):
        tune(Lists(np.zeros((0, 1, 1)), np.zeros((0, 1, 10), np.int32), np.zeros((0, 1), bool)), np.zeros(1))
    with pytest.raises(UserError, match="restarts is -1"):
        tune(lists, start, restarts=-1)
