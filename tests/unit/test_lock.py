"""One process at a time trains in a folder; whoever is gone holds nothing, and nothing has to be cleared away."""

import errno
import fcntl
import json
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from nmt.errors import UserError
from nmt.lock import NAME, FolderLock
from nmt.runs.run import RunFolder
from nmt.runs.state import check_state
from tests.processes import Process, train_words, wait_for_update
from tests.unit.runs import make_config, train_quietly

LONG = {"trainer.max_steps": 100_000, "trainer.validate_every": 2, "trainer.patience": 0}


def forked(work) -> int:
    """`work` in a process of its own, which ends with its result; returns the process's number."""
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        code = work() or 0
    finally:
        os._exit(code)


def hold(folder: Path) -> int:
    """A process that has the lock."""

    def work():
        lock = FolderLock(folder)
        lock.acquire()
        (folder / "taken").touch()
        time.sleep(60)
        lock.release()

    pid = forked(work)
    while not (folder / "taken").exists():
        time.sleep(0.01)
    return pid


def test_a_second_process_is_told_who_has_it_until_that_one_is_killed(tmp_path, caplog):
    pid = hold(tmp_path)
    try:
        with pytest.raises(UserError) as told:
            FolderLock(tmp_path).acquire()
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    where = f"{tmp_path} is in use by process {pid} on {socket.gethostname()} (since 2"
    assert str(told.value).startswith(where) and f"stop it (kill {pid})" in str(told.value)
    # Killed, it has left the file.
    assert json.loads((tmp_path / NAME).read_text())["pid"] == pid
    with FolderLock(tmp_path) as lock:
        lock.acquire()
        lock.acquire()
        assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()
        with pytest.raises(UserError, match=f"in use by process {os.getpid()} "):
            FolderLock(tmp_path).acquire()
    assert os.listdir(tmp_path) == ["taken"] and not lock.held
    assert not caplog.text


def test_what_a_holder_has_written_decides_nothing(tmp_path, caplog):
    for content in ("", "{", "[1]", json.dumps({"pid": os.getppid(), "host": socket.gethostname(), "since": "x"})):
        (tmp_path / NAME).write_text(content)
        with FolderLock(tmp_path) as lock:
            lock.acquire()
            assert lock.held
        assert not os.listdir(tmp_path) and not caplog.text
    # Of a host that is gone, or of one whose locks are not seen here.
    (tmp_path / NAME).write_text(json.dumps({"pid": 7, "host": "elsewhere", "since": "x"}))
    with FolderLock(tmp_path) as lock:
        lock.acquire()
    assert "left without an end by process 7 on elsewhere; if that is still at work" in caplog.text


def test_a_holder_that_has_not_signed_yet(tmp_path):
    with open(tmp_path / NAME, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="in use by another process; wait until that has ended, or give"):
            FolderLock(tmp_path).acquire()


def test_never_two_at_once(tmp_path):
    """Each that has the lock makes and removes a file that must not be there; files of locks come and go."""

    def work():
        for _ in range(60):
            lock = FolderLock(tmp_path)
            while not lock.held:
                try:
                    lock.acquire()
                except UserError:
                    continue
            with lock:
                os.close(os.open(tmp_path / "alone", os.O_CREAT | os.O_EXCL))
                os.unlink(tmp_path / "alone")

    pids = [forked(work) for _ in range(4)]
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0] * 4
    assert not os.listdir(tmp_path)


def test_a_folder_that_was_made_anew_keeps_its_lock(tmp_path):
    first, second = FolderLock(tmp_path), FolderLock(tmp_path)
    first.acquire()
    (tmp_path / NAME).unlink()
    with second:
        second.acquire()
        first.release()
        assert (tmp_path / NAME).exists()
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_locks_there_is_a_warning(tmp_path, monkeypatch, caplog, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with FolderLock(tmp_path) as lock:
        lock.acquire()
        assert not lock.held and not os.listdir(tmp_path)
    assert f"no locks ({os.strerror(number)}); see to it that no other nmt train" in caplog.text


def test_a_system_without_locks_is_told(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("nmt.lock.fcntl", None)
    with FolderLock(tmp_path) as lock:
        lock.acquire()
        assert not lock.held and not os.listdir(tmp_path)
    assert "no locks (the operating system has no flock); see to it that no other nmt train" in caplog.text


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / NAME).mkdir()
    with pytest.raises(UserError, match="cannot be written to .Is a directory.; give another --run"):
        FolderLock(tmp_path).acquire()


def test_of_two_runs_that_begin_at_once_the_later_one_touches_nothing(tmp_path):
    first, second = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")
    for folder in (first, second):
        folder.claim()  # both prepare their data, for there is no folder yet
    first.create()
    first.manifest.write_text("{}")
    with pytest.raises(UserError, match="is in use by process"):
        second.create()
    assert first.manifest.exists()
    first.last.touch()
    first.lock.release()
    with pytest.raises(UserError, match="holds a run already"):
        second.create()
    second.lock.release()


def test_two_trainings_of_one_folder(small_corpus, tmp_path):
    config = make_config(tmp_path / "run", small_corpus, LONG)
    words = train_words(config, tmp_path / "words")
    first = Process(words, {}, tmp_path / "first")
    try:
        wait_for_update(Path(config.run), 3, [first])
        for number, second in enumerate((words, ["train", "--resume", config.run])):
            process = Process(second, {}, tmp_path / f"second.{number}")
            assert process.wait() == 2
            told = [line for line in process.text.splitlines() if line.startswith("nmt: ")]
            assert len(told) == 1 and process.text.endswith(f"{told[0]}\n") and "Traceback" not in process.text
            assert told[0].startswith(f"nmt: {config.run} is in use by process {first.pid} on "), told
        first.send(signal.SIGKILL)
    finally:
        assert first.wait(5) == -signal.SIGKILL
    assert (tmp_path / "run" / NAME).exists()
    config.trainer.max_steps = check_state(tmp_path / "run" / "last.ckpt") + 1
    train_quietly(config, resume=True)
    assert not (tmp_path / "run" / NAME).exists()
