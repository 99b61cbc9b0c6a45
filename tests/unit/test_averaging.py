"""The mean of models: exact, whatever their order, and of models that fit each other alone; what a run keeps for it."""

import gc
import itertools
import logging
import weakref

import pytest
import torch

from nmt.checkpoint import (
    NAME,
    average_checkpoints,
    kept_models,
    kept_name,
    load_checkpoint,
    save_checkpoint,
)
from nmt.errors import UserError
from nmt.runs.run import RunFolder
from nmt.translator import Translator
from tests.unit.runs import make_config, train_quietly
from tests.unit.test_cli import refused, run  # noqa: F401


@pytest.fixture
def saved(tiny_checkpoint, tmp_path):
    """A function that saves random models of one shape; returns their paths."""

    def save(count, joint=True, start=0, **config):
        paths = []
        for seed in range(start, start + count):
            checkpoint = tiny_checkpoint(joint, seed=seed, **config)
            checkpoint.info |= {"seed": seed, "dev": {"bleu": float(seed)}}
            paths.append(tmp_path / f"{len(list(tmp_path.iterdir()))}.safetensors")
            save_checkpoint(paths[-1], checkpoint)
        return paths

    return save


def weights(path_or_checkpoint):
    found = path_or_checkpoint
    return (found if hasattr(found, "model") else load_checkpoint(found)).model.state_dict()


@pytest.mark.parametrize("config", [{}, {"tied_embeddings": "all"}, {"cell": "lstm", "decoder_layers": 2}])
def test_the_mean_of_a_model_with_itself_is_itself(saved, config):
    (path,) = saved(1, **config)
    for count in (1, 2, 3, 7):
        mean = weights(average_checkpoints([path] * count))
        assert all(torch.equal(mean[name], tensor) for name, tensor in weights(path).items())


@pytest.mark.parametrize("joint", [True, False])
def test_the_mean_of_several_is_their_mean(saved, joint):
    paths = saved(4, joint)
    parts, mean = [weights(path) for path in paths], average_checkpoints(paths)
    assert not mean.model.training and (mean.source_vocabulary is mean.target_vocabulary) == joint
    for name, tensor in mean.model.state_dict().items():
        expected = torch.stack([part[name] for part in parts]).double().mean(dim=0)
        assert torch.equal(tensor, expected.float())
        # Biases begin as zeros.
        assert tensor.dim() < 2 or not torch.equal(tensor, parts[0][name])
    assert mean.info["averaged"] == [
        {"file": f"{path.parent.name}/{path.name}", "sha256": one["sha256"], "dev": {"bleu": float(seed)}}
        for seed, (path, one) in enumerate(zip(paths, mean.info["averaged"], strict=True))
    ]
    # What they do not share is not said of the mean.
    assert set(mean.info) == {"languages", "averaged"}
    Translator(mean).translate(["the cat"])


def test_order_does_not_matter(saved, tmp_path):
    paths = saved(3)
    # Numbers of which another order makes another sum, even in float64.
    for path, large in zip(paths, (1e30, -1e30, 1.0), strict=True):
        checkpoint = load_checkpoint(path)
        with torch.no_grad():
            checkpoint.model.output.bias.fill_(large)
        save_checkpoint(path, checkpoint)
    contents = set()
    for order in itertools.permutations(paths):
        save_checkpoint(tmp_path / "mean", average_checkpoints(order))
        contents.add((tmp_path / "mean").read_bytes())
    assert len(contents) == 1


def test_tied_weights_stay_tied(saved, tmp_path):
    for tied, parameters in (("all", 1), ("output", 2), ("none", 3)):
        model = average_checkpoints(saved(2, tied_embeddings=tied)).model
        tables = (model.source_embedding.weight, model.target_embedding.weight, model.output.weight)
        assert len({weight.data_ptr() for weight in tables}) == parameters


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ({}, {"hidden": 12}, "model.hidden is 1[02] and 1[02]"),
        ({}, {"cell": "lstm"}, r"model.cell is \w+ and \w+"),
        ({"joint": True}, {"joint": False}, "their source vocabularies differ"),
    ],
)
def test_models_that_do_not_fit_are_refused(saved, first, second, words):
    paths = [*saved(1, **first), *saved(1, start=1, **second)]
    for order in (paths, paths[::-1]):
        with pytest.raises(UserError, match=words) as error:
            average_checkpoints(order)
        assert all(str(path) in str(error.value) for path in paths)


def test_dropout_may_differ(saved):
    paths = [*saved(1, dropout=0.3), *saved(1, start=1, dropout=0.0, locked=True)]
    mean, parts = weights(average_checkpoints(paths)), [weights(path) for path in paths]
    assert all(torch.equal(tensor, (parts[0][name] + parts[1][name]) / 2) for name, tensor in mean.items())


def test_what_has_no_mean_must_be_equal(saved, monkeypatch):
    from nmt.models import RNNsearch

    original = RNNsearch.__init__

    def with_counter(self, *args, **options):
        original(self, *args, **options)
        self.register_buffer("counter", torch.tensor(int(torch.randint(2**31, ()))))

    monkeypatch.setattr(RNNsearch, "__init__", with_counter)
    first, second = saved(2)
    with pytest.raises(UserError, match="differ in counter, which has no mean"):
        average_checkpoints([first, second])
    assert torch.equal(weights(average_checkpoints([first, first]))["counter"], weights(first)["counter"])


def test_two_models_are_in_memory_at_most(saved, monkeypatch):
    alive, most = weakref.WeakSet(), []
    original = load_checkpoint

    def counting(path):
        found = original(path)
        alive.add(found.model)
        gc.collect()
        most.append(len(alive))
        return found

    monkeypatch.setattr("nmt.checkpoint.load_checkpoint", counting)
    average_checkpoints(saved(5))
    assert len(most) == 5 and max(most) == 2


def test_damaged_and_diverged_models_are_refused(saved):
    good, bad = saved(2)
    broken = load_checkpoint(bad)
    with torch.no_grad():
        broken.model.output.bias[2] = torch.nan
    save_checkpoint(bad, broken)
    with pytest.raises(UserError, match=rf"{bad} holds weights that are not numbers .output.bias"):
        average_checkpoints([good, bad])
    bad.write_bytes(bad.read_bytes()[:100])
    with pytest.raises(UserError, match="is damaged"):
        average_checkpoints([good, bad])
    with pytest.raises(UserError, match="0 models"):
        average_checkpoints([])


# What a run keeps


KEEPING = {"trainer.keep": 2, "trainer.validate_every": 2, "trainer.max_steps": 8}


def test_a_run_keeps_its_last_models(small_corpus, tmp_path):
    train_quietly(make_config(tmp_path / "run", small_corpus, KEEPING))
    kept = kept_models(tmp_path / "run")
    assert list(kept) == [6, 8] and kept[8].name == kept_name(8)
    for step, path in kept.items():
        assert load_checkpoint(path).info["dev"]["step"] == step
    assert not torch.equal(weights(kept[6])["output.weight"], weights(kept[8])["output.weight"])
    state = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(state["model.output.weight"], weights(kept[8])["output.weight"])
    # Without the key nothing is kept, and a model that is not numbered is none of them.
    train_quietly(make_config(tmp_path / "other", small_corpus, {**KEEPING, "trainer.keep": 0}))
    (tmp_path / "other" / "model.best.safetensors").touch()
    assert kept_models(tmp_path / "other") == {}


def test_what_is_kept_is_exact_across_resume(small_corpus, tmp_path):
    """At a validation and between two; the one at the end of a part is none of an unbroken run's."""
    train_quietly(make_config(tmp_path / "whole", small_corpus, KEEPING))
    expected = {step: path.read_bytes() for step, path in kept_models(tmp_path / "whole").items()}
    for until in (4, 5, 7):
        config = make_config(tmp_path / f"half{until}", small_corpus, {**KEEPING, "trainer.max_steps": until})
        train_quietly(config)
        assert list(kept_models(config.run)) == [step for step in (2, 4, 6) if step <= until][-2:]
        config.trainer.max_steps = 8
        train_quietly(config, resume=True)
        assert {step: path.read_bytes() for step, path in kept_models(config.run).items()} == expected


def test_models_from_after_the_state_do_not_stay(small_corpus, tmp_path):
    """As an interruption, or an older last.ckpt put back, leaves them."""
    config = make_config(tmp_path / "run", small_corpus, {**KEEPING, "trainer.max_steps": 4})
    train_quietly(config)
    for step in (6, 100):
        (tmp_path / "run" / kept_name(step)).write_bytes(b"of another time")
    config.trainer.max_steps = 8
    train_quietly(config, resume=True)
    assert list(kept_models(config.run)) == [6, 8]
    assert load_checkpoint(kept_models(config.run)[6]).info["dev"]["step"] == 6


def test_a_new_run_begins_without_those_of_an_old_one(tmp_path):
    (tmp_path / kept_name(3)).touch()
    RunFolder(tmp_path).create()
    assert kept_models(tmp_path) == {}


# The command


@pytest.fixture
def folder(tiny_checkpoint, saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    for seed in (4, 10, 9):
        save_checkpoint(tmp_path / "run" / kept_name(seed), tiny_checkpoint(seed=seed))
    save_checkpoint(tmp_path / "run" / NAME, tiny_checkpoint(seed=1))
    save_checkpoint(tmp_path / "one", tiny_checkpoint(seed=2))
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").write_text("bad\n")
    return tmp_path


def test_the_verb_averages_models_or_what_a_run_kept(folder, caplog):
    caplog.set_level(logging.INFO)
    assert run("average", "run", "one", "-o", "two.safetensors") == 0
    assert "averaged 2 models: run/model.safetensors, one" in caplog.text
    expected = weights(average_checkpoints(["run/model.safetensors", "one"]))
    found = weights("two.safetensors")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert run("average", "run", "-o", "new/kept.safetensors") == 0
    assert "averaged 3 models: run/model.4.safetensors, run/model.9.safetensors, run/model.10" in caplog.text
    expected = weights(average_checkpoints([f"run/model.{step}.safetensors" for step in (9, 4, 10)]))
    found = weights("new/kept.safetensors")
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["average"], "missing: model"),
        (["average", "one"], "missing: output"),
        (["average", "one", "-o", "x"], "one is one model; give several models"),
        (["average", "none", "-o", "x"], "none does not exist; give the folder"),
        (["average", "one", "none", "-o", "x"], "none does not exist"),
        (["average", "empty", "-o", "x"], "empty holds no kept models"),
        (["average", "one", "bad", "-o", "x"], "bad is damaged or not a model file"),
        (["average", "one", "./one", "-o", "x"], "is given twice"),
        (["average", "run", "run/model.safetensors", "-o", "x"], "is given twice"),
        (["average", "one", "run", "-o", "./one"], "is one of the models"),
        (["average", "one", "run", "-o", "run"], "run is a folder"),
        (["average", "one", "run", "-o", "bad/x"], "cannot be written"),
    ],
)
def test_mistakes_are_one_line(folder, refused, words, message):  # noqa: F811
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert message in refused(*words)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
