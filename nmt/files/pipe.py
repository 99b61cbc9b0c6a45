"""A pipe as lines, which can tell whether the next one is there already."""

import contextlib
import io
import os
import select
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path

_READ = 1 << 16
_HELD = 1 << 20


class Pipe:
    """The lines of an open file descriptor, as bytes, their ends included.

    No thread: the system's own buffer holds what comes while a block is translated, so that nothing has to be stopped
    when the program ends, and an interruption reaches whoever waits here.
    """

    def __init__(self, descriptor: int, name: str = "<stdin>") -> None:
        """Takes a descriptor over.

        Args:
            descriptor: open for reading; nobody else may read from it, nor have read ahead.
            name: for messages.
        """
        self.name = name
        self._descriptor = descriptor
        self._lines: deque[bytes] = deque()
        self._begun: list[bytes] = []
        self._ended = False
        with contextlib.suppress(OSError, AttributeError, ImportError):
            # Linux alone; 64 KiB, the default, is fewer lines than a block has.
            import fcntl

            fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, _HELD)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        while not self._lines and not self._ended:
            self._read()
        if not self._lines:
            raise StopIteration
        return self._lines.popleft()

    def ready(self) -> bool:
        """Whether `next` would answer without waiting: a whole line is there, or the end."""
        while not self._lines and not self._ended:
            if not select.select([self._descriptor], [], [], 0)[0]:
                return False
            self._read()
        return True

    def _read(self) -> None:
        content = os.read(self._descriptor, _READ)
        # A line of a gigabyte comes in many parts, which are put together once.
        *whole, rest = content.split(b"\n")
        if whole:
            whole[0] = b"".join([*self._begun, whole[0]])
            self._begun.clear()
            self._lines.extend(line + b"\n" for line in whole)
        if rest:
            self._begun.append(rest)
        if not content:
            self._ended = True
            if self._begun:
                self._lines.append(b"".join(self._begun))
                self._begun.clear()


def open_pipe(path: str | Path) -> Pipe | None:
    """Standard input (-), a named pipe or a device as a pipe; None for a file, and where there is nothing to wait for.

    Raises:
        OSError: it cannot be opened.
    """
    if str(path) == "-":
        try:
            descriptor = sys.stdin.fileno()
            select.select([descriptor], [], [], 0)
        except (AttributeError, io.UnsupportedOperation, OSError, ValueError):
            return None
        return Pipe(descriptor)
    if str(path).endswith(".gz") or not os.path.exists(path) or os.path.isfile(path) or os.path.isdir(path):
        return None
    return Pipe(os.open(path, os.O_RDONLY), str(path))
