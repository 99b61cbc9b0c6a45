"""What is in a parallel text, and what is wrong with it: counts, and where each kind of fault is first seen."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from nmt.corpus.fingerprints import Prints, fingerprints, paired, repeated
from nmt.corpus.oddities import KINDS, oddities
from nmt.pool import map_in_order
from nmt.text.pairs import Bitext, Pairs
from nmt.text.vocabulary import Vocabulary

_CHUNK = 10_000
# A ratio says nothing of a few words.
_SHORT = 5


@dataclass
class Finding:
    """A kind of fault: how many lines have it, and the number of the first, from 1."""

    count: int = 0
    first: int | None = None

    def add(self, line: int, count: int = 1) -> None:
        """Counts lines, the first of which is this one."""
        if count:
            self.count += count
            self.first = line if self.first is None else min(self.first, line)


@dataclass
class Inspection:
    """What is in a split.

    Attributes:
        name: of the split.
        pairs: how many.
        words: of source and target, separated by white space.
        characters: of source and target.
        longest: words of the longest line of each side.
        pieces: of each side, where vocabularies were given.
        findings: by kind of fault; what was looked for and is not there has a count of 0.
    """

    name: str
    pairs: int = 0
    words: tuple[int, int] = (0, 0)
    characters: tuple[int, int] = (0, 0)
    longest: tuple[int, int] = (0, 0)
    pieces: tuple[int, int] | None = None
    findings: dict[str, Finding] = field(default_factory=dict)

    def found(self, kind: str) -> Finding:
        """The finding of that kind, made when missing."""
        return self.findings.setdefault(kind, Finding())


@dataclass(frozen=True)
class Checks:
    """What is looked for besides what needs no help.

    Attributes:
        languages: of source and target, told by py3langid; "" for a side that is not checked.
        max_ratio: words of one side for a word of the other, in lines of more than 5 words.
        vocabularies: of source and target, whose unknown pieces are counted.
    """

    languages: tuple[str, str] = ("", "")
    max_ratio: float = 3.0
    vocabularies: tuple[Vocabulary, Vocabulary] | None = None


def inspect(
    pairs: Bitext | Pairs, checks: Checks, others: Mapping[str, Pairs] | None = None, processes: int = 1
) -> Inspection:
    """Looks at all pairs of a split.

    Args:
        pairs: the split.
        checks: what is looked for.
        others: splits, by name, that it should share no line with.
        processes: how many share the work.

    Raises:
        UserError: languages, and no py3langid or a language that it does not know.
    """
    result = Inspection(pairs.name)
    prints: list[tuple[Prints, Prints]] = []
    look = partial(_look, checks=checks)
    for part, both in map_in_order(look, _chunks(pairs), processes):
        _add(result, part)
        prints.append(both)
    if not prints:
        return result
    source, target = (np.concatenate(side) for side in zip(*prints, strict=True))
    _mark(result, "duplicate pair", repeated(paired(source, target)))
    again = repeated(source) & ~repeated(paired(source, target))
    _mark(result, "source again, other target", again)
    for name, other in (others or {}).items():
        theirs = fingerprints(other.source), fingerprints(other.target)
        for side, own, held in zip(("source", "target"), (source, target), theirs, strict=True):
            _mark(result, f"{side} also in {name}", np.isin(own, held))
    return result


def _chunks(pairs: Iterable[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    rows = iter(pairs)
    while chunk := list(islice(rows, _CHUNK)):
        yield chunk


def _look(rows: Sequence[tuple[str, str]], checks: Checks) -> tuple[Inspection, tuple[Prints, Prints]]:
    """A part of a split by itself; lines are counted from 1."""
    part = Inspection("", pairs=len(rows))
    sides = [row[0] for row in rows], [row[1] for row in rows]
    words = [[len(line.split()) for line in side] for side in sides]
    part.words = sum(words[0]), sum(words[1])
    part.longest = max(words[0]), max(words[1])
    part.characters = sum(map(len, sides[0])), sum(map(len, sides[1]))
    for kind in ("empty side", "target is the source", "far ratio of words", *KINDS):
        part.found(kind)
    for line, ((source, target), *counts) in enumerate(zip(rows, *words, strict=True), start=1):
        shorter, longer = sorted(counts)
        if not shorter:
            part.found("empty side").add(line)
        elif longer > _SHORT and longer > checks.max_ratio * shorter:
            part.found("far ratio of words").add(line)
        if shorter and source.strip() == target.strip():
            part.found("target is the source").add(line)
        for kind in sorted(oddities(source) | oddities(target)):
            part.found(kind).add(line)
    for name, side, language in zip(("source", "target"), sides, checks.languages, strict=True):
        if language:
            _tell(part, name, side, language)
    if checks.vocabularies is not None:
        _encode(part, sides, checks.vocabularies)
    return part, (fingerprints(sides[0]), fingerprints(sides[1]))


def _tell(part: Inspection, name: str, side: Sequence[str], language: str) -> None:
    from nmt.corpus.language import Expected

    expected, finding = Expected(language), part.found(f"{name} is not {language}")
    for line, text in enumerate(side, start=1):
        if expected.is_other(text):
            finding.add(line)


def _encode(part: Inspection, sides: Sequence[Sequence[str]], vocabularies: Sequence[Vocabulary]) -> None:
    pieces = []
    for name, side, vocabulary in zip(("source", "target"), sides, vocabularies, strict=True):
        finding = part.found(f"unknown pieces in {name}")
        encoded = vocabulary.encode(side)
        pieces.append(sum(map(len, encoded)))
        for line, ids in enumerate(encoded, start=1):
            finding.add(line, int(vocabulary.special.unknown in ids))
    part.pieces = pieces[0], pieces[1]


def _add(whole: Inspection, part: Inspection) -> None:
    """Puts a part behind what is there."""
    for kind, finding in part.findings.items():
        whole.found(kind).add(whole.pairs + (finding.first or 0), finding.count)
    whole.pairs += part.pairs
    whole.longest = _each(max, whole.longest, part.longest)
    for name in ("words", "characters", "pieces"):
        value = getattr(part, name)
        if value is not None:
            setattr(whole, name, _each(lambda a, b: a + b, getattr(whole, name) or (0, 0), value))


def _each(function: Callable[[int, int], int], one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    return function(one[0], other[0]), function(one[1], other[1])


def _mark(result: Inspection, kind: str, where: NDArray[np.bool_]) -> None:
    finding = result.found(kind)
    if where.any():
        finding.add(int(where.argmax()) + 1, int(where.sum()))
