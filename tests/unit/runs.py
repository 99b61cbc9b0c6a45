"""Tiny training runs for the tests of everything that has to do with runs."""

import dataclasses
import warnings
from pathlib import Path
from typing import Any

from nmt.config import TrainConfig
from nmt.fetch.reverse import Reverse, generate_reverse
from nmt.runs.training import train

TINY = {
    "model.embedding": 8,
    "model.hidden": 12,
    "optimizer.warmup": 4,
    "optimizer.lr": 0.01,
    "data.vocabulary.size": 80,
    "data.batch_tokens": 400,
    "search.beam_size": 2,
    "soft_beam.search.beam_size": 2,
    "soft_beam.search.candidates": 6,
    "trainer.max_steps": 4,
    "trainer.validate_every": 4,
    "trainer.log_every": 1,
    "trainer.threads": 1,
    "trainer.device": "cpu",
}


def write_corpus(folder: Path, train: int = 200, dev: int = 8, seed: int = 1) -> Path:
    """The reverse task as four files; returns their folder."""
    folder.mkdir(parents=True, exist_ok=True)
    options = Reverse(train=train, dev=dev, test=4, min_words=2, max_words=5, lexicon=12, seed=seed)
    for split, pairs in generate_reverse(options).items():
        for side, name in enumerate(("source", "target")):
            (folder / f"{split}.{name}").write_text("".join(pair[side] + "\n" for pair in pairs))
    return folder


def make_config(run: Path, corpus: Path, options: dict[str, Any] | None = None) -> TrainConfig:
    """The configuration of a tiny run; `options` by their dotted names."""
    config = TrainConfig(run=str(run))
    files = {f"data.{s}_{t}": str(corpus / f"{s}.{t}") for s in ("train", "dev") for t in ("source", "target")}
    for name, value in {**TINY, **files, "data.cache": str(corpus / "cache"), **(options or {})}.items():
        *path, last = name.split(".")
        section: Any = config
        for part in path:
            section = getattr(section, part)
        assert last in {field.name for field in dataclasses.fields(section)}, name
        setattr(section, last, value)
    return config


def train_quietly(config: TrainConfig, **options: Any) -> Any:
    """`train` without the advice of the libraries."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return train(config, **options)
