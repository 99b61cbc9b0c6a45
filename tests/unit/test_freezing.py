"""Frozen parameters: what patterns stand for, gradients of the others, runs."""

import itertools
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from nmt.checkpoint import load_checkpoint
from nmt.errors import UserError
from nmt.freezing import count_parameters, freeze, tell_frozen
from nmt.models.attention import AdditiveAttention
from nmt.models.recurrence import run_gru
from nmt.models.steps import StepCell, StepLinear
from nmt.objectives import (
    BSO,
    BSOConfig,
    CrossEntropy,
    CrossEntropyConfig,
    MinRisk,
    MinRiskConfig,
    ScheduledSampling,
    ScheduledSamplingConfig,
    SoftBeam,
    SoftBeamConfig,
)
from nmt.objectives.likelihood import token_log_likelihood
from nmt.runs.state import read_state
from nmt.search import SoftSearchConfig
from tests.conftest import random_batch
from tests.unit.runs import make_config, train_quietly
from tests.unit.test_resume import assert_equal, state_after

# Patterns


def frozen_names(model):
    return {name for name, p in model.named_parameters(remove_duplicate=False) if not p.requires_grad}


@pytest.mark.parametrize(
    ("patterns", "wanted"),
    [
        (["encoder.*"], lambda name: name.startswith("encoder.")),
        (["encoder"], lambda name: name.startswith("encoder.")),
        (["*embedding*", "attention.key"], lambda name: "embedding" in name or name.startswith("attention.key.")),
        (["*.weight_hh*"], lambda name: ".weight_hh" in name),
        (["*.bias", "*.bias_?h*"], lambda name: ".bias" in name),
        ([], lambda name: False),
    ],
)
def test_patterns_are_of_names_and_modules(tiny_model, patterns, wanted):
    model = tiny_model()
    names = [name for name, _ in model.named_parameters()]
    assert freeze(model, patterns) == sorted(filter(wanted, names))
    assert frozen_names(model) == set(filter(wanted, names))
    trained, count = count_parameters(model)
    assert count - trained == sum(p.numel() for name, p in model.named_parameters() if wanted(name))


def test_what_is_tied_is_frozen_by_any_of_its_names(tiny_model):
    model = tiny_model(tied_embeddings="output")
    assert freeze(model, ["target_embedding"]) == ["target_embedding.weight"]
    assert frozen_names(model) == {"target_embedding.weight", "output.weight"}
    assert tell_frozen(model) == "target_embedding, output (in part)"


def test_patterns_that_make_no_sense_are_told(tiny_model):
    with pytest.raises(UserError, match=r"'encodr.\*', and no parameter is called so. Did you mean 'encoder'\?"):
        freeze(tiny_model(), ["output", "encodr.*"])
    with pytest.raises(UserError, match="The modules are source_embedding, target_embedding, encoder, attention, "):
        freeze(tiny_model(), ["zzz"])
    with pytest.raises(UserError, match=r"trainer.freeze is \*: all is frozen"):
        freeze(tiny_model(), ["*"])


# Gradients: what is trained has the gradient that it has when all is trained


def check_parts(value: Any, parts: dict[str, nn.Parameter], inputs: tuple[torch.Tensor, ...] = ()) -> None:
    """Of each subset of the parts, `value` has the gradient that plain autograd gives when nothing is frozen.

    Args:
        value: a function of whether the reference is wanted.
    """
    trained = [*parts.values(), *inputs]
    expected = dict(zip(map(id, trained), torch.autograd.grad(value(True), trained), strict=True))
    for size in range(len(parts)):
        for chosen in itertools.combinations(parts.values(), len(parts) - size):
            for part in parts.values():
                part.requires_grad_(part in set(chosen))
            wanted = [*chosen, *inputs]
            found = torch.autograd.grad(value(False), wanted)
            for each, grad in zip(wanted, found, strict=True):
                torch.testing.assert_close(grad, expected[id(each)])
    for part in parts.values():
        part.requires_grad_(True)


def draw(*shape: int, grad: bool = True) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=grad)


@pytest.mark.parametrize("moves", [True, False])
def test_step_layers(moves):
    torch.manual_seed(0)
    layer, x = nn.Linear(4, 4).double(), draw(3, 4, grad=moves)

    def value(reference):
        step, y = (layer if reference else StepLinear(layer.weight, layer.bias)), x
        for _ in range(3):
            y = step(y).sin()
        return y.sum()

    check_parts(value, dict(layer.named_parameters()), (x,) if moves else ())


@pytest.mark.parametrize("kind", [nn.GRUCell, nn.LSTMCell])
def test_step_cells(kind):
    torch.manual_seed(0)
    cell, x, h = kind(3, 4).double(), draw(5, 3), draw(5, 4)

    def value(reference):
        step = cell if reference else StepCell(cell)
        state = (h, h.cos()) if kind is nn.LSTMCell else h
        for _ in range(3):
            state = step(x, state)
        return sum(part.sin().sum() for part in (state if isinstance(state, tuple) else (state,)))

    check_parts(value, dict(cell.named_parameters()), (x, h))


def test_the_encoder():
    torch.manual_seed(0)
    gru = nn.GRU(3, 4, bidirectional=True, batch_first=True).double()
    x = draw(3, 5, 3)

    def value(reference):
        packed = pack_padded_sequence(x, torch.tensor([5, 3, 2]), batch_first=True)
        outputs, final = gru(packed) if reference else run_gru(gru, packed)
        return outputs.data.sin().sum() + final.cos().sum()

    parts = {name: part for name, part in gru.named_parameters() if not name.endswith("reverse")}
    check_parts(value, parts, (x,))


def test_the_attention():
    torch.manual_seed(0)
    attention = AdditiveAttention(4, 6, 5).double()
    query, values = draw(2, 3, 4), draw(2, 7, 6)
    mask = torch.arange(7) < torch.tensor([[7], [4]])

    def value(reference):
        if not reference:
            context, weights = attention(query, attention.keys(values), values, mask)
        else:
            asked = attention.query(query).unsqueeze(2) + attention.key(values).unsqueeze(1)
            energy = attention.energy(asked.tanh()).squeeze(3).masked_fill(~mask.unsqueeze(1), -torch.inf)
            weights = energy.softmax(dim=2)
            context = weights @ values
        return context.sin().sum() + weights.square().sum()

    check_parts(value, dict(attention.named_parameters()), (query, values))


@pytest.mark.parametrize("moves", [True, False])
def test_the_output_layer(tiny_model, moves):
    torch.manual_seed(0)
    model = tiny_model(locked=True).double().train()
    features = draw(4, model.readout.in_features, grad=moves)
    rows, tokens = torch.tensor([0, 0, 1, 3, 2]), torch.tensor([5, 6, 5, 1, 0])
    weights, uniform = draw(5, grad=False), draw(4, grad=False)

    def value(reference):
        if not reference:
            return token_log_likelihood(model, features, rows, tokens, weights, uniform)[0]
        log_p = model.project(features).log_softmax(dim=1)
        return (weights * log_p[rows, tokens]).sum() + (uniform * log_p.mean(dim=1)).sum()

    parts = {name: p for name, p in model.named_parameters() if name.startswith(("output.", "readout."))}
    check_parts(value, parts, (features,) if moves else ())


small = SoftSearchConfig(beam_size=2, candidates=6)
OBJECTIVES = {
    "cross_entropy": CrossEntropy(CrossEntropyConfig()),
    "scheduled_sampling": ScheduledSampling(ScheduledSamplingConfig(updates=1)),
    "min_risk": MinRisk(MinRiskConfig(beam_size=2)),
    "bso": BSO(BSOConfig(beam_size=2)),
    "reachable_bleu": SoftBeam(SoftBeamConfig(search=small)),
    "token": SoftBeam(SoftBeamConfig(loss="token", search=small)),
    "gold_in_beam": SoftBeam(SoftBeamConfig(loss="gold_in_beam", search=small)),
    "expected_bleu": SoftBeam(SoftBeamConfig(loss="expected_bleu", search=small)),
}
MODELS = {
    "rnnsearch": {"cell": "gru"},
    "tied": {"tied_embeddings": "all", "cell": "lstm", "locked": True, "dropout": 0.2},
    "luong": {"decoder": "luong", "input_feeding": True, "attention": "general", "decoder_layers": 2, "dropout": 0.2},
    "marian": None,
    "t5": None,
}


def make_model(name, tiny_model, folder):
    if MODELS[name] is not None:
        return tiny_model(**MODELS[name])
    pytest.importorskip("transformers")
    from nmt.imports.hf import Options, load
    from tests.unit.pretrained import save

    save(name, folder)
    return load(str(folder), Options()).model


TOGETHER = {
    "rnnsearch": list(OBJECTIVES),
    "tied": ["cross_entropy", "reachable_bleu"],
    "luong": ["cross_entropy", "min_risk", "token"],
    "marian": ["cross_entropy", "min_risk", "reachable_bleu"],
    "t5": ["token"],
}


@pytest.mark.parametrize(("kind", "objective"), [(kind, one) for kind, some in TOGETHER.items() for one in some])
def test_gradients_beside_frozen_modules(kind, objective, tiny_model, tmp_path):
    model = make_model(kind, tiny_model, tmp_path).train()
    batch = random_batch(2, 12, 4)
    if MODELS[kind] is None:
        for ids in (batch.source, batch.target):
            words, ends, padding = ids >= 4, ids == 3, ids == 0
            ids[words] += 4
            ids[ends], ids[padding] = model.eos, model.padding

    def gradients():
        torch.manual_seed(5)
        model.zero_grad()
        OBJECTIVES[objective](model, batch, 1).value.backward()
        return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}

    natural = frozen_names(model)
    expected = gradients()
    modules = list(dict.fromkeys(name.rpartition(".")[0] for name, grad in expected.items() if grad is not None))
    assert len(modules) >= 8
    # Every module is frozen beside one that is not, trained beside one that is not, and the last one is alone.
    for patterns in (modules[::2], modules[1::2], modules[:-1]):
        freeze(model, patterns)
        left = {name for name, p in model.named_parameters() if p.requires_grad}
        found = gradients()
        assert set(found) == left < set(expected)
        for name, grad in found.items():
            torch.testing.assert_close(grad, expected[name], atol=1e-6, rtol=1e-4, msg=f"{name} beside {patterns}")
        assert all(name in left or p.grad is None for name, p in model.named_parameters())
        for name, p in model.named_parameters():
            p.requires_grad_(name not in natural)


# Runs

FROZEN = {"trainer.freeze": ["encoder", "*embedding*"], "optimizer.weight_decay": 0.1, "model.dropout": 0.2}


@pytest.mark.parametrize("options", [{}, {"objective": "min_risk", "trainer.accumulate": 2}])
def test_a_run_leaves_frozen_parameters_alone_and_is_resumed_exactly(options, finished_run, small_corpus, tmp_path):
    def make(name, steps):
        return make_config(tmp_path / name, small_corpus, {**FROZEN, **options, "trainer.max_steps": steps})

    start = load_checkpoint(finished_run).model.state_dict()
    train_quietly(make("whole", 2), start=finished_run)
    half = make("half", 1)
    train_quietly(half, start=finished_run)
    half.trainer.max_steps = 2
    train_quietly(half, resume=True)
    expected, found = state_after(tmp_path / "whole"), state_after(tmp_path / "half")
    del expected["best model"], found["best model"]
    assert_equal(expected, found)
    names = [name for name in start if name.startswith("encoder") or "embedding" in name]
    after = {name.removeprefix("model."): weights for name, weights in expected["weights"].items()}
    for name, weights in start.items():
        assert torch.equal(after[name], weights) == (name in names), name
    (optimizer,) = expected["optimizer"]
    assert (
        len(optimizer["state"]) == len(start) - len(names) == sum(len(g["params"]) for g in optimizer["param_groups"])
    )


def test_another_choice_is_another_run(small_corpus, tmp_path):
    from nmt.config_file import check_resumable

    first = make_config(tmp_path, small_corpus, {"trainer.freeze": ["encoder"]})
    with pytest.raises(UserError, match="trainer.freeze is "):
        check_resumable(first, make_config(tmp_path, small_corpus))


@pytest.mark.parametrize("kept", ["output.bias", "output.weight"])
def test_what_is_trained_may_be_vectors_or_matrices_alone(kept, small_corpus, tmp_path):
    config = make_config(tmp_path / "run", small_corpus, {"trainer.max_steps": 1})
    names = [name for name, _ in train_quietly(config).model.named_parameters() if name != kept]
    config = make_config(tmp_path / "again", small_corpus, {"trainer.max_steps": 2, "trainer.freeze": names})
    train_quietly(config, start=tmp_path / "run")
    state = read_state(tmp_path / "again" / "last.ckpt")
    assert len(state["optimizer_states"][0]["state"]) == 1
