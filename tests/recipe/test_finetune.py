"""The recipe that fine-tunes a model of another toolkit, with a stand-in for joeynmt."""

import re
import runpy

import pytest
import torch

from tests import ROOT
from tests.recipe.test_recipes import shell, small_card

pytestmark = pytest.mark.recipe
RECIPE = str(ROOT / "recipes" / "finetune.sh")
NMT = '() { echo "nmt $*" >>"$CALLS"; if [ "$1" = evaluate ]; then echo "BLEU of $3"; fi; }'
# Writes what split.py and pieces.py would.
PYTHON = '() { echo "python $*" >>"$CALLS"; if [ "$1" = recipes/split.py ]; then touch "$4" "$5"; fi; }'


def test_a_fresh_marian_model_is_imported_and_trains(tmp_path, monkeypatch):
    """What the recipe makes of texts is a model of transformers, with pieces of its own, that trains."""
    pytest.importorskip("transformers")
    from nmt.checkpoint import load_checkpoint, save_checkpoint
    from nmt.corpus import load_card
    from nmt.fetch import fetch
    from nmt.imports.hf import Options, load
    from nmt.lines import write_lines
    from nmt.runs.training import train
    from tests.trained import shipped

    card = load_card(str(small_card(tmp_path)))
    fetch(card)
    for split in ("train", "dev"):
        pairs = card.read(split)
        write_lines(tmp_path / f"{split}.source", pairs.source)
        write_lines(tmp_path / f"{split}.target", pairs.target)
    for script, flags in (("pieces", ["--size", "120"]), ("marian", ["--size", "16"])):
        monkeypatch.setattr("sys.argv", [script, str(tmp_path), *flags])
        runpy.run_path(str(ROOT / "recipes" / "finetune" / f"{script}.py"), run_name="__main__")
    fresh = load(str(tmp_path / "fresh"), Options())
    line = "home and river"
    [ids] = fresh.source_vocabulary.encode([line])
    assert fresh.source_vocabulary.decode(ids) == line
    save_checkpoint(tmp_path / "fresh.safetensors", fresh)
    texts = {f"data.{split}_{side}": str(tmp_path / f"{split}.{side}") for split in ("train", "dev")
             for side in ("source", "target")}  # fmt: skip
    common = {**texts, "data.batch_tokens": 512, "data.dev_lines": 2, "data.cache": str(tmp_path / "cache"),
              "trainer.max_steps": 2, "trainer.validate_every": 2, "trainer.threads": 1}  # fmt: skip
    runs = tmp_path / "baseline", tmp_path / "soft_beam"
    starts = tmp_path / "fresh.safetensors", runs[0]
    for run, start, config in zip(runs, starts, ("fine_tuning_marian.yaml", "fine_tuning.yaml"), strict=True):
        train(shipped(config, run=str(run), **common), start=start)
    before, after = (load_checkpoint(run).model.state_dict() for run in runs)
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_joeynmt_is_called_by_its_own_command(tmp_path, monkeypatch):
    """With stand-ins for nmt and for both pythons."""
    calls, peers, out = tmp_path / "calls", tmp_path / "peers", tmp_path / "out"
    monkeypatch.setenv("BASH_FUNC_nmt%%", NMT)
    monkeypatch.setenv("BASH_FUNC_python%%", PYTHON)
    monkeypatch.setenv("CALLS", str(calls))
    (peers / "bin").mkdir(parents=True)
    (peers / "bin" / "python").write_text(f'#!/bin/sh\necho "joeynmt in $PWD: $*" >>{calls}\n')
    (peers / "bin" / "python").chmod(0o755)
    command = [RECIPE, "--corpus", "any", "--dir", str(out), "--peers", str(peers), "--size", "32", "--seed", "3"]
    done = shell([*command, "--updates", "7", "--stage", "1"], ROOT, tmp_path)
    assert done.returncode == 0, done.stderr
    told = calls.read_text().splitlines()
    assert f"joeynmt in {out}: -m joeynmt train joeynmt.yaml --skip-test" in told
    assert f"nmt import joeynmt {out}/joeynmt -o {out}/imported.safetensors" in told
    trained = [call for call in told if call.startswith("nmt train")]
    assert [f"--run {out}/{name}" in call for call, name in zip(trained, ("soft_beam", "cross_entropy"), strict=True)]
    assert all(f"--from {out}/imported.safetensors" in call and "--seed 3" in call for call in trained)
    assert "--objective cross_entropy" in trained[1] and "--objective" not in trained[0]
    settings = (out / "joeynmt.yaml").read_text()
    assert not re.search(r"\b(SIZE|UPDATES|SEED|CUDA)\b", settings)
    assert "hidden_size: 32" in settings and "updates: 7" in settings and "random_seed: 3" in settings
    # What is done is not done again, unless the folder was begun with other settings.
    (out / "stage0.done").write_text("\n")
    calls.write_text("")
    again = shell([*command, "--updates", "7"], ROOT, tmp_path)
    assert again.returncode == 0 and not calls.read_text() and "against the baseline" in again.stdout
    other = shell([*command, "--updates", "8"], ROOT, tmp_path)
    assert other.returncode == 2 and "holds a run on" in other.stderr


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--toolkit nematus", "choose joeynmt or marian"),
        ("--device tpu", "choose cpu or gpu"),
        ("--beam x", "'x' is not a number"),
    ],
)
def test_a_wrong_flag_is_explained(flags, words, tmp_path):
    done = shell(f"{RECIPE} --dir {tmp_path / 'out'} {flags}", ROOT, tmp_path)
    assert done.returncode == 2 and words in done.stderr
    assert not (tmp_path / "out").exists()
