"""Objectives against torch's own, against slow references and limits, and by finite differences."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from nmt.errors import UserError
from nmt.objectives import CrossEntropy, CrossEntropyConfig, SoftBeam, SoftBeamConfig, TemperatureConfig
from nmt.objectives.cross_entropy import forced_nll
from nmt.objectives.objective import shifted
from nmt.search import SoftSearchConfig, soft_beam_search
from tests.conftest import random_batch
from tests.unit.test_soft_bleu import sacre

EOS = 3


@pytest.mark.parametrize(
    "shape",
    [{}, {"cell": "lstm", "decoder_layers": 2}, {"decoder": "luong"}, {"decoder": "luong", "input_feeding": True}],
    ids=str,
)
def test_mixed_precision_is_near(tiny_model, shape):
    model = tiny_model(vocabulary=40, hidden=32, embedding=24, readout="tanh", **shape)
    batch = random_batch(8, 40, 9)
    found = []
    for narrow in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            value = CrossEntropy(CrossEntropyConfig())(model, batch).value
        value.backward()
        found.append((value.detach(), torch.cat([p.grad.flatten() for p in model.parameters()])))
    (wide, expected), (narrow, grad) = found
    assert narrow.dtype == grad.dtype == torch.float32
    assert narrow != wide  # or nothing was rounded
    torch.testing.assert_close(narrow, wide, rtol=2e-3, atol=0)
    assert (grad - expected).norm() < 0.01 * expected.norm()


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_forced_nll_equals_torch(tiny_model, smoothing):
    torch.manual_seed(0)
    model = tiny_model(vocabulary=15).double()
    target = torch.tensor([[5, 9, 6, EOS], [7, EOS, 0, 0], [14, 14, EOS, 0]])
    features = torch.randn(3, 4, model.readout.in_features, dtype=torch.float64, requires_grad=True)
    wanted = [features, *model.readout.parameters(), *model.output.parameters()]
    loss, plain = forced_nll(model, features, target, smoothing)
    mine = torch.autograd.grad(3 * loss, wanted)
    logits = model.project(features).flatten(0, 1)
    options = {"ignore_index": model.padding, "reduction": "sum"}
    expected = F.cross_entropy(logits, target.flatten(), label_smoothing=smoothing, **options)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(mine, torch.autograd.grad(3 * expected, wanted, retain_graph=True))
    torch.testing.assert_close(plain, F.cross_entropy(logits, target.flatten(), **options).detach())


def test_cross_entropy_equals_sentence_by_sentence(tiny_model):
    model = tiny_model(vocabulary=15)
    batch = random_batch(7, 15, 6)
    loss = CrossEntropy(CrossEntropyConfig(label_smoothing=0.0))(model, batch)
    total = 0.0
    for row in range(7):
        memory = model.encode(
            batch.source[row : row + 1, : batch.source_lengths[row]], batch.source_lengths[row : row + 1]
        )
        state, previous = model.start(memory), torch.tensor([[model.bos]])
        for token in batch.target[row, : batch.target_lengths[row]].tolist():
            logits, state = model.step(model.embed(previous), state, memory)
            total -= logits[0, 0].log_softmax(0)[token].item()
            previous = torch.tensor([[token]])
    assert loss.value.item() == pytest.approx(total / batch.target_tokens, abs=1e-5)
    assert loss.figures["nll"].item() == pytest.approx(total / batch.target_tokens, abs=1e-5)


def soft_config(loss, **options):
    search = {"beam_size": 3, "candidates": 8, "temperature": 0.4, "damping": 1.0}
    search |= {key: options.pop(key) for key in list(options) if key in search}
    moving = options.pop("moving", TemperatureConfig())
    parts = {"search": SoftSearchConfig(**search), "temperature": moving}
    return SoftBeamConfig(**{"loss": loss, **parts, "label_smoothing": 0.0, **options})


def check_gradient(model, objective, batch, names):
    """Central differences in float64 of the whole objective along random directions of some parameters."""

    def value():
        torch.manual_seed(5)  # the same restarts every time
        return objective(model, batch).value

    model.zero_grad()
    value().backward()
    parameters = dict(model.named_parameters())
    generator = torch.Generator().manual_seed(1)
    for name in names:
        if name not in parameters:
            continue  # tied to another one
        parameter = parameters[name]
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        slope = (parameter.grad * direction).sum().item()
        step = 1e-6
        with torch.no_grad():
            parameter += step * direction
            above = value().item()
            parameter -= 2 * step * direction
            below = value().item()
            parameter += step * direction
        assert slope == pytest.approx((above - below) / (2 * step), rel=2e-5, abs=1e-7), name
        assert abs(slope) > 1e-6, f"{name} does not matter, so the test says nothing"


NAMES = [
    "output.weight",
    "target_embedding.weight",
    "reader.weight_hh",
    "attention.energy.weight",
    "encoder.weight_ih_l0",
    "source_embedding.weight",
]


@pytest.mark.parametrize("model_config", [{}, {"cell": "lstm", "tied_embeddings": "output", "decoder_layers": 2}])
@pytest.mark.parametrize("loss", ["token", "gold_in_beam", "expected_bleu"])
def test_gradient_through_the_whole_unrolled_search(tiny_model, loss, model_config):
    model = tiny_model(vocabulary=14, seed=2, scale=1.5, **model_config).double()
    batch = random_batch(4, 14, 6, seed=3)
    check_gradient(model, SoftBeam(soft_config(loss, restart=0.3, cross_entropy=0.2)), batch, NAMES)


def test_token_loss_that_always_restarts_is_cross_entropy(tiny_model):
    model = tiny_model(vocabulary=15)
    batch = random_batch(7, 15, 6)
    nll = CrossEntropy(CrossEntropyConfig(label_smoothing=0.0))(model, batch).value
    soft = SoftBeam(soft_config("token", restart=1.0, cross_entropy=0.0))(model, batch)
    assert soft.value.item() == pytest.approx(nll.item(), abs=1e-5)
    mixed = SoftBeam(soft_config("token", restart=1.0, cross_entropy=0.5))(model, batch)
    assert mixed.value.item() == pytest.approx(1.5 * nll.item(), abs=1e-5)
    assert mixed.figures["nll"].item() == pytest.approx(nll.item(), abs=1e-5)


def slow_soft_beam(model, source, target, config):
    """The losses for one sentence, slot by slot in Python floats, from the definitions of the recurrences;
    the operator alone is shared."""
    from nmt.topk import sorted_soft_topk

    search, memory = config.search, model.encode(source, torch.tensor([source.shape[1]]))
    k = 1
    states, embeddings = model.start(memory), model.embed(torch.tensor([[model.bos]]))
    scores, finished = [0.0], [0.0]
    rows, lengths, token_loss, share, gold_loss = [[]], [0.0], 0.0, [1.0], 0.0
    # The reference's own state: where the beam begins anew.
    gold_state, gold_embedding = states, embeddings
    reference = target[:-1]
    steps = len(target) + (config.overrun if config.loss == "expected_bleu" else 0)
    for position in range(steps):
        logits, states = model.step(embeddings, states, memory)
        log_p = logits[0].log_softmax(1).tolist()
        if config.loss == "token":
            weight = torch.tensor(scores, dtype=torch.float64).softmax(0).tolist()
            gold, ended = target[position], [float(f) for f in finished]
            if gold == EOS:
                p = [f + (1 - f) * math.exp(log_p[l][gold]) for l, f in enumerate(ended)]
            else:
                p = [max(1 - f, 1e-3) * math.exp(log_p[l][gold]) for l, f in enumerate(ended)]
            token_loss -= math.log(sum(w * each for w, each in zip(weight, p, strict=True)))
        candidates = []
        for l in range(k):
            for v, value in enumerate(log_p[l]):
                p = (1 - finished[l]) * math.exp(value) + finished[l] * (v == EOS)
                if v not in (model.padding, model.bos) and p > 0:
                    candidates.append((scores[l] + math.log(p), l, v))
        candidates = sorted(candidates, reverse=True)
        if config.loss == "gold_in_beam":
            best = max(range(k), key=lambda l: share[l])
            gold = next(c for c in candidates if c[1:] == (best, target[position]))
            if gold not in candidates[: search.candidates]:
                candidates[search.candidates - 1] = gold
        candidates = candidates[: search.candidates]
        width = min(search.beam_size, len(candidates))
        x = torch.tensor([c[0] for c in candidates], dtype=torch.float64)
        A = sorted_soft_topk(x, width, search.temperature)
        mix = torch.zeros(width, k, dtype=torch.float64)
        new = {"rows": [], "lengths": [], "scores": [], "finished": []}
        mixed_embedding = []
        for m in range(width):
            column = A[:, m].tolist()
            for weight, (_, l, _) in zip(column, candidates, strict=True):
                mix[m, l] += weight
            tokens = [model.embed(torch.tensor(v)) for _, _, v in candidates]
            mixed_embedding.append(sum(a * token for a, token in zip(column, tokens, strict=True)))
            new["scores"].append(sum(a * s for a, (s, _, _) in zip(column, candidates, strict=True)))
            new["finished"].append(
                sum(a * max(finished[l], float(v == EOS)) for a, (_, l, v) in zip(column, candidates, strict=True))
            )
            old = [
                [sum(float(mix[m, l]) * rows[l][i][j] for l in range(k)) for j in range(len(reference))]
                for i in range(position)
            ]
            fresh = [
                sum(a * (1 - finished[l]) * (v == gold) for a, (_, l, v) in zip(column, candidates, strict=True))
                for gold in reference
            ]
            new["rows"].append([*old, fresh])
            new["lengths"].append(
                sum(float(mix[m, l]) * lengths[l] for l in range(k))
                + sum(a * (1 - finished[l]) * (v != EOS) for a, (_, l, v) in zip(column, candidates, strict=True))
            )
        states = tuple(tuple((mix @ part[0])[None] for part in layer) for layer in states)
        embeddings = torch.stack(mixed_embedding)[None]
        if config.loss == "gold_in_beam":
            after = [
                sum(
                    float(a) * share[l]
                    for a, (_, l, v) in zip(A[:, m], candidates, strict=True)
                    if v == target[position]
                )
                for m in range(width)
            ]
            last = position + 1 == len(target)
            gold_loss -= math.log((after[0] if last else sum(after)) / sum(share))
            _, gold_state = model.step(gold_embedding, gold_state, memory)
            gold_embedding = model.embed(torch.tensor([[target[position]]]))
            share = after
        rows, lengths, scores, finished, k = *new.values(), width
        if config.loss == "gold_in_beam" and sum(share) < 0.5:
            states, embeddings, scores, finished, share, k = gold_state, gold_embedding, [0.0], [0.0], [1.0], 1
    if config.loss == "gold_in_beam":
        return gold_loss
    if config.loss == "token":
        return token_loss
    from nmt.objectives.soft_bleu import count_reference, soft_bleu

    counts = count_reference(torch.tensor([reference]), torch.tensor([len(reference)]))
    bleu = soft_bleu(torch.tensor([rows], dtype=torch.float64), torch.tensor([lengths], dtype=torch.float64), counts)
    pi = (config.sharpness * torch.tensor(scores, dtype=torch.float64)).softmax(0)
    return 1 - float((pi * bleu[0]).sum())


@pytest.mark.parametrize("loss", ["token", "gold_in_beam", "expected_bleu"])
def test_equals_a_slow_reference_sentence_by_sentence(tiny_model, loss):
    model = tiny_model(vocabulary=14, seed=4, scale=1.5).double()
    batch = random_batch(6, 14, 6, seed=9)
    config = soft_config(loss, restart=0.0, cross_entropy=0.0, sharpness=0.7)
    with torch.no_grad():
        if loss == "token":
            # Slots that have ended, where references go on.
            model.output.bias[EOS] += 3
            memory = model.encode(batch.source, batch.source_lengths)
            steps = soft_beam_search(model, memory, 6, batch.target.shape[1], config.search)
            assert any((step.before.finished > 0.99).any() for step in steps)
        fast = SoftBeam(config)(model, batch).value.item()
        slow, steps = [], batch.target.shape[1] + config.overrun
        for row in range(6):
            target = batch.target[row, : batch.target_lengths[row]].tolist()
            if loss == "expected_bleu":
                config.overrun = steps - len(target)  # the batch unrolls to its longest reference
            slow.append(slow_soft_beam(model, batch.source[row : row + 1, : batch.source_lengths[row]], target, config))
    expected = sum(slow) / (6 if loss == "expected_bleu" else batch.target_tokens)
    assert fast == pytest.approx(expected, abs=1e-9)


def test_expected_bleu_at_temperature_zero_is_the_bleu_of_the_hard_slots(tiny_model):
    model = tiny_model(vocabulary=14, seed=4).double()
    batch = random_batch(8, 14, 7, seed=1)
    config = soft_config("expected_bleu", temperature=1e-8, cross_entropy=0.0)
    with torch.no_grad():
        value = SoftBeam(config)(model, batch).value.item()
        memory = model.encode(batch.source, batch.source_lengths)
        steps = list(soft_beam_search(model, memory, 8, batch.target.shape[1] + config.overrun, config.search))
        total = 0.0
        for row in range(8):
            sequences = [[]]
            for step in steps:
                chosen = step.selection.weights[row].argmax(dim=0)
                parents = step.selection.candidates.slots[row][chosen].tolist()
                tokens = step.selection.candidates.tokens[row][chosen].tolist()
                sequences = [[*sequences[p], t] for p, t in zip(parents, tokens, strict=True)]
            pi = steps[-1].after.scores[row].softmax(0).tolist()
            reference = batch.target[row, : batch.target_lengths[row] - 1].tolist()
            for weight, sequence in zip(pi, sequences, strict=True):
                total += weight * sacre([t for t in sequence if t != EOS], reference)
    assert value == pytest.approx(1 - total / 8, abs=1e-6)


def test_hard_values_whose_weights_have_no_gradient_are_the_hard_search(tiny_model):
    """Without a gradient of the weights, what is left is that of the hard hypotheses' scores: the limit T -> 0."""
    model = tiny_model(vocabulary=14, seed=4).double()
    batch = random_batch(8, 14, 7, seed=1)

    def run(temperature, damping, values):
        config = soft_config("expected_bleu", temperature=temperature, cross_entropy=0.0)
        config.search.damping, config.search.values = damping, values
        value = SoftBeam(config)(model, batch).value
        return value.item(), torch.autograd.grad(value, model.attention.key.weight)[0]

    limit, expected = run(1e-8, 0.0, "soft")
    value, got = run(0.5, 0.0, "hard")
    assert value == pytest.approx(limit, abs=1e-6)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-9)
    _, damped = run(0.5, 0.1, "hard")
    assert (damped - expected).norm() > 0.01 * expected.norm()


@pytest.mark.parametrize("loss", ["token", "gold_in_beam", "expected_bleu", "reachable_bleu"])
def test_soft_losses_do_not_depend_on_the_batch(tiny_model, loss):
    """A sentence alone, in its own padding, adds what it adds in a batch."""
    from nmt.text.batching import Batch

    model = tiny_model(vocabulary=14, seed=4).double()
    batch = random_batch(5, 14, 7, seed=1, shortest=7)  # equal lengths, so that overrun means the same
    objective = SoftBeam(soft_config(loss, restart=0.0))
    with torch.no_grad():
        together = objective(model, batch).value.item()
        alone = [
            objective(
                model,
                Batch(
                    *(
                        part[r : r + 1]
                        for part in (batch.source, batch.source_lengths, batch.target, batch.target_lengths)
                    ),
                    [r],
                ),
            ).value.item()
            for r in range(5)
        ]
    assert together == pytest.approx(sum(alone) / 5, abs=1e-9)


@pytest.mark.parametrize("loss", ["token", "gold_in_beam", "expected_bleu", "reachable_bleu"])
def test_a_schedule_is_the_constant_temperature_of_each_update(tiny_model, loss):
    model = tiny_model(vocabulary=14, scale=1.5)
    batch = random_batch(4, 14, 6)
    moving = TemperatureConfig(schedule="linear", end=0.1, updates=10)
    annealed = SoftBeam(soft_config(loss, restart=0.0, temperature=0.5, moving=moving))
    assert list(annealed.parameters()) == []
    seen = []
    for update, temperature in ((0, 0.5), (5, 0.3), (10, 0.1), (99, 0.1)):
        found = annealed(model, batch, update)
        wanted = SoftBeam(soft_config(loss, restart=0.0, temperature=temperature))(model, batch)
        assert float(found.figures["temperature"]) == pytest.approx(temperature)
        torch.testing.assert_close(found.value, wanted.value, rtol=1e-6, atol=1e-7)
        seen.append(found.value.item())
    assert seen[0] != seen[1] != seen[2] == seen[3]


@pytest.mark.parametrize("loss", ["token", "gold_in_beam", "expected_bleu"])
def test_the_gradient_of_a_learned_temperature(tiny_model, loss):
    model = tiny_model(vocabulary=14, seed=2, scale=1.5).double()
    batch = random_batch(4, 14, 6, seed=3)
    learned = SoftBeam(soft_config(loss, restart=0.3, moving=TemperatureConfig(schedule="learned"))).double()

    def value():
        torch.manual_seed(5)
        return learned(model, batch).value

    (parameter,) = learned.parameters()
    assert float(parameter.detach().exp()) == pytest.approx(0.4)
    (slope,) = torch.autograd.grad(value(), parameter)
    with torch.no_grad():
        parameter += 1e-6
        above = value().item()
        parameter -= 2e-6
        below = value().item()
    assert slope.item() == pytest.approx((above - below) / 2e-6, rel=1e-5) and abs(slope.item()) > 1e-4


@pytest.mark.parametrize("options", [{}, {"values": "hard", "damping": 0.1, "clip": 0.01}, {"rollout": 2}])
@pytest.mark.parametrize("loss", ["token", "gold_in_beam", "expected_bleu"])
def test_steps_that_are_made_again_have_the_same_gradients(tiny_model, loss, options):
    """Bit for bit, dropout and restarts included, while little is kept."""
    model = tiny_model(vocabulary=60, hidden=16, dropout=0.3, decoder_layers=2).train()
    batch = random_batch(6, 60, 9, seed=3)
    if loss == "gold_in_beam":
        options = {**options, "values": "soft"}
    search = SoftSearchConfig(**{"beam_size": 3, "candidates": 8, **options})
    found, kept = [], []
    for recompute in (False, True):
        sizes = {}

        def keep(tensor, sizes=sizes):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        objective = SoftBeam(
            SoftBeamConfig(loss, search, recompute=recompute, temperature=TemperatureConfig("learned"))
        )
        torch.manual_seed(5)
        model.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            result = objective(model, batch)
        after = torch.rand(3)
        result.value.backward()
        gradients = [p.grad for p in [*model.parameters(), *objective.parameters()]]
        found.append((result.value.detach(), result.figures, result.after_backward, gradients, after))
        kept.append(sum(sizes.values()))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    assert any(gradient.abs().sum() > 0 for gradient in found[1][3])
    assert kept[1] < kept[0] / 3


@pytest.mark.parametrize("loss", ["token", "gold_in_beam", "expected_bleu"])
def test_what_the_loss_is_multiplied_by_does_not_change_the_clipping(tiny_model, loss):
    """Mixed precision and updates of several batches multiply it."""
    model = tiny_model(vocabulary=14, seed=4, scale=1.5).double()
    batch = random_batch(6, 14, 9, seed=3)
    found = {}
    for clip in (1e-5, 0.0):
        search = SoftSearchConfig(beam_size=3, candidates=8, clip=clip, damping=1.0)
        objective = SoftBeam(SoftBeamConfig(loss, search))
        for scale in (1.0, 65536.0):
            torch.manual_seed(5)
            model.zero_grad()
            result = objective(model, batch)
            (scale * result.value).backward()
            gradient = torch.cat([p.grad.flatten() for p in model.parameters()]) / scale
            found[clip, scale] = gradient, dict(result.after_backward)
    torch.testing.assert_close(found[1e-5, 1.0], found[1e-5, 65536.0])
    assert found[1e-5, 1.0][1]["gradient_states"] > 0
    # Or nothing was clipped.
    assert (found[1e-5, 1.0][0] - found[0.0, 1.0][0]).norm() > 1e-3 * found[0.0, 1.0][0].norm()


@pytest.mark.parametrize("loss", ["token", "gold_in_beam", "expected_bleu"])
def test_mixed_precision_counts_in_float32(tiny_model, loss, monkeypatch):
    from nmt.objectives import soft_beam

    model = tiny_model(vocabulary=40, hidden=32, embedding=24)
    batch = random_batch(6, 40, 25, seed=3, shortest=25)
    kinds, advance = set(), soft_beam.soft_advance

    def watched(*given):
        step = advance(*given)
        kinds.update((step.after.scores.dtype, step.after.finished.dtype, step.selection.parents.dtype))
        return step

    monkeypatch.setattr(soft_beam, "soft_advance", watched)
    search = SoftSearchConfig(beam_size=4, candidates=8, temperature=0.3, damping=0.0)
    objective = SoftBeam(SoftBeamConfig(loss, search, restart=0.0, cross_entropy=0.0))
    found = []
    for narrow in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            found.append(objective(model, batch).value.item())
    assert kinds == {torch.float32}
    assert found[1] != found[0] and found[1] == pytest.approx(found[0], rel=0.02)


def test_float16_has_a_gradient_where_nothing_matches(tiny_model):
    model = tiny_model(vocabulary=14, seed=4)
    batch = random_batch(4, 14, 6, seed=1)
    batch.target[:, 0], batch.target[:, 1:] = EOS, 0
    batch = replace(batch, target=batch.target[:, :1], target_lengths=torch.ones_like(batch.target_lengths))
    with torch.autocast("cpu", torch.float16):
        value = SoftBeam(soft_config("expected_bleu"))(model, batch).value
    value.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_settings_that_a_loss_does_not_read_are_told(caplog):
    SoftBeam(SoftBeamConfig("token", references=0.25, search=SoftSearchConfig(clip=1.0)))
    assert caplog.messages == ["soft_beam.loss 'token' does not read soft_beam.references (0.25)"]
    caplog.clear()
    SoftBeam(SoftBeamConfig(restart=0.2, risk=0.5, search=SoftSearchConfig(values="hard")))
    told = "soft_beam.loss 'reachable_bleu' does not read soft_beam.restart (0.2), soft_beam.search.values (hard)"
    assert caplog.messages == [told]
    caplog.clear()
    SoftBeam(SoftBeamConfig("expected_bleu", overrun=3, sharpness=2.0, recompute=True))
    assert not caplog.messages


def test_shifted_begins_with_bos(tiny_model):
    model = tiny_model()
    assert shifted(model, torch.tensor([[7, 8, 3], [9, 3, 0]])).tolist() == [[2, 7, 8], [2, 9, 3]]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loss": "tokn"}, "'tokn'"),
        ({"restart": 1.5}, "restart is 1.5"),
        ({"overrun": -1}, "overrun is -1"),
        ({"cross_entropy": -0.1}, "cross_entropy is -0.1"),
        ({"loss": "gold_in_beam", "search": SoftSearchConfig(values="hard")}, "'hard', but soft_beam.loss 'gold_in"),
        ({"loss": "token", "divergence": 0.5}, "divergence is 0.5, but soft_beam.loss 'token' knows none"),
        (
            {"operator": "perturbed_topk", "temperature": TemperatureConfig("learned")},
            "'perturbed_topk', which has no gradient for its temperature",
        ),
    ],
)
def test_impossible_objective_is_refused(options, words):
    with pytest.raises(UserError, match=words):
        SoftBeamConfig(**options)
