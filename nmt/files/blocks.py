"""Source text as blocks of lines, with what is wished of each: as many as are there, in constant memory."""

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from nmt.errors import UserError
from nmt.files.pipe import Pipe, open_pipe
from nmt.lines import count_lines, iterate_lines, name_of, told
from nmt.wishes import Wish

_WISHES = ("prefix", "include", "exclude")


@dataclass(frozen=True)
class Block:
    """Lines that are translated together.

    Attributes:
        first: number of the first line, from 1.
        lines: at least one.
        wishes: one for each line, or None.
        position: bytes of the source file that have been read, packed as they are; 0 of a pipe.
        digest: of all that was read up to the end of this block, sha256.
    """

    first: int
    lines: list[str]
    wishes: list[Wish] | None
    position: int
    digest: str

    @property
    def last(self) -> int:
        """Number of the last line."""
        return self.first + len(self.lines) - 1


@dataclass(frozen=True)
class SourceText:
    """Files that are read beside each other; line i of each belongs to line i of the source.

    Attributes:
        source: text to translate, plain, .gz or - for standard input.
        prefix: how each translation begins.
        include, exclude: what it holds and what it does not, phrases separated by tabs.
    """

    source: str
    prefix: str | None = None
    include: str | None = None
    exclude: str | None = None

    def __post_init__(self) -> None:
        if list(self.paths.values()).count("-") > 1:
            raise UserError("standard input (-) can be read once; give files for the rest")

    @property
    def paths(self) -> dict[str, str]:
        """The files that there are, by what they are."""
        named = {"input": self.source, **{name: getattr(self, name) for name in _WISHES}}
        return {name: path for name, path in named.items() if path is not None}

    def check(self) -> None:
        """Finds what is wrong with the files before anything is done with them.

        Raises:
            UserError: one cannot be read, or has another number of lines than the source. Of pipes it is not known yet.
        """
        files = {name: path for name, path in self.paths.items() if _is_file(path)}
        for path in files.values():
            next(iterate_lines(path), None)
        if len(files) > 1 and "input" in files:
            counts = {name: count_lines(path) for name, path in files.items()}
            for name, count in counts.items():
                if count != counts["input"]:
                    raise UserError(
                        f"{files[name]} has {count:,} lines and {self.source} has {counts['input']:,}; line i of one "
                        "must belong to line i of the other"
                    )

    def blocks(self, size: int, *, skip: int = 0, digest: str | None = None) -> "Blocks":
        """The lines from `skip` + 1 on; see `Blocks`.

        Args:
            size: most lines of a block.
            skip: lines that are passed over.
            digest: of the block that ended with them.

        Raises:
            UserError: a file cannot be read, or the lines passed over are not those that the digest was made of.
        """
        blocks = Blocks(self, size)
        blocks.skip(skip, digest)
        return blocks


class Blocks:
    """All files of a text, block by block.

    A file gives `size` lines at a time. A pipe gives those that are there, and waits only when there are none. What is
    read before an error comes as a block before the error does, which is a UserError: a file cannot be read, or the
    numbers of lines differ.
    """

    def __init__(self, text: SourceText, size: int) -> None:
        """Opens the files.

        Args:
            text: names them.
            size: most lines of a block.

        Raises:
            UserError: the size is no size, or a pipe cannot be opened.
        """
        if size < 1:
            raise UserError(f"buffer is {size}; give at least 1")
        self._count = 0
        self._size, self._path, self._paths = size, text.source, text.paths
        self._file: BinaryIO | None = None
        self._lines, self._pipe = _open(text.source, self._opened)
        self._wishes = {name: _open(path)[0] for name, path in text.paths.items() if name != "input"}
        self._hash = hashlib.sha256()
        self._error: UserError | None = None
        self._ended = False

    def __iter__(self) -> Iterator[Block]:
        return self

    def __next__(self) -> Block:
        first = self._count + 1
        lines: list[str] = []
        wishes: list[Wish] = []
        while len(lines) < self._size and (not lines or self.ready()) and not (self._ended or self._error):
            try:
                taken = self._take()
            except UserError as error:
                self._error = error
                break
            self._ended = taken is None
            if taken is not None:
                lines.append(taken[0])
                wishes.append(taken[1])
        if lines:
            wanted = wishes if self._wishes else None
            return Block(first, lines, wanted, self._position, self._hash.hexdigest())
        if self._error is not None:
            raise self._error
        raise StopIteration

    def ready(self) -> bool:
        """Whether the next block would come without waiting."""
        return self._pipe is None or self._ended or self._error is not None or self._pipe.ready()

    def skip(self, count: int, digest: str | None) -> None:
        """Passes over the first lines; see `SourceText.blocks`."""
        while self._count < count:
            if self._take() is None:
                raise UserError(
                    f"{name_of(self._path)} has {self._count:,} lines and {count:,} are done; give the same text"
                )
        if digest is not None and self._hash.hexdigest() != digest:
            names = " or ".join(map(name_of, self._paths.values()))
            raise UserError(
                f"{names} is not what it was: the first {count:,} lines, which are done, have changed; give the same "
                "text, or delete the part to begin anew"
            )

    def _opened(self, file: BinaryIO) -> None:
        self._file = file

    @property
    def _position(self) -> int:
        if self._file is None:
            return 0
        return os.path.getsize(self._path) if self._file.closed else self._file.tell()

    def _take(self) -> tuple[str, Wish] | None:
        line = next(self._lines, None)
        found = {name: next(lines, None) for name, lines in self._wishes.items()}
        for name, wish in found.items():
            if line is None and wish is not None:
                raise UserError(self._differ(self._paths[name], self._path))
            if line is not None and wish is None:
                raise UserError(self._differ(self._path, self._paths[name]))
        if line is None:
            return None
        self._count += 1
        for text in (line, *found.values()):
            self._hash.update(f"{text}\n".encode())
        return line, Wish(found.get("prefix") or "", _phrases(found.get("include")), _phrases(found.get("exclude")))

    def _differ(self, longer: str, shorter: str) -> str:
        return (
            f"{name_of(longer)} has more lines than {name_of(shorter)}, which has {self._count:,}; line i of one must "
            "belong to line i of the other"
        )


def _open(path: str, opened: Callable[[BinaryIO], object] | None = None) -> tuple[Iterator[str], Pipe | None]:
    with told(path):
        pipe = open_pipe(path)
    return iterate_lines(path if pipe is None else pipe, opened=opened), pipe


def _phrases(line: str | None) -> tuple[str, ...]:
    return tuple(phrase for phrase in (line or "").split("\t") if phrase.strip())


def _is_file(path: str) -> bool:
    """Whether it can be read twice, or not at all."""
    return path != "-" and (os.path.isfile(path) or os.path.isdir(path) or not Path(path).exists())
