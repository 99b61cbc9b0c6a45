"""The progress bar: on a terminal alone, over the bytes of the file, and log lines stand above it."""

import contextlib
import io
import logging
import os
import pty
import sys
import threading

import pytest

from nmt.progress import show_progress


@pytest.fixture
def source(tmp_path):
    (tmp_path / "source").write_bytes(b"x" * 2_000)
    return tmp_path / "source"


@contextlib.contextmanager
def terminal(monkeypatch):
    """A terminal as standard error; gives what was written there."""
    reading, writing = pty.openpty()
    written: list[bytes] = []

    def read():
        with contextlib.suppress(OSError):
            while content := os.read(reading, 4096):
                written.append(content)

    thread = threading.Thread(target=read)
    thread.start()
    with open(writing, "w", encoding="utf-8") as file:
        monkeypatch.setattr(sys, "stderr", file)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "120")
        yield lambda: b"".join(written).decode()
    thread.join()
    os.close(reading)


def test_a_terminal_sees_bytes_and_lines(source, monkeypatch):
    with terminal(monkeypatch) as written:
        before = sys.stderr
        handler = logging.StreamHandler(before)
        logging.getLogger().addHandler(handler)
        try:
            with show_progress(source, "out") as tell:
                tell(1_000, 1_234)
                assert handler.stream is sys.stderr is not before
                logging.getLogger("nmt").warning("line 7 is long")
                tell(2_000, 2_468)
            assert handler.stream is sys.stderr is before
        finally:
            logging.getLogger().removeHandler(handler)
    text = written()
    assert "2.0/2.0 kB" in text and "2,468 lines" in text
    assert text.count("line 7 is long") == 1


def test_elsewhere_there_is_none(source, monkeypatch):
    for path, output in ((source, "out"), ("-", "out")):
        monkeypatch.setattr(sys, "stderr", io.StringIO())
        with show_progress(path, output) as tell:
            tell(1_000, 5)
        assert sys.stderr.getvalue() == ""
    for path, output in (("-", "out"), (os.devnull, "out")):
        with terminal(monkeypatch) as written, show_progress(path, output) as tell:
            tell(1_000, 5)
        assert written() == ""
    # The output goes to the terminal, too.
    with terminal(monkeypatch) as written:
        monkeypatch.setattr(sys, "stdout", sys.stderr)
        with show_progress(source, "-") as tell:
            tell(1_000, 5)
        monkeypatch.undo()
    assert written() == ""
