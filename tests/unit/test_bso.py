"""Beam-search optimisation and scheduled sampling against slow references and limits, and by finite differences."""

import math

import pytest
import torch

from nmt.errors import UserError
from nmt.objectives import (
    BSO,
    BSOConfig,
    CrossEntropy,
    CrossEntropyConfig,
    ScheduledSampling,
    ScheduledSamplingConfig,
    SoftBeam,
)
from nmt.search import SearchConfig, beam_search
from nmt.text.batching import Batch
from tests.conftest import random_batch
from tests.unit.test_objectives import NAMES, check_gradient, soft_config
from tests.unit.test_prefix_bleu import within_reach
from tests.unit.test_soft_bleu import sacre

EOS = 3


@pytest.fixture
def model(tiny_model):
    # One whose hypotheses end of their own accord, some after several tokens.
    return tiny_model(vocabulary=13, seed=1, scale=6.0).double()


def found_batch(model, beam_size, rows=3, others=0):
    """References that the search finds, each ended of its own accord, and some at random."""
    batch = random_batch(200, 13, 6, seed=3)
    config = SearchConfig(beam_size=beam_size)
    found = [h[0].tokens for h in beam_search(model, batch.source, batch.source_lengths, config)]
    limits = [config.max_length(length) for length in batch.source_lengths.tolist()]
    own = [row for row in range(200) if 2 <= len(found[row]) < limits[row] - 1][:rows]
    assert len(own) == rows
    references = [[*found[row], EOS] for row in own]
    references += [batch.target[row, : batch.target_lengths[row]].tolist() for row in range(others)]
    kept = [*own, *range(others)]
    target = torch.zeros(len(kept), max(map(len, references)), dtype=torch.long)
    for row, reference in enumerate(references):
        target[row, : len(reference)] = torch.tensor(reference)
    lengths = torch.tensor([len(reference) for reference in references])
    return Batch(batch.source[kept], batch.source_lengths[kept], target, lengths, kept)


def slow_bso(model, source, target, config):
    """The loss of one sentence from the definition, hypothesis by hypothesis; and how often it was violated."""
    memory = model.encode(source, torch.tensor([source.shape[1]]))
    reference, k = target[:-1], config.beam_size

    def extend(score, prefix, state, done):
        if done:
            return [(score, prefix, state, True)]
        read = torch.tensor([[prefix[-1] if prefix else model.bos]])
        logits, after = model.step(model.embed(read), state, memory)
        log_p = logits[0, 0].log_softmax(0).tolist()
        return [
            (score + log_p[v], prefix if v == EOS else [*prefix, v], after, v == EOS)
            for v in range(len(log_p))
            if v not in (model.padding, model.bos)
        ]

    gold = (0.0, [], model.start(memory), False)
    beam, loss, violations = [gold], 0.0, 0
    for position in range(len(target)):
        last = position + 1 == len(target)
        wanted = (reference[: position + 1], last)
        gold = next(c for c in extend(*gold) if (c[1], c[3]) == wanted)
        found = sorted((c for slot in beam for c in extend(*slot)), key=lambda c: -c[0])
        others = [c for c in found[: k + 1] if (c[1], c[3]) != wanted]
        rival = others[0 if last else min(k, len(found)) - 1] if len(others) >= (1 if last else k) else None
        beam = found[:k]
        if rival is not None and config.margin - gold[0] + rival[0] > 0:
            ended = rival[3] or last
            value = sacre(rival[1], reference) if ended else within_reach(rival[1], reference)
            loss += (1 - value if config.cost == "bleu" else 1.0) * (config.margin - gold[0] + rival[0])
            violations += 1
            beam = [gold]
    return loss, violations


@pytest.mark.parametrize("cost", ["bleu", "one"])
@pytest.mark.parametrize(("margin", "beam_size"), [(0.0, 3), (1.0, 2), (2.0, 4)])
def test_bso_equals_a_slow_reference_sentence_by_sentence(model, cost, margin, beam_size):
    batch = found_batch(model, beam_size=4, rows=4, others=4)
    config = BSOConfig(beam_size=beam_size, margin=margin, cost=cost, cross_entropy=0.0)
    with torch.no_grad():
        found = BSO(config)(model, batch)
        slow = [
            slow_bso(
                model,
                batch.source[row : row + 1, : batch.source_lengths[row]],
                batch.target[row, : batch.target_lengths[row]].tolist(),
                config,
            )
            for row in range(8)
        ]
    assert found.value.item() == pytest.approx(sum(loss for loss, _ in slow) / batch.target_tokens, abs=1e-6)
    violations = sum(count for _, count in slow)
    assert found.figures["violations"].item() == pytest.approx(violations / batch.target_tokens)
    assert 0 < violations < batch.target_tokens or margin == 2.0


def test_greedy_references_cost_nothing_at_beam_size_1(model):
    batch = found_batch(model, beam_size=1)
    loss = BSO(BSOConfig(beam_size=1, margin=0.0, cross_entropy=0.0))(model, batch)
    assert loss.value.item() == 0.0 and loss.figures["violations"].item() == 0.0
    # In a beam of one, inclusion is being the best.
    config = soft_config("gold_in_beam", beam_size=1, candidates=6, temperature=1e-4, cross_entropy=0.0)
    included = SoftBeam(config)(model, batch)
    assert included.value.item() == pytest.approx(0.0, abs=1e-6) and included.figures["gold_kept"].item() == 1.0
    others = SoftBeam(config)(model, random_batch(5, 13, 6, seed=3))
    assert others.value.item() > 1 and others.figures["gold_kept"].item() < 1


def test_the_gradient_of_bso(model):
    batch = random_batch(6, 13, 6, seed=3)
    check_gradient(model, BSO(BSOConfig(beam_size=3, cross_entropy=0.2, label_smoothing=0.1)), batch, NAMES)


def test_scheduled_sampling_that_reads_the_reference_is_cross_entropy(model):
    batch = random_batch(6, 13, 6, seed=3)
    plain = CrossEntropy(CrossEntropyConfig())(model, batch)
    forced = ScheduledSampling(ScheduledSamplingConfig(end=1.0))(model, batch, 5)
    assert forced.value.item() == pytest.approx(plain.value.item())
    assert forced.figures["nll"].item() == pytest.approx(plain.figures["nll"].item())


def test_scheduled_sampling_that_never_does_reads_its_own_choice(model):
    batch = random_batch(6, 13, 6, seed=3)
    config = ScheduledSamplingConfig(end=0.0, updates=1, choice="argmax", label_smoothing=0.0)
    total = 0.0
    with torch.no_grad():
        for row in range(6):
            length = batch.source_lengths[row : row + 1]
            memory = model.encode(batch.source[row : row + 1, : int(length)], length)
            state, read = model.start(memory), model.bos
            for token in batch.target[row, : batch.target_lengths[row]].tolist():
                logits, state = model.step(model.embed(torch.tensor([[read]])), state, memory)
                total -= logits[0, 0].log_softmax(0)[token].item()
                logits[..., [model.padding, model.bos]] = -torch.inf
                read = int(logits[0, 0].argmax())
    found = ScheduledSampling(config)(model, batch)
    assert found.value.item() == pytest.approx(total / batch.target_tokens)
    check_gradient(model, ScheduledSampling(config), batch, NAMES)


def test_sampled_tokens_follow_the_models_distribution(model):
    objective = ScheduledSampling(ScheduledSamplingConfig(end=0.25, updates=1))
    features = torch.randn(1, 1, model.readout.in_features, dtype=torch.float64)
    logits = model.project(features)[0, 0]
    logits[[model.padding, model.bos]] = -torch.inf
    torch.manual_seed(0)
    gold = torch.full((20_000,), 7)
    drawn = objective._mixed(model, gold, features.expand(20_000, -1, -1), 0.25)
    expected = 0.75 * logits.softmax(0)
    expected[7] += 0.25
    share = torch.bincount(drawn, minlength=13) / 20_000
    torch.testing.assert_close(share.double(), expected, atol=0.02, rtol=0)


def test_schedules_of_the_reading():
    def at(schedule, update, **options):
        return ScheduledSamplingConfig(schedule=schedule, **options).probability(update)

    assert at("linear", 0, updates=4, end=0.5) == pytest.approx(0.875)
    assert [at("linear", u, updates=4, end=0.5) for u in (3, 9)] == [0.5, 0.5]
    assert at("exponential", 3, updates=4, end=0.5) == pytest.approx(0.5)
    assert at("exponential", 1, updates=4, end=0.25) == pytest.approx(0.5)
    assert at("inverse_sigmoid", 99, updates=100, end=0.0) == pytest.approx(100 / (100 + math.e))
    assert at("inverse_sigmoid", 10**9, updates=3, end=0.0) < 1e-9


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: BSOConfig(beam_size=0), "beam_size is 0"),
        (lambda: BSOConfig(margin=-1), "margin is -1"),
        (lambda: BSOConfig(cost="wer"), "'wer'"),
        (lambda: BSOConfig(cost="one", word_share=0.5), "word_share is 0.5, but bso.cost 'one' knows no BLEU"),
        (lambda: BSOConfig(cost="one", brevity="words"), "brevity is words, but bso.cost 'one' knows no BLEU"),
        (lambda: BSOConfig(label_smoothing=1.0), "label_smoothing is 1.0"),
        (lambda: ScheduledSamplingConfig(end=1.1), "end is 1.1"),
        (lambda: ScheduledSamplingConfig(end=0.0, schedule="exponential"), "end is 0, where an exponential schedule"),
        (lambda: ScheduledSamplingConfig(updates=0), "updates is 0"),
        (lambda: ScheduledSamplingConfig(choice="beam"), "'beam'; choose sample or argmax"),
        (lambda: ScheduledSamplingConfig(schedule="cosine"), "'cosine'"),
        (lambda: ScheduledSamplingConfig(label_smoothing=-0.1), "label_smoothing is -0.1"),
    ],
)
def test_impossible_settings_are_refused(make, words):
    with pytest.raises(UserError, match=words):
        make()


def test_steps_that_are_made_again_have_the_same_gradients(tiny_model):
    """Bit for bit, with dropout and violations, while little is kept."""
    model = tiny_model(vocabulary=60, hidden=16, dropout=0.3, decoder_layers=2).train()
    batch = random_batch(6, 60, 9, seed=3)
    found, kept = [], []
    for recompute in (False, True):
        sizes = {}

        def keep(tensor, sizes=sizes):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        torch.manual_seed(5)
        model.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            result = BSO(BSOConfig(beam_size=3, recompute=recompute))(model, batch)
        result.value.backward()
        found.append((result.value.detach(), result.figures, [p.grad for p in model.parameters()]))
        kept.append(sum(sizes.values()))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    assert result.figures["violations"] > 0
    assert kept[1] < kept[0] / 3
