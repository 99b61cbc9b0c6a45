"""What `--resume` goes on from survives damage, crashes between two system calls, and disks that are full."""

import logging
import os
import shutil

import pytest

from nmt.errors import UserError
from nmt.runs.run import RunFolder
from nmt.runs.state import AtomicCheckpointIO, check_state, read_state
from tests.unit.runs import make_config, train_quietly
from tests.unit.test_resume import assert_equal, state_after


@pytest.fixture
def run(finished_run, tmp_path):
    """A copy of a finished run of 8 updates, validated at 4 and 8."""
    shutil.copytree(finished_run, tmp_path / "run")
    return tmp_path / "run"


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip_in_the_weights(path):
    # Amid the zip's longest entry, where nothing but its checksum can tell.
    import zipfile

    with zipfile.ZipFile(path) as archive:
        longest = max(archive.infolist(), key=lambda entry: entry.file_size)
    flip(path, longest.header_offset + 200 + longest.file_size // 2)
    read_state(path)  # torch does not notice


DAMAGE = {
    "truncated": cut,
    "empty": lambda path: path.write_bytes(b""),
    "a bit": flip_in_the_weights,
    "another file": lambda path: path.write_text("not a state"),
    "missing": os.unlink,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_state_gives_way_to_the_one_before(run, finished_run, small_corpus, caplog, damage):
    folder = RunFolder(run)
    assert (check_state(folder.previous), check_state(folder.last)) == (4, 8)
    DAMAGE[damage](folder.last)
    (run / ".last.ckpt.1-aa.tmp").write_text("what a crash has left")
    config = make_config(run, small_corpus, {"trainer.max_steps": 8})
    caplog.set_level(logging.WARNING)
    train_quietly(config, resume=True)
    assert_equal(state_after(finished_run), state_after(run))
    what = "is missing" if damage == "missing" else "is damaged (now damaged.ckpt)"
    assert f"last.ckpt {what}; the run goes on from the state before it, update 4" in caplog.text
    assert check_state(folder.previous) == 4
    assert (run / "damaged.ckpt").exists() == (damage != "missing")
    assert not list(run.glob(".*"))


@pytest.mark.parametrize("damage", ["truncated", "a bit"])
def test_without_a_whole_state_the_damage_is_told(run, small_corpus, damage):
    folder, config = RunFolder(run), make_config(run, small_corpus, {"trainer.max_steps": 12})
    DAMAGE[damage](folder.last)
    cut(folder.previous)
    before = {path.name: path.read_bytes() for path in run.glob("*.*")}
    with pytest.raises(UserError, match=r"previous.ckpt is damaged .*begin a new run --from it"):
        train_quietly(config, resume=True)
    assert {path.name: path.read_bytes() for path in run.glob("*.*")} == before
    folder.previous.unlink()
    with pytest.raises(UserError, match=r"last.ckpt is damaged .*begin a new run --from it"):
        train_quietly(config, resume=True)


def test_a_run_with_a_previous_state_alone_is_a_run(run):
    folder = RunFolder(run)
    folder.last.unlink()
    with pytest.raises(UserError, match="holds a run already"):
        folder.check_free()
    folder.check_begun()


class Crash(BaseException):
    pass


def test_a_whole_state_is_there_whenever_the_process_ends(run, tmp_path, monkeypatch):
    """Saving is cut off before each of its system calls, and after the last."""
    state = {**read_state(run / "last.ckpt"), "global_step": 12}
    last, calls = tmp_path / "last.ckpt", []

    def save(ends_at):
        """Whether it got through."""

        def counted(name, function):
            def call(*given, **options):
                calls.append(name)
                if len(calls) == ends_at:
                    raise Crash
                return function(*given, **options)

            return call

        shutil.copy(run / "last.ckpt", last)
        calls.clear()
        with monkeypatch.context() as patch:
            for name in ("link", "replace", "fsync", "unlink"):
                patch.setattr(os, name, counted(name, getattr(os, name)))
            try:
                AtomicCheckpointIO().save_checkpoint(state, last)
            except Crash:
                return False
        return True

    ends_at = 1
    while not save(ends_at):
        assert check_state(last) in (8, 12), calls
        ends_at += 1
    assert check_state(last) == 12 and check_state(tmp_path / "previous.ckpt") == 8
    # On the disk before it has its name.
    assert calls[:5] == ["link", "replace", "unlink", "fsync", "replace"], calls


def test_without_links_the_previous_state_is_the_last_one_renamed(run, monkeypatch):
    state = read_state(run / "last.ckpt")
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError(1, "not permitted")))
    AtomicCheckpointIO().save_checkpoint({**state, "global_step": 12}, run / "last.ckpt")
    assert (check_state(run / "previous.ckpt"), check_state(run / "last.ckpt")) == (8, 12)


def test_a_run_is_there_from_its_start(small_corpus, tmp_path, monkeypatch):
    """Broken off between its first model and its first validated state, it goes on."""
    from nmt.runs import run as module

    whole = make_config(tmp_path / "whole", small_corpus)
    train_quietly(whole)
    config = make_config(tmp_path / "half", small_corpus)
    with monkeypatch.context() as patch:
        patch.setattr(module, "update_manifest", lambda *_, **__: (_ for _ in ()).throw(Crash))
        with pytest.raises(Crash):
            train_quietly(config)
    assert RunFolder(config.run).model.exists() and check_state(RunFolder(config.run).last) == 0
    train_quietly(config, resume=True)
    assert_equal(state_after(tmp_path / "whole"), state_after(tmp_path / "half"))
