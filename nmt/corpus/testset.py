"""Published test sets by name, through sacreBLEU, which downloads them once; or the split of a corpus card."""

import contextlib
import logging
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nmt.errors import UserError, did_you_mean
from nmt.lines import read_lines

logger = logging.getLogger(__name__)

SILENCE = 15.0
"""Seconds that a server may keep silent before a download is given up."""


@dataclass(frozen=True)
class TestSet:
    """What is translated and what it is compared with.

    Attributes:
        name: for messages and reports.
        source: lines of the source language.
        references: one or more sets of as many lines.
        source_language, target_language: codes of the languages, "" when unknown.
    """

    # pytest would take it for a class of tests.
    __test__ = False

    name: str
    source: list[str]
    references: list[list[str]]
    source_language: str = ""
    target_language: str = ""


def published_test_set(name: str, language_pair: str) -> TestSet:
    """Reads a test set that sacreBLEU knows; what is not in its cache yet is downloaded.

    Args:
        name: "wmt14", "wmt14/full", "wmt21", ...; `sacrebleu --list` has them all.
        language_pair: "en-fr".

    Raises:
        UserError: an unknown name or pair, no reference, or a set that is neither in the cache nor to be reached.
    """
    from sacrebleu.dataset import DATASETS
    from sacrebleu.utils import SACREBLEU_DIR

    if name not in DATASETS:
        raise UserError(
            f"sacreBLEU knows no test set '{name}'.{did_you_mean(name.lower(), DATASETS)} 'sacrebleu --list' lists all"
        )
    dataset = DATASETS[name]
    pairs = sorted(dataset.langpairs)
    if language_pair not in pairs:
        what = f"is not among the pairs of {name}" if language_pair else f"is missing; {name} has several pairs"
        raise UserError(
            f"language_pair '{language_pair}' {what}: {', '.join(pairs)}.{did_you_mean(language_pair, pairs)}"
        )
    title, cache = f"{name} {language_pair}", Path(SACREBLEU_DIR) / name
    try:
        with _patience(SILENCE), _complaints() as complaints:
            source, files = dataset.get_source_file(language_pair), dataset.get_reference_files(language_pair)
    # A library that means to be a program: it exits when a checksum is wrong, and passes on whatever the network, the
    # archive or the lock raises.
    except (Exception, SystemExit) as error:
        cause = "; ".join(complaints) or f"{type(error).__name__}: {error}"
        raise UserError(
            f"test set {title} cannot be had ({' '.join(cause.split())}); sacreBLEU looks for it in {cache} (the "
            "variable SACREBLEU moves its cache; remove that folder if a download broke off). Or give --source and "
            "--reference, or --corpus CARD"
        ) from None
    if not files:
        raise UserError(f"test set {title} has no reference; choose another one ('sacrebleu --list')")
    test_set = TestSet(title, read_lines(source), [read_lines(file) for file in files], *language_pair.split("-"))
    if any(len(lines) != len(test_set.source) for lines in test_set.references) or not test_set.source:
        counts = ", ".join(f"{len(lines):,}" for lines in [test_set.source, *test_set.references])
        raise UserError(f"test set {title} is damaged (source and references have {counts} lines); remove {cache}")
    logger.info(
        "test set %s: %s lines, %d reference(s), from %s", title, f"{len(test_set.source):,}", len(files), cache
    )
    return test_set


def split_of_card(card: str, split: str, language_pair: str = "", directory: str | None = None) -> TestSet:
    """Reads a split of a corpus card.

    Args:
        card: name or path of the card.
        split: "test", "dev" or "test_*".
        language_pair: "fr-en" turns a card of English to French round; "" is the card's direction.
        directory: where the corpus lies; by default beside the card.

    Raises:
        UserError: no such card, split or pair, or files that are missing or damaged.
    """
    from nmt.corpus import load_card

    source, dash, target = language_pair.partition("-")
    if language_pair and not (source and dash and target):
        raise UserError(f"language_pair is '{language_pair}'; write source-target, such as en-fr")
    pairs = load_card(card, directory).read(split, source or None, target or None)
    return TestSet(pairs.name, pairs.source, [pairs.target], pairs.source_language, pairs.target_language)


@contextlib.contextmanager
def _patience(seconds: float) -> Iterator[None]:
    """sacreBLEU sets no time limit, and a dead network would keep the user waiting for minutes."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


@contextlib.contextmanager
def _complaints() -> Iterator[list[str]]:
    """Collects the errors that sacreBLEU logs before it exits; they are told in our one line instead."""
    found: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.ERROR:
                found.append(record.getMessage())

    sacre, handler = logging.getLogger("sacrebleu"), Collector()
    propagate = sacre.propagate
    sacre.addHandler(handler)
    sacre.propagate = False
    try:
        yield found
    finally:
        sacre.removeHandler(handler)
        sacre.propagate = propagate
