"""Low-rank adapters: what is trained, what the model file holds, and what is refused."""

import builtins
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("peft")

from nmt.adapters import LoraConfig, add_adapters, plain_state
from nmt.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from nmt.config import TrainConfig, TrainerConfig
from nmt.errors import UserError
from nmt.imports.hf import Options, load
from nmt.manifest import read_manifest
from nmt.models import Pretrained, RNNsearchConfig
from nmt.objectives import (
    CrossEntropy,
    CrossEntropyConfig,
    MinRisk,
    MinRiskConfig,
    SoftBeam,
    SoftBeamConfig,
)
from nmt.runs.state import read_state
from nmt.search import SoftSearchConfig
from nmt.search.trace import trace_search
from tests.conftest import random_batch
from tests.unit.pretrained import WORDS, save
from tests.unit.runs import make_config, train_quietly
from tests.unit.test_resume import assert_equal, state_after


@pytest.fixture(scope="module")
def imported(tmp_path_factory: Any) -> Any:
    """A function that imports a small model of a kind, each time anew."""
    folders: dict[str, Path] = {}

    def make(kind: str = "marian") -> Checkpoint:
        if kind not in folders:
            folders[kind] = tmp_path_factory.mktemp(kind)
            save(kind, folders[kind])
        return load(str(folders[kind]), Options())

    return make


def logits(model: Pretrained) -> torch.Tensor:
    source, lengths = torch.tensor([[9, 12, 7, model.eos], [8, 30, model.eos, model.padding]]), torch.tensor([4, 3])
    target = torch.tensor([[model.bos, 20, 21, 22], [model.bos, 40, 9, 33]])
    return model.project(model.teacher_force(target, model.encode(source, lengths)))


def draw_adapters(model: Pretrained) -> None:
    """As after some training; peft begins with a B of zeros."""
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)


@pytest.mark.parametrize("kind", ["marian", "t5", "bart", "m2m100"])
def test_adapters_begin_with_the_model_and_alone_are_trained(imported: Any, kind: str) -> None:
    model = imported(kind).model
    with torch.no_grad():
        before = logits(model)
    names = add_adapters(model, LoraConfig(rank=2), seed=1)
    # Queries and values of two layers: self-attention of both sides, and cross-attention.
    assert len(names) == 2 * 2 * 3
    with torch.no_grad():
        assert torch.equal(logits(model), before)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {f"{name}.lora_{part}.default.weight" for name in names for part in "AB"}
    draw_adapters(model)
    model.train()
    logits(model).logsumexp(dim=2).sum().backward()
    assert all((p.grad is not None and bool(p.grad.any())) == p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("targets", [[], ["*.fc1", "*encoder_attn.out_proj"]])
def test_the_model_file_holds_them_merged(
    imported: Any, targets: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = imported()
    model = checkpoint.model
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    names = add_adapters(model, LoraConfig(rank=3, alpha=6.0, targets=targets), seed=1)
    draw_adapters(model)
    plain = plain_state(model)
    assert list(plain) == list(start)
    for name, tensor in plain.items():
        layer, _, kind = name.rpartition(".")
        wanted = start[name]
        if layer in names and kind == "weight":
            a, b = (model.get_parameter(f"{layer}.lora_{part}.default.weight") for part in "AB")
            wanted = wanted + 2.0 * b @ a
        torch.testing.assert_close(tensor, wanted)
    save_checkpoint(tmp_path / "m.safetensors", checkpoint)
    # Whoever translates with it needs no peft.
    monkeypatch.setitem(sys.modules, "peft", None)
    found = load_checkpoint(tmp_path / "m.safetensors").model
    with torch.no_grad():
        torch.testing.assert_close(logits(found), logits(model), atol=1e-4, rtol=1e-4)
        assert (logits(found) - logits(imported().model)).abs().max() > 0.1
    # Saving leaves the adapters where they are.
    assert all(f"{name}.base_layer.weight" in model.state_dict() for name in names)
    assert not any("lora" in name for name in found.state_dict())


OBJECTIVES = {
    "cross_entropy": CrossEntropy(CrossEntropyConfig()),
    "min_risk": MinRisk(MinRiskConfig(beam_size=2)),
    "reachable_bleu": SoftBeam(SoftBeamConfig(search=SoftSearchConfig(beam_size=2, candidates=6))),
    "token": SoftBeam(SoftBeamConfig(loss="token", search=SoftSearchConfig(beam_size=2, candidates=6))),
}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_their_gradients_are_those_of_the_merged_weights(imported: Any, objective: str) -> None:
    """dL/dB = s dL/dW A' and dL/dA = s B' dL/dW."""
    # In float64: the two differ by rounding, which must not decide a search.
    model, merged = imported().model.double(), imported().model.double()
    names = add_adapters(model, LoraConfig(rank=2, alpha=4.0), seed=1)
    draw_adapters(model)
    merged.load_state_dict(plain_state(model))
    batch = random_batch(2, 12, 4)
    for ids in (batch.source, batch.target):
        words, ends, padding = ids >= 4, ids == 3, ids == 0
        ids[words] += 4
        ids[ends], ids[padding] = model.eos, model.padding
    # The references begin as the second slot does; else all that is found is worth as much, and weighs nothing.
    found = trace_search(model.eval(), model.encode(batch.source, batch.source_lengths), batch.target_lengths, 2, 6)
    batch.target[:, 0] = found.steps[0].candidates.tokens[:, 1]
    for each in (model, merged):
        torch.manual_seed(5)
        loss = OBJECTIVES[objective](each.train(), batch, 1)
        loss.value.backward()
        assert all(float(figure) > 1e-4 for name, figure in loss.figures.items() if name.startswith("gradient_"))
    for name in names:
        a, b = (model.get_parameter(f"{name}.lora_{part}.default.weight") for part in "AB")
        slope = merged.get_parameter(f"{name}.weight").grad
        assert slope is not None and a.grad is not None and b.grad is not None and bool(slope.any())
        torch.testing.assert_close(b.grad, 2.0 * slope @ a.t(), atol=1e-5, rtol=1e-3)
        torch.testing.assert_close(a.grad, 2.0 * b.t() @ slope, atol=1e-5, rtol=1e-3)


def test_dropout_of_adapters_is_drawn_by_steps(imported: Any) -> None:
    model = imported().model
    model.config.network.update({name: 0.0 for name in model.config.network if "dropout" in name})
    assert not model.steps_draw
    add_adapters(model, LoraConfig(rank=1, dropout=0.1), seed=1)
    assert model.steps_draw


def test_what_has_no_adapters_is_told(imported: Any, tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(config: LoraConfig, words: str, model: Any = None) -> None:
        with pytest.raises(UserError, match=words):
            add_adapters(imported().model if model is None else model, config, seed=1)

    refused(LoraConfig(rank=2), "lora.rank is 2, but RNNsearch is no model of transformers", tiny_model())
    refused(LoraConfig(rank=2, targets=["*.q_prj"]), r"'\*.q_prj', and no linear layer .* Did you mean 'q_proj'\? They")
    refused(LoraConfig(rank=2, targets=["network.lm_head"]), "no linear layer but the output is called so")
    with pytest.raises(UserError, match=r"lora.rank is 2, which freezes all but the adapters, and trainer.freeze"):
        TrainConfig(lora=LoraConfig(rank=2), trainer=TrainerConfig(freeze=["encoder"]))
    original = builtins.__import__

    def without(name: str, *args: Any, **options: Any) -> Any:
        if name == "peft":
            raise ModuleNotFoundError("No module named 'peft'")
        return original(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    refused(LoraConfig(rank=2), r"needs the extra lora \(No module named 'peft'\); install it \(pip install -e .\[lora")
    assert add_adapters(imported().model, LoraConfig(), seed=1) == []


def corpus(folder: Path) -> Path:
    """Lines of the tokenizer's words, and these backwards."""
    generator = torch.Generator().manual_seed(1)
    for split, count in (("train", 60), ("dev", 4)):
        lines = [
            [WORDS[i] for i in torch.randint(len(WORDS), (3,), generator=generator).tolist()] for _ in range(count)
        ]
        for side, step in (("source", 1), ("target", -1)):
            (folder / f"{split}.{side}").write_text("".join(" ".join(line[::step]) + "\n" for line in lines))
    return folder


def test_a_run_is_resumed_exactly(imported: Any, tmp_path: Path) -> None:
    texts, start = corpus(tmp_path), tmp_path / "start.safetensors"
    save_checkpoint(start, imported())

    def make(name: str, steps: int) -> TrainConfig:
        options = {"lora.rank": 2, "lora.dropout": 0.1, "trainer.max_steps": steps, "trainer.validate_every": 1}
        config = make_config(tmp_path / name, texts, {**options, "search.max_extra": 5, "search.max_ratio": 0.0})
        config.model = RNNsearchConfig()
        return config

    found = train_quietly(make("whole", 2), start=start)
    train_quietly(make("half", 1), start=start)
    half = make("half", 2)
    train_quietly(half, resume=True)
    expected, again = state_after(tmp_path / "whole"), state_after(tmp_path / "half")
    assert_equal(expected, again)
    old = load_checkpoint(start).model.state_dict()
    last = read_state(tmp_path / "whole" / "last.ckpt")
    adapted = read_manifest(tmp_path / "whole" / "manifest.json")["adapted"]
    assert len(adapted) == 12 and len(last["optimizer_states"][0]["state"]) == 24
    for name, weights in old.items():
        here = name.rpartition(".")[0] in adapted
        kept = name.replace(".weight", ".base_layer.weight").replace(".bias", ".base_layer.bias") if here else name
        assert torch.equal(last["state_dict"][f"model.{kept}"], weights)
        # What is saved has no trace of them but their sum.
        assert found.model.state_dict()[name].shape == weights.shape
        changed = not torch.equal(found.model.state_dict()[name], weights)
        assert changed <= (here and name.endswith("weight"))
    assert any(not torch.equal(found.model.state_dict()[name], old[name]) for name in old)
