"""The command line: every mistake is one line on standard error and exit code 2, and nothing is lost."""

import logging
import os
import subprocess
import sys
from importlib import import_module

import pytest
import torch
import yaml

from nmt import __version__, cli, config_file, flags
from nmt.config_file import write_config
from nmt.imports import TOOLKITS
from nmt.lines import read_lines
from nmt.runs.run import RunFolder
from nmt.runs.state import read_state
from tests import ROOT
from tests.unit.runs import make_config, write_corpus


def run(*words):
    """Runs `nmt WORDS`; returns the exit code."""
    with pytest.raises(SystemExit) as ended:
        cli.main([str(word) for word in words])
    return ended.value.code or 0


@pytest.fixture
def refused(capsys):
    """A function that runs `nmt WORDS`, which must be refused in one line; returns the line."""

    def check(*words):
        capsys.readouterr()
        code = run(*words)
        out, err = capsys.readouterr()
        assert (code, out) == (2, ""), err
        assert err.startswith("nmt: ") and err.endswith("\n") and err.count("\n") == 1, err
        return err

    return check


@pytest.fixture
def folder(small_corpus, tmp_path, monkeypatch):
    """The current folder, with a corpus, broken copies of it, and configurations."""
    monkeypatch.chdir(write_corpus(tmp_path))
    (tmp_path / "short").write_text("only one line\n")
    (tmp_path / "empty").write_text("")
    (tmp_path / "blank").write_text("\n" * 200)
    (tmp_path / "latin").write_bytes("déjà vu\n".encode("latin-1") * 200)
    (tmp_path / "cut.gz").write_bytes(b"\x1f\x8b\x08\x00\x00")
    (tmp_path / "model.txt").write_text("no model\n")
    (tmp_path / MODEL).write_text("no model\n")
    config = make_config(tmp_path / "run", tmp_path)
    config.data.cache = str(small_corpus / "cache")
    write_config(tmp_path / "c.yaml", config)
    return tmp_path


TRAIN = ["train", "--config", "c.yaml"]
DATA = "--data.train_"
MODEL = "any.safetensors"  # a file that is no model: whoever opens it is too late
BAD_WORDS = [
    # The verb and the flags
    (["trian"], "no verb 'trian'. Did you mean 'train'?"),
    (["-x"], "no verb '-x'."),
    (["train", "--model.hiden", "3"], "unknown flag --model.hiden. Did you mean '--model.hidden'?"),
    (["train", "--hiden", "3"], "Did you mean '--model.hidden'?"),
    (["train", "--soft_beam.search.temprature=3"], "Did you mean '--soft_beam.search.temperature'?"),
    (["train", "--model.hid", "3"], "unknown flag --model.hid."),
    (["train", "extra"], "'extra' is one argument too many"),
    (["train", "--model.hidden"], "--model.hidden: expected one argument"),
    (["train", "--model.hidden", "big"], "model.hidden is big; give a whole number"),
    (["train", "--model.hidden", "3.5"], "model.hidden is 3.5; give a whole number"),
    (["train", "--optimizer.lr", "fast"], "optimizer.lr is fast; give a number"),
    (["train", "--data.vocabulary.joint", "perhaps"], "data.vocabulary.joint is perhaps; give true or false"),
    (["train", "--model.cell", "rnn"], "model.cell is rnn; choose gru or lstm"),
    (["train", "--model", "3"], "model is a section; give one of its keys, such as --model.attention"),
    (["train", "--resume"], "--resume: expected one argument"),
    # Configuration files (tests/unit/test_config.py has more)
    (["train", "--config", "none.yaml"], "none.yaml cannot be read"),
    (["train", "--config", "empty"], "empty is empty"),
    (["train", "--config", "latin"], "latin is not UTF-8"),
    (["train", "--config", "short"], "short holds the plain value"),
    # Impossible values
    (["train", "--soft_beam.search.temperature", "0"], "soft_beam.search.temperature is 0.0; give a positive"),
    (["train", "--soft_beam.search.temperature", "-1"], "soft_beam.search.temperature is -1.0"),
    (["train", "--soft_beam.search.beam_size", "0"], "soft_beam.search.beam_size is 0"),
    (["train", "--search.beam_size", "0"], "search.beam_size is 0; give at least 1"),
    (["train", "--optimizer.betas", "[0.9]"], "optimizer.betas"),
    (["train", "--seed", "-1"], "seed is -1"),
    # Data
    (["train"], "no training text is named; give data.corpus"),
    (["train", "--data.corpus", "revers"], "Did you mean 'reverse'?"),
    ([*TRAIN, DATA + "source", "none"], "none does not exist"),
    ([*TRAIN, DATA + "source", "."], ". is a directory"),
    ([*TRAIN, DATA + "source", "short"], "short has 1 lines and"),
    ([*TRAIN, DATA + "source", "latin"], "latin, line 1: not UTF-8"),
    ([*TRAIN, DATA + "source", "cut.gz"], "cut.gz is not a whole gzip file"),
    ([*TRAIN, DATA + "source", "blank"], "has no text on its source side"),
    ([*TRAIN, DATA + "source", "empty", DATA + "target", "empty"], "has no text on its source side"),
    ([*TRAIN, "--data.vocabulary.size", "7000"], "data.vocabulary.size is 7000, but this text allows"),
    ([*TRAIN, "--data.vocabulary.size", "8"], "data.vocabulary.size is 8, but the characters"),
    ([*TRAIN, "--trainer.device", "cpu", "--trainer.precision", "16"], "trainer.precision is 16, which needs a GPU"),
    # Where runs begin
    ([*TRAIN, "--run", "short"], "short cannot be made"),
    ([*TRAIN, "--from", "none"], "none does not exist; give a model file"),
    ([*TRAIN, "--from", "model.txt"], "model.txt is damaged or not a model file"),
    ([*TRAIN, "--from", "."], "holds no model.safetensors"),
    ([*TRAIN, "--from", "x", "--resume", "y"], "--from begins a new run and --resume goes on"),
    (["train", "--from=x", "--resume=y"], "--from begins a new run and --resume goes on"),
    (["train", "--resume", "none"], "none holds no run (no config.yaml)"),
    # translate, evaluate, corpus
    (["translate"], "missing: model"),
    (["translate", "none"], "none does not exist; give a model file"),
    (["translate", "model.txt"], "model.txt is damaged or not a model file"),
    (["translate", "x", "y", "z"], "'z' is one argument too many"),
    (["translate", "x", "--beam", "3"], "unknown flag --beam. Did you mean '--beam_size'?"),
    (["translate", "x", "--beam_size", "0"], "nmt: beam_size is 0; give at least 1"),
    (["translate", "x", "--alpha", "-1"], "nmt: alpha is -1.0"),
    (["translate", "x", "--normalization", "sum"], "normalization is sum; choose none or length or gnmt"),
    (["translate", "x", "--max_pieces", "0"], "max_pieces is 0"),
    (["translate", "x", "--batch_tokens", "0"], "batch_tokens is 0"),
    (["translate", "x", "--threads", "-1"], "threads is -1"),
    (
        ["translate", "x", "--n_best", "2"],
        "n_best is 2 and format text holds one line a line; give --format jsonl, tsv or moses",
    ),
    (["translate", "x", "short", "-o", "./short"], "input and output are both short"),
    (
        ["translate", "x", "--format", "jsno"],
        "format is 'jsno'; choose text, jsonl, tsv or moses. Did you mean 'jsonl'?",
    ),
    (["translate", "x", "--alignment"], "alignment has no place in format text"),
    (["translate", "x", "--format", "tsv", "--attention"], "attention has no place in format tsv"),
    (["translate", "x", "--buffer", "0"], "buffer is 0"),
    (["translate", "x", "--processes", "0"], "processes is 0"),
    (["translate", "x", "--processes", "2", "--threads", "2"], "each of several processes has one"),
    (["translate", "x", "--processes", "2", "--device", "cuda"], "processes share the cores of a CPU"),
    (["translate", "x", "--dtype", "float16"], "dtype is 'float16'; choose float32 or bfloat16"),
    (["translate", "x", "--dtype", "bf16"], "dtype is 'bf16'; choose float32 or bfloat16. Did you mean 'bfloat16'?"),
    (["translate", "x", "--int8", "--dtype", "bfloat16"], "int8 and dtype bfloat16 are two precisions"),
    (["translate", "x", "--int8", "--device", "cuda"], "int8 runs on the CPU alone and device is cuda"),
    (["translate", "x", "--prefix", "-"], "standard input (-) can be read once"),
    (["translate", "x", "short", "--include", "blank", "-o", "blank"], "the output is also read: blank"),
    (["translate", MODEL, "none"], "none does not exist"),
    (["translate", MODEL, "."], ". is a directory"),
    (["translate", MODEL, "latin"], "latin, line 1: not UTF-8"),
    (["translate", MODEL, "cut.gz"], "cut.gz is not a whole gzip file"),
    (["translate", MODEL, "short", "--ensemble", "none"], "none does not exist; give a model file"),
    (["translate", MODEL, "short", "--exclude", "none"], "none does not exist"),
    (["translate", MODEL, "short", "--exclude", "blank"], "blank has 200 lines and short has 1"),
    (["translate", MODEL, "short", "--resume"], "standard output cannot be resumed"),
    (["translate", MODEL, "short", "--resume", "-o", "x.gz"], "x.gz cannot be resumed; give -o a plain file"),
    (["translate", MODEL, "short", "-o", "."], ". cannot be written: it is a folder"),
    (["evaluate"], "missing: reference"),
    (["evaluate", "--reference", "short"], "give --hypotheses, or a model and --source"),
    (["evaluate", "x", "--reference", "short"], "give --hypotheses, or a model and --source"),
    (["evaluate", "--hypotheses", "none", "--reference", "short"], "none does not exist"),
    (["evaluate", "--hypotheses", "short", "--reference", "none"], "none does not exist"),
    (
        ["evaluate", "--hypotheses", "short", "--reference", "empty"],
        "Reference 1 has 0 lines and the hypotheses have 1",
    ),
    (["evaluate", "--hypotheses", "empty", "--reference", "empty"], "There are 0 hypotheses"),
    (["evaluate", "--hypotheses", "latin", "--reference", "latin"], "latin, line 1: not UTF-8"),
    (["evaluate", "--hypotheses", "short", "--reference", "short", "--metrics", "tre"], "Unknown metric 'tre'"),
    (["evaluate", "--hypotheses", "short", "--reference", "short", "--beam_size", "3"], "unknown flag --beam_size"),
    (["evaluate", "x", "--hypotheses", "short", "--reference", "short"], "leave out the model"),
    (["evaluate", "x", "--source", "short", "--reference", "empty"], "short has 1 lines and empty has 0"),
    (["evaluate", "x", "--source", "short", "--reference", "short", "--beam_size", "0"], "nmt: beam_size is 0"),
    (["evaluate", "x", "--source", "short", "--reference", "short", "--n_best", "2"], "n_best is 2"),
    (["corpus"], "missing: action"),
    (["corpus", "gett"], "Did you mean 'get'?"),
    (["corpus", "get"], "needs the name of a card"),
    (["corpus", "get", "revers"], "Did you mean 'reverse'?"),
    (["corpus", "prepare"], "no training text is named; give data.corpus"),
    (["corpus", "prepare", "revers"], "Did you mean 'reverse'?"),
    (["corpus", "prepare", "--config", "c.yaml", "reverse"], "data.corpus and data.train_source, ... are both given"),
    (["corpus", "prepare", "--config", "c.yaml", "--processes", "0"], "processes is 0; give at least 1"),
    (["corpus", "prepare", "--config", "c.yaml", "--model.hiden", "3"], "Did you mean '--model.hidden'?"),
    (["corpus", "prepare", "--config", "missing.yaml"], "missing.yaml cannot be read"),
    (["corpus", "prepare", "--config", "c.yaml", "--from", "none"], "none does not exist; give a model file"),
    (["corpus", "--force", "prepare"], "prepare comes first: nmt corpus prepare CARD"),
]


@pytest.mark.parametrize(("words", "message"), BAD_WORDS, ids=lambda value: " ".join(value)[:60])
def test_mistakes_are_one_line_and_leave_nothing(folder, refused, words, message):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert message in refused(*words)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there(folder, refused):
    assert "trainer.device is gpu, but torch finds none" in refused(*TRAIN, "--trainer.device", "gpu")
    assert not (folder / "run").exists()


def test_flags_are_read_on_top_of_files(folder, small_corpus):
    """The whole way: train by file and flag, feed the written configuration again, resume, translate, score."""
    assert run(*TRAIN, "--run", "one", "--trainer.precision", "32", "--model.hidden=14") == 0
    written = yaml.safe_load(RunFolder("one").config.read_text())
    assert written["model"]["hidden"] == 14 and written["run"] == "one" and written["model"]["embedding"] == 8
    assert run("train", "--config", "one/config.yaml", "--run", "two") == 0
    again = yaml.safe_load(RunFolder("two").config.read_text())
    assert again == {**written, "run": "two"}
    assert (folder / "one/model.safetensors").read_bytes() == (folder / "two/model.safetensors").read_bytes()
    assert run("train", "--resume", "two", "--trainer.max_steps", "8") == 0
    assert read_state("two/last.ckpt")["global_step"] == 8
    # The folder may have been moved; what it was told last time stays.
    os.rename("two", "moved")
    assert run("train", "--resume", "moved") == 0
    assert read_state("moved/last.ckpt")["global_step"] == 8
    assert run("translate", "moved", "test.source", "-o", "out/hyp", "--beam_size", "2", "--alpha", "0.5") == 0
    assert len(read_lines("out/hyp")) == 4
    assert run("evaluate", "moved", "--source", "test.source", "--reference", "test.target", "--beam_size", "2",
               "--alpha", "0.5", "--output", "again") == 0  # fmt: skip
    assert read_lines("again") == read_lines("out/hyp")


def test_a_resumed_run_stays_the_same_run(folder, refused, finished_run):
    (folder / "run").mkdir()
    for path in finished_run.iterdir():
        if path.is_file():
            (folder / "run" / path.name).write_bytes(path.read_bytes())
    before = {path: path.read_bytes() for path in (folder / "run").iterdir()}
    assert "optimizer.lr is 0.5 instead of 0.01" in refused("train", "--resume", "run", "--optimizer.lr", "0.5")
    assert "data.train_source" not in refused("train", "--resume", "run", "--data.train_source", "short")
    assert "holds a run already; go on with it by --resume run" in refused(*TRAIN, "--run", "run")
    state = (folder / "run" / "last.ckpt").read_bytes()
    (folder / "run" / "last.ckpt").write_bytes(state[:1000])
    (folder / "run" / "previous.ckpt").rename(folder / "aside")
    assert "last.ckpt is damaged" in refused("train", "--resume", "run")
    (folder / "run" / "last.ckpt").write_bytes(state)
    (folder / "aside").rename(folder / "run" / "previous.ckpt")
    assert {path: path.read_bytes() for path in (folder / "run").iterdir()} == before


def test_a_truncated_model_is_refused(folder, refused, finished_run):
    content = (finished_run / "model.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(content[:-10])
    assert "is damaged or not a model file" in refused("translate", "cut.safetensors", "short", "-o", "new")
    assert not (folder / "new").exists()


def test_output_into_impossible_places(folder, refused, finished_run):
    words = ["translate", finished_run, "short", "--device", "cpu", "-o"]
    logging.disable(logging.INFO)
    try:
        assert "cannot be written" in refused(*words, "short/inside")
        assert "cannot be written" in refused(*words, ".")
        (folder / "locked").mkdir()
        (folder / "locked").chmod(0o555)
        if not os.access(folder / "locked", os.W_OK):
            assert "cannot be written: Permission denied" in refused(*words, "locked/out")
            assert "locked cannot be written to" in refused(*TRAIN, "--run", "locked")
        # A failure on the way leaves the old output.
        (folder / "out").write_text("old\n")
        (folder / "late").write_bytes(b"the cat\n" * 3 + b"\xff\n")
        assert "late, line 4: not UTF-8" in refused("translate", finished_run, "late", "-o", "out")
        assert (folder / "out").read_text() == "old\n"
    finally:
        logging.disable(logging.NOTSET)


# Help


def test_help_and_version(capsys):
    for words in ([], ["--help"], ["-h"]):
        assert run(*words) == 0
        usage = capsys.readouterr().out
        assert usage.startswith("usage: nmt VERB") and all(f"  {verb} " in usage for verb in cli.VERBS)
    assert run("--version") == 0
    assert capsys.readouterr().out == f"nmt {__version__}\n"


@pytest.mark.parametrize(
    "verb", [*sorted(set(cli.VERBS) - {"import"}), "corpus prepare", *(f"import {toolkit}" for toolkit in TOOLKITS)]
)
def test_every_flag_has_a_help_line(verb, capsys, monkeypatch):
    parsers = []
    original = flags.parse
    module = config_file if verb in ("train", "corpus prepare") else import_module(f"nmt.commands.{verb.split()[0]}")
    monkeypatch.setattr(module, "parse", lambda parser, words: parsers.append(parser) or original(parser, words))
    assert run(*verb.split(), "--help") == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: nmt {verb}")
    for action in parsers[0]._actions:
        assert action.help and len(action.help) > 5, action.option_strings
    if verb in ("translate", "evaluate"):
        for flag in ("--beam_size", "--normalization", "--alpha", "--n_best", "--max_pieces", "--too_long"):
            assert f"\n  {flag}" in printed


# Processes


def nmt(*words, code=0, **options):
    done = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, cwd=ROOT, **options)
    assert done.returncode == code, done.stderr
    return done


LIGHT = """
import sys
from nmt import cli
try:
    cli.main(sys.argv[1:])
except SystemExit as ended:
    heavy = {"torch", "pytorch_lightning", "datasets", "matplotlib", "pyarrow"} & set(sys.modules)
    sys.exit(f"imported: {heavy}" if heavy else ended.code)
"""


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["evaluate", "--hypotheses", "a", "--reference", "a"],
        ["corpus", "-h"],
        ["rescore", "b", "--mbr", "chrf"],
    ],
)
def test_light_verbs_import_nothing_heavy(words, tmp_path):
    (tmp_path / "a").write_text("the cat sat on the mat\n")
    (tmp_path / "b").write_text("0 ||| the cat\n")
    nmt("-c", LIGHT, *[tmp_path / word if word in ("a", "b") else word for word in words])


def test_a_reader_that_leaves_is_no_error(finished_run, tmp_path):
    (tmp_path / "long").write_text("the cat one two\n" * 3_000)
    command = f'"{sys.executable}" -m nmt translate "{finished_run}" "{tmp_path}/long" --beam_size 1 --threads 1'
    done = subprocess.run(
        ["bash", "-c", f"{command} | head -1; exit ${{PIPESTATUS[0]}}"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.stdout.count("\n") == 1
    assert done.returncode == 1
    assert done.stderr == "beam 1, score log p / |y|^1, float32\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_standard_output_is_told(tmp_path):
    (tmp_path / "a").write_text("the cat sat on the mat\n")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "nmt", "evaluate", "--hypotheses", "a", "--reference", "a"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
        )
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1 and "No space left on device" in done.stderr
