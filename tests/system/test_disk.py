"""Disks that are full or read-only: one line, exit code 2, and what was there stays; with room the run goes on."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from nmt.runs.run import RunFolder
from nmt.runs.state import check_state
from tests.processes import Process, train_words, wait_for_update
from tests.unit.runs import make_config, train_quietly
from tests.unit.test_resume import assert_equal, state_after

pytestmark = pytest.mark.system


@pytest.fixture
def disk(tmp_path):
    """A function that makes a file system of so many kilobytes, or mounts it anew with other options."""
    torch.set_num_threads(1)
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options):
        found = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True)
        if found.returncode:
            pytest.skip(f"cannot mount: {found.stderr}")
        return folder

    if not shutil.which("mount"):
        pytest.skip("needs mount")
    yield mount
    subprocess.run(["umount", "-l", folder], capture_output=True)


def refused(words, folder):
    process = Process(words, {}, folder / "log")
    code, told = process.wait(), process.text
    mistakes = [line for line in told.splitlines() if line.startswith("nmt: ")]
    assert code == 2 and told.endswith(f"{mistakes[-1]}\n") and len(mistakes) == 1, told
    assert "Traceback" not in told and "Exception" not in told, told
    return mistakes[0]


# Where it is full: at the manifest, the log of TensorBoard, the first state, the first model.
@pytest.mark.parametrize("kilobytes", [8, 16, 40, 700])
def test_a_disk_that_is_full_from_the_start(small_corpus, tmp_path, disk, kilobytes):
    folder = disk(f"size={kilobytes}k")
    config = make_config(folder / "run", small_corpus)
    words = train_words(config, tmp_path / "words")
    told = refused(words, tmp_path)
    assert "cannot be written: " in told or "No space left on device; make room" in told, told
    disk("remount,size=20m")
    begun = RunFolder(config.run).last.exists()
    train_quietly(config, resume=begun)
    train_quietly(make_config(tmp_path / "whole", small_corpus))
    assert_equal(state_after(tmp_path / "whole"), state_after(folder / "run"))


def test_a_disk_that_fills_while_a_run_writes(small_corpus, tmp_path, disk):
    folder = disk("size=20m")
    options = {"trainer.max_steps": 100_000, "trainer.validate_every": 20, "trainer.patience": 0}
    config = make_config(folder / "run", small_corpus, options)
    process = Process(train_words(config, tmp_path / "words"), {}, tmp_path / "log")
    wait_for_update(Path(config.run), 25, [process])
    with pytest.raises(OSError), open(folder / "filler", "wb") as filler:
        while True:
            filler.write(bytes(4096))
            filler.flush()
    assert process.wait() == 2, process.text
    assert "Traceback" not in process.text
    last = process.text.splitlines()[-1]
    assert last.startswith("nmt: ") and str(folder) in last and "cannot be written: " in last, process.text
    saved = check_state(RunFolder(config.run).last)
    assert saved >= 20
    (folder / "filler").unlink()
    config.trainer.max_steps = saved + 3
    train_quietly(config, resume=True)
    whole = make_config(tmp_path / "whole", small_corpus, {**options, "trainer.max_steps": saved + 3})
    train_quietly(whole)
    assert_equal(state_after(tmp_path / "whole"), state_after(folder / "run"))


def test_a_disk_that_may_not_be_written(small_corpus, finished_run, tmp_path, disk):
    folder = disk("size=20m")
    shutil.copytree(finished_run, folder / "run")
    disk("remount,ro")
    words = train_words(make_config(folder / "new", small_corpus), tmp_path / "words")
    assert f"{folder}/new cannot be made (Read-only file system); give another --run" in refused(words, tmp_path)
    told = refused(["train", "--resume", str(folder / "run"), "--trainer.max_steps", "9"], tmp_path)
    assert "Read-only file system" in told
    config = make_config(tmp_path / "run", small_corpus, {"data.cache": str(folder / "cache")})
    told = refused(train_words(config, tmp_path / "words"), tmp_path)
    assert "Read-only file system" in told and "cache" in told
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("options", ["size=4k", "ro"])
def test_translations_that_cannot_be_written(small_corpus, finished_run, tmp_path, disk, options):
    folder = disk("size=20m")
    (folder / "old").write_text("old\n")
    disk(f"remount,{options}")
    lines = tmp_path / "lines"
    lines.write_text((small_corpus / "train.source").read_text() * 4)
    told = refused(["translate", str(finished_run), str(lines), "-o", str(folder / "new")], tmp_path)
    assert ("No space left" if "size" in options else "Read-only") in told and str(folder) in told
    assert [path.name for path in folder.iterdir() if path.name != "new.part"] == ["old"]
    assert (folder / "old").read_text() == "old\n"
