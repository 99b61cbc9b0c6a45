"""What a file of translations looks like: plain text, JSON lines, tab-separated fields, or Moses' n-best list."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from nmt.errors import UserError, did_you_mean
from nmt.translation import Translation

FORMATS = ("text", "jsonl", "tsv", "moses")
_DIGITS = 4
"""Decimals of scores: those beyond depend on how sentences were batched."""


@dataclass(frozen=True)
class Format:
    """How translations are written.

    text: the best translation of a line as a line. jsonl: an object a source line (`line` from 1, `source`,
    `translations`). tsv: a header and a row a translation (`line` and `n` from 1). moses: `0 ||| text ||| log_p= -3.2
    length= 7 ||| score`, source lines from 0, as Moses writes n-best lists.

    Where a text would break its format: line ends become spaces (but in jsonl, which escapes them), tabs too in tsv,
    and `|||` becomes `&#124;&#124;&#124;` in moses, as Moses' own escaping spells it.
    """

    name: Literal["text", "jsonl", "tsv", "moses"] = "text"
    alignment: bool = False
    """Words aligned with words, in Pharaoh's form: 0-0 2-1 is source-target, counted from 0. A field of its own in
    jsonl and tsv, a fifth one in moses."""
    attention: bool = False
    """The attention matrix, (pieces, source pieces), and `source_pieces` beside the source; in jsonl alone."""

    def __post_init__(self) -> None:
        if self.name not in FORMATS:
            known = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
            raise UserError(f"format is '{self.name}'; choose {known}.{did_you_mean(self.name, FORMATS)}")
        if self.alignment and self.name == "text":
            raise UserError(
                "alignment has no place in format text, which is the translations alone; give --format jsonl, tsv or "
                "moses (of tsv, cut -f6 is what fast_align writes)"
            )
        if self.attention and self.name != "jsonl":
            raise UserError(f"attention has no place in format {self.name}; give --format jsonl")

    def check(self, n_best: int) -> None:
        """Makes sure that n translations a line have their place.

        Raises:
            UserError: they have not.
        """
        if n_best > 1 and self.name == "text":
            raise UserError(
                f"n_best is {n_best} and format text holds one line a line; give --format jsonl, tsv or moses"
            )

    @property
    def reads_attention(self) -> bool:
        """Whether the search has to return attention."""
        return self.alignment or self.attention

    @property
    def header(self) -> str:
        """What stands before everything, its line end included; empty in most formats."""
        if self.name != "tsv":
            return ""
        return "\t".join(["line", "n", "score", "log_probability", "text", *["alignment"] * self.alignment]) + "\n"

    def render(self, number: int, source: str, translations: Sequence[Translation]) -> str:
        """One source line's translations, line ends included.

        Args:
            number: of the source line, from 1.
            source: the line.
            translations: best first, at least one.
        """
        if self.name == "text":
            return _flat(translations[0].text, "\n") + "\n"
        if self.name == "jsonl":
            found = [self._object(translation) for translation in translations]
            # The columns of the attention; a line that was cut has fewer than its text.
            read = {"source_pieces": translations[0].source_pieces} if self.attention else {}
            return _json({"line": number, "source": source, **read, "translations": found}) + "\n"
        rows = self._tsv_row if self.name == "tsv" else self._moses_row
        return "".join(rows(number, n, translation) + "\n" for n, translation in enumerate(translations, start=1))

    def _object(self, translation: Translation) -> dict[str, Any]:
        result: dict[str, Any] = {
            "text": translation.text,
            "score": round(translation.score, _DIGITS),
            "log_probability": round(translation.log_probability, _DIGITS),
            "pieces": translation.pieces,
            "token_scores": [round(score, _DIGITS) for score in translation.token_scores],
        }
        if self.alignment:
            result["alignment"] = pharaoh(translation)
        if self.attention:
            rows = [] if translation.attention is None else translation.attention.tolist()
            result["attention"] = [[round(weight, _DIGITS) for weight in row] for row in rows]
        return result

    def _aligned(self, translation: Translation) -> list[str]:
        return [pharaoh(translation)] if self.alignment else []

    def _tsv_row(self, number: int, n: int, translation: Translation) -> str:
        scores = [f"{score:.{_DIGITS}f}" for score in (translation.score, translation.log_probability)]
        fields = [str(number), str(n), *scores, _flat(translation.text, "\t\n\r")]
        return "\t".join([*fields, *self._aligned(translation)])

    def _moses_row(self, number: int, n: int, translation: Translation) -> str:
        text = _flat(translation.text, "\n\r").replace("|||", "&#124;&#124;&#124;")
        features = f"log_p= {translation.log_probability:.{_DIGITS}f} length= {len(translation.pieces)}"
        fields = [str(number - 1), text, features, f"{translation.score:.{_DIGITS}f}"]
        return " ||| ".join([*fields, *self._aligned(translation)])


def pharaoh(translation: Translation) -> str:
    """The alignment as "0-0 1-2", source-target; empty where nothing was translated.

    Raises:
        ValueError: the search was not asked for attention.
    """
    return " ".join(f"{source}-{target}" for source, target in translation.alignment) if translation.pieces else ""


def _flat(text: str, breaks: str) -> str:
    return re.sub(f"[{breaks}]", " ", text)


def _json(value: Any) -> str:
    """On one line for those too who take U+0085, U+2028 and U+2029 for line ends, as JSON does not."""
    text = json.dumps(value, ensure_ascii=False)
    return re.sub("[\x85\u2028\u2029]", lambda found: f"\\u{ord(found[0]):04x}", text)
