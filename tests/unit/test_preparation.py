"""`nmt corpus prepare` leaves what training looks for, whatever the number of processes; parts stay in order."""

import json
import os
import time

import pytest

from nmt import cli
from nmt.config_file import write_config
from nmt.errors import UserError
from nmt.pool import map_in_order
from nmt.runs import data_module
from nmt.runs.preparation import prepare
from nmt.text import encoding
from nmt.text.pairs import pairs_from_files
from nmt.text.vocabulary import UNK, SentencePiece
from tests.unit.runs import make_config, train_quietly


def run(*words):
    with pytest.raises(SystemExit) as ended:
        cli.main([str(word) for word in words])
    assert not ended.value.code


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def config(small_corpus, tmp_path):
    config = make_config(tmp_path / "run", small_corpus, {"data.cache": str(tmp_path / "cache"), "data.max_length": 4})
    write_config(tmp_path / "c.yaml", config)
    return config


def test_training_finds_everything(config, tmp_path, monkeypatch, capsys):
    run("corpus", "prepare", "--config", tmp_path / "c.yaml")
    assert capsys.readouterr().out.count("made: ") == 2
    before = contents(tmp_path / "cache")
    assert len(before) == 3  # a joint vocabulary, train, dev
    for module, name in ((data_module, "train_vocabularies"), (encoding, "_write")):
        monkeypatch.setattr(module, name, None)
    train_quietly(config)
    run("corpus", "prepare", "--config", tmp_path / "c.yaml")
    assert capsys.readouterr().out.count("found: ") == 2, "nothing is made again"
    # What training through the beam begins with is this run's model, and the cache fits it, too.
    run("corpus", "prepare", "--config", tmp_path / "c.yaml", "--from", tmp_path / "run", "--data.vocabulary.size", 70)
    assert capsys.readouterr().out.count("found: ") == 2
    assert contents(tmp_path / "cache") == before


def test_what_broke_off_is_taken_up(config, tmp_path):
    prepare(config.data, config.seed)
    before = contents(tmp_path / "cache")
    second = max((tmp_path / "cache").glob("encoded-*"), key=lambda path: path.stat().st_mtime_ns)
    second.unlink()
    assert [split.made for split in prepare(config.data, config.seed).splits] == [False, True]
    assert contents(tmp_path / "cache") == before


@pytest.mark.parametrize("joint", [True, False])
def test_the_report_counts(config, small_corpus, tmp_path, joint):
    config.data.vocabulary.joint = joint
    config.data.vocabulary.size = 60
    # Characters that the vocabulary lacks.
    (tmp_path / "dev.source").write_text("the 猫 cat\n犬 犬\n")
    (tmp_path / "dev.target").write_text("cat the\n犬\n")
    config.data.dev_source, config.data.dev_target = str(tmp_path / "dev.source"), str(tmp_path / "dev.target")
    config.data.max_unknown = 1.0
    write_config(tmp_path / "c.yaml", config)
    run("corpus", "prepare", "--config", tmp_path / "c.yaml", "--json", tmp_path / "report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    found = [SentencePiece(path.read_bytes()) for path in (tmp_path / "cache").glob("*.spm")]
    assert len(found) == (1 if joint else 2)
    assert {v.checksum() for v in found} == set(report["vocabulary_checksums"])
    of = {v.checksum(): v for v in found}
    both = [of[checksum] for checksum in report["vocabulary_checksums"]]
    assert report["vocabulary_sizes"] == [60, 60] and report["cache"] == str(tmp_path / "cache")
    for split, (source, target) in zip(
        report["splits"],
        [
            (small_corpus / "train.source", small_corpus / "train.target"),
            (config.data.dev_source, config.data.dev_target),
        ],
        strict=True,
    ):
        pairs = pairs_from_files(source, target)
        rows = [v.encode(side) for v, side in zip(both, (pairs.source, pairs.target), strict=True)]
        assert split["pairs"] == len(pairs)
        assert split["pieces"] == [sum(map(len, side)) for side in rows]
        assert split["unknown"] == [sum(row.count(UNK) for row in side) for side in rows]
        assert split["too_long"] == sum(max(map(len, pair)) > 4 for pair in zip(*rows, strict=True))
    assert min(report["splits"][1]["unknown"]) > 0 and 0 < report["splits"][0]["too_long"] < 200


def test_the_same_bytes_with_any_number_of_processes(config, tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, "_CHUNK", 7)
    prepare(config.data, config.seed, processes=2)
    several = contents(tmp_path / "cache")
    config.data.cache = str(tmp_path / "other")
    prepare(config.data, config.seed)
    assert contents(tmp_path / "other") == several


def test_a_card_takes_the_place_of_the_key(tmp_path, monkeypatch, capsys):
    (tmp_path / "own.yaml").write_text(
        "languages: {source: aa, target: bb}\nsplits:\n  train: {source: t.aa, target: t.bb}\n"
        "  dev: {source: t.aa, target: t.bb}\n"
    )
    (tmp_path / "own").mkdir()
    for name in ("t.aa", "t.bb"):
        (tmp_path / "own" / name).write_text("the cat sat\non a mat\n")
    monkeypatch.chdir(tmp_path)
    run("corpus", "prepare", "own.yaml", "--data.corpus", "other.yaml", "--data.vocabulary.size", 18, "--data.cache=c")
    assert "own/train: 2 pairs" in capsys.readouterr().out


def slow_square(number: int) -> int:
    # The first take longest, so that the order of what comes back is not that of who is done.
    time.sleep(0.05 / (1 + number))
    return number**2


def die(number: int) -> int:
    os._exit(1)


def test_parts_come_back_in_order():
    for processes in (1, 3):
        assert list(map_in_order(slow_square, iter(range(20)), processes)) == [n**2 for n in range(20)]


def test_a_dead_process_is_told():
    with pytest.raises(UserError, match="a worker process died"):
        list(map_in_order(die, range(3), 2))
