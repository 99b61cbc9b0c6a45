"""What is shipped runs: every configuration, the quickstart, and the commands that the README shows."""

import argparse
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from nmt.config_file import read_config
from tests import ROOT
from tests.trained import shipped

pytestmark = pytest.mark.recipe
CONFIGS = sorted((ROOT / "recipes" / "configs").glob("*.yaml"))


def shell(command: str | list[str], folder: Path, cache: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    return subprocess.run(
        command, cwd=folder, env=environment, text=True, capture_output=True, shell=isinstance(command, str)
    )


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_configuration_trains(path, tmp_path, reverse_runs):
    """Two updates of each on the generated corpus, with the sizes that it states."""
    from nmt.runs.training import train

    changes = {
        "run": str(tmp_path / "run"),
        "data.corpus": "reverse",
        "data.corpus_dir": str(reverse_runs.folder / "corpus"),
        "data.cache": str(tmp_path / "cache"),
        "data.dev_lines": 2,
        "data.batch_tokens": 256,
        "data.vocabulary.size": 120,
        "trainer.max_steps": 2,
        "trainer.validate_every": 2,
        "trainer.threads": 1,
    }
    start = reverse_runs.folder / "cross_entropy" if "soft_beam" in path.name or "fine_tuning" in path.name else None
    train(shipped(path.name, **changes), start=start)
    assert (tmp_path / "run" / "model.safetensors").exists()


def small_card(folder: Path) -> Path:
    """A card of a generated corpus that is translated in no time by a model that never ends a line."""
    card = folder / "small.yaml"
    text = (ROOT / "data" / "reverse.yaml").read_text().replace("name: reverse", "name: small")
    card.write_text(text.replace("train: 10000, dev: 200, test: 200", "train: 2000, dev: 20, test: 20"))
    return card


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    """The quickstart on the generated corpus, cut short, as a user runs it."""
    folder = tmp_path_factory.mktemp("quickstart")
    command = [str(ROOT / "recipes" / "quickstart.sh"), "--corpus", "reverse", "--dir", str(folder / "out")]
    command += ["--threads", "1", "--stage", "1", "--train-flags", "--trainer.max_steps 6 --trainer.validate_every 3"]
    return command, folder, shell(command, ROOT, folder / "cache")


def test_quickstart_ends_in_a_score_and_pictures(quickstart):
    _, folder, done = quickstart
    assert done.returncode == 0, done.stderr
    assert (
        len(re.findall(r"BLEU = [\d.]+ +nrefs:1\|case:mixed\|eff:no\|tok:13a\|smooth:exp\|version:", done.stdout)) == 2
    )
    assert done.stdout.count("source  ") == done.stdout.count("reference  ") == 10
    for name in ("attention.png", "beam.png", "curves.png", "soft_beam/model.safetensors"):
        path = folder / "out" / name
        assert path.stat().st_size > 1000
        assert str(path) in done.stdout


def test_quickstart_takes_up_where_it_stopped(quickstart):
    command, folder, _ = quickstart
    again = [word for i, word in enumerate(command) if "--stage" not in (word, command[i - 1])]
    (folder / "out" / "stage0.done").touch()
    done = shell(again, ROOT, folder / "cache")
    assert done.returncode == 0 and "== stage" not in done.stdout, "everything is done, so nothing is to be run"
    assert "BLEU = " in done.stdout
    (folder / "out" / "stage4.done").unlink()
    done = shell(again, ROOT, folder / "cache")
    assert re.findall(r"== stage (\d):", done.stdout) == ["4"]
    # A training that broke off after its first checkpoint goes on from it.
    for name in ("stage3.done", "stage4.done", "stage5.done"):
        (folder / "out" / name).unlink()
    before = (folder / "out" / "soft_beam" / "metrics.jsonl").read_text()
    done = shell([*again, "--stop-stage", "3"], ROOT, folder / "cache")
    assert re.findall(r"== stage (\d):", done.stdout) == ["3"]
    assert (folder / "out" / "soft_beam" / "metrics.jsonl").read_text().startswith(before)


@pytest.mark.parametrize(("flag", "value"), [("--corpus", "libreoffice_help"), ("--seed", "2")])
def test_quickstart_does_not_mix_two_runs(quickstart, flag, value):
    """Finished stages of one corpus or seed must not pass for those of another."""
    command, folder, _ = quickstart
    done = shell([*command, flag, value], ROOT, folder / "cache")
    assert done.returncode == 2 and "holds a run on reverse with seed 1" in done.stderr
    assert "BLEU" not in done.stdout


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--corpsu reverse", "unknown option --corpsu"),
        ("--stage x", "'x' is not a number"),
        ("--corpus", "needs a value"),
    ],
)
def test_quickstart_explains_a_wrong_flag(flags, words, tmp_path):
    done = shell(f"recipes/quickstart.sh {flags}", ROOT, tmp_path)
    assert done.returncode == 2 and words in done.stderr


def test_quickstart_help(tmp_path):
    done = shell("recipes/quickstart.sh --help", ROOT, tmp_path)
    assert done.returncode == 0
    for option in ("--corpus", "--dir", "--seed", "--threads", "--stage", "--stop-stage"):
        assert option in done.stdout


def test_the_study_ends_in_a_table_and_reads_the_test_set_once(tmp_path):
    """Two arms on the generated corpus, cut short."""
    sizes = "--model.embedding 16 --model.hidden 16 --data.vocabulary.size 120 --trainer.max_steps 4"
    small = "--data.batch_tokens 256 --data.dev_lines 8 --trainer.log_every 10"
    command = [str(ROOT / "recipes" / "soft_beam_study.sh"), "--dir", str(tmp_path / "out")]
    command += ["--corpora", str(small_card(tmp_path))]
    command += ["--seeds", "1", "--arms", "continued soft_beam", "--minutes", "0.005"]
    command += ["--start-flags", sizes, "--convergence", "4", "--dropout", "0.1", "--train-flags", small]
    done = shell([*command, "--stage", "1"], ROOT, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "tok:13a" in done.stdout and "| continued | 1 |" in done.stdout
    assert "| cross_entropy | 1 | 4 |" in done.stdout and "| converged | 1 | 4 |" in done.stdout
    row = next(line for line in done.stdout.splitlines() if line.startswith("| soft_beam |"))
    assert re.fullmatch(r"(\| [^|]+ ){8}\| [01]\.\d+ \|", row), row
    folder = tmp_path / "out" / "small"
    for run, dropout in (("cross_entropy.1", 0.1), ("converged.1", 0.1), ("continued.1", 0.1), ("soft_beam.1", 0.0)):
        config = yaml.safe_load((folder / run / "config.yaml").read_text())
        assert config["model"]["dropout"] == dropout and config["model"]["hidden"] == 16, run
    results = (tmp_path / "out" / "results.jsonl").read_text()
    again = shell([*command, "--stage", "5"], ROOT, tmp_path)
    assert again.returncode == 0 and row in again.stdout, again.stderr
    assert (tmp_path / "out" / "results.jsonl").read_text() == results


@pytest.fixture(scope="module")
def study():
    path = ROOT / "recipes" / "soft_beam_study.py"
    spec = importlib.util.spec_from_file_location("soft_beam_study", path)
    study = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = study  # where dataclasses look their modules up
    spec.loader.exec_module(study)
    return study


def test_settings_of_the_study_are_keys_of_a_configuration(study):
    settings = yaml.safe_load(study.SETTINGS.read_text())
    for start in settings["starts"].values():
        read_config(study.CONFIGS / "study_cross_entropy.yaml", study.Start(**start).flags)
    for arm in settings["arms"].values():
        flags = {key: value for key, value in arm.items() if key not in ("only", "seeds")}
        read_config(study.CONFIGS / "study_fine_tuning.yaml", flags)


def test_a_corpus_of_the_study_has_its_own_model_but_for_what_the_command_says(study):
    chosen = argparse.Namespace(convergence=None, dropout=None)
    settings = yaml.safe_load(study.SETTINGS.read_text())["starts"]
    assert study.start_on(chosen, "multi30k_en-de") == study.Start(**settings["multi30k_en-de"])
    assert study.start_on(chosen, "another") == study.Start({}, None, study.UPDATES)
    chosen = argparse.Namespace(convergence=0, dropout=0.4)
    said = study.start_on(chosen, "multi30k_en-de")
    assert said == study.Start(settings["multi30k_en-de"]["flags"], 0.4, 0)


def test_without_a_second_phase_the_study_begins_with_the_first(study, tmp_path):
    chosen = argparse.Namespace(directory=tmp_path, corpora=["c"], seeds=[1], arms=["continued"], threads=1)
    chosen.flags, chosen.dropout = "", None
    for chosen.convergence, names, begins in ((0, ["cross_entropy"], "cross_entropy.1"),
                                              (7, ["cross_entropy", "converged"], "converged.1")):  # fmt: skip
        assert [run.arm for run in study.starts(chosen)] == names
        (run,) = study.runs(chosen)
        words = study.fine_tuning(run, chosen, run.folder, 9)
        assert words[words.index("--from") + 1] == str(tmp_path / "c" / begins)
        assert "--model.dropout" not in words


def test_study_explains_a_wrong_flag(tmp_path):
    done = shell("recipes/soft_beam_study.sh --seed 1", ROOT, tmp_path)
    assert done.returncode == 2 and "unknown option --seed" in done.stderr
    done = shell("recipes/soft_beam_study.sh --help", ROOT, tmp_path)
    assert done.returncode == 0 and "--train-flags" in done.stdout and "same wall time" in done.stdout


def test_environment_passes_over_a_python_that_does_not_run(tmp_path):
    """Names of version managers may be there for versions that are not."""
    fakes = tmp_path / "bin"
    fakes.mkdir()
    for name, body in {
        "python3.13": "exit 127",
        "python3.12": "exit 1",
        "python3.11": f'[ "$1" = -c ] && exec {sys.executable} "$@"; echo "chose 3.11" "$@" >&2; exit 1',
    }.items():
        (fakes / name).write_text(f"#!/bin/sh\n{body}\n")
        (fakes / name).chmod(0o755)
    (tmp_path / "setup.cfg").touch()
    (tmp_path / "setup.py").touch()
    command = f"bash -c 'PATH={fakes}:$PATH; . {ROOT}/recipes/environment.sh; environment'"
    done = shell(command, tmp_path, tmp_path)
    assert "chose 3.11 -m venv .venv" in done.stderr and done.returncode == 2
    for name in ("python3", "python3.11"):
        (fakes / name).write_text("#!/bin/sh\nexit 1\n")
        (fakes / name).chmod(0o755)
    done = shell(command, tmp_path, tmp_path)
    assert "needs Python 3.11 or newer" in done.stderr and done.returncode == 2


def readme_commands() -> list[str]:
    """The commands of the README's blocks marked `bash`, in order; those marked otherwise are not run here."""
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    joined = "\n".join(blocks).replace("\\\n", " ")
    return [line.split("  #")[0].strip() for line in joined.split("\n") if line.strip() and not line.startswith("#")]


def test_readme_commands_run(tmp_path, reverse_runs):
    """In a folder with the files that the README speaks of: short texts and a model named as there."""
    commands = readme_commands()
    assert any("nmt train" in c for c in commands) and any("nmt evaluate" in c for c in commands)
    corpus = reverse_runs.folder / "corpus"
    for split, name in (("train", "train"), ("dev", "dev"), ("test", "test")):
        for side, language in (("forward", "en"), ("backward", "fr")):
            lines = (corpus / f"{split}.{side}").read_text().splitlines(keepends=True)
            text = "".join(lines[: 2000 if split == "train" else 50])
            (tmp_path / f"{name}.{language}").write_text(text)
        # Of each reference the whole and what is left without its last word, as another system's n-best list.
        lists = [[line, line.rpartition(" ")[0]] for line in text.splitlines()]
        rows = [f"{i} ||| {line} ||| LM= {-len(line)} ||| {-place}\n" for i, two in enumerate(lists)
                for place, line in enumerate(two)]  # fmt: skip
        (tmp_path / f"{name}.nbest").write_text("".join(rows))
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    (tmp_path / "data").symlink_to(ROOT / "data")
    (tmp_path / "runs" / "quickstart").mkdir(parents=True)
    (tmp_path / "runs" / "quickstart" / "soft_beam").symlink_to(reverse_runs.folder / "soft_beam")
    short = "--data.vocabulary.size 120 --trainer.max_steps 2 --trainer.validate_every 1 --data.dev_lines 5"
    for command in commands:
        if command.startswith(("recipes/", "tests/run.sh", "git ", "cd ", "nmt corpus get")):
            continue  # tested elsewhere, or by those who run it
        if "nmt corpus prepare" in command:
            command += " --data.vocabulary.size 120"
        if "nmt train" in command and "--resume" not in command:
            command += " " + (short if "--from" not in command else short.split(" ", 2)[2])
        done = shell(command, tmp_path, tmp_path / "cache")
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) >= 2
    for block in blocks:
        done = shell([sys.executable, "-c", block], tmp_path, tmp_path / "cache")
        assert done.returncode == 0, f"{block}\n{done.stderr}"
