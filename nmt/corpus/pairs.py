"""Parallel text in memory."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nmt.errors import UserError
from nmt.lines import read_parallel


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
        digest = hashlib.sha256()
        for lines in (self.source, self.target):
            digest.update(f"{len(lines)}\n".encode())
            for line in lines:
                digest.update(line.encode() + b"\n")
        return digest.hexdigest()

    def swapped(self) -> "Pairs":
        """The other direction."""
        return Pairs(self.target, self.source, self.name, self.target_language, self.source_language, self.dropped)


def pairs_from_files(
    source: str | Path, target: str | Path, source_language: str = "", target_language: str = ""
) -> Pairs:
    """Reads two files (plain or .gz) that correspond line by line; no card needed.

    Raises:
        UserError: a file cannot be read or the numbers of lines differ.
    """
    return Pairs(*read_parallel(source, target), f"{source} | {target}", source_language, target_language)
