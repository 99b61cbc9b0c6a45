"""Parallel text, in memory or read anew at each pass."""

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from nmt.errors import UserError
from nmt.lines import iterate_parallel, read_parallel

logger = logging.getLogger(__name__)

Pair = tuple[str, str]


@dataclass(frozen=True)
class Pairs:
    """Two lists of lines; line i of `target` translates line i of `source`.

    Attributes:
        source: lines of the source language.
        target: lines of the target language, as many.
        name: where they come from, for messages and reports ("multi30k_en-de/train").
        source_language: code of the source language, "" when unknown.
        target_language: code of the target language, "" when unknown.
        dropped: number of pairs that the card's filter left out, by reason.
    """

    source: list[str]
    target: list[str]
    name: str
    source_language: str = ""
    target_language: str = ""
    dropped: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.source) != len(self.target):
            raise UserError(f"{self.name}: {len(self.source):,} source lines, {len(self.target):,} target lines.")

    def __len__(self) -> int:
        return len(self.source)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return zip(self.source, self.target, strict=True)

    def checksum(self) -> str:
        """The sha256 (hexadecimal) of all lines; names and languages do not count."""
        return _survey(self).checksum

    def head(self, count: int) -> "Pairs":
        """The first pairs, as many as there are at most."""
        return replace(self, source=self.source[:count], target=self.target[:count])

    def swapped(self) -> "Pairs":
        """The other direction."""
        return Pairs(self.target, self.source, self.name, self.target_language, self.source_language, self.dropped)


@dataclass(frozen=True)
class Bitext:
    """Parallel text that is read anew at each pass, so that any amount of it takes no memory.

    Its length and checksum take a pass of their own, once.

    Attributes:
        read: begins a pass; counts in what it is given the pairs that the card's filter leaves out, by reason.
        name, source_language, target_language: as those of `Pairs`.
    """

    read: Callable[[Counter[str]], Iterator[Pair]]
    name: str
    source_language: str = ""
    target_language: str = ""
    _told: list[Mapping[str, int]] = field(default_factory=list, init=False, repr=False)

    def __iter__(self) -> Iterator[Pair]:
        dropped: Counter[str] = Counter()
        yield from self.read(dropped)
        self._tell(dropped)

    def __len__(self) -> int:
        return self._surveyed[0].pairs

    def checksum(self) -> str:
        """As that of `Pairs`."""
        return self._surveyed[0].checksum

    @property
    def dropped(self) -> Mapping[str, int]:
        """As that of `Pairs`."""
        return self._surveyed[1]

    def head(self, count: int) -> "Pairs":
        """The first pairs, as many as there are at most."""
        return self.held(count)

    def held(self, most: int | None = None) -> "Pairs":
        """All pairs, or so many at most, in memory."""
        dropped: Counter[str] = Counter()
        sides: tuple[list[str], list[str]] = ([], [])
        for source, target in islice(self.read(dropped), most):
            sides[0].append(source)
            sides[1].append(target)
        if most is None:
            self._tell(dropped)
        return Pairs(*sides, self.name, self.source_language, self.target_language, dict(sorted(dropped.items())))

    def swapped(self) -> "Bitext":
        """The other direction."""
        read = self.read

        def turned(dropped: Counter[str]) -> Iterator[Pair]:
            return ((target, source) for source, target in read(dropped))

        return Bitext(turned, self.name, self.target_language, self.source_language)

    @cached_property
    def _surveyed(self) -> tuple["_Survey", Mapping[str, int]]:
        dropped: Counter[str] = Counter()
        survey = _survey(self.read(dropped))
        self._tell(dropped)
        return survey, dict(sorted(dropped.items()))

    def _tell(self, dropped: Mapping[str, int]) -> None:
        """Logs what the card's filter has left out, at the end of the first pass."""
        if dropped and not self._told:
            told = ", ".join(f"{count:,} {reason}" for reason, count in sorted(dropped.items()))
            logger.info("%s: left out %s by the card's filter", self.name, told)
        self._told[:] = [dropped]


class _Survey(NamedTuple):
    pairs: int
    checksum: str


def _survey(pairs: Iterable[Pair]) -> _Survey:
    """One pass. No line holds a line end, so that lines cannot flow into each other."""
    digests = hashlib.sha256(), hashlib.sha256()
    count = 0
    for pair in pairs:
        count += 1
        for digest, line in zip(digests, pair, strict=True):
            digest.update(line.encode() + b"\n")
    whole = hashlib.sha256(b"".join(digest.digest() for digest in digests))
    return _Survey(count, whole.hexdigest())


def bitext_from_files(
    source: str | Path, target: str | Path, source_language: str = "", target_language: str = ""
) -> "Bitext | Pairs":
    """Two files (plain or .gz) that correspond line by line, to be read; no card needed.

    What cannot be read twice (a pipe) is held in memory.

    Raises:
        UserError: what is held cannot be read or the numbers of lines differ.
    """
    name = f"{source} | {target}"
    if not (Path(source).is_file() and Path(target).is_file()):
        return Pairs(*read_parallel(source, target), name, source_language, target_language)
    return Bitext(lambda _: iterate_parallel(source, target), name, source_language, target_language)


def pairs_from_files(
    source: str | Path, target: str | Path, source_language: str = "", target_language: str = ""
) -> Pairs:
    """Reads two files (plain or .gz) that correspond line by line; no card needed.

    Raises:
        UserError: a file cannot be read or the numbers of lines differ.
    """
    return Pairs(*read_parallel(source, target), f"{source} | {target}", source_language, target_language)
