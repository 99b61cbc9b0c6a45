"""What a model gives to all that is no candidate: the fit, and searches that are charged for it."""

import logging

import numpy as np
import pytest
import torch

import nmt
from nmt.checkpoint import save_checkpoint
from nmt.cli import main
from nmt.models import Narrowed, Remainder, decoding_form
from nmt.remainder import States, fit, learn_remainder, search_states
from nmt.search import SearchConfig, beam_search
from nmt.shortlist import Shortlist
from tests.conftest import random_batch

INSIDE = torch.tensor([0, 1, 2, 3, 7, 9, 12, 13, 20, 31])


def random_states(count, size, noise=0.0):
    torch.manual_seed(count)
    inputs, own = torch.randn(count, size), 2 * torch.randn(count)
    weight, bias = torch.randn(size) / size**0.5, torch.tensor(-0.7)
    every = torch.logaddexp(own, inputs @ weight + bias) + noise * torch.randn(count)
    return States(inputs, own, every), Remainder(weight, bias)


def test_the_fit_finds_what_is_there():
    states, planted = random_states(20_000, 12)
    found = fit(states)
    torch.testing.assert_close(found.weight, planted.weight, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.bias, planted.bias, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.logit(states.inputs), states.inputs @ planted.weight - 0.7, atol=1e-3, rtol=0)


def test_the_fit_is_of_the_least_squared_error():
    states, _ = random_states(3000, 5, noise=0.3)
    found = fit(states)
    point = torch.cat([found.weight, found.bias.view(1)]).double().requires_grad_()
    rest = states.inputs.double() @ point[:-1] + point[-1]
    error = (torch.logaddexp(states.own.double(), rest) - states.every.double()).square().mean()
    error.backward()
    assert 0.05 < error.item() < 0.15
    assert point.grad.abs().max() < 1e-6


def test_an_input_that_never_varies():
    states, planted = random_states(20_000, 12)
    states.inputs[:, 3] = 0.0
    every = torch.logaddexp(states.own, planted.logit(states.inputs))
    found = fit(states._replace(every=every))
    torch.testing.assert_close(found.weight[:3], planted.weight[:3], atol=1e-4, rtol=0)
    assert torch.isfinite(found.weight).all() and found.weight[3].abs() < 1e-3


@pytest.fixture
def alike(tiny_model):
    """A model whose tokens outside of INSIDE, and padding, have all the same logit, and its exact remainder."""
    model = tiny_model(vocabulary=40, seed=2)
    outside = torch.ones(40, dtype=torch.bool)
    outside[INSIDE[1:]] = False
    with torch.no_grad():
        model.output.weight.mul_(6.0)
        model.output.weight[outside] = model.output.weight[5].clone()
        model.output.bias[outside] = 0.5
    weight = model.output.weight[5].detach().clone()
    return model, Remainder(weight, torch.tensor(0.5) + torch.tensor(float(outside.sum())).log())


def everywhere(vocabulary=40):
    nothing = np.full((vocabulary, 1), -1, dtype=np.int32)
    return Shortlist(nothing, INSIDE.numpy().astype(np.int32), ("a", "b"))


def test_probabilities_are_those_over_the_whole_vocabulary(alike):
    model, remainder = alike
    form, batch = decoding_form(model), random_batch(12, 40, 9, seed=1)
    candidates, allowed = everywhere().candidates([[4]] * 12)
    config = SearchConfig(4, n_best=3)
    gaps = []
    for chosen in (remainder, None):
        narrowed = Narrowed(form, candidates, allowed, chosen)
        found = beam_search(narrowed, batch.source, batch.source_lengths, config)
        worst = 0.0
        for row, hypotheses in enumerate(found):
            for hypothesis in hypotheses:
                tokens = candidates[hypothesis.tokens].tolist()
                assert 0 not in tokens
                own = teacher_forced(model, batch.source[row, : batch.source_lengths[row]], [*tokens, model.eos])
                worst = max(worst, abs(hypothesis.log_probability - own))
        gaps.append(worst)
    assert gaps[0] < 1e-4
    assert gaps[1] > 0.1, "the test would not see it"


def teacher_forced(model, source, target):
    """The log-probability of a target, from all logits."""
    with torch.no_grad():
        memory = model.encode(source.view(1, -1), torch.tensor([len(source)]))
        fed = torch.tensor([[model.bos, *target[:-1]]])
        logits = model.project(model.teacher_force(fed, memory))[0]
        return float(logits.log_softmax(-1).gather(1, torch.tensor(target).unsqueeze(1)).sum())


def test_learned_from_searches(alike):
    model, remainder = alike
    sources = [row[: int(n) - 1].tolist() for row, n in zip(*random_sources(200), strict=True)]
    states = search_states(decoding_form(model), everywhere(), sources)
    expected = torch.logaddexp(states.own, remainder.logit(states.inputs))
    torch.testing.assert_close(states.every, expected, atol=1e-4, rtol=0)
    found = learn_remainder(decoding_form(model), everywhere(), sources, batch_tokens=200)
    close = torch.logaddexp(states.own, found.logit(states.inputs))
    torch.testing.assert_close(close, states.every, atol=2e-3, rtol=0)


def random_sources(count):
    batch = random_batch(count, 40, 9, seed=4)
    return batch.source, batch.source_lengths


def run(words):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert not ended.value.code


def test_a_remainder_belongs_to_a_model(tiny_checkpoint, tmp_path, caplog):
    checkpoint = tiny_checkpoint()
    folder, other = tmp_path / "model", tmp_path / "other"
    save_checkpoint(folder / "model.safetensors", checkpoint)
    text = tmp_path / "text"
    text.write_text("the cat\nmy red cat\n\none two\n")
    path = tmp_path / "shortlist.safetensors"
    words = [str(folder), "--source", str(text), "--target", str(text), "-o", str(path)]
    run(["shortlist", *words, "--best", "3", "--frequent", "2"])
    translator = nmt.load(folder, shortlist=path)
    assert translator.shortlist.remainder is not None
    charged = translator.search(["the cat"])[0][0]
    translator.shortlist.remainder = None
    assert charged.log_probability < translator.search(["the cat"])[0][0].log_probability
    assert nmt.load(folder, shortlist=path, ensemble=[folder]).shortlist.remainder is None
    assert not caplog.records or all(record.levelno < logging.WARNING for record in caplog.records)
    with torch.no_grad():
        checkpoint.model.output.bias.add_(1e-3)
    save_checkpoint(other / "model.safetensors", checkpoint)
    assert nmt.load(other, shortlist=path).shortlist.remainder is None
    assert "for this very model" in caplog.text
    run(["shortlist", *words, "--lines", "0"])
    assert nmt.load(folder, shortlist=path).shortlist.remainder is None
