"""The search against brute force, against a slow beam search, and against itself in other batches."""

import itertools
import math
import weakref

import pytest
import torch

from nmt.errors import UserError
from nmt.models import Ensemble
from nmt.search import Beam, SearchConfig, SoftSearchConfig, beam_search, expand, first_beam, soft_beam_search
from nmt.search.peaks import log_normaliser
from nmt.search.selection import hard_reparent, hard_select
from nmt.search.soft import clip_gradient
from nmt.tree import leaves
from tests.conftest import random_batch

EOS = 3


def score_sequence(model, memory, tokens):
    """log p of tokens and EOS, one step at a time, in the plainest way."""
    state, previous, total = model.start(memory), torch.tensor([[1 + 1]]), 0.0
    for token in [*tokens, EOS]:
        logits, state = model.step(model.embed(previous), state, memory)
        total += logits[0, 0].log_softmax(0)[token].item()
        previous = torch.tensor([[token]])
    return total


@pytest.mark.parametrize(
    ("normalization", "alpha"),
    [("none", 1.0), ("length", 0.5), ("length", 1.0), ("length", 2.0), ("gnmt", 0.6), ("gnmt", 2.0)],
)
@pytest.mark.parametrize("seed", range(4))
def test_large_beam_finds_the_brute_force_best(tiny_model, normalization, alpha, seed):
    model = tiny_model(vocabulary=7, seed=seed)  # ids 1 (unknown), 4, 5, 6 and EOS may be produced
    source, lengths = torch.tensor([[4, 5, EOS]]), torch.tensor([3])
    # At most 4 tokens, EOS among them: 1 + 4 + 16 + 64 sequences.
    config = SearchConfig(100, normalization, alpha, max_ratio=0, max_extra=4, n_best=5)
    with torch.no_grad():
        memory = model.encode(source, lengths)
        every = [
            (score_sequence(model, memory, tokens), list(tokens))
            for length in range(4)
            for tokens in itertools.product([1, 4, 5, 6], repeat=length)
        ]
    divide = {
        "none": lambda y: 1.0,
        "length": lambda y: y**alpha,
        "gnmt": lambda y: ((5 + y) / 6) ** alpha,
    }[normalization]
    ranked = sorted(((log_p / divide(len(t) + 1), log_p, t) for log_p, t in every), reverse=True)
    found = beam_search(model, source, lengths, config)[0]
    assert [h.tokens for h in found] == [t for _, _, t in ranked[:5]]
    for hypothesis, (score, log_p, _) in zip(found, ranked, strict=False):
        assert hypothesis.score == pytest.approx(score, abs=1e-4)
        assert hypothesis.log_probability == pytest.approx(log_p, abs=1e-4)


def slow_beam_search(model, source, length, config):
    """The same search for one sentence with Python lists, which never stops before the length limit but where
    `config.stop` says so."""
    memory = model.encode(source, length)
    limit = config.max_length(int(length))
    open_ = [(0.0, [], model.start(memory))]
    finished = []
    for step in range(limit):
        candidates = []
        for total, tokens, state in open_:
            previous = torch.tensor([[tokens[-1] if tokens else 2]])
            logits, new = model.step(model.embed(previous), state, memory)
            for token, log_p in enumerate(logits[0, 0].log_softmax(0).tolist()):
                if token in (0, 2) or (step + 1 == limit and token != EOS):
                    continue
                candidates.append((total + log_p, [*tokens, token], new))
        candidates.sort(key=lambda c: -c[0])
        open_ = []
        divisor = float(config.divisor(torch.tensor(step + 1.0)))
        for rank, (total, tokens, state) in enumerate(candidates):
            if tokens[-1] == EOS and rank < config.beam_size:
                finished.append((total / divisor, tokens[:-1]))
            elif tokens[-1] != EOS and (len(open_) < config.beam_size if config.refill else rank < config.beam_size):
                open_.append((total, tokens, state))
        finished.sort(key=lambda f: -f[0])
        if len(finished) >= config.beam_size and open_:
            worst = finished[config.beam_size - 1][0]
            if config.stop == "full" or (config.stop == "present" and open_[0][0] / divisor <= worst):
                break
    return finished


def model_that_ends(tiny_model, **config):
    """A model most of whose hypotheses end before their limit."""
    model = tiny_model(vocabulary=20, seed=1, **config)
    with torch.no_grad():
        model.output.bias[EOS] += 2.0
    return model


@pytest.mark.parametrize(
    "options",
    [
        *({"normalization": name, "beam_size": size} for name in ("none", "length", "gnmt") for size in (1, 2, 5)),
        {"refill": True},
        {"refill": True, "stop": "present"},
        {"refill": True, "stop": "full"},
        {"stop": "full"},
    ],
)
@pytest.mark.parametrize("model_config", [{}, {"cell": "lstm", "encoder_layers": 2, "decoder_layers": 2}])
def test_equals_a_slow_search(tiny_model, model_config, options):
    model = model_that_ends(tiny_model, **model_config)
    config = SearchConfig(**options, max_extra=3)
    config.n_best = config.beam_size
    batch = random_batch(12, 20, 9, seed=config.beam_size)
    found = beam_search(model, batch.source, batch.source_lengths, config)
    with torch.no_grad():
        for row, hypotheses in enumerate(found):
            length = batch.source_lengths[row : row + 1]
            source = batch.source[row : row + 1, : int(length)]
            expected = slow_beam_search(model, source, length, config)
            for hypothesis, (score, tokens) in zip(hypotheses, expected, strict=False):
                assert hypothesis.tokens == tokens
                assert hypothesis.score == pytest.approx(score, abs=1e-4)
            assert len(hypotheses) == min(config.n_best, len(expected))


def test_refilled_slots_and_early_stops_change_what_is_found(tiny_model):
    """Or else the test above would show nothing of them."""
    model = model_that_ends(tiny_model)
    batch = random_batch(12, 20, 9, seed=5)

    def found(**options):
        config = SearchConfig(n_best=5, max_extra=3, **options)
        return [[h.tokens for h in one] for one in beam_search(model, batch.source, batch.source_lengths, config)]

    several = [found(), found(refill=True), found(refill=True, stop="present"), found(refill=True, stop="full")]
    assert all(one != other for one, other in itertools.combinations(several, 2))


def test_output_does_not_depend_on_batch_or_padding(tiny_model):
    model = tiny_model(vocabulary=30, seed=1)
    batch = random_batch(40, 30, 12, seed=5)
    config = SearchConfig(4, n_best=3)
    together = beam_search(model, batch.source, batch.source_lengths, config, attention=True)
    noisy = torch.cat([batch.source, torch.zeros(40, 5, dtype=torch.long)], dim=1)
    padding = torch.arange(noisy.shape[1]) >= batch.source_lengths.unsqueeze(1)
    noisy = torch.where(padding, torch.randint(4, 30, noisy.shape), noisy)
    with_noise = beam_search(model, noisy, batch.source_lengths, config)
    for row in range(40):
        length = batch.source_lengths[row : row + 1]
        alone = beam_search(model, batch.source[row : row + 1, : int(length)], length, config, attention=True)[0]
        for others in (together[row], with_noise[row]):
            assert [h.tokens for h in others] == [h.tokens for h in alone]
            assert [h.score for h in others] == pytest.approx([h.score for h in alone], abs=1e-5)
        torch.testing.assert_close(together[row][0].attention, alone[0].attention, atol=1e-5, rtol=0)


def test_logits_of_one_step_are_in_memory_at_most(tiny_model, monkeypatch):
    model, made = tiny_model(), []
    project = model.project

    def projected(features):
        assert not made or made[-1]() is None
        logits = project(features)
        made.append(weakref.ref(logits))
        return logits

    monkeypatch.setattr(model, "project", projected)
    batch = random_batch(4, 12, 6)
    beam_search(model, batch.source, batch.source_lengths, SearchConfig(beam_size=3))
    assert len(made) > 2


def test_attention_rows_sum_to_one_and_fit_the_sentence(tiny_model):
    model = tiny_model(seed=2)
    batch = random_batch(5, 12, 8)
    for row, hypotheses in enumerate(
        beam_search(model, batch.source, batch.source_lengths, SearchConfig(3), attention=True)
    ):
        attention = hypotheses[0].attention
        assert attention.shape == (len(hypotheses[0].tokens) + 1, int(batch.source_lengths[row]))
        torch.testing.assert_close(attention.sum(1), torch.ones(len(attention)))


def test_hypotheses_are_sorted_distinct_and_within_the_length(tiny_model):
    model = tiny_model(vocabulary=15, seed=4, scale=0.2)  # nearly uniform: hypotheses tend to run on
    batch = random_batch(10, 15, 6)
    config = SearchConfig(6, n_best=6, max_ratio=1.0, max_extra=2)
    for row, hypotheses in enumerate(beam_search(model, batch.source, batch.source_lengths, config)):
        scores = [h.score for h in hypotheses]
        assert scores == sorted(scores, reverse=True)
        assert len({tuple(h.tokens) for h in hypotheses}) == len(hypotheses) == 6
        assert all(len(h.tokens) + 1 <= int(batch.source_lengths[row]) + 2 for h in hypotheses)


def test_a_finished_slot_continues_with_eos_at_no_cost(tiny_model):
    model = tiny_model(vocabulary=9)
    torch.manual_seed(0)
    logits = torch.randn(1, 2, 9)
    scores = torch.tensor([[-1.0, -2.0]])
    beam = Beam(None, torch.zeros(1, 2, 1), scores, torch.tensor([[1.0, 0.25]]))
    found = expand(model, logits, log_normaliser(logits), beam, 20)
    p = logits.softmax(2)[0]
    expected = {(0, EOS): -1.0, (1, EOS): -2 + math.log(0.25 + 0.75 * p[1, EOS])}
    expected |= {(1, v): -2 + math.log(0.75 * p[1, v]) for v in range(9) if v not in (0, 2, EOS)}
    finite = found.scores[0] > -math.inf
    got = {
        (int(slot), int(token)): float(score)
        for slot, token, score in zip(
            found.slots[0][finite], found.tokens[0][finite], found.scores[0][finite], strict=True
        )
    }
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        assert got[key] == pytest.approx(value, abs=1e-5)
    assert found.scores[0].tolist() == sorted(found.scores[0].tolist(), reverse=True)


def hard_steps(model, memory, rows, steps, beam_size):
    """The hard search in which finished slots stay in the beam, as in the soft search."""
    beam = first_beam(model, memory, rows)
    for _ in range(steps):
        advanced = model.advance(beam.embedding, beam.state, memory)
        logits = model.project(advanced.features)
        selection = hard_select(expand(model, logits, log_normaliser(logits), beam, beam_size), beam_size)
        beam = hard_reparent(model, selection, beam, advanced.state)
        yield selection, beam


@pytest.mark.parametrize(
    "model_config",
    [
        {},
        {"cell": "lstm", "decoder_layers": 2, "readout": "tanh"},
        {"decoder": "luong", "cell": "lstm", "decoder_layers": 2, "attention": "general", "input_feeding": True},
    ],
)
def test_soft_search_selects_what_the_hard_search_selects_as_temperature_goes_to_zero(tiny_model, model_config):
    model = tiny_model(vocabulary=25, seed=7, **model_config)
    batch = random_batch(20, 25, 8)
    with torch.no_grad():
        memory = model.encode(batch.source, batch.source_lengths)
        config = SoftSearchConfig(beam_size=4, candidates=16, temperature=1e-7)
        soft = soft_beam_search(model, memory, 20, 12, config)
        for (selection, beam), step in zip(hard_steps(model, memory, 20, 12, 4), soft, strict=True):
            chosen = step.selection.weights.argmax(dim=1)
            assert torch.equal(step.selection.candidates.tokens.gather(1, chosen), selection.tokens)
            assert torch.equal(step.selection.candidates.slots.gather(1, chosen), selection.parents)
            torch.testing.assert_close(step.after.scores, beam.scores, atol=1e-4, rtol=0)
            torch.testing.assert_close(step.after.finished, beam.finished)
            for part, whole in zip(leaves(step.after.state), leaves(beam.state), strict=True):
                torch.testing.assert_close(part, whole, atol=1e-4, rtol=0)


def test_soft_search_does_not_depend_on_batch_or_padding(tiny_model):
    model = tiny_model(vocabulary=25, seed=7)
    batch = random_batch(30, 25, 8, seed=2)
    config = SoftSearchConfig(beam_size=3, candidates=12, temperature=0.3)

    def run(source, lengths):
        memory = model.encode(source, lengths)
        return list(soft_beam_search(model, memory, len(lengths), 8, config))

    with torch.no_grad():
        together = run(batch.source, batch.source_lengths)
        for row in range(30):
            length = batch.source_lengths[row : row + 1]
            alone = run(batch.source[row : row + 1, : int(length)], length)
            for one, all_ in zip(alone, together, strict=True):
                torch.testing.assert_close(one.selection.weights[0], all_.selection.weights[row], atol=1e-5, rtol=0)
                torch.testing.assert_close(one.after.scores[0], all_.after.scores[row], atol=1e-5, rtol=1e-5)


def test_damping_scales_the_gradient_and_leaves_the_values(tiny_model):
    model = tiny_model(vocabulary=25, seed=7)
    batch = random_batch(6, 25, 8)

    def run(damping):
        model.zero_grad(set_to_none=False)
        memory = model.encode(batch.source, batch.source_lengths)
        config = SoftSearchConfig(beam_size=3, candidates=12, temperature=0.5, damping=damping)
        last = list(soft_beam_search(model, memory, 6, 3, config))[-1]
        last.after.embedding.square().sum().backward()
        return last.after.embedding.detach(), model.attention.key.weight.grad.clone()

    model.attention.key.weight.grad = torch.zeros_like(model.attention.key.weight)
    values, gradients = zip(*(run(damping) for damping in (1.0, 0.5, 0.0)), strict=True)
    assert torch.equal(values[0], values[1]) and torch.equal(values[0], values[2])
    assert gradients[0].norm() > gradients[1].norm() > gradients[2].norm()
    assert gradients[2].norm() == 0  # an embedding depends on the model's state through weights alone


def test_hard_values_are_the_hard_search_at_any_temperature(tiny_model):
    model = tiny_model(vocabulary=25, seed=7)
    batch = random_batch(20, 25, 8)
    config = SoftSearchConfig(beam_size=4, candidates=16, temperature=0.5, values="hard")
    with torch.no_grad():
        memory = model.encode(batch.source, batch.source_lengths)
        soft = soft_beam_search(model, memory, 20, 12, config)
        for (selection, beam), step in zip(hard_steps(model, memory, 20, 12, 4), soft, strict=True):
            assert torch.equal(step.selection.candidates.tokens[:, :4], selection.tokens)
            assert torch.equal(step.selection.parents.argmax(dim=2), selection.parents)
            torch.testing.assert_close(step.after.scores, beam.scores)
            torch.testing.assert_close(step.after.finished, beam.finished)
            torch.testing.assert_close(step.after.state[0][0], beam.state[0][0])
            assert (step.selection.weights.amax(dim=1) < 0.999).any()


def test_hard_values_give_states_the_soft_gradient_and_scores_the_hard_one(tiny_model):
    model = tiny_model(vocabulary=25, seed=7).double()
    batch = random_batch(6, 25, 8)

    def gradients(pick, **options):
        config = SoftSearchConfig(beam_size=3, candidates=12, temperature=0.5, damping=1.0, **options)
        memory = model.encode(batch.source, batch.source_lengths)
        step = next(iter(soft_beam_search(model, memory, 6, 1, config)))
        return torch.autograd.grad(pick(step.after).sum(), model.output.bias)[0]

    def embedding(beam):
        return beam.embedding

    # One step from one slot: the gradient of the mixed embeddings does not depend on where the weights stand.
    torch.testing.assert_close(gradients(embedding, values="hard"), gradients(embedding))
    memory = model.encode(batch.source, batch.source_lengths)
    _, beam = next(iter(hard_steps(model, memory, 6, 1, 3)))
    expected = torch.autograd.grad(beam.scores.sum(), model.output.bias)[0]
    torch.testing.assert_close(gradients(lambda beam: beam.scores, values="hard"), expected)
    assert (gradients(lambda beam: beam.scores) - expected).norm() > 0.1 * expected.norm()


def test_clipping_shortens_the_gradient_of_each_sentence(tiny_model):
    weights = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]]).unsqueeze(2).requires_grad_()
    (grad,) = torch.autograd.grad(clip_gradient(weights, 1.0).square().sum() / 2, weights)
    torch.testing.assert_close(grad.squeeze(2), torch.tensor([[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]]))

    model = tiny_model(vocabulary=25, seed=7).double()
    batch = random_batch(6, 25, 8)

    def gradient(clip, rows=slice(None)):
        config = SoftSearchConfig(beam_size=3, candidates=12, temperature=0.5, damping=0.5, clip=clip)
        memory = model.encode(batch.source, batch.source_lengths)
        last = list(soft_beam_search(model, memory, 6, 3, config))[-1]
        value = last.after.embedding[rows].square().sum()
        return torch.autograd.grad(value, model.attention.key.weight)[0]

    plain = gradient(0.0)
    torch.testing.assert_close(gradient(1e9), plain)
    assert gradient(1e-3).norm() < 0.1 * plain.norm()
    # By sentence: what one of them adds does not depend on the others.
    torch.testing.assert_close(sum(gradient(1e-3, slice(row, row + 1)) for row in range(6)), gradient(1e-3))


def test_a_rollout_cuts_states_but_not_scores(tiny_model):
    model = tiny_model(vocabulary=25, seed=7).double()
    batch = random_batch(6, 25, 8)

    def gradient(pick, rollout):
        config = SoftSearchConfig(beam_size=3, candidates=12, temperature=0.5, damping=1.0, rollout=rollout)
        memory = model.encode(batch.source, batch.source_lengths)
        last = list(soft_beam_search(model, memory, 6, 4, config))[-1]
        return torch.autograd.grad(pick(last), memory.summary)[0]  # what the first state comes from

    def logits(step):
        return step.logits.square().sum()

    def scores(step):
        return step.after.scores.sum()

    assert gradient(logits, 0).norm() > 0
    torch.testing.assert_close(gradient(logits, 4), gradient(logits, 0))
    assert gradient(scores, 2).norm() > 0
    config = SoftSearchConfig(beam_size=3, candidates=12, rollout=2)
    memory = model.encode(batch.source, batch.source_lengths)
    cut = [not step.after.state[0][0].requires_grad for step in soft_beam_search(model, memory, 6, 4, config)]
    assert not any(cut)  # a step shows the state before it is cut, so that a loss on it has its gradient
    with pytest.raises(RuntimeError, match="not have been used"):
        gradient(logits, 3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"beam_size": 0}, "beam_size is 0"),
        ({"n_best": 6}, "n_best is 6, more than"),
        ({"alpha": -1.0}, "alpha is -1.0"),
        ({"normalization": "lenght"}, "'lenght'"),
        ({"max_ratio": 0.0, "max_extra": 0}, "allow no token"),
        ({"stop": "early"}, "'early'; choose exact, present or full"),
        ({"refill": True, "groups": 5}, "refill is for a beam in one group"),
        ({"refill": True, "strategy": "sample"}, "refill is True, which is for a beam"),
    ],
)
def test_impossible_search_is_refused(options, words):
    with pytest.raises(UserError, match=words):
        SearchConfig(**options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"beam_size": 0}, "beam_size is 0"),
        ({"beam_size": 4, "candidates": 3}, "candidates is 3, less than"),
        ({"damping": 1.5}, "damping is 1.5"),
    ],
)
def test_impossible_soft_search_is_refused(options, words):
    with pytest.raises(UserError, match=words):
        SoftSearchConfig(**options)


def test_an_ensemble_of_one_model_twice_is_the_model(tiny_model):
    model = tiny_model(vocabulary=30, seed=1)
    batch = random_batch(20, 30, 12, seed=5)
    config = SearchConfig(4, n_best=3)
    alone = beam_search(model, batch.source, batch.source_lengths, config, attention=True)
    twice = beam_search(Ensemble([model, model]), batch.source, batch.source_lengths, config, attention=True)
    for one, two in zip(alone, twice, strict=True):
        assert [h.tokens for h in two] == [h.tokens for h in one]
        assert [h.score for h in two] == pytest.approx([h.score for h in one], abs=1e-5)
        torch.testing.assert_close(two[0].attention, one[0].attention)


def test_an_ensemble_is_the_mean_of_the_probabilities(tiny_model):
    models = [tiny_model(vocabulary=7, seed=1), tiny_model(vocabulary=7, seed=2, embedding=6, cell="lstm")]
    source, lengths = torch.tensor([[4, 5, EOS]]), torch.tensor([3])
    found = beam_search(Ensemble(models), source, lengths, SearchConfig(100, "none", max_ratio=0, max_extra=4))[0][0]

    def of_tokens(model):
        memory = model.encode(source, lengths)
        features = model.teacher_force(torch.tensor([[2, *found.tokens]]), memory)
        target = torch.tensor([[*found.tokens, EOS]])
        return model.project(features).softmax(2).gather(2, target.unsqueeze(2)).flatten()

    with torch.no_grad():
        expected = (of_tokens(models[0]) + of_tokens(models[1])) / 2
    assert found.token_log_probabilities == pytest.approx(expected.log().tolist(), abs=1e-4)
    with pytest.raises(UserError, match="different target vocabularies"):
        Ensemble([models[0], tiny_model(vocabulary=8)])
