"""Models trained once for all tests that need one: seconds each, on one thread."""

import time
from dataclasses import dataclass
from pathlib import Path

import pytest

import nmt
from nmt.config import TrainConfig
from nmt.config_file import read_config
from nmt.corpus import load_card
from nmt.fetch import fetch
from nmt.translator import Translator
from tests import ROOT


def shipped(name: str, **changes) -> TrainConfig:
    """A shipped configuration with some keys changed."""
    return read_config(ROOT / "recipes" / "configs" / name, changes)


@dataclass
class ReverseRuns:
    """The generated task, learnt by cross-entropy and then through the soft beam."""

    cross_entropy: Translator
    soft_beam: Translator
    folder: Path
    seconds: float


@pytest.fixture(scope="session")
def reverse_runs(tmp_path_factory) -> ReverseRuns:
    from nmt.runs.training import train

    folder = tmp_path_factory.mktemp("reverse")
    fetch(load_card("reverse", folder / "corpus"))
    common = {
        "data.corpus": "reverse",
        "data.corpus_dir": str(folder / "corpus"),
        "data.cache": str(folder / "cache"),
        "trainer.threads": 1,
    }
    began = time.perf_counter()
    first, second = folder / "cross_entropy", folder / "soft_beam"
    train(shipped("quickstart_reverse.yaml", run=str(first), **common))
    train(shipped("quickstart_reverse_soft_beam.yaml", run=str(second), **common), start=first)
    return ReverseRuns(nmt.load(first), nmt.load(second), folder, time.perf_counter() - began)


@pytest.fixture(scope="session")
def real_translator(corpora, tmp_path_factory) -> Translator:
    """A small model that has seen Multi30k for half a minute: far from good, but no longer random."""
    from nmt.runs.training import train

    folder = tmp_path_factory.mktemp("real")
    text = corpora / "multi30k"
    config = shipped(
        "quickstart_reverse.yaml",
        run=str(folder / "run"),
        **{
            "data.train_source": str(text / "train.en.gz"),
            "data.train_target": str(text / "train.fr.gz"),
            "data.dev_source": str(text / "val.en.gz"),
            "data.dev_target": str(text / "val.fr.gz"),
            "data.dev_lines": 20,
            "data.vocabulary.size": 1000,
            "data.cache": str(folder / "cache"),
            "optimizer.lr": 3e-3,
            "trainer.threads": 1,
            "trainer.max_steps": 250,
            "trainer.validate_every": 250,
        },
    )
    train(config)
    return nmt.load(folder / "run")
