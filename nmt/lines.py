"""Text files as lists of lines: N lines stay N lines, whatever characters they hold."""

import contextlib
import gzip
import os
import secrets
import shutil
import sys
import zlib
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from nmt.errors import UserError

_BOM = "\ufeff"
_GZIP_MAGIC = b"\x1f\x8b"
_STDIN = "standard input"


def read_lines(path: str | Path) -> list[str]:
    """Reads all lines of a text file; see `iterate_lines`."""
    return list(iterate_lines(path))


def iterate_lines(
    source: str | Path | BinaryIO | Iterable[bytes], *, opened: Callable[[BinaryIO], object] | None = None
) -> Iterator[str]:
    """Yields the lines of a plain or gzipped UTF-8 text, without their line ends.

    Only "\\n" ends a line: a bare carriage return, U+2028 and U+0085 stay inside. One "\\r" before
    the "\\n" and a byte order mark at the start are dropped. A last line needs no line end.

    Args:
        source: a path (`.gz` is unpacked, `-` is standard input), an open binary stream, or lines as bytes.
        opened: called with the file when it is open, before it is unpacked, so that its `tell` shows how far we are.

    Raises:
        UserError: the file is missing, a directory, unreadable, damaged gzip or not UTF-8 (with the
            number of the line).
    """
    name = name_of(source)
    with told(name), _opened(source, opened) as stream:
        yield from _decoded(stream, name)


def count_lines(path: str | Path) -> int:
    """How many lines `iterate_lines` finds in a file, whatever they hold.

    Raises:
        UserError: it cannot be read.
    """
    count, last = 0, b"\n"
    with told(str(path)), _opened(path) as stream:
        while content := stream.read(1 << 20):
            count += content.count(b"\n")
            last = content[-1:]
    return count + (last != b"\n")


def read_parallel(source: str | Path, target: str | Path) -> tuple[list[str], list[str]]:
    """Reads two files that correspond line by line.

    Raises:
        UserError: the numbers of lines differ, or one of the files cannot be read.
    """
    if str(source) == str(target) == "-":
        raise UserError("Source and target cannot both be standard input (-); give at least one file.")
    source_lines, target_lines = read_lines(source), read_lines(target)
    if len(source_lines) != len(target_lines):
        raise UserError(
            f"{name_of(source)} has {len(source_lines):,} lines and {name_of(target)} has "
            f"{len(target_lines):,}; line i of one must be the translation of line i of the other. "
            "(A line ends at \\n only.)"
        )
    return source_lines, target_lines


def write_lines(path: str | Path, lines: Iterable[str]) -> int:
    """Writes lines as UTF-8 (gzipped when the name ends in `.gz`, to standard output when it is `-`).

    The file appears under its name only when it is whole; its folder is made when missing.

    Returns:
        The number of lines written.

    Raises:
        UserError: the file cannot be written, or a line holds a line end and would become two.
    """
    if str(path) == "-":
        count = _write(sys.stdout.buffer, lines, "standard output")
        sys.stdout.buffer.flush()
        return count
    with atomic_path(path) as temporary:
        if str(path).endswith(".gz"):
            # No time and no name inside, so that equal lines make equal files.
            with open(temporary, "wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed:
                return _write(packed, lines, str(path))
        with open(temporary, "wb") as stream:
            return _write(stream, lines, str(path))


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Lends a temporary name beside `path`; renames it to `path` when the block ends without error.

    What is written is on the disk before it has its name: after a power cut there is the old file or the new one.

    Raises:
        UserError: the operating system refuses (no permission, no space left, a directory in the way).
    """
    # Through the link, or the link itself would be replaced by a file.
    final = Path(os.path.realpath(path))
    if final.exists() and not final.is_file() and not final.is_dir():
        # A device or a pipe (/dev/null) can only be written in place.
        yield final
        return
    temporary = _beside(final)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        sync(temporary)
        _rename(temporary, final)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}.") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Lends a temporary folder beside `path`, for files alone; renames it to `path` when the block ends without error.

    Raises:
        UserError: the operating system refuses, or there is a folder of that name which holds something.
    """
    final = Path(os.path.realpath(path))
    temporary = _beside(final)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for file in temporary.iterdir():
            sync(file)
        _rename(temporary, final)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _beside(final: Path) -> Path:
    """A name in the same folder that nobody else has."""
    return final.with_name(f".{final.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


def _rename(temporary: Path, final: Path) -> None:
    """Gives what is on the disk its name, for good."""
    os.replace(temporary, final)
    with contextlib.suppress(OSError):  # some file systems cannot
        sync(final.parent)


def check_empty(folder: Path) -> None:
    """Tells before anything is made what `atomic_folder` would tell in the end.

    Raises:
        UserError: the folder holds something.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there and holds something; give a new folder, or remove it first")


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


@contextlib.contextmanager
def told(name: str) -> Iterator[None]:
    """What goes wrong while a file is read, as the user's mistake.

    Raises:
        UserError: an OSError, or a damaged gzip file.
    """
    try:
        yield
    except IsADirectoryError:
        raise UserError(f"{name} is a directory; give a text file.") from None
    except FileNotFoundError:
        raise UserError(f"{name} does not exist; the current folder is {Path.cwd()}.") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{name} is not a whole gzip file ({error}); copy or compress it again.") from None
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror or error}.") from None


def name_of(source: str | Path | BinaryIO | Iterable[bytes]) -> str:
    """What messages call a source of lines; see `iterate_lines`."""
    if isinstance(source, (str, Path)):
        return _STDIN if str(source) == "-" else str(source)
    name = getattr(source, "name", "the input stream")
    return _STDIN if name in ("<stdin>", 0) else str(name)


@contextlib.contextmanager
def _opened(
    source: str | Path | BinaryIO | Iterable[bytes], opened: Callable[[BinaryIO], object] | None = None
) -> Iterator[Any]:
    if not isinstance(source, (str, Path)):
        yield source
    elif str(source) == "-":
        yield sys.stdin.buffer
    else:
        with open(source, "rb") as plain:
            if opened is not None:
                opened(plain)
            if not str(source).endswith(".gz"):
                yield plain
                return
            with gzip.GzipFile(fileobj=plain) as packed:
                yield packed


def _decoded(stream: Iterable[bytes], name: str) -> Iterator[str]:
    for number, raw in enumerate(stream, start=1):
        try:
            line = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            if number == 1 and raw.startswith(_GZIP_MAGIC):
                if name == _STDIN:
                    raise UserError(f"{name} is gzipped; unpack it on the way (zcat FILE | nmt ...).") from None
                raise UserError(f"{name} is gzipped but its name does not end in .gz; rename it.") from None
            encoding = "utf-16" if number == 1 and raw.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else "latin1"
            raise UserError(
                f"{name}, line {number:,}: not UTF-8 (byte 0x{raw[error.start]:02x} at position "
                f"{error.start + 1}); convert the file, for instance with iconv -f {encoding} -t utf-8."
            ) from None
        if number == 1 and line.startswith(_BOM):
            line = line[1:]
            if not line:
                continue
        line = line.removesuffix("\n").removesuffix("\r")
        yield line


def _write(stream: BinaryIO | gzip.GzipFile, lines: Iterable[str], name: str) -> int:
    count = 0
    for count, line in enumerate(lines, start=1):
        if "\n" in line:
            raise UserError(f"{name}, line {count:,}: {line[:40]!r} holds a line end; replace it by a space.")
        stream.write(line.encode("utf-8") + b"\n")
    return count
