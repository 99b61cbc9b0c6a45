import itertools
import logging
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nmt.errors import UserError
from nmt.text.batching import TrainingStream, collate, cut_longer, evaluation_batches, plan_batches
from nmt.text.encoding import Encoded, encode_pairs
from nmt.text.pairs import Pairs
from nmt.text.vocabulary import EOS, PAD, SentencePiece, VocabularyConfig

LENGTHS = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=300)


def _sides(lengths):
    return tuple(np.array(side, dtype=np.int32) for side in zip(*lengths, strict=True))


def _cost(rows, source, target):
    return len(rows) * (1 + int(max(source[rows].max(), target[rows].max())))


@settings(max_examples=150, deadline=None)
@given(LENGTHS, st.integers(31, 200), st.integers(0, 5), st.integers(0, 3), st.booleans(), st.integers(1, 4))
def test_each_row_once_within_the_budget(lengths, budget, seed, epoch, shuffle, window):
    source, target = _sides(lengths)
    plan = plan_batches(source, target, budget, seed=seed, epoch=epoch, shuffle=shuffle, sort_window=window)
    assert sorted(np.concatenate(plan).tolist()) == list(range(len(lengths)))
    costs = [_cost(rows, source, target) for rows in plan]
    assert max(costs) <= budget
    again = plan_batches(source, target, budget, seed=seed, epoch=epoch, shuffle=shuffle, sort_window=window)
    assert [rows.tolist() for rows in plan] == [rows.tolist() for rows in again]
    if shuffle and epoch == 0:
        longest = [cost // len(rows) for cost, rows in zip(costs, plan, strict=True)]
        assert (costs[0], longest[0]) == max(zip(costs, longest, strict=True))


def test_order_depends_on_seed_and_epoch():
    lengths = np.random.default_rng(0).integers(1, 40, 2000).astype(np.int32)
    plans = {
        tuple(itertools.chain(*plan_batches(lengths, lengths, 500, seed=seed, epoch=epoch)))
        for seed in (0, 1, -1) for epoch in (0, 1)
    }  # fmt: skip
    assert len(plans) == 6


def test_batches_pad_little_and_pack_full():
    generator = np.random.default_rng(0)
    source = generator.integers(1, 60, 20_000).astype(np.int32)
    target = np.maximum(1, source + generator.integers(-3, 4, 20_000)).astype(np.int32)
    plan = plan_batches(source, target, 4096, seed=0, epoch=1)
    costs = np.array([_cost(rows, source, target) for rows in plan])
    assert (np.maximum(source, target) + 1).sum() / costs.sum() > 0.95
    assert np.mean(costs) > 0.9 * 4096
    assert len({len(rows) for rows in plan[:20]}) > 5


def test_a_million_rows_are_planned_fast():
    lengths = np.random.default_rng(0).integers(1, 80, 1_000_000).astype(np.int32)
    started = time.process_time()
    plan_batches(lengths, lengths, 4096, seed=0, epoch=0)
    assert time.process_time() - started < 5


def test_a_sentence_over_the_budget_is_named():
    source, target = _sides([(3, 3), (3, 10)])
    assert len(plan_batches(source, target, 11, seed=0, epoch=0)) == 2
    with pytest.raises(UserError, match=r"Pair 2 has 11 tokens .*\(10\); raise batch_tokens or set max_length to 9"):
        plan_batches(source, target, 10, seed=0, epoch=0)
    assert plan_batches(source[:0], target[:0], 10, seed=0, epoch=0) == []
    assert len(plan_batches(source, target, 2**63, seed=0, epoch=0)) == 1


@given(st.lists(st.integers(0, 30), max_size=60), st.integers(1, 100))
def test_evaluation_goes_from_long_to_short(lengths, budget):
    batches = evaluation_batches(lengths, budget)
    flat = [int(row) for rows in batches for row in rows]
    assert sorted(flat) == list(range(len(lengths)))
    assert [lengths[row] for row in flat] == sorted(lengths, reverse=True)
    assert all(len(rows) == 1 or len(rows) * (1 + lengths[rows[0]]) <= budget for rows in batches)


@pytest.fixture(scope="module")
def vocabulary():
    return SentencePiece.train(["the cat sees one big house near a river"] * 3, VocabularyConfig(size=50))


@pytest.fixture(scope="module")
def corpus(vocabulary, tmp_path_factory):
    generator = np.random.default_rng(0)
    words = ["the", "cat", "sees", "one", "big", "house", "near", "a", "river"]
    source = [" ".join(generator.choice(words, generator.integers(1, 15))) for _ in range(200)]
    pairs = Pairs([*source, ""], [*(" ".join(reversed(line.split())) for line in source), "the"], "toy")
    return encode_pairs(pairs, vocabulary, vocabulary, tmp_path_factory.mktemp("cache"))


def test_a_batch_ends_in_eos_then_padding(corpus):
    rows = [3, 200, 7]
    batch = collate(corpus, np.array(rows), epoch=2)
    assert (len(batch), batch.indices, batch.epoch) == (3, rows, 2)
    for side, ids, lengths in (
        (corpus.source, batch.source, batch.source_lengths),
        (corpus.target, batch.target, batch.target_lengths),
    ):
        assert ids.dtype == lengths.dtype == torch.int64
        assert ids.shape == (3, int(lengths.max()))
        for row, i in enumerate(rows):
            expected = [*side(i).tolist(), EOS]
            assert ids[row].tolist() == expected + [PAD] * (ids.shape[1] - len(expected))
            assert lengths[row] == len(expected)
    assert batch.source_tokens == int((batch.source != PAD).sum())
    assert batch.target_tokens == int((batch.target != PAD).sum())
    total = batch.source.numel() + batch.target.numel()
    assert batch.padding_share == pytest.approx(1 - (batch.source_tokens + batch.target_tokens) / total)
    moved = batch.to("meta")
    assert moved.source.device.type == moved.target_lengths.device.type == "meta"
    assert moved.indices == batch.indices and batch.source.device.type == "cpu"


def _same(a, b):
    return (
        a.indices == b.indices
        and a.epoch == b.epoch
        and torch.equal(a.source, b.source)
        and torch.equal(a.target, b.target)
    )


@pytest.mark.parametrize("sampling", [0.0, 0.2])
def test_resuming_equals_going_on(corpus, vocabulary, sampling):
    options = {"epochs": 3, "sampling": sampling, "vocabularies": (vocabulary, vocabulary)}
    whole = list(TrainingStream(corpus, 150, 4, **options))
    per_epoch = [TrainingStream(corpus, 150, 4).batches_in_epoch(epoch) for epoch in range(3)]
    assert len(whole) == sum(per_epoch)
    assert [batch.epoch for batch in whole] == [e for e, count in enumerate(per_epoch) for _ in range(count)]
    for start in (0, 1, per_epoch[0] - 1, per_epoch[0], per_epoch[0] + 3, sum(per_epoch) - 1, sum(per_epoch)):
        rest = list(TrainingStream(corpus, 150, 4, start_batch=start, **options))
        assert len(rest) == len(whole) - start
        assert all(map(_same, rest, whole[start:]))
    assert list(TrainingStream(corpus, 150, 4, start_batch=10**4, epochs=3)) == []


def test_each_epoch_holds_each_usable_pair_once(corpus):
    for epoch, batches in itertools.groupby(TrainingStream(corpus, 150, 4, epochs=2), lambda batch: batch.epoch):
        batches = list(batches)
        assert sorted(row for batch in batches for row in batch.indices) == list(range(200))
        assert all(max(b.source.numel(), b.target.numel()) <= 150 for b in batches)
        if epoch == 0:
            assert batches[0].source.numel() == max(b.source.numel() for b in batches)


def test_an_endless_stream_goes_on(corpus):
    stream = TrainingStream(corpus, 150, 4)
    count = 3 * stream.batches_in_epoch(0)
    assert [b.epoch for b in itertools.islice(stream, count)][-1] >= 2


def test_long_pairs_stay_out_and_are_reported(corpus, caplog):
    limit = 12
    longer = np.maximum(corpus.source_lengths, corpus.target_lengths)
    with caplog.at_level(logging.INFO):
        stream = TrainingStream(corpus, 150, 4, epochs=1, max_length=limit)
    assert caplog.text.count("longer than max_length = 12 pieces") == 1
    assert f"Left out {(longer > limit).sum()} of 201 pairs: longer" in caplog.text
    assert "Left out 1 of 201 pairs: a side is empty" in caplog.text
    seen = sorted(row for batch in stream for row in batch.indices)
    assert seen == np.flatnonzero(longer[:200] <= limit).tolist()
    with pytest.raises(UserError, match="No pair is left to train on"):
        TrainingStream(corpus, 150, 4, max_length=0)
    row = int(longer.argmax())
    with pytest.raises(UserError, match=rf"Pair {row + 1} has {longer[row] + 1} tokens"):
        TrainingStream(corpus, int(longer[row]), 4)
    with pytest.raises(UserError, match="needs the vocabularies"):
        TrainingStream(corpus, 150, 4, sampling=0.1)


def test_pairs_beyond_the_positions_of_a_model_stay_out_of_training(corpus, caplog):
    """Another limit a side; a budget that is set later keeps to it."""
    fits = (corpus.source_lengths <= 9) & (corpus.target_lengths <= 7)
    wanted = np.flatnonzero(fits[:200]).tolist()
    stream = TrainingStream(corpus, 150, 4, epochs=1)
    stream.leave_out_longer(9, 7)
    limits = "the model has positions for, 9 pieces of a source and 7 pieces of a target"
    assert f"Left out {200 - len(wanted)} of 201 pairs: longer than {limits}" in caplog.text
    assert 0 < len(wanted) < 200
    assert sorted(row for batch in stream for row in batch.indices) == wanted
    stream.set_budget(90)
    assert sorted(row for batch in stream for row in batch.indices) == wanted
    caplog.clear()
    stream.leave_out_longer(9, None)
    assert (
        not caplog.text
        and stream.longest == int(np.maximum(corpus.source_lengths, corpus.target_lengths)[wanted].max()) + 1
    )
    with pytest.raises(UserError, match=rf"all {len(wanted)} are longer than .* 0 pieces of a target; give shorter"):
        stream.leave_out_longer(None, 0)


def test_dev_pairs_beyond_the_positions_of_a_model_are_cut(corpus, caplog):
    assert cut_longer(corpus, None, None, "dev") is cut_longer(corpus, 10**6, 10**6, "dev") is None and not caplog.text
    batch = collate(corpus, range(201), 0, cut_longer(corpus, 9, None, "dev"))
    assert f"{(corpus.source_lengths > 9).sum()} of 201 pairs of dev are longer than the model has" in caplog.text
    whole = collate(corpus, range(201), 0)
    assert torch.equal(batch.target, whole.target) and batch.source.shape[1] == 10
    for row, length in enumerate(batch.source_lengths.tolist()):
        assert length == min(int(whole.source_lengths[row]), 10)
        assert batch.source[row, :length].tolist() == [*whole.source[row, : length - 1].tolist(), EOS]


def test_sampling_changes_pieces_from_epoch_to_epoch_but_not_the_text(corpus, vocabulary):
    seen = {}
    for batch in TrainingStream(corpus, 150, 4, epochs=2, sampling=0.3, vocabularies=(vocabulary, vocabulary)):
        for row, i in enumerate(batch.indices):
            assert vocabulary.decode(batch.source[row].tolist()) == corpus.source_line(i)
            assert vocabulary.decode(batch.target[row].tolist()) == corpus.target_line(i)
            seen.setdefault(i, set()).add(tuple(batch.source[row, : batch.source_lengths[row]].tolist()))
    assert sum(len(pieces) == 2 for pieces in seen.values()) > 100


def test_the_source_alone_can_be_sampled(corpus, vocabulary):
    options = {"epochs": 1, "vocabularies": (vocabulary, vocabulary)}
    both = list(TrainingStream(corpus, 150, 4, sampling=0.3, **options))
    alone = list(TrainingStream(corpus, 150, 4, sampling=0.3, sampled="source", **options))
    plain = list(TrainingStream(corpus, 150, 4, **options))
    for one, sampled, whole in zip(alone, both, plain, strict=True):
        assert torch.equal(one.source, sampled.source) and torch.equal(one.target, whole.target)
    assert not all(torch.equal(one.source, whole.source) for one, whole in zip(alone, plain, strict=True))
    assert not all(torch.equal(sampled.target, whole.target) for sampled, whole in zip(both, plain, strict=True))


def test_ranks_share_the_stream_and_have_equally_many(corpus):
    whole = list(TrainingStream(corpus, 150, 4, epochs=2))
    parts = [list(TrainingStream(corpus, 150, 4, epochs=2, rank=r, world=3)) for r in range(3)]
    assert {len(part) for part in parts} == {len(whole) // 3}
    together = [batch for step in zip(*parts, strict=True) for batch in step]
    assert all(map(_same, together, whole))
    with pytest.raises(ValueError, match="ranks count from 0"):
        TrainingStream(corpus, 150, 4, rank=3, world=3)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_every_pair_comes_once_an_epoch_however_often_the_processes_change(corpus, data):
    """A run is cut anywhere and goes on with another number of processes: together they see what one would see."""
    whole = list(TrainingStream(corpus, 150, 4, epochs=2))
    seen, start = [], 0
    while start < len(whole):
        world = data.draw(st.integers(1, 7))
        rounds = data.draw(st.integers(1, 8))
        streams = [TrainingStream(corpus, 150, 4, start_batch=start, rank=r, world=world) for r in range(world)]
        parts = [list(itertools.islice(stream, rounds)) for stream in streams]
        assert {len(part) for part in parts} == {rounds}
        seen += [batch for step in zip(*parts, strict=True) for batch in step]
        start += rounds * world
    assert all(map(_same, seen, whole))
    for epoch in range(2):
        rows = [row for batch in seen for row in batch.indices if batch.epoch == epoch]
        assert sorted(rows) == list(range(200))


class Lengths(Encoded):
    """A corpus of which the lengths alone count."""

    def __init__(self, lengths):
        self.source_lengths, self.target_lengths = (np.array(side, np.int32) for side in zip(*lengths, strict=True))

    def __len__(self):
        return len(self.source_lengths)

    def source(self, i):
        return np.full(self.source_lengths[i], 5, np.int32)

    def target(self, i):
        return np.full(self.target_lengths[i], 5, np.int32)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=80),
    st.integers(1, 400),
    st.integers(1, 40),
    st.integers(1, 33),
    st.integers(0, 2**63 - 1),
    st.integers(1, 3),
)
def test_whatever_the_corpus_each_usable_pair_comes_once_an_epoch(lengths, budget, max_length, world, seed, epochs):
    """Shared by any number of processes, more than batches, too; each makes equally many steps."""
    usable = [row for row, pair in enumerate(lengths) if min(pair) >= 1 and max(pair) <= max_length]

    def stream(rank, epochs=None):
        options = {"max_length": max_length, "epochs": epochs, "rank": rank, "world": world}
        return TrainingStream(Lengths(lengths), budget, seed, **options)

    if not usable or max(max(lengths[row]) for row in usable) + 1 > budget:
        with pytest.raises(UserError):
            stream(0)
        return
    total = sum(stream(0).batches_in_epoch(epoch) for epoch in range(epochs))
    rounds = -(-total // world)
    parts = [list(itertools.islice(stream(rank), rounds)) for rank in range(world)]
    assert {len(part) for part in parts} == {rounds}
    seen = [batch for step in zip(*parts, strict=True) for batch in step]
    assert all(max(batch.source.numel(), batch.target.numel()) <= budget for batch in seen)
    for epoch in range(epochs):
        assert sorted(row for batch in seen for row in batch.indices if batch.epoch == epoch) == usable
    # A stream with an end: as many steps for all, whole rounds of what the endless one has.
    ended = [list(stream(rank, epochs)) for rank in range(world)]
    assert {len(part) for part in ended} == {total // world}
    assert all(_same(a, b) for part, whole in zip(ended, parts, strict=True) for a, b in zip(part, whole, strict=False))
