"""Where blocks of text go: standard output, a packed file or a device, or a file that can be gone on with."""

import contextlib
import gzip
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from nmt.errors import UserError
from nmt.files.part import Done, Part
from nmt.lines import atomic_path


class Output(Protocol):
    """What takes blocks.

    Attributes:
        done: what is there already.
    """

    done: Done

    def write(self, content: bytes, lines: int, digest: str) -> None:
        """Adds what belongs to the source up to line `lines`; see `nmt.files.part.Part.write`."""


class Stream:
    """An open file; each block is flushed, so that a reader at the other end has it at once."""

    def __init__(self, file: BinaryIO | gzip.GzipFile, flush: bool = True) -> None:
        self.done = Done()
        self._file, self._flush = file, flush

    def write(self, content: bytes, lines: int, digest: str) -> None:
        self._file.write(content)
        if self._flush:
            self._file.flush()


def make_part(path: str, settings: Callable[[], Mapping[str, Any]], resume: bool) -> Part | None:
    """The part of an output that is an ordinary file; None of standard output, a device, or a .gz.

    Args:
        path: the output; - is standard output.
        settings: gives what `Part` compares.
        resume: whether what is there is to be gone on with.

    Raises:
        UserError: see `Part.find`; or there can be no part to resume.
    """
    device = os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)
    if path == "-" or path.endswith(".gz") or device:
        if resume:
            name = "standard output" if path == "-" else path
            raise UserError(f"{name} cannot be resumed; give -o a plain file (and pack it when it is whole)")
        return None
    part = Part(path, settings())
    part.find(resume)
    return part


@contextlib.contextmanager
def open_output(path: str, part: Part | None) -> Iterator[Output]:
    """Opens what `make_part` has looked at; a file appears under its name only when it is whole.

    Raises:
        UserError: it cannot be written.
    """
    if part is not None:
        with part.writing():
            yield part
    elif path == "-":
        yield Stream(sys.stdout.buffer)
    else:
        # An OSError of whoever writes here is one of this file, too.
        with atomic_path(path) as temporary, _opened(temporary, Path(path)) as stream:
            yield stream


@contextlib.contextmanager
def _opened(temporary: Path, path: Path) -> Iterator[Stream]:
    with open(temporary, "wb") as raw:
        if path.suffix != ".gz":
            yield Stream(raw)
            return
        # No time and no name inside, so that equal lines make equal files.
        with gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed:
            yield Stream(packed, flush=False)
