"""Runs: where they begin, when they end, what they leave behind, and what they refuse."""

import itertools
import json
import logging
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nmt.checkpoint import load_checkpoint
from nmt.config import OptimizerConfig, TrainConfig
from nmt.config_file import check_resumable, read_config, write_config
from nmt.errors import UserError
from nmt.manifest import read_manifest
from nmt.objectives import CrossEntropy, SoftBeam
from nmt.runs.journal import drop_after, read_journal
from nmt.runs.module import TranslationModule, learning_rate_factor
from nmt.runs.run import RunFolder
from nmt.runs.state import read_state
from nmt.runs.stopper import Stopper
from nmt.search import beam_search
from tests.unit.runs import make_config, train_quietly, write_corpus


def updates_of(folder):
    return read_state(folder / "last.ckpt")["global_step"]


def dev_scores(folder):
    return {r["step"]: r["dev/bleu"] for r in read_journal(folder / "metrics.jsonl") if "dev/bleu" in r}


# Where a run begins


def test_from_takes_weights_and_vocabularies_and_begins_anew(finished_run, small_corpus, tmp_path, caplog):
    options = {"model.dropout": 0.5, "data.vocabulary.size": 50, "optimizer.lr": 1e-9, "seed": 7}
    caplog.set_level(logging.INFO)
    # Of the model's shape only the dropout is asked for; the rest comes along.
    config = make_config(tmp_path / "new", small_corpus, options)
    config.model = type(config.model)(dropout=0.5)
    found = train_quietly(config, start=finished_run)
    old = load_checkpoint(finished_run)
    assert found.model.config.dropout == 0.5 and found.model.config.hidden == old.model.config.hidden
    assert found.source_vocabulary.model == old.source_vocabulary.model
    for name, weights in old.model.state_dict().items():
        torch.testing.assert_close(found.model.state_dict()[name], weights, atol=1e-6, rtol=0)
    state = read_state(tmp_path / "new" / "last.ckpt")
    assert state["global_step"] == 4 and state["TranslationData"] == {"trained_batches": 4}
    assert read_manifest(tmp_path / "new" / "manifest.json")["started_from"] == str(finished_run)
    assert "loaded all weights and vocabularies of" in caplog.text and "begin anew" not in caplog.text
    assert "reset: optimiser" in caplog.text


def test_the_seed_decides_the_weights(small_corpus, tmp_path):
    def weights(name, seed):
        return train_quietly(make_config(tmp_path / name, small_corpus, {"seed": seed})).model.state_dict()

    first, again, other = weights("a", 3), weights("b", 3), weights("c", 4)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["output.weight"], other["output.weight"])


def test_a_divergence_from_no_model_is_refused(small_corpus, tmp_path):
    options = {"objective": "soft_beam", "soft_beam.divergence": 0.5}
    with pytest.raises(UserError, match=r"divergence is 0.5, but there is no model to stay near; give it by --from"):
        train_quietly(make_config(tmp_path / "run", small_corpus, options))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("file", ["last.ckpt", "model.safetensors"])
def test_a_folder_that_holds_a_run_is_refused_before_the_data_are_read(small_corpus, tmp_path, file):
    config = make_config(tmp_path, small_corpus, {"data.train_source": "nowhere"})
    (tmp_path / file).write_text("old")
    with pytest.raises(UserError, match="give another --run"):
        train_quietly(config)
    assert [path.name for path in tmp_path.iterdir()] == [file]
    assert (tmp_path / file).read_text() == "old"


def test_a_run_that_saved_nothing_may_begin_again(small_corpus, tmp_path):
    for name in ("config.yaml", "manifest.json"):
        (tmp_path / name).write_text("{")
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "loss": 1.0}\n')
    train_quietly(make_config(tmp_path, small_corpus))
    assert [r["step"] for r in read_journal(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 4]
    assert "began" in read_manifest(tmp_path / "manifest.json")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"data.train_source": "nowhere"}, "nowhere does not exist"),
        ({"data.vocabulary.size": 5000}, r"data.vocabulary.size is 5000, but this text allows \d+ pieces"),
        ({"data.batch_tokens": 3}, "raise batch_tokens"),
        ({"data.max_length": 1}, "No pair is left to train on"),
        ({"model.tied_embeddings": "all", "data.vocabulary.joint": False, "data.vocabulary.size": 60}, None),
    ],
)
def test_a_mistake_in_the_data_leaves_no_run_behind(small_corpus, tmp_path, options, words):
    config = make_config(tmp_path / "run", small_corpus, options)
    if words is None:
        train_quietly(config)  # two vocabularies of one size may be tied, if it makes little sense
        return
    with pytest.raises(UserError, match=words):
        train_quietly(config)
    assert not (tmp_path / "run").exists()


def test_an_empty_corpus_is_refused(small_corpus, tmp_path):
    for side in ("source", "target"):
        (tmp_path / side).write_text("")
    options = {"data.train_source": str(tmp_path / "source"), "data.train_target": str(tmp_path / "target")}
    with pytest.raises(UserError, match="has no text on its source side; give at least one"):
        train_quietly(make_config(tmp_path / "run", small_corpus, options))


# Where it goes on


@pytest.fixture
def half(small_corpus, tmp_path):
    """The configuration of a run stopped after 4 updates, its data its own."""
    config = make_config(tmp_path / "half", write_corpus(tmp_path / "corpus"))
    train_quietly(config)
    return config


def test_resume_after_max_epochs_is_the_longer_run(small_corpus, tmp_path):
    options = {"trainer.max_steps": 1000, "trainer.validate_every": 50, "trainer.accumulate": 2}
    train_quietly(make_config(tmp_path / "two", small_corpus, {**options, "trainer.max_epochs": 2}))
    config = make_config(tmp_path / "one", small_corpus, {**options, "trainer.max_epochs": 1})
    train_quietly(config)
    in_one = updates_of(tmp_path / "one")
    train_quietly(config, resume=True)
    assert updates_of(tmp_path / "one") == in_one
    config.trainer.max_epochs = 2
    train_quietly(config, resume=True)
    assert in_one < updates_of(tmp_path / "one") == updates_of(tmp_path / "two") < 1000
    one, two = (read_state(tmp_path / name / "last.ckpt")["state_dict"] for name in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in two)


def test_epochs_are_passes_over_the_text(small_corpus, tmp_path, monkeypatch):
    seen = []
    original = TranslationModule.training_step
    monkeypatch.setattr(
        TranslationModule,
        "training_step",
        lambda self, batch, n: seen.extend(batch[1].indices) or original(self, batch, n),
    )
    options = {"trainer.max_steps": 1000, "trainer.validate_every": 50, "trainer.max_epochs": 3}
    train_quietly(make_config(tmp_path / "run", small_corpus, options))
    assert sorted(seen) == sorted(list(range(200)) * 3)


def test_a_resumed_run_that_has_nothing_left_to_do_changes_nothing(half, caplog):
    folder = RunFolder(half.run)
    before = {path: path.read_bytes() for path in (folder.model, folder.last, folder.metrics)}
    caplog.set_level(logging.INFO)
    train_quietly(half, resume=True)
    assert {path: path.read_bytes() for path in before} == before
    assert "all 4 updates are done; raise trainer.max_steps" in caplog.text


def test_the_limits_of_a_resumed_run_are_kept(half):
    half.trainer.max_steps = 8
    train_quietly(half, resume=True)
    assert "max_steps: 8" in RunFolder(half.run).config.read_text()
    manifest = read_manifest(RunFolder(half.run).manifest)
    assert manifest["config"]["trainer"]["max_steps"] == 8 and len(manifest["resumed"]) == 1


@pytest.mark.parametrize(
    ("schedule", "steps", "told"), [("linear", 6, True), ("linear", 4, False), ("plateau", 6, False)]
)
def test_another_end_of_a_linear_schedule_is_told(small_corpus, tmp_path, caplog, schedule, steps, told):
    config = make_config(tmp_path, small_corpus, {"optimizer.schedule": schedule})
    train_quietly(config)
    config.trainer.max_steps = steps
    train_quietly(config, resume=True)
    assert ("max_steps is now 6 instead of 4, where optimizer.schedule linear ends" in caplog.text) == told


def test_changed_settings_are_refused(half):
    here = Path("x")
    changed = make_config(half.run, here, {"optimizer.lr": 0.5, "soft_beam.search.damping": 1.0})
    with pytest.raises(UserError, match=r"optimizer.lr is 0.5 instead of 0.01") as error:
        check_resumable(make_config(half.run, here), changed)
    assert "soft_beam.search.damping is 1.0" in str(error.value) and "--from" in str(error.value)
    # Where things lie and when to end may change.
    longer = make_config("elsewhere", Path("y"), {"trainer.max_steps": 9, "trainer.patience": 1, "data.cache": "z"})
    check_resumable(make_config(half.run, here), longer)


@pytest.mark.parametrize("split", ["train", "dev"])
def test_changed_data_are_refused(half, split):
    with (
        open(getattr(half.data, f"{split}_source"), "a") as source,
        open(getattr(half.data, f"{split}_target"), "a") as target,
    ):
        source.write("one more\n")
        target.write("more one\n")
    before = RunFolder(half.run).last.read_bytes()
    with pytest.raises(UserError, match=rf"^{split} of .* changed since the run began; restore"):
        train_quietly(half, resume=True)
    assert RunFolder(half.run).last.read_bytes() == before


def test_damage_to_a_run_is_told(half):
    folder = RunFolder(half.run)
    half.model.hidden = 16  # as if config.yaml had been changed by hand
    with pytest.raises(UserError, match=r"does not fit the model of .*config.yaml"):
        train_quietly(half, resume=True)
    half.model.hidden = 12
    for content, words in ((b"{", "is damaged"), (b"[]", "is damaged"), (None, "cannot be read")):
        if content is None:
            folder.manifest.unlink()
        else:
            folder.manifest.write_bytes(content)
        with pytest.raises(UserError, match=f"manifest.json {words}"):
            train_quietly(half, resume=True)
    folder.last.unlink()
    folder.previous.unlink()
    with pytest.raises(UserError, match=r"no last.ckpt"):
        train_quietly(half, resume=True)
    folder.config.unlink()
    with pytest.raises(UserError, match="holds no run"):
        train_quietly(half, resume=True)


# When it ends


def play(monkeypatch, scores):
    """Lets the validations of a run score as told, one after the other."""
    from nmt.evaluation import Score

    left = list(scores)
    monkeypatch.setattr("nmt.runs.module.bleu", lambda *_: Score("BLEU", left.pop(0), "signature", ""))


def test_early_stopping_and_the_best_model(small_corpus, tmp_path, monkeypatch):
    play(monkeypatch, [1.0, 5.0, 4.0, 5.0, 4.5, 9.0])
    options = {"trainer.max_steps": 100, "trainer.validate_every": 2, "trainer.patience": 3}
    config = make_config(tmp_path / "run", small_corpus, options)
    found = train_quietly(config)
    assert dev_scores(tmp_path / "run") == {2: 1.0, 4: 5.0, 6: 4.0, 8: 5.0, 10: 4.5}
    assert found.info["dev"] == {"bleu": 5.0, "signature": "signature", "step": 4}
    manifest = read_manifest(tmp_path / "run" / "manifest.json")
    assert manifest["best"]["step"] == 4 and manifest["updates"] == 10
    assert manifest["reason"].startswith("3 validations brought no better dev BLEU than 5.00")
    # As it is, the run is over; with more patience it goes on.
    train_quietly(config, resume=True)
    assert updates_of(tmp_path / "run") == 10
    config.trainer.patience, config.trainer.max_steps = 4, 12
    assert train_quietly(config, resume=True).info["dev"]["bleu"] == 9.0


def test_the_best_model_is_that_of_the_highest_score_written(small_corpus, tmp_path):
    options = {"trainer.max_steps": 45, "trainer.validate_every": 20, "optimizer.lr": 0.03, "model.hidden": 32}
    found = train_quietly(make_config(tmp_path, small_corpus, options))
    scores = dev_scores(tmp_path)
    assert list(scores) == [20, 40, 45]
    assert found.info["dev"]["bleu"] == max(scores.values()) > 1
    assert scores[found.info["dev"]["step"]] == max(scores.values())
    # The saved model makes that score.
    from nmt.evaluation import bleu
    from nmt.translator import Translator

    lines, reference = ((small_corpus / f"dev.{side}").read_text().splitlines() for side in ("source", "target"))
    score = bleu(Translator(found).translate(lines, beam_size=2), reference)
    assert score.value == pytest.approx(max(scores.values()), abs=1e-9)


@pytest.mark.parametrize("minutes", [0.4, 0.5])  # one of them is over between the two batches of an update
def test_max_minutes_ends_at_a_whole_update_and_counts_over_resumes(small_corpus, tmp_path, monkeypatch, minutes):
    clock = iter(range(0, 100_000, 7))  # seconds a look at the clock
    monkeypatch.setattr("nmt.runs.stopper.time.monotonic", lambda: next(clock))
    options = {"trainer.max_minutes": minutes, "trainer.max_steps": 100, "trainer.accumulate": 2}
    config = make_config(tmp_path, small_corpus, options)
    train_quietly(config)
    state = read_state(tmp_path / "last.ckpt")
    assert 2 <= state["global_step"] < 10
    assert state["TranslationData"]["trained_batches"] == 2 * state["global_step"]
    assert read_manifest(tmp_path / "manifest.json")["reason"].startswith(f"{minutes} minutes are over")
    train_quietly(config, resume=True)
    assert updates_of(tmp_path) == state["global_step"]
    config.trainer.max_minutes = 1.0
    train_quietly(config, resume=True)
    assert state["global_step"] < updates_of(tmp_path) < 20


def test_irregular_validations_do_not_wear_patience_out():
    class Module(TranslationModule):
        def __init__(self):
            torch.nn.Module.__init__(self)

        regular_validation = False
        dev_score = type("Score", (), {"value": 3.0})

    stopper = Stopper(TrainConfig().trainer, 10)
    stopper.on_validation_end(None, Module())
    assert (stopper.best, stopper.waited) == (-1.0, 0)


# What an update does


@pytest.mark.parametrize("update", [1, 2, 4, 5, 16, 100])
def test_learning_rates_are_their_formulas(update):
    def factor(schedule, warmup=4):
        return learning_rate_factor(update - 1, OptimizerConfig(schedule=schedule, warmup=warmup), 100)

    rising = update / 4
    after = update > 4
    assert factor("constant") == (1 if after else rising)
    assert factor("plateau") == (1 if after else rising)
    assert factor("inverse_sqrt") == pytest.approx(math.sqrt(4 / update) if after else rising)
    assert factor("linear") == pytest.approx((100 - update + 1) / 96 if after else rising)
    assert factor("constant", warmup=0) == 1
    assert factor("inverse_sqrt", warmup=0) == pytest.approx(update**-0.5)


def test_the_optimiser_gets_the_learning_rate_of_the_schedule(small_corpus, tmp_path, monkeypatch):
    used = []
    original = torch.optim.AdamW.step
    monkeypatch.setattr(
        torch.optim.AdamW,
        "step",
        lambda self, *a, **k: used.append(self.param_groups[0]["lr"]) or original(self, *a, **k),
    )
    options = {"trainer.max_steps": 8, "optimizer.lr": 0.02, "trainer.validate_every": 3}
    train_quietly(make_config(tmp_path / "a", small_corpus, options))
    expected = [0.02 * (u / 4 if u <= 4 else math.sqrt(4 / u)) for u in range(1, 9)]
    assert used == pytest.approx(expected)
    assert [r["lr"] for r in read_journal(tmp_path / "a" / "metrics.jsonl") if "lr" in r] == pytest.approx(expected)
    # Validations at 3, 6: the second is no better, and patience is 0.
    used.clear()
    play(monkeypatch, [5.0, 5.0, 6.0])
    plateau = {"optimizer.schedule": "plateau", "optimizer.plateau_patience": 0, "optimizer.warmup": 0}
    train_quietly(make_config(tmp_path / "b", small_corpus, {**options, **plateau}))
    # The rate of update 7 was set when 6 ended, before its validation.
    assert used == pytest.approx([0.02] * 7 + [0.01])


@pytest.mark.parametrize("clip", [0.0, 0.01, 1e6])
def test_gradients_are_clipped(small_corpus, tmp_path, monkeypatch, clip):
    norms = []

    def step(self, closure):
        closure()
        gradients = [p.grad.flatten() for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.cat(gradients).norm()))

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    config = make_config(tmp_path, small_corpus, {"trainer.clip": clip, "trainer.max_steps": 3})
    train_quietly(config)
    reported = [r["gradient_norm"] for r in read_journal(tmp_path / "metrics.jsonl") if "gradient_norm" in r]
    assert min(reported) > 0.05  # the norm before clipping
    assert norms == pytest.approx([clip] * 3 if clip == 0.01 else reported, rel=1e-3)


def test_accumulated_batches_make_one_update(small_corpus, tmp_path):
    options = {"trainer.max_steps": 3, "trainer.accumulate": 4, "trainer.validate_every": 3}
    train_quietly(make_config(tmp_path, small_corpus, options))
    state = read_state(tmp_path / "last.ckpt")
    assert state["global_step"] == 3 and state["TranslationData"] == {"trained_batches": 12}
    steps = [float(s["step"]) for s in state["optimizer_states"][0]["state"].values()]
    assert set(steps) == {3.0}


def test_weight_decay_is_for_matrices(small_corpus, tmp_path):
    config = make_config(tmp_path, small_corpus, {"optimizer.weight_decay": 0.1})
    train_quietly(config)
    groups = read_state(tmp_path / "last.ckpt")["optimizer_states"][0]["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]


@pytest.fixture
def poisoned(monkeypatch):
    """A function that makes the loss, or the gradient alone, of batches that hold a row no number."""
    original = CrossEntropy.__call__

    def poison(row, where="loss", value=math.nan):
        def call(self, model, batch, update):
            loss = original(self, model, batch, update)
            if row is not None and row not in batch.indices:
                return loss
            if where == "gradient":
                loss.value.register_hook(lambda gradient: gradient * value)
                return loss
            return loss._replace(value=loss.value * value)

        monkeypatch.setattr(CrossEntropy, "__call__", call)

    return poison


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(("where", "value"), [("loss", math.nan), ("loss", math.inf), ("gradient", math.nan)])
def test_an_update_that_is_no_number_is_skipped(
    small_corpus, tmp_path, monkeypatch, caplog, poisoned, where, value, accumulate
):
    """Weights and optimiser stay, number and schedule go on, and the log names the lines."""
    states, batches = [], []
    original = TranslationModule.on_train_batch_end

    def noted(self, outputs, batch, number):
        original(self, outputs, batch, number)
        batches.append(batch[1].indices)
        optimizer = self.trainer.optimizers[0]
        moments = [value.clone() for state in optimizer.state.values() for value in state.values()]
        states.append([*(weight.clone() for weight in self.state_dict().values()), *moments])

    monkeypatch.setattr(TranslationModule, "on_train_batch_end", noted)
    poisoned(7, where, value)
    # An epoch has 5 or 6 batches.
    options = {"trainer.max_steps": 5, "trainer.accumulate": accumulate, "optimizer.weight_decay": 0.1}
    train_quietly(make_config(tmp_path, small_corpus, options))
    states = states[accumulate - 1 :: accumulate]
    updates = [list(itertools.chain(*batches[i : i + accumulate])) for i in range(0, len(batches), accumulate)]
    same = [len(a) == len(b) and all(map(torch.equal, a, b)) for a, b in itertools.pairwise(states)]
    bad = [7 in rows for rows in updates]
    assert same == bad[1:] and 1 <= sum(bad) <= 3
    reports = read_journal(tmp_path / "metrics.jsonl")
    skips = [report for report in reports if "skipped" in report]
    assert [report["step"] for report in skips] == [number for number, skip in enumerate(bad, 1) if skip]
    assert [report["skipped"] for report in skips] == list(range(1, len(skips) + 1))
    guilty = next(rows for rows in (batches if where == "loss" else updates) if 7 in rows)
    assert skips[0]["lines"] == [row + 1 for row in sorted(guilty)]
    assert f"update {skips[0]['step']} skipped, its loss or gradient is no number (1 skipped so far)" in caplog.text
    assert f"lines {sorted(guilty)[0] + 1}, " in caplog.text
    rates = [report["lr"] for report in reports if "lr" in report]
    assert rates == pytest.approx([0.01 * (u / 4 if u <= 4 else math.sqrt(4 / u)) for u in range(1, 6)])
    assert read_state(tmp_path / "last.ckpt")["run"]["skipping"]["total"] == len(skips)


def test_too_many_skipped_updates_end_the_run(small_corpus, tmp_path, poisoned):
    train_quietly(make_config(tmp_path, small_corpus))
    config = make_config(tmp_path, small_corpus, {"trainer.max_steps": 100, "trainer.bad_steps": 3})
    poisoned(None)
    before = (tmp_path / "last.ckpt").read_bytes()
    with pytest.raises(UserError) as error:
        train_quietly(config, resume=True)
    told, reports = str(error.value), read_journal(tmp_path / "metrics.jsonl")
    lines = [report["lines"] for report in reports if "lines" in report]
    assert len(lines) == 3 and reports[-2]["in_a_row"] == 3
    assert told.startswith("update 7: loss or gradient of 3 updates in a row (trainer.bad_steps) is no number")
    assert f"lines {', '.join(map(str, lines[-1][:6]))} and {len(lines[-1]) - 6} more of " in told
    source, target = ((small_corpus / f"train.{side}").read_text().split("\n") for side in ("source", "target"))
    assert f"(first {source[lines[-1][0] - 1]!r} -> {target[lines[-1][0] - 1]!r}, " in told
    assert "lower optimizer.lr" in told
    assert (tmp_path / "last.ckpt").read_bytes() == before
    # The count is carried over a resume.
    config.trainer.bad_steps, config.trainer.validate_every = 4, 2
    for _ in range(2):
        with pytest.raises(UserError, match="update 8: loss or gradient of 4 updates in a row"):
            train_quietly(config, resume=True)
    assert read_state(tmp_path / "last.ckpt")["run"]["skipping"] == {"total": 2, "in_a_row": 2}


def test_weights_that_are_no_numbers_are_not_saved(small_corpus, tmp_path, monkeypatch):
    """An update's numbers may be finite, and its result not."""
    train_quietly(make_config(tmp_path, small_corpus))
    config = make_config(tmp_path, small_corpus, {"trainer.max_steps": 100})
    before = (tmp_path / "last.ckpt").read_bytes()
    original = TranslationModule.on_validation_epoch_start

    def diverge(self):
        self.model.output.bias.data[5] = math.inf
        original(self)

    monkeypatch.setattr(TranslationModule, "on_validation_epoch_start", diverge)
    with pytest.raises(UserError, match=r"update 8: dev nll is (nan|inf): training diverged; lower optimizer.lr"):
        train_quietly(config, resume=True)
    assert (tmp_path / "last.ckpt").read_bytes() == before


ALLOCATORS = {
    "the machine's": lambda: torch.empty(2**60, dtype=torch.uint8),
    "a GPU's": lambda: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")),
    "Python's": lambda: bytearray(2**62),
}


@pytest.mark.parametrize("allocator", ALLOCATORS)
def test_lack_of_memory_names_the_batch(small_corpus, tmp_path, monkeypatch, allocator):
    train_quietly(make_config(tmp_path, small_corpus))
    before = (tmp_path / "last.ckpt").read_bytes()
    seen = []
    original = CrossEntropy.__call__

    def call(self, model, batch, update):
        seen.append(batch)
        if update == 5:
            ALLOCATORS[allocator]()
        return original(self, model, batch, update)

    monkeypatch.setattr(CrossEntropy, "__call__", call)
    with pytest.raises(UserError) as error:
        train_quietly(make_config(tmp_path, small_corpus, {"trainer.max_steps": 100}), resume=True)
    batch, told = seen[-1], str(error.value)
    longest = torch.maximum(batch.source_lengths, batch.target_lengths).tolist()
    row = min(row for row, length in zip(batch.indices, longest, strict=True) if length == max(longest))
    pieces = f"{batch.source.shape[1]} source by {batch.target.shape[1]} target pieces"
    assert f"memory is full: a batch of {len(batch)} sentences, {pieces} at most at update 6" in told
    assert f"the longest in lines {row + 1}, " in told
    assert "lower data.batch_tokens (400; with trainer.accumulate 2, 200" in told
    assert (tmp_path / "last.ckpt").read_bytes() == before


def test_a_soft_beam_that_lacks_memory_goes_on_with_recomputing(small_corpus, tmp_path, monkeypatch):
    """To the same bytes, as if it had had it from the start."""
    options = {"objective": "soft_beam", "soft_beam.loss": "token", "model.dropout": 0.3, "trainer.max_steps": 6}
    whole = make_config(tmp_path / "whole", small_corpus, options)
    train_quietly(whole)
    original = SoftBeam.forward

    def forward(self, model, batch, update=0):
        if update == 5 and not self.config.recompute:
            raise torch.OutOfMemoryError
        return original(self, model, batch, update)

    monkeypatch.setattr(SoftBeam, "forward", forward)
    config = make_config(tmp_path / "run", small_corpus, options)
    with pytest.raises(UserError, match=r"; go on by --resume with --soft_beam.recompute true, or lower data.batch"):
        train_quietly(config)
    saved, asked = (read_config(tmp_path / "run" / "config.yaml", c) for c in ({}, {"soft_beam.recompute": "true"}))
    check_resumable(saved, asked)
    train_quietly(asked, resume=True)
    one, two = (read_state(tmp_path / name / "last.ckpt")["state_dict"] for name in ("whole", "run"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_run_that_fails_at_its_first_update_leaves_nothing(small_corpus, tmp_path, monkeypatch):
    """But for other people's files; and a run that has made one stays."""
    original = SoftBeam.forward

    def forward(self, model, batch, update=0):
        if update == first:
            raise torch.OutOfMemoryError
        return original(self, model, batch, update)

    monkeypatch.setattr(SoftBeam, "forward", forward)
    config = make_config(tmp_path / "run", small_corpus, {"objective": "soft_beam", "soft_beam.loss": "token"})
    first = 0
    with pytest.raises(UserError, match="memory is full: .*; give --soft_beam.recompute true, or lower"):
        train_quietly(config)
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="memory is full"):
        train_quietly(config)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]
    first = 1
    with pytest.raises(UserError, match="memory is full: .*; go on by --resume with --soft_beam.recompute true"):
        train_quietly(config)
    assert (tmp_path / "run" / "last.ckpt").exists()
    # What is refused because there is a run leaves that alone.
    with pytest.raises(UserError, match="holds a run already"):
        train_quietly(config)
    assert (tmp_path / "run" / "last.ckpt").exists()


def test_lack_of_memory_in_a_validation_and_for_the_model(small_corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("nmt.runs.module.beam_search", lambda *_: torch.empty(2**60, dtype=torch.uint8))
    with pytest.raises(
        UserError, match=r"memory is full: a batch of \d+ sentences, .* of the validation at update 4; low"
    ):
        train_quietly(make_config(tmp_path / "run", small_corpus))
    with pytest.raises(UserError, match="memory is full: the model is too large; lower model.hidden"):
        train_quietly(make_config(tmp_path / "large", small_corpus, {"model.hidden": 10**8}))
    assert not (tmp_path / "large").exists()


@pytest.mark.parametrize("objective", ["cross_entropy", "min_risk", "bso", "scheduled_sampling", "soft_beam"])
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_bfloat16_trains(small_corpus, tmp_path, objective, cell):
    options = {"trainer.precision": "bf16", "objective": objective, "model.cell": cell, "trainer.max_steps": 10}
    train_quietly(make_config(tmp_path, small_corpus, options))
    losses = [r["loss"] for r in read_journal(tmp_path / "metrics.jsonl") if "loss" in r]
    assert len(losses) == 10 and losses[-1] < losses[0]
    weights = read_state(tmp_path / "last.ckpt")["state_dict"]
    assert all(w.dtype == torch.float32 for w in weights.values())


@pytest.mark.parametrize("loss", ["reachable_bleu", "token", "gold_in_beam", "expected_bleu"])
def test_a_soft_beam_shows_what_it_does(small_corpus, tmp_path, loss):
    options = {"objective": "soft_beam", "soft_beam.loss": loss, "trainer.max_steps": 4, "trainer.log_every": 1}
    train_quietly(make_config(tmp_path, small_corpus, options))
    reports = read_journal(tmp_path / "metrics.jsonl")
    updates = [report for report in reports if "loss" in report]
    last = updates[-1]
    path = {"reachable_bleu": {"gradient_reach", "gradient_risk", "gold_in_beam"}, "gold_in_beam": {"gold_kept"}}
    shown = {"softness", "slot_entropy", "temperature", "nll"} | path.get(loss, {"gradient_states", "gradient_scores"})
    assert shown <= set(last) and all(math.isfinite(last[name]) for name in shown)
    if loss != "reachable_bleu":
        assert any(report["gradient_scores"] > 0 for report in updates)  # 0 where no reference is left in any beam
    dev = next(report for report in reports if "dev/bleu" in report)
    assert 0 <= dev["dev/bleu_greedy"] <= 100
    assert (tmp_path / "beam.png").read_bytes().startswith(b"\x89PNG")
    (events,) = (tmp_path / "tensorboard").glob("events*")
    assert b"dev/soft_beam" in events.read_bytes()


# What it leaves behind


def test_the_manifest_tells_what_made_the_run(finished_run, small_corpus):
    manifest = read_manifest(finished_run / "manifest.json")
    assert manifest["config"]["seed"] == 1 and manifest["config"]["model"]["hidden"] == 12
    assert manifest["started_from"] is None and manifest["updates"] == 8
    assert {"torch", "pytorch-lightning", "sentencepiece", "sacrebleu", "numpy"} <= set(manifest["packages"])
    assert manifest["packages"]["torch"] == torch.__version__
    assert {"python", "git", "machine", "command", "began", "ended", "reason"} <= set(manifest)
    assert manifest["data"]["train"]["pairs"] == 200 and manifest["data"]["dev"]["pairs"] == 8
    assert set(manifest["data"]["sha256"]) == {"train", "dev", "source_vocabulary", "target_vocabulary"}
    assert all(len(checksum) == 64 for checksum in manifest["data"]["sha256"].values())
    assert "tok:13a" in manifest["best"]["signature"]


# Every look at the clock is two seconds later. A window of the journal takes one look where it begins and one
# where it ends; a validation takes two, and of the seconds around it only its own are left out.
@pytest.mark.parametrize(("validate_every", "windows"), [(50, (2, 2)), (1, (4, 6))])
def test_the_journal_counts_tokens_without_padding(small_corpus, tmp_path, monkeypatch, validate_every, windows):
    batches = []
    original = TranslationModule.training_step
    monkeypatch.setattr(
        TranslationModule, "training_step", lambda self, batch, n: batches.append(batch[1]) or original(self, batch, n)
    )
    seconds = iter(range(0, 10**6, 2))
    monkeypatch.setattr("nmt.runs.journal.time.perf_counter", lambda: float(next(seconds)))
    options = {"trainer.max_steps": 4, "trainer.log_every": 2, "trainer.accumulate": 2}
    train_quietly(make_config(tmp_path, small_corpus, {**options, "trainer.validate_every": validate_every}))
    reports = [r for r in read_journal(tmp_path / "metrics.jsonl") if "loss" in r]
    assert [r["step"] for r in reports] == [2, 4] and len(batches) == 8
    for report, part, window in zip(reports, (batches[:4], batches[4:]), windows, strict=True):
        source = sum(int((batch.source != 0).sum()) for batch in part)
        target = sum(int((batch.target != 0).sum()) for batch in part)
        cells = sum(batch.source.numel() + batch.target.numel() for batch in part)
        assert report["source_tokens_per_second"] == pytest.approx(source / window)
        assert report["target_tokens_per_second"] == pytest.approx(target / window)
        assert report["padding"] == pytest.approx(1 - (source + target) / cells)


def test_a_resumed_journal_forgets_what_it_will_tell_again(half, tmp_path):
    path = RunFolder(half.run).metrics
    with path.open("a") as stream:
        stream.write(json.dumps({"step": 5, "loss": 1.0}) + "\n" + '{"step": 6, "lo')
    half.trainer.max_steps = 8
    train_quietly(half, resume=True)
    steps = [report["step"] for report in read_journal(path)]
    assert steps == [1, 2, 3, 4, 4, 5, 6, 7, 8, 8]  # with a validation at 4 and 8
    assert path.read_text().count("\n") == len(steps)


def test_a_journal_that_was_cut_off_is_mended(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    drop_after(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    drop_after(tmp_path / "none", 3)
    assert not (tmp_path / "none").exists()


def test_validation_leaves_training_as_it_was(small_corpus, tmp_path, monkeypatch):
    """Dropout and random numbers do not depend on how often there is a validation."""
    modes = []
    monkeypatch.setattr(
        "nmt.runs.module.beam_search",
        lambda model, *a, **k: modes.append(model.training) or beam_search(model, *a, **k),
    )
    states = []
    for every in (1, 6):
        options = {"trainer.validate_every": every, "trainer.max_steps": 6, "model.dropout": 0.5}
        train_quietly(make_config(tmp_path / str(every), small_corpus, options))
        states.append(read_state(tmp_path / str(every) / "last.ckpt")["state_dict"])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert modes and not any(modes)


INTERRUPTED = """
import os, signal, sys, logging
from pathlib import Path
import pytorch_lightning as pl
from nmt import cli
from nmt.runs.module import TranslationModule
original = TranslationModule.training_step

def step(self, batch, number):
    if batch[0] == 3:
        os.kill(os.getpid(), signal.SIGINT)
    return original(self, batch, number)

TranslationModule.training_step = step
cli.main(sys.argv[1:])
"""


def test_ctrl_c_ends_quietly_and_the_run_can_go_on(small_corpus, tmp_path):
    config = make_config(tmp_path / "run", small_corpus, {"trainer.max_steps": 100, "trainer.validate_every": 2})
    write_config(tmp_path / "c.yaml", config)
    words = ["train", "--config", tmp_path / "c.yaml"]
    done = subprocess.run([sys.executable, "-c", INTERRUPTED, *words], capture_output=True, text=True)
    assert done.returncode == 130, done.stderr
    assert done.stderr.endswith("nmt: interrupted\n") and "Traceback" not in done.stderr
    assert updates_of(tmp_path / "run") == 2


def test_a_profile_on_request(small_corpus, tmp_path):
    options = {"trainer.max_steps": 8, "trainer.validate_every": 8}
    train_quietly(make_config(tmp_path / "with", small_corpus, {**options, "trainer.profile": 2}))
    folder = tmp_path / "with" / "profile"
    assert "aten::mm" in (folder / "table.txt").read_text()
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    assert sum("Optimizer.step" in event.get("name", "") and event.get("ph") == "X" for event in events) == 2
    train_quietly(make_config(tmp_path / "without", small_corpus, options))
    assert not (tmp_path / "without" / "profile").exists()
    weights = [read_state(tmp_path / name / "last.ckpt")["state_dict"] for name in ("with", "without")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])
