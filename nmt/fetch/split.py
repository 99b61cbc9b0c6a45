"""Filters pairs of lines and splits them so that nothing of the test set is in training."""

import hashlib
import itertools
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

Pair = tuple[str, str]


@dataclass(frozen=True)
class Limits:
    """Which pairs are kept.

    Attributes:
        min_words: fewest whitespace-separated words on either side.
        max_words: most words on either side.
        max_ratio: most words of one side for a word of the other; the shorter side counts at least 3.
    """

    min_words: int = 3
    max_words: int = 50
    max_ratio: float = 3.0


def clean_pairs(pairs: Sequence[Pair], limits: Limits) -> tuple[list[Pair], dict[str, int]]:
    """Drops empty, short, long, untranslated, ill-matched and repeated pairs.

    Returns:
        The pairs kept, in their order, and the number dropped for each reason.
    """
    kept: dict[Pair, None] = {}
    dropped: Counter[str] = Counter()
    for source, target in pairs:
        reason = _objection(source, target, limits)
        if reason is None and (source, target) in kept:
            reason = "repeated"
        if reason is None:
            kept[source, target] = None
        else:
            dropped[reason] += 1
    return list(kept), dict(dropped)


def _objection(source: str, target: str, limits: Limits) -> str | None:
    source_words, target_words = len(source.split()), len(target.split())
    shorter, longer = sorted((source_words, target_words))
    if shorter == 0:
        return "empty"
    if shorter < limits.min_words:
        return "too short"
    if longer > limits.max_words:
        return "too long"
    if letters_key(source) == letters_key(target):
        return "untranslated"
    # Very short lines have wild ratios for good reasons ("Ctrl+A" and its explanation have not).
    if longer > limits.max_ratio * max(shorter, 3) or max(len(source), len(target)) > limits.max_ratio * max(
        min(len(source), len(target)), 12
    ):
        return "ratio"
    if letter_share(source) < 0.5 or letter_share(target) < 0.5:
        return "not words"
    return None


def letters_key(line: str) -> str:
    """The letters of a line in lower case, words parted by one space: near-duplicates share it.

    A line without letters is its own key.
    """
    letters = "".join(c if unicodedata.category(c)[0] in "LM" else " " for c in line.lower())
    return " ".join(letters.split()) or line


def letter_share(line: str) -> float:
    """The share of letters among the characters that are not spaces; 0 for a blank line."""
    characters = [c for c in line if not c.isspace()]
    return sum(c.isalpha() for c in characters) / len(characters) if characters else 0.0


def split_pairs(
    pairs: Sequence[Pair], dev: int, test: int, *, min_words: int = 5
) -> tuple[list[Pair], list[Pair], list[Pair]]:
    """Splits pairs into train, dev and test without leaks.

    Two pairs belong together when their sources or their targets have the same letters (case, digits
    and punctuation apart). Groups stay whole. dev and test take only groups of one pair that look like
    ordinary sentences and are no part of another line, in the order of a hash; so the split depends on the
    pairs alone, and adding a pair moves few others.

    Args:
        pairs: distinct pairs.
        dev: pairs wanted in dev.
        test: pairs wanted in test.
        min_words: fewest words of a dev or test line.

    Returns:
        train, dev, test, each in the order of `pairs`; dev and test are smaller than wanted when there
        are too few ordinary sentences.
    """
    groups = _groups(pairs)
    alone = Counter(groups)
    candidates = [
        index
        for index, (source, target) in enumerate(pairs)
        if alone[groups[index]] == 1 and _is_ordinary(source, min_words) and _is_ordinary(target, min_words)
    ]
    candidates.sort(key=lambda index: hashlib.sha256("\n".join(pairs[index]).encode()).digest())
    texts = [" \n ".join(["", *(letters_key(pair[side]) for pair in pairs), ""]).encode() for side in (0, 1)]
    alone_in_text = (row for row in candidates if not any(map(_is_within_another, texts, pairs[row])))
    held_out = dict.fromkeys(itertools.islice(alone_in_text, test), "test")
    held_out |= dict.fromkeys(itertools.islice(alone_in_text, dev), "dev")
    parts: dict[str, list[Pair]] = {"train": [], "dev": [], "test": []}
    for index, pair in enumerate(pairs):
        parts[held_out.get(index, "train")].append(pair)
    return parts["train"], parts["dev"], parts["test"]


def _is_within_another(text: bytes, line: str) -> bool:
    """Whether the letters of a line stand in a second line of the text, a whole paragraph for instance."""
    needle = f" {letters_key(line)} ".encode()
    return text.find(needle, text.find(needle) + 1) >= 0


def _is_ordinary(line: str, min_words: int) -> bool:
    return len(line.split()) >= min_words and line[-1] in ".!?" and letter_share(line) >= 0.85


def _groups(pairs: Sequence[Pair]) -> list[int]:
    """The representative row of each row's connected group (union-find over shared letter keys)."""
    parents = list(range(len(pairs)))

    def root(row: int) -> int:
        while parents[row] != row:
            parents[row] = parents[parents[row]]
            row = parents[row]
        return row

    first: dict[tuple[int, str], int] = {}
    for row, pair in enumerate(pairs):
        for side, line in enumerate(pair):
            other = first.setdefault((side, letters_key(line)), row)
            parents[root(row)] = root(other)
    return [root(row) for row in range(len(pairs))]
