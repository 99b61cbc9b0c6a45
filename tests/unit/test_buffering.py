"""Batches of a text that is read through a buffer: each pair once an epoch, whoever goes on with it."""

import itertools
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nmt.errors import UserError
from nmt.text.buffering import BufferedStream
from nmt.text.pairs import Bitext, Pairs
from nmt.text.vocabulary import EOS, SentencePiece, VocabularyConfig

WORDS = ["the", "cat", "sees", "one", "big", "house", "near", "a", "river"]
MOST = 12


@pytest.fixture(scope="module")
def vocabulary():
    return SentencePiece.train([" ".join(WORDS)] * 3, VocabularyConfig(size=50))


def lines(counts):
    generator = np.random.default_rng(0)
    return [" ".join(generator.choice(WORDS, count)) for count in counts]


def text_of(pairs):
    return Bitext(lambda _: iter(pairs), "toy")


def stream_of(pairs, vocabulary, buffer, budget=60, seed=4, **options):
    text = pairs if isinstance(pairs, (Bitext, Pairs)) else text_of(pairs)
    return BufferedStream(text, (vocabulary, vocabulary), buffer, budget, seed, MOST, **options)


def same(a, b):
    return a.indices == b.indices and a.epoch == b.epoch and torch.equal(a.source, b.source)


COUNTS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None)
@given(COUNTS, st.integers(1, 50), st.integers(13, 80), st.integers(0, 2**63 - 1), st.integers(1, 5))
def test_each_usable_pair_once_an_epoch_by_any_number_of_processes(vocabulary, counts, buffer, budget, seed, world):
    pairs = list(zip(lines(source for source, _ in counts), lines(target for _, target in counts), strict=True))
    sides = [vocabulary.encode([pair[side] for pair in pairs]) for side in (0, 1)]
    lengths = [(len(source), len(target)) for source, target in zip(*sides, strict=True)]
    usable = [row for row, pair in enumerate(lengths) if min(pair) > 0 and max(pair) <= MOST]
    streams = [stream_of(pairs, vocabulary, buffer, budget, seed, rank=rank, world=world) for rank in range(world)]
    if not usable:
        with pytest.raises(UserError, match="No pair is left to train on"):
            next(iter(streams[0]))
        return
    seen: dict[int, list[int]] = {}
    # All processes make the same steps; the third epoch ends what the two before hold.
    for round_ in zip(*streams, strict=False):
        for batch in round_:
            seen.setdefault(batch.epoch, []).extend(batch.indices)
            assert max(batch.source.numel(), batch.target.numel()) <= budget
            for row, ids in zip(batch.indices, batch.source, strict=True):
                assert vocabulary.decode(ids.tolist()) == pairs[row][0]
        if 2 in seen:
            break
    assert [sorted(seen[epoch]) for epoch in (0, 1)] == [usable, usable]


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_whoever_goes_on_with_it_sees_what_one_would_see(vocabulary, data):
    """A run is cut anywhere and goes on with another number of processes, from the state of the first of them."""
    generator = np.random.default_rng(1)
    sides = [lines(generator.integers(1, 6, 30)) for _ in range(2)]
    pairs = list(zip(*sides, strict=True))
    options = {"buffer": data.draw(st.integers(4, 40)), "sampling": data.draw(st.sampled_from([0.0, 0.2]))}
    options["sampled"] = data.draw(st.sampled_from(["both", "source"]))
    whole = list(itertools.islice(stream_of(pairs, vocabulary, **options), 24))
    seen, state = [], None
    while len(seen) < len(whole):
        world, rounds = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 6))
        streams = [stream_of(pairs, vocabulary, rank=rank, world=world, **options) for rank in range(world)]
        for stream in streams:
            stream.start_batch = len(seen)
            if state is not None:
                stream.restore(state)
        # What loads batches may be ahead of what trains on them.
        ahead = data.draw(st.integers(0, 2))
        parts = [list(itertools.islice(stream, rounds + ahead))[:rounds] for stream in streams]
        seen += [batch for step in zip(*parts, strict=True) for batch in step]
        state = streams[0].state(len(seen))
    assert all(map(same, seen, whole))


def test_the_source_alone_can_be_sampled(vocabulary):
    pairs = [(line, line) for line in lines(np.random.default_rng(1).integers(1, 6, 30))]
    streams = (stream_of(pairs, vocabulary, 12, sampling=0.5, sampled=sampled) for sampled in ("both", "source"))
    for both, alone in itertools.islice(zip(*streams, strict=True), 6):
        assert torch.equal(alone.source, both.source)
        expected = vocabulary.encode([pairs[row][1] for row in alone.indices])
        assert [[piece for piece in row if piece > EOS] for row in alone.target.tolist()] == expected


def test_no_more_is_read_and_held_than_the_buffer(vocabulary):
    generator = np.random.default_rng(1)
    pairs = [(line, line) for line in lines(generator.integers(1, 6, 100))]
    read, held = [], []

    def reading(_):
        for number, pair in enumerate(pairs):
            if number % 25 == 0:
                assert not [corpus for corpus in held if corpus() is not None]
            read.append(number)
            yield pair

    stream = stream_of(Bitext(reading, "toy"), vocabulary, 25)
    for batch in stream:
        if batch.epoch:
            break
        assert len(read) <= 25 * (1 + min(batch.indices) // 25)
        corpus = stream._held.corpus
        assert len(corpus) == 25
        if not held or held[-1]() is not corpus:
            held.append(weakref.ref(corpus))
        assert stream.lines(batch.indices[0]) == pairs[batch.indices[0]]
        assert stream.length(batch.indices[0]) == len(vocabulary.encode([pairs[batch.indices[0]][0]])[0])
        del corpus
    assert len(held) == 4
    assert stream.lines(1_000) is None and stream.length(1_000) == 0


def test_buffers_mix_and_their_borders_move(vocabulary):
    pairs = [(line, line) for line in lines([3] * 200)]
    epochs: dict[int, list[int]] = {}
    for batch in stream_of(pairs, vocabulary, 50):
        if batch.epoch == 3:
            break
        epochs.setdefault(batch.epoch, []).extend(batch.indices)
    assert epochs[0] != sorted(epochs[0])
    assert [row // 50 for row in epochs[0]] == [row // 50 for row in range(200)], "in order but for the buffer"
    assert {row // 50 for row in epochs[1][:50]} != {0} or {row // 50 for row in epochs[2][:50]} != {0}


def test_another_text_is_told_when_the_place_is_looked_for(vocabulary):
    pairs = [(line, line) for line in lines([3] * 60)]
    stream = stream_of(pairs, vocabulary, 20)
    seen = list(itertools.islice(stream, 6))
    state = stream.state(6)
    assert state["pair"] == 20 * (max(seen[-1].indices) // 20) > 0
    for number, refused in ((0, True), (59, False)):
        changed = list(pairs)
        changed[number] = ("a river", "a river")
        again = stream_of(changed, vocabulary, 20)
        again.restore(state)
        again.start_batch = 6
        if refused:
            with pytest.raises(UserError, match=rf"first {state['pair']} pairs of toy are others.*restore the text"):
                next(iter(again))
        else:
            next(iter(again))


def test_what_does_not_fit(vocabulary):
    with pytest.raises(UserError, match=r"data.max_length is 12,.*set data.max_length to 11 or less"):
        stream_of([], vocabulary, 20, budget=12)
    with pytest.raises(ValueError, match="ranks count from 0"):
        stream_of([], vocabulary, 20, rank=2, world=2)
    with pytest.raises(UserError, match="No pair is left to train on: of 3, 1 are over .* and 2 have an empty side"):
        next(iter(stream_of([("", "a"), ("the", ""), (" ".join(WORDS * 2), "the")], vocabulary, 2)))


def test_the_budget_is_tried_on_the_first_buffer(vocabulary):
    pairs = [(line, line) for line in lines([1, 5, 3, 2])]
    stream = stream_of(pairs, vocabulary, 3, budget=2**31)
    assert stream.usable == 3 and stream.longest == MOST + 1
    longest, shortest = stream.extreme_batches(stream.longest)
    assert longest.indices[0] == 1 and shortest.indices[-1] == 0
    stream.set_budget(40)
    assert next(iter(stream)).source.numel() <= 40


def test_pairs_beyond_the_positions_of_a_model_are_left_out(vocabulary, caplog):
    pairs = list(zip(lines([1, 2, 3, 4, 5] * 4), lines([5, 4, 3, 2, 1] * 4), strict=True))
    sources, targets = (vocabulary.encode([pair[side] for pair in pairs]) for side in (0, 1))
    source, target = (int(np.median([len(ids) for ids in side])) for side in (sources, targets))
    wanted = [
        row
        for row, (one, two) in enumerate(zip(sources, targets, strict=True))
        if len(one) <= min(source, MOST) and len(two) <= min(target, MOST)
    ]
    stream = stream_of(pairs, vocabulary, 7)
    stream.leave_out_longer(source, target)
    seen = [row for batch in itertools.takewhile(lambda batch: batch.epoch == 0, stream) for row in batch.indices]
    assert sorted(seen) == wanted and 0 < len(wanted) < 20
    assert f"of 20 pairs: longer than the model has positions for, {source} pieces of a source" in caplog.text
    stream.leave_out_longer(0, None)
    with pytest.raises(UserError, match="are longer than the model has positions for, 0 pieces of a source"):
        next(iter(stream))
