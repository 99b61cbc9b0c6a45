"""Alignments by IBM Model 1 against a slow one, and shortlists: what is searched, saved and refused."""

import collections

import numpy as np
import pytest
import torch

from nmt import alignment
from nmt.alignment import learn_lexicon
from nmt.errors import UserError
from nmt.models import Narrowed, decoding_form
from nmt.search import SearchConfig, beam_search
from nmt.shortlist import Shortlist
from nmt.translator import Translator
from tests.conftest import random_batch

SOURCES = [[4, 5], [4, 6, 4], [7], [], [5, 6, 7, 8]]
TARGETS = [[14, 15], [14, 14, 16], [17, 18], [19], [16, 15, 17]]


def slow_model_1(iterations):
    """t[source][target] by the definition; None is the empty word."""
    t = collections.defaultdict(lambda: collections.defaultdict(lambda: 1.0))
    for _ in range(iterations):
        counts = collections.defaultdict(lambda: collections.defaultdict(float))
        for source, target in zip(SOURCES, TARGETS, strict=True):
            for f in target:
                total = sum(t[e][f] for e in [*source, None])
                for e in [*source, None]:
                    counts[e][f] += t[e][f] / total
        t = collections.defaultdict(lambda: collections.defaultdict(float))
        for e, row in counts.items():
            for f, count in row.items():
                t[e][f] = count / sum(row.values())
    return t


@pytest.mark.parametrize("block", [1, 5, 10**6])
@pytest.mark.parametrize("iterations", [1, 2, 7])
def test_model_1_by_the_definition(monkeypatch, block, iterations):
    monkeypatch.setattr(alignment, "_BLOCK", block)
    found = learn_lexicon(SOURCES, TARGETS, 30, iterations=iterations)
    expected = slow_model_1(iterations)
    pairs = [(e, f) for e in sorted(e for e in expected if e is not None) for f in sorted(expected[e])]
    assert list(zip(found.source.tolist(), found.target.tolist(), strict=True)) == pairs
    assert found.probability.tolist() == pytest.approx([expected[e][f] for e, f in pairs])
    assert len(learn_lexicon([], [], 30).source) == 0


def some_shortlist(vocabulary, seed=0):
    generator = np.random.default_rng(seed)
    best = generator.integers(-1, vocabulary, size=(vocabulary, 6)).astype(np.int32)
    best[(best >= 0) & (best < 4)] = -1
    return Shortlist(best, np.array([0, 1, 2, 3, 10, 11], dtype=np.int32), ("a", "b"))


def test_candidates_of_a_batch():
    shortlist = some_shortlist(40)
    every, allowed = shortlist.candidates([[4, 5, 4], [6]])
    assert every.tolist() == sorted(set(every.tolist())) and every[:4].tolist() == [0, 1, 2, 3]
    for ids, row in zip([[4, 5], [6]], allowed, strict=True):
        expected = {0, 1, 2, 3, 10, 11} | {int(t) for i in ids for t in shortlist.best[i] if t >= 0}
        assert set(every[row].tolist()) == expected


def test_the_search_over_candidates_is_that_over_a_masked_vocabulary(tiny_model):
    model = decoding_form(tiny_model(vocabulary=40, seed=2))
    batch = random_batch(12, 40, 9, seed=1)
    sources = [row[: int(n) - 1].tolist() for row, n in zip(batch.source, batch.source_lengths, strict=True)]
    shortlist = some_shortlist(40)
    every, allowed = shortlist.candidates(sources)
    config = SearchConfig(4, n_best=3)
    found = beam_search(Narrowed(model, every, allowed), batch.source, batch.source_lengths, config)
    outside = torch.ones(12, 40, dtype=torch.bool)
    outside[:, every] = ~allowed

    class Masked(type(model)):
        """The slow way: all logits, those outside at -inf before anything else is done."""

        def __init__(self, rows):
            torch.nn.Module.__init__(self)
            self.__dict__.update(model.__dict__)
            self.rows = rows

        def project(self, features):
            return super().project(features).masked_fill(outside[self.rows].unsqueeze(1), -torch.inf)

    for row in range(12):
        length = batch.source_lengths[row : row + 1]
        source = batch.source[row : row + 1, : int(length)]
        expected = beam_search(Masked([row]), source, length, config)[0]
        spelt = [every[h.tokens].tolist() for h in found[row]]
        assert spelt == [h.tokens for h in expected]
        assert [h.score for h in found[row]] == pytest.approx([h.score for h in expected], abs=1e-4)
        alone = beam_search(Narrowed(model, *shortlist.candidates([sources[row]])), source, length, config)[0]
        assert [h.score for h in alone] == pytest.approx([h.score for h in expected], abs=1e-4)


LINES = ["the cat", "", "one my two", "red", "a my the one two red blue green cat"]


def test_learned_saved_and_used(tiny_checkpoint, small_corpus, tmp_path):
    translator = Translator(tiny_checkpoint())
    vocabulary = translator.target_vocabulary
    pairs = [(word, word) for line in LINES for word in line.split()]
    shortlist = Shortlist.learn(pairs, vocabulary, vocabulary, best=12, frequent=5)
    path = tmp_path / "shortlist.safetensors"
    shortlist.save(path)
    again = Shortlist.load(path, vocabulary, vocabulary)
    assert np.array_equal(again.best, shortlist.best) and np.array_equal(again.frequent, shortlist.frequent)
    # In a text that translates itself a piece is a candidate of itself; the special ids are none.
    for piece in {i for line in LINES for i in vocabulary.encode([line])[0] if i > 3}:
        assert piece in shortlist.best[piece]
    assert not ((shortlist.best >= 0) & (shortlist.best < 4)).any()
    plain, translator.shortlist = translator.search(LINES), again
    found = translator.search(LINES)
    assert [t[0].text for t in found] == translator.translate(LINES, batch_tokens=1)
    for line, (best, *_) in zip(LINES, found, strict=True):
        every, _ = again.candidates(vocabulary.encode([line]))
        names = vocabulary.pieces(every.tolist())
        assert set(best.pieces) <= set(names)
    assert found != plain


def test_what_is_no_shortlist_is_refused(tiny_checkpoint, tmp_path):
    joint, separate = tiny_checkpoint(), tiny_checkpoint(joint=False)
    path = tmp_path / "shortlist"
    with pytest.raises(UserError, match="does not exist"):
        Shortlist.load(path, joint.source_vocabulary, joint.target_vocabulary)
    path.write_bytes(b"what is this")
    with pytest.raises(UserError, match="damaged or no shortlist"):
        Shortlist.load(path, joint.source_vocabulary, joint.target_vocabulary)
    Shortlist.learn([("a", "a")], joint.source_vocabulary, joint.target_vocabulary).save(path)
    with pytest.raises(UserError, match="other vocabularies"):
        Shortlist.load(path, separate.source_vocabulary, separate.target_vocabulary)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged or no shortlist .its checksum is wrong"):
        Shortlist.load(path, joint.source_vocabulary, joint.target_vocabulary)
    for options, words in (({"best": 0}, "best is 0"), ({"frequent": 0}, "frequent is 0")):
        with pytest.raises(UserError, match=words):
            Shortlist.learn([("a", "a")], joint.source_vocabulary, joint.target_vocabulary, **options)
    with pytest.raises(UserError, match="there are none"):
        Shortlist.learn([], joint.source_vocabulary, joint.target_vocabulary)
