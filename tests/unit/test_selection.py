"""Sampling, diverse beams, shortest lengths and coverage, each against its definition by brute force."""

import collections
import itertools
import math

import pytest
import torch

from nmt.errors import UserError
from nmt.search import SearchConfig, beam_search
from nmt.search.beam import Beam
from nmt.search.hard import coverage_penalty
from nmt.search.sampling import Sampler
from nmt.search.selection import Scored
from tests.conftest import random_batch
from tests.unit.test_search import score_sequence

EOS = 3
TOKENS = [1, 4, 5, 6]  # of a vocabulary of 7: unknown and three words
SOURCE, LENGTHS = torch.tensor([[4, 5, EOS]]), torch.tensor([3])


def every_sequence(model, longest):
    with torch.no_grad():
        memory = model.encode(SOURCE, LENGTHS)
        return [
            (score_sequence(model, memory, tokens), list(tokens))
            for length in range(longest)
            for tokens in itertools.product(TOKENS, repeat=length)
        ]


@pytest.mark.parametrize("seed", range(3))
def test_shortest_length(tiny_model, seed):
    model = tiny_model(vocabulary=7, seed=seed)
    config = SearchConfig(100, max_ratio=0, max_extra=4, n_best=5, min_extra=3)
    ranked = sorted(((p / (len(t) + 1), t) for p, t in every_sequence(model, 4) if len(t) + 1 >= 3), reverse=True)
    found = beam_search(model, SOURCE, LENGTHS, config)[0]
    assert [h.tokens for h in found] == [t for _, t in ranked[:5]]
    # By the source: 2/3 of 3 tokens, rounded down, and never more than the longest.
    assert SearchConfig(min_ratio=0.667).min_length(3) == 2
    assert SearchConfig(min_extra=50).min_length(3) == SearchConfig().max_length(3) == 14


def attention_of(model, tokens):
    memory = model.encode(SOURCE, LENGTHS)
    state, previous, seen = model.start(memory), torch.tensor([[2]]), torch.zeros(3)
    for token in [*tokens, EOS]:
        advanced = model.advance(model.embed(previous), state, memory)
        state, previous, seen = advanced.state, torch.tensor([[token]]), seen + advanced.attention[0, 0]
    return seen


@pytest.mark.parametrize("normalization", ["none", "length", "gnmt"])
def test_coverage_is_part_of_the_final_score(tiny_model, normalization):
    model = tiny_model(vocabulary=7, seed=2)
    config = SearchConfig(100, normalization, max_ratio=0, max_extra=4, n_best=5, coverage=20.0)
    divide = {"none": lambda y: 1.0, "length": lambda y: y, "gnmt": lambda y: (5 + y) / 6}[normalization]
    with torch.no_grad():
        scored = [
            (p / divide(len(t) + 1) + 20.0 * sum(math.log(min(c, 1.0)) for c in attention_of(model, t).tolist()), t)
            for p, t in every_sequence(model, 4)
        ]
    ranked = sorted(scored, reverse=True)
    found = beam_search(model, SOURCE, LENGTHS, config)[0]
    plain = sorted(((p / divide(len(t) + 1), t) for p, t in every_sequence(model, 4)), reverse=True)
    assert [h.tokens for h in found] == [t for _, t in ranked[:5]]
    assert [t for _, t in ranked] != [t for _, t in plain]
    assert [h.score for h in found] == pytest.approx([s for s, _ in ranked[:5]], abs=1e-4)
    assert "+ 20 * sum_i log min(coverage_i, 1)" in config.formula


def test_coverage_does_not_count_padding():
    coverage = torch.tensor([[[0.5, 2.0, 0.0]]])
    assert float(coverage_penalty(coverage, torch.tensor([2]))) == pytest.approx(math.log(0.5))
    assert float(coverage_penalty(coverage, torch.tensor([3]))) < -20


def shares(model, memory, prefix, temperature, top_k, top_p):
    """The probabilities of the next token, by the definition."""
    state, previous = model.start(memory), torch.tensor([[2]])
    for token in prefix:
        _, state = model.step(model.embed(previous), state, memory)
        previous = torch.tensor([[token]])
    logits, _ = model.step(model.embed(previous), state, memory)
    p = (logits[0, 0].double() / temperature).softmax(0)
    p[[0, 2]] = 0.0
    p = p / p.sum()
    order = sorted(range(7), key=lambda v: -float(p[v]))
    kept = [v for v in order if p[v] > 0][: top_k or 7]
    mass, total, nucleus = 0.0, float(sum(p[v] for v in kept)), []
    for v in kept:
        if mass >= top_p * total:
            break
        nucleus.append(v)
        mass += float(p[v])
    return {v: float(p[v]) / mass for v in nucleus}


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.7, 0, 1.0), (1.5, 3, 1.0), (1.0, 0, 0.8), (2.0, 4, 0.9)]
)
def test_samples_come_as_often_as_they_should(tiny_model, temperature, top_k, top_p):
    model = tiny_model(vocabulary=7, seed=1, scale=1.0)
    count = 4000
    config = SearchConfig(
        n_best=count, max_ratio=0, max_extra=3, strategy="sample", temperature=temperature, top_k=top_k, top_p=top_p
    )
    found = beam_search(model, SOURCE, LENGTHS, config)[0]
    assert len(found) == count
    seen = collections.Counter(tuple(h.tokens) for h in found)
    expected = collections.Counter()
    with torch.no_grad():
        memory = model.encode(SOURCE, LENGTHS)
        for first, p in shares(model, memory, [], temperature, top_k, top_p).items():
            if first == EOS:
                expected[()] += p
                continue
            for second, q in shares(model, memory, [first], temperature, top_k, top_p).items():
                expected[(first,) if second == EOS else (first, second)] += p * q
        exact = {tokens: score_sequence(model, memory, tokens) for tokens in seen}
    assert sum(expected.values()) == pytest.approx(1.0)
    assert set(seen) <= {tokens for tokens, p in expected.items() if p > 0}
    for tokens, p in expected.items():
        assert seen[tokens] / count == pytest.approx(p, abs=4.5 * math.sqrt(p * (1 - p) / count) + 1e-9)
    # Scores are the model's own, whatever was drawn from.
    for hypothesis in found[:50]:
        assert hypothesis.log_probability == pytest.approx(exact[tuple(hypothesis.tokens)], abs=1e-4)


def test_draws_depend_on_seed_and_number_alone(tiny_model):
    model = tiny_model(vocabulary=30, seed=1, scale=0.5)
    batch = random_batch(20, 30, 12, seed=5)
    config = SearchConfig(n_best=3, strategy="sample")
    together = beam_search(model, batch.source, batch.source_lengths, config, numbers=range(7, 27))
    for row in range(20):
        length = batch.source_lengths[row : row + 1]
        alone = beam_search(model, batch.source[row : row + 1, : int(length)], length, config, numbers=[7 + row])
        assert [h.tokens for h in alone[0]] == [h.tokens for h in together[row]]
    other = SearchConfig(n_best=3, strategy="sample", seed=2)
    assert beam_search(model, batch.source, batch.source_lengths, other, numbers=range(7, 27)) != together


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (500, 1.0), (0, 0.95)])
def test_draws_survive_the_rounding_of_another_batch(tiny_model, top_k, top_p):
    """Where a batch moves the last digits of the logits, and where a shortlist has other tokens beside the likely."""
    config = SearchConfig(n_best=20, strategy="sample", top_k=top_k, top_p=top_p)
    model, rows = tiny_model(vocabulary=8), torch.arange(50)
    torch.manual_seed(0)
    logits = torch.randn(50, 20, 4000)
    logits[..., :1000] += 4
    beam = Beam(None, torch.zeros(50, 20, 1), torch.zeros(50, 20), torch.zeros(50, 20))

    def draws(logits):
        scored = Scored(logits, logits.logsumexp(2), beam, torch.zeros(50, dtype=torch.bool))
        return Sampler(config, range(50)).select(model, scored, rows, step=3).tokens

    expected = draws(logits)
    assert len(expected.unique()) > 400
    assert int((draws(logits + 1e-5 * torch.randn_like(logits)) != expected).sum()) <= 1, "of 1,000"
    model.ids = torch.cat([torch.arange(0, 1000), torch.arange(1000, 4000, 3)])
    there = torch.full_like(logits, -torch.inf).index_copy(2, model.ids, logits[..., model.ids])
    narrow = model.ids[draws(logits[..., model.ids])]
    model.ids = None
    assert torch.equal(draws(there), narrow)


def test_cold_samples_are_greedy(tiny_model):
    model = tiny_model(vocabulary=30, seed=1)
    batch = random_batch(20, 30, 12, seed=5)
    greedy = beam_search(model, batch.source, batch.source_lengths, SearchConfig(1))
    for options in ({"temperature": 1e-6}, {"top_k": 1}, {"top_p": 1e-9}):
        cold = beam_search(model, batch.source, batch.source_lengths, SearchConfig(strategy="sample", **options))
        assert [h[0].tokens for h in cold] == [h[0].tokens for h in greedy]


def slow_diverse(model, size, groups, diversity, limit):
    """Diverse beam search over Python lists, one sentence, without an early end: the finished hypotheses."""
    memory = model.encode(SOURCE, LENGTHS)
    beams = [[(0.0, [], model.start(memory))] for _ in range(groups)]
    finished = []
    for step in range(limit):
        taken = collections.Counter()
        for group in range(groups):
            candidates = []
            for total, tokens, state in beams[group]:
                previous = torch.tensor([[tokens[-1] if tokens else 2]])
                logits, new = model.step(model.embed(previous), state, memory)
                for token, log_p in enumerate(logits[0, 0].log_softmax(0).tolist()):
                    if token not in (0, 2) and (step + 1 < limit or token == EOS):
                        rank = total + log_p - diversity * taken[token]
                        candidates.append((rank, total + log_p, [*tokens, token], new))
            candidates.sort(key=lambda c: -c[0])
            beams[group] = []
            chosen = candidates[: size // groups]
            for _, total, tokens, state in chosen:
                if tokens[-1] == EOS:
                    finished.append((total / len(tokens), tokens[:-1]))
                else:
                    beams[group].append((total, tokens, state))
            taken.update(tokens[-1] for _, _, tokens, _ in chosen)
    return sorted(finished, key=lambda f: -f[0])


@pytest.mark.parametrize(("size", "groups"), [(4, 2), (6, 3), (3, 3)])
@pytest.mark.parametrize("diversity", [0.0, 0.7, 100.0])
@pytest.mark.parametrize("seed", [0, 3])
def test_diverse_beams_equal_a_slow_search(tiny_model, size, groups, diversity, seed):
    model = tiny_model(vocabulary=20, seed=seed)
    config = SearchConfig(size, groups=groups, diversity=diversity, n_best=size, max_ratio=0, max_extra=6)
    with torch.no_grad():
        expected = []
        for score, tokens in slow_diverse(model, size, groups, diversity, 6):
            if tokens not in [t for _, t in expected]:
                expected.append((score, tokens))
    found = beam_search(model, SOURCE, LENGTHS, config)[0]
    # The search ends when nothing can enter its pool, which holds n_best hypotheses a group.
    assert [h.tokens for h in found] == [t for _, t in expected[: len(found)]]
    assert [h.score for h in found] == pytest.approx([s for s, _ in expected[: len(found)]], abs=1e-4)
    assert len(found) == min(size, len(expected))


def test_token_scores_sum_to_the_whole(tiny_model):
    model = tiny_model(vocabulary=30, seed=1)
    batch = random_batch(20, 30, 12, seed=5)
    for found in beam_search(model, batch.source, batch.source_lengths, SearchConfig(4, n_best=3)):
        for hypothesis in found:
            assert len(hypothesis.token_log_probabilities) == len(hypothesis.tokens) + 1
            assert sum(hypothesis.token_log_probabilities) == pytest.approx(hypothesis.log_probability, abs=1e-4)
            assert max(hypothesis.token_log_probabilities) <= 1e-5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"groups": 2}, "beam_size 5 cannot be split into search.groups 2"),
        ({"top_k": 5}, "top_k is 5, which is for sampling"),
        ({"strategy": "sample", "top_p": 0.0}, "top_p is 0.0"),
        ({"strategy": "sample", "temperature": 0.0}, "temperature is 0.0"),
        ({"strategy": "sample", "groups": 5}, "groups is 5, which is for a beam"),
        ({"strategy": "smaple"}, "'smaple'; choose beam or sample"),
        ({"coverage": -0.1}, "coverage is -0.1"),
        ({"min_extra": -1}, "min_extra is -1"),
    ],
)
def test_impossible_selections_are_refused(options, words):
    with pytest.raises(UserError, match=words):
        SearchConfig(**options)
