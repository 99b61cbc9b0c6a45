"""N-best lists as Moses writes them: `id ||| text ||| name= v v name= v ||| score`, a line for each hypothesis."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from nmt.errors import UserError
from nmt.lines import iterate_lines

_BAR = "|||"
_ESCAPED = "&#124;&#124;&#124;"
"""A bar inside a text, as Moses' own escaping spells it. What else Moses escapes stays as it is."""


@dataclass(frozen=True)
class Entry:
    """One hypothesis of a list.

    Attributes:
        sentence: number of its sentence, from 0.
        text: without the spaces around it; an escaped ||| is one again.
        features: values by the names of features, in order.
        score: the list's own total, where there is one.
        rest: fields behind the score, such as Moses' alignments.
        where: file and line, for messages.
    """

    sentence: int
    text: str
    features: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    score: float | None = None
    rest: tuple[str, ...] = ()
    where: str = ""

    @property
    def values(self) -> dict[str, float]:
        """A number a name: a feature of several values is `name_1`, `name_2`, ...

        Raises:
            UserError: two features have one name then.
        """
        found: dict[str, float] = {}
        for name, values in self.features.items():
            for number, value in enumerate(values, start=1):
                key = name if len(values) == 1 else f"{name}_{number}"
                if key in found:
                    raise UserError(f"{self.where}: two features are named {key}; rename one.")
                found[key] = value
        return found

    def __str__(self) -> str:
        fields = [str(self.sentence), self.text.replace(_BAR, _ESCAPED), " ".join(
            f"{name}= {' '.join(map(_number, values))}" for name, values in self.features.items()
        )]  # fmt: skip
        if self.score is not None:
            fields += [_number(self.score), *self.rest]
        return f" {_BAR} ".join(fields)


@dataclass
class Survey:
    """What a list holds, read through once.

    Attributes:
        names: of all features, see `Entry.values`, in order of appearance.
        scored: whether the entries have scores.
        sentences: number of the last sentence, and one.
        entries: how many.
    """

    names: list[str]
    scored: bool
    sentences: int
    entries: int


def read_nbest(path: str | Path) -> Iterator[list[Entry]]:
    """Yields the entries of each sentence, in the order of the file; a sentence may lack. Only one list is in memory.

    Features may lack, and so may the score. Names end in `=`, with or without a space behind it; the `name:` of early
    versions of Moses is read, too.

    Args:
        path: of the file; `.gz` is unpacked.

    Raises:
        UserError: the file cannot be read, or a line is malformed (with file and line): too few fields, an id that is
            no number or stands before that of the line before, values that are no numbers.
    """
    lines = enumerate(iterate_lines(path), start=1)
    entries = (parse_entry(line, f"{path}, line {number:,}") for number, line in lines)
    last = -1
    for sentence, group in groupby(entries, key=lambda entry: entry.sentence):
        found = list(group)
        if sentence < last:
            raise UserError(
                f"{found[0].where}: sentence {sentence} comes after {last}; sort the list by its ids "
                "(sort -s -n -k 1,1)."
            )
        last = sentence
        yield found


def survey(path: str | Path) -> Survey:
    """Reads a list once, so that whatever is wrong with it is told before the work begins.

    Raises:
        UserError: as `read_nbest`; or the list is empty, or some of its entries alone have scores.
    """
    names: dict[str, None] = {}
    scored: bool | None = None
    last, entries = -1, 0
    for group in read_nbest(path):
        for entry in group:
            names |= dict.fromkeys(entry.values)
            if scored is None:
                scored = entry.score is not None
            if scored != (entry.score is not None):
                raise UserError(f"{entry.where}: {'no' if scored else 'a'} score, unlike the lines before; give all or "
                                "none of the hypotheses a score.")  # fmt: skip
        last = group[0].sentence
        entries += len(group)
    if not entries:
        raise UserError(f"{path} is empty; give an n-best list, lines of id {_BAR} text {_BAR} features {_BAR} score.")
    return Survey(list(names), bool(scored), last + 1, entries)


def parse_entry(line: str, where: str) -> Entry:
    """Reads one line.

    Args:
        line: without its end.
        where: file and line, for messages.

    Raises:
        UserError: it is malformed.
    """
    fields = [part.strip(" \t") for part in line.split(_BAR)]
    if len(fields) < 2:
        raise UserError(f"{where}: {line[:40]!r} has no {_BAR}; expected id {_BAR} text {_BAR} features {_BAR} score.")
    # isdecimal: int() would take "1_0" and " 1".
    if not fields[0].isdecimal():
        raise UserError(f"{where}: the id is '{fields[0][:40]}'; give the number of the sentence, from 0.")
    rest = fields[2:]
    features: dict[str, tuple[float, ...]] = {}
    # A third field without a name is a score whose features were left out.
    if rest and (len(rest) > 1 or not _is_number(rest[0])):
        features = _features(rest.pop(0), where)
    score = None
    if rest and (written := rest.pop(0)):
        score = _value(written, where, "the score")
    return Entry(int(fields[0]), fields[1].replace(_ESCAPED, _BAR), features, score, tuple(rest), where)


def _features(text: str, where: str) -> dict[str, tuple[float, ...]]:
    found: dict[str, list[float]] = {}
    values: list[float] | None = None
    for word in text.split():
        name, sign, value = word.partition("=")
        if not sign and word.endswith(":"):
            name, sign = word[:-1], ":"
        if sign:
            if not name or name in found:
                what = f"the feature {name} stands there twice" if name else "a feature has no name"
                raise UserError(f"{where}: {what}; write each as name= value.")
            values = found[name] = []
        elif values is None:
            raise UserError(f"{where}: the value {word[:40]} has no name; write features as name= value.")
        else:
            value = word
        if value:
            assert values is not None
            values.append(_value(value, where, "a feature"))
    for name, of_name in found.items():
        if not of_name:
            raise UserError(f"{where}: the feature {name} has no value; write name= value.")
    return {name: tuple(of_name) for name, of_name in found.items()}


def _value(text: str, where: str, what: str) -> float:
    if not _is_number(text):
        raise UserError(f"{where}: {what} is '{text[:40]}'; give a finite number.")
    return float(text)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text)) and "_" not in text
    except ValueError:
        return False


def _number(value: float) -> str:
    """More digits than log-probabilities in float32 have."""
    return f"{value:.10g}"
