"""Which pairs of a training text are used."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from nmt.corpus.fingerprints import Seen, fingerprints, paired
from nmt.corpus.oddities import oddities
from nmt.text.pairs import Pair, Pairs

_PART = 10_000


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

    def sift(
        self, pairs: Iterable[Pair], languages: tuple[str, str], others: Sequence[Pairs], dropped: Counter[str]
    ) -> Iterator[Pair]:
        """The pairs that are used; all that is kept of the others, and of those before, is 8 bytes where `duplicates`
        are looked for.

        Args:
            pairs: of the training text.
            languages: of source and target.
            others: the other splits, of which `overlap` speaks.
            dropped: those that are left out are counted here, by reason.

        Raises:
            UserError: `language`, and no py3langid or a language that it does not know.
        """
        tell = _other_language(languages) if self.language else None
        held = [fingerprints(side) for other in others for side in (other.source, other.target)] if self.overlap else []
        there = np.concatenate(held) if held else None
        seen = None if self.duplicates else Seen()
        rest = iter(pairs)
        while part := list(islice(rest, _PART)):
            reasons = [self.objection(*pair) for pair in part]
            if tell is not None:
                reasons = [reason or tell(*pair) for reason, pair in zip(reasons, part, strict=True)]
            if there is not None or seen is not None:
                source, target = (fingerprints(pair[side] for pair in part) for side in (0, 1))
                if there is not None:
                    self._add(reasons, np.isin(source, there) | np.isin(target, there), "in another split")
                if seen is not None:
                    places = np.flatnonzero([reason is None for reason in reasons])
                    again = np.zeros(len(part), dtype=bool)
                    again[places] = seen.again(paired(source, target)[places])
                    self._add(reasons, again, "duplicate")
            for pair, reason in zip(part, reasons, strict=True):
                if reason is None:
                    yield pair
                else:
                    dropped[reason] += 1

    @staticmethod
    def _add(reasons: list[str | None], where: "np.typing.NDArray[np.bool_]", reason: str) -> None:
        for place in np.flatnonzero(where).tolist():
            reasons[place] = reasons[place] or reason


def _other_language(languages: tuple[str, str]) -> Callable[[str, str], str | None]:
    from nmt.corpus.language import Expected

    source, target = map(Expected, languages)

    def tell(first: str, second: str) -> str | None:
        return "other language" if source.is_other(first) or target.is_other(second) else None

    return tell
