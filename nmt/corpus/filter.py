"""Which pairs of a training text are used."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from nmt.corpus.fingerprints import fingerprints, paired, repeated
from nmt.corpus.oddities import oddities
from nmt.corpus.pairs import Pairs

logger = logging.getLogger(__name__)


@dataclass
class Filter:
    """Which pairs of the split `train` are used; words are separated by white space, None is no limit.

    Attributes:
        min_words: fewest words on either side.
        max_words: most words on either side.
        max_ratio: most words of one side for a word of the other.
        copies: False leaves out pairs whose target is the source.
        odd: False leaves out pairs with odd characters or markup on a side, see `nmt.corpus.oddities`.
        duplicates: False leaves out all but the first of pairs that differ in case and blanks alone.
        overlap: True leaves out pairs of which a side is also in another split of the card.
        language: True leaves out pairs of which a side is in another language (py3langid, extra `corpus`).
    """

    min_words: int = 1
    max_words: int | None = None
    max_ratio: float | None = None
    copies: bool = True
    odd: bool = True
    duplicates: bool = True
    overlap: bool = False
    language: bool = False

    def objection(self, source: str, target: str) -> str | None:
        """Why a pair is left out whatever the others are, or None. Languages are not looked at."""
        shorter, longer = sorted((len(source.split()), len(target.split())))
        if shorter < self.min_words:
            return "too short" if shorter else "empty"
        if self.max_words is not None and longer > self.max_words:
            return "too long"
        if self.max_ratio is not None and longer > self.max_ratio * max(shorter, 1):
            return "ratio"
        if not self.copies and source.strip() == target.strip():
            return "copy"
        if not self.odd and (oddities(source) or oddities(target)):
            return "odd characters"
        return None

    def apply(self, pairs: Pairs, others: Sequence[Pairs] = ()) -> Pairs:
        """The pairs that are used, with the numbers of those left out by reason; it is logged.

        Args:
            pairs: of the training text.
            others: the other splits, of which `overlap` speaks.

        Raises:
            UserError: `language`, and no py3langid or a language that it does not know.
        """
        reasons = [self.objection(*pair) for pair in pairs]
        if self.language:
            tell = _other_language(pairs)
            reasons = [reason or tell(*pair) for reason, pair in zip(reasons, pairs, strict=True)]
        if not self.duplicates or (self.overlap and others):
            source, target = fingerprints(pairs.source), fingerprints(pairs.target)
            if self.overlap and others:
                held = [fingerprints(side) for other in others for side in (other.source, other.target)]
                there = np.concatenate(held)
                self._add(reasons, np.isin(source, there) | np.isin(target, there), "in another split")
            if not self.duplicates:
                kept = np.array([reason is None for reason in reasons])
                places = np.flatnonzero(kept)
                again = np.zeros(len(reasons), dtype=bool)
                again[places] = repeated(paired(source, target)[places])
                self._add(reasons, again, "duplicate")
        dropped = Counter(reason for reason in reasons if reason is not None)
        if not dropped:
            return pairs
        logger.info("%s: left out %s by the card's filter", pairs.name,
                    ", ".join(f"{count:,} {reason}" for reason, count in sorted(dropped.items())))  # fmt: skip
        source_lines, target_lines = (
            [line for line, reason in zip(side, reasons, strict=True) if reason is None]
            for side in (pairs.source, pairs.target)
        )
        return replace(pairs, source=source_lines, target=target_lines, dropped=dict(sorted(dropped.items())))

    @staticmethod
    def _add(reasons: list[str | None], where: "np.typing.NDArray[np.bool_]", reason: str) -> None:
        for place in np.flatnonzero(where).tolist():
            reasons[place] = reasons[place] or reason


def _other_language(pairs: Pairs) -> Callable[[str, str], str | None]:
    from nmt.corpus.language import Expected

    source, target = Expected(pairs.source_language), Expected(pairs.target_language)

    def tell(first: str, second: str) -> str | None:
        return "other language" if source.is_other(first) or target.is_other(second) else None

    return tell
