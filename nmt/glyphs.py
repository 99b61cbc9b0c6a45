"""Which font draws which character: matplotlib's own lacks most scripts, and warns of each."""

import logging
from collections.abc import Iterable
from functools import cache
from typing import Any

from matplotlib import font_manager

logger = logging.getLogger(__name__)

_MISSING = "□"
# It has a box for everything.
_LAST_RESORT = "Last Resort"


def drawable(texts: Iterable[str]) -> tuple[dict[str, str], dict[str, Any]]:
    """Texts as the fonts of this machine can draw them.

    Returns:
        what is drawn for each text, a box for a character that no font has, which is told; and what a text of
        matplotlib is told besides: the fonts, in the order in which they are asked, and that `$` begins no formula.
    """
    known = list(dict.fromkeys(texts))
    missing = {character for text in known for character in text}
    families = [font_manager.FontProperties().get_name()]
    missing -= {*map(chr, _characters(font_manager.findfont(families[0])))}
    if missing:
        for font in sorted(font_manager.fontManager.ttflist, key=lambda font: (font.name, font.fname)):
            # What other styles of a family have would not be found under its name alone.
            plain = font.style == "normal" and font.weight in (400, "normal", "regular")
            if not plain or font.name.startswith(_LAST_RESORT):
                continue
            there = missing & {*map(chr, _characters(font.fname))}
            if there:
                families.append(font.name)
                missing -= there
    if missing:
        named = ", ".join(ascii(one).strip("'") if one.isspace() or not one.isprintable() else one
                          for one in sorted(missing)[:5])  # fmt: skip
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        logger.warning("no font on this machine has %s%s; the picture shows %s for it", named, more, _MISSING)
    boxes = dict.fromkeys(map(ord, missing), _MISSING)
    return {text: text.translate(boxes) for text in known}, {"fontfamily": families, "parse_math": False}


@cache
def _characters(path: str) -> frozenset[int]:
    """What a font can draw at any size."""
    try:
        font = font_manager.get_font(path)
        return frozenset(font.get_charmap()) if font.scalable else frozenset()
    except (OSError, RuntimeError):
        return frozenset()
