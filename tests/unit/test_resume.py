"""2N updates are N updates, a resume, and N more: bit for bit on the CPU."""

import math

import pytest
import torch

from nmt.objectives import CrossEntropy
from nmt.runs.state import read_state
from tests.unit.runs import make_config, train_quietly

N = 6


def state_after(folder) -> dict:
    """All that decides how the run goes on, and the best model; not what time it took."""
    state = read_state(folder / "last.ckpt")
    stopper = next(value for name, value in state["callbacks"].items() if "Stopper" in name)
    return {
        "weights": state["state_dict"],
        "optimizer": state["optimizer_states"],
        "schedule": state["lr_schedulers"],
        "run": state["run"],
        "data": state["TranslationData"],
        "stopper": {name: stopper[name] for name in ("best", "waited")},
        "update": state["global_step"],
        "best model": (folder / "model.safetensors").read_bytes(),
    }


def assert_equal(first, second, where=""):
    assert type(first) is type(second), where
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second), where
    elif isinstance(first, dict):
        assert list(first) == list(second), where
        for key in first:
            assert_equal(first[key], second[key], f"{where}.{key}")
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second), where
        for place, (a, b) in enumerate(zip(first, second, strict=True)):
            assert_equal(a, b, f"{where}.{place}")
    else:
        assert first == second, where


CASES = {
    # The corpus has 5 to 6 batches an epoch: 6 updates end near an epoch's end, 12 in the third epoch.
    "cross_entropy": {},
    "plateau": {"optimizer.schedule": "plateau", "optimizer.plateau_patience": 0, "optimizer.warmup": 2},
    "accumulate": {"trainer.accumulate": 2},
    "buffer": {"data.buffer": 70},
    "min_risk": {"objective": "min_risk"},
    "bso": {"objective": "bso"},
    "scheduled_sampling": {"objective": "scheduled_sampling", "scheduled_sampling.updates": 9},
    "reachable_bleu": {"objective": "soft_beam", "soft_beam.loss": "reachable_bleu", "trainer.accumulate": 2},
    "gold_in_beam": {"objective": "soft_beam", "soft_beam.loss": "gold_in_beam"},
    "token": {"objective": "soft_beam", "soft_beam.loss": "token"},
    "annealed": {
        "objective": "soft_beam",
        "soft_beam.temperature.schedule": "linear",
        "soft_beam.temperature.updates": 9,
    },
    "learned": {"objective": "soft_beam", "soft_beam.temperature.schedule": "learned"},
    "divergence": {"objective": "soft_beam", "soft_beam.divergence": 0.5},
    "expected_bleu": {"objective": "soft_beam", "soft_beam.loss": "expected_bleu", "trainer.accumulate": 2},
}

EVERYWHERE = ("cross_entropy", "plateau", "accumulate", "buffer", "token")

# Where validations fall matters to the optimiser and the journal, not to the objective.
PLACES = [(case, every) for case in CASES for every in ((3, 6, 4) if case in EVERYWHERE else (4,))]


@pytest.mark.parametrize(("case", "validate_every"), PLACES)
def test_resume_is_exact(case, validate_every, tmp_path, small_corpus):
    options = {
        "model.dropout": 0.3,
        "data.vocabulary.sampling": 0.2,
        "trainer.validate_every": validate_every,
        **CASES[case],
    }
    # The divergence is from a model that the run begins with.
    start = tmp_path / "start" if case == "divergence" else None
    if start:
        train_quietly(
            make_config(start, small_corpus, {**options, "objective": "cross_entropy", "trainer.max_steps": 2})
        )
    whole = make_config(tmp_path / "whole", small_corpus, {**options, "trainer.max_steps": 2 * N})
    train_quietly(whole, start=start)
    half = make_config(tmp_path / "half", small_corpus, {**options, "trainer.max_steps": N})
    train_quietly(half, start=start)
    assert read_state(tmp_path / "half" / "last.ckpt")["global_step"] == N
    half.trainer.max_steps = 2 * N
    train_quietly(half, resume=True)
    expected, found = state_after(tmp_path / "whole"), state_after(tmp_path / "half")
    if N % validate_every:
        # The half run ended with a validation that the whole run does not have, and may have kept that model.
        del expected["best model"], found["best model"]
    assert_equal(expected, found)


def test_resume_is_exact_where_updates_are_skipped(tmp_path, small_corpus, monkeypatch):
    """Of batches with row 7, in each epoch, the loss is no number."""
    original = CrossEntropy.__call__

    def call(self, model, batch, update):
        loss = original(self, model, batch, update)
        return loss._replace(value=loss.value * math.nan) if 7 in batch.indices else loss

    monkeypatch.setattr(CrossEntropy, "__call__", call)
    options = {"model.dropout": 0.3, "trainer.validate_every": 3}
    train_quietly(make_config(tmp_path / "whole", small_corpus, {**options, "trainer.max_steps": 2 * N}))
    half = make_config(tmp_path / "half", small_corpus, {**options, "trainer.max_steps": N})
    train_quietly(half)
    half.trainer.max_steps = 2 * N
    train_quietly(half, resume=True)
    expected, found = state_after(tmp_path / "whole"), state_after(tmp_path / "half")
    assert expected["run"]["skipping"]["total"] >= 2
    assert_equal(expected, found)
