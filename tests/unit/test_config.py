"""Impossible values are refused under the very key that the user writes; files are checked key by key."""

import dataclasses
import math

import pytest
import yaml

from nmt.adapters import LoraConfig
from nmt.config import DataConfig, OptimizerConfig, TrainConfig, TrainerConfig
from nmt.config_file import check_config_file, keys_of, parse_run
from nmt.errors import UserError
from nmt.models import RNNsearchConfig
from nmt.objectives import (
    BSOConfig,
    CrossEntropyConfig,
    MinRiskConfig,
    ScheduledSamplingConfig,
    SoftBeamConfig,
    TemperatureConfig,
)
from nmt.search import SearchConfig, SoftSearchConfig
from nmt.text.vocabulary import VocabularyConfig

nan = math.nan
IMPOSSIBLE = {
    ("", TrainConfig): {"seed": [-1, 2**63], "objective": ["ce"], "run": [""]},
    ("data", DataConfig): {
        "batch_tokens": [-1],
        "buffer": [-1, 2**63],
        "max_length": [0],
        "dev_lines": [-1],
        "max_unknown": [-0.1, 2, nan],
    },
    ("data.vocabulary", VocabularyConfig): {
        "size": [0, 7],
        "kind": ["word"],
        "character_coverage": [0.0, 1.5, nan],
        "normalization": ["nfc"],
        "sampling": [-0.1, 1.0, nan],
        "sampled": ["target"],
        "renew": ["all"],
    },
    ("model", RNNsearchConfig): {
        "embedding": [0, 2**63],
        "hidden": [-3, 2**21],
        "encoder_layers": [0],
        "decoder_layers": [0],
        "dropout": [-0.1, 1.0, nan],
        "cell": ["rnn"],
        "readout": ["linear", "relu"],
        "tied_embeddings": ["both"],
        "decoder": ["lstm"],
        "attention": ["mlp", "dot"],
        "input_feeding": [True],
        "bridge": ["none", "zero", "linear"],
        "output_size": [-1, 5],
        "attention_hidden": [-1],
        "upper": ["residual"],
        "start": ["zero"],
        "encoder_hidden": [-1, 5],
        "source_embedding": [-1, 5, 2**63],
        "bidirectional": [False],
        "source_end": [False],
    },
    ("cross_entropy", CrossEntropyConfig): {"label_smoothing": [-0.1, 1.0, nan]},
    ("scheduled_sampling", ScheduledSamplingConfig): {
        "schedule": ["cosine"],
        "end": [-0.1, 1.1, nan],
        "updates": [0],
        "choice": ["beam"],
        "label_smoothing": [-0.1, 1.0],
    },
    ("min_risk", MinRiskConfig): {
        "word_share": [-0.1, 1.1, nan],
        "brevity": ["letters"],
        "bleu": ["corpus"],
        "beam_size": [1],
        "n_best": [0],
        "alpha": [-1.0, nan],
        "sharpness": [-1.0, nan],
        "overrun": [-1],
        "tolerance": [-0.1, 1.0, nan],
        "cross_entropy": [-0.1, math.inf],
        "label_smoothing": [-0.1, 1.0],
    },
    ("bso", BSOConfig): {
        "word_share": [-0.1, 1.1, nan],
        "brevity": ["letters"],
        "beam_size": [0],
        "margin": [-1.0, nan],
        "cost": ["wer"],
        "cross_entropy": [-0.1, nan],
        "label_smoothing": [-0.1, 1.0],
    },
    ("soft_beam", SoftBeamConfig): {
        "word_share": [-0.1, 1.1, nan],
        "brevity": ["letters"],
        "bleu": ["corpus"],
        "future": ["worst"],
        "loss": ["bleu"],
        "operator": ["soft_top", ""],
        "restart": [-0.1, 1.1, nan],
        "label_smoothing": [-0.1, 1.0],
        "overrun": [-1],
        "risk": [-1.0, nan],
        "tolerance": [-0.1, 1.0, nan],
        "sharpness": [-1.0],
        "cross_entropy": [-1.0],
        "divergence": [-0.1, nan, math.inf],
        "references": [-0.1, 1.1, nan],
    },
    ("soft_beam.temperature", TemperatureConfig): {
        "schedule": ["cosine"],
        "end": [0.0, -1.0, nan, math.inf],
        "updates": [0],
    },
    ("soft_beam.search", SoftSearchConfig): {
        "beam_size": [0],
        "candidates": [0, 1],
        "temperature": [0.0, -1.0, nan],
        "damping": [-0.1, 1.1, nan],
        "values": ["straight"],
        "clip": [-1.0, nan],
        "rollout": [-1],
    },
    ("optimizer", OptimizerConfig): {
        "name": ["sgd"],
        "lr": [0.0, -1.0, nan, math.inf],
        "betas": [(0.9, 1.0), (-0.1, 0.9), (nan, 0.9), (0.9,)],
        "weight_decay": [-1.0, nan],
        "warmup": [-1],
        "schedule": ["cosine"],
        "plateau_factor": [0.0, 1.0, nan],
        "plateau_patience": [-1],
    },
    ("trainer", TrainerConfig): {
        "max_steps": [0],
        "max_epochs": [0, -1],
        "max_minutes": [0.0, nan],
        "validate_every": [0],
        "patience": [-1],
        "accumulate": [0],
        "bad_steps": [0],
        "clip": [-1.0, nan],
        "precision": ["8"],
        "device": ["tpu"],
        "devices": [0, 1025],
        "threads": [-1, 1025],
        "log_every": [0],
        "keep": [-1],
        "profile": [-1],
        "freeze": [[""]],
    },
    ("lora", LoraConfig): {"rank": [-1], "alpha": [0.0, nan], "dropout": [-0.1, 1.0, nan], "targets": [[""]]},
    ("search", SearchConfig): {
        "beam_size": [0],
        "normalization": ["sum"],
        "alpha": [-1.0],
        "max_ratio": [-1.0],
        "max_extra": [-1],
        "n_best": [0, 6],
        "min_ratio": [-0.1, nan],
        "min_extra": [-1],
        "coverage": [-0.1, nan],
        "groups": [0, 2],
        "diversity": [-1.0, nan],
        "strategy": ["smaple"],
        "stop": ["early"],
        "temperature": [0.0, 2.0],
        "top_k": [-1, 5],
        "top_p": [0.0, 0.9],
    },
}
CASES = [
    (section, kind, name, value)
    for (section, kind), fields in IMPOSSIBLE.items()
    for name, values in fields.items()
    for value in values
]


@pytest.mark.parametrize(("section", "kind", "name", "value"), CASES)
def test_impossible_values_are_refused_by_name(section, kind, name, value):
    kind()  # the default is possible
    with pytest.raises(UserError) as error:
        kind(**{name: value})
    message = str(error.value)
    assert f"{section}.{name}".lstrip(".") in message
    assert "\n" not in message and len(message) > 20


def test_every_key_was_thought_of():
    """A new key with limits belongs into the table above."""
    free = {"joint", "byte_fallback", "locked", "seed", "refill", "layer_normalization", "recompute", "compile"}
    for (section, kind), fields in IMPOSSIBLE.items():
        for field in dataclasses.fields(kind):
            nested = dataclasses.is_dataclass(field.default_factory)
            text = "str | None" in str(field.type)
            assert nested or text or field.name in free or field.name in fields, f"{section}.{field.name}"


def test_files_and_cards_exclude_each_other():
    with pytest.raises(UserError, match="are both given; give a card or files"):
        DataConfig(corpus="reverse", train_source="a")
    with pytest.raises(UserError, match="files of your own are four"):
        DataConfig(train_source="a", train_target="b")


def test_keys_are_dotted():
    keys = dict(keys_of(TrainConfig))
    assert keys["trainer.max_steps"] is int
    assert {"run", "data", "data.vocabulary.size", "soft_beam.search.damping", "search.alpha"} <= set(keys)


def test_the_defaults_are_a_valid_file(tmp_path):
    values = dataclasses.asdict(TrainConfig())
    values["optimizer"]["betas"] = list(values["optimizer"]["betas"])
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(values))
    check_config_file(tmp_path / "c.yaml", TrainConfig)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("trainr: {max_steps: 3}", r"unknown key 'trainr'\. Did you mean 'trainer'\?"),
        ("sead: 3", r"unknown key 'sead'\. Did you mean 'seed'\?"),
        ("model: {hiden: 3}", r"unknown key 'model.hiden'\. Did you mean 'model.hidden'\?"),
        ("max_steps: 3", r"unknown key 'max_steps'\. Did you mean 'trainer.max_steps'\?"),
        ("soft_beam: {search: {temprature: 3}}", r"Did you mean 'soft_beam.search.temperature'\?"),
        ("qqqqqqqq: 3", r"unknown key 'qqqqqqqq'\. nmt train --help"),
        ("3: 3", "unknown key '3'"),
        ("model: 3", "model is 3; it is a section"),
        ("seed: null", "seed is null; give a value, or leave the key out"),
        ("trainer: {max_steps: }", "trainer.max_steps is null"),
        ("soft_beam: {search: [1]}", r"soft_beam.search is \[1\]; it is a section"),
        ("- a\n- b", "holds a list"),
        ("text", "holds the plain value 'text'"),
        ("", "is empty"),
        ("# only a remark", "is empty"),
        ("a: [1, {", "line 1: not YAML"),
        ("a: b: c", "line 1: not YAML"),
        ("a: !!python/object/apply:os.mkdir ['ran']", "not YAML"),
        (b"\xff\xfe", "is not UTF-8"),
    ],
)
def test_files_are_checked_before_they_are_parsed(tmp_path, monkeypatch, content, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=words) as error:
        check_config_file("c.yaml", TrainConfig)
    assert "c.yaml" in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


def test_a_flag_that_is_null_is_told():
    with pytest.raises(UserError, match="seed is None; give a whole number"):
        parse_run(["--seed=null"])


def test_a_file_that_cannot_be_read_is_told(tmp_path):
    with pytest.raises(UserError, match=r"cannot be read .No such file"):
        check_config_file(tmp_path / "none.yaml", TrainConfig)
    with pytest.raises(UserError, match=r"cannot be read .Is a directory"):
        check_config_file(tmp_path, TrainConfig)
