"""Characters and marks that text for translation should not hold."""

import functools
import re
import unicodedata

KINDS = (
    "control character",
    "invisible character",
    "replacement character",
    "private or unassigned",
    "markup",
    "mojibake",
    "not NFC",
)
"""What `oddities` can find."""

_MARKUP = re.compile(r"&(?:amp|lt|gt|quot|apos|nbsp|#\d+|#x[0-9a-fA-F]+);|</?[A-Za-z][^<>]*>|<!--")
# UTF-8 that was read as Latin-1 or Windows-1252: a lead byte's letter, and then what a following byte became.
_MOJIBAKE = re.compile("[\u00c2\u00c3][\u0080-\u00bf]|\u00e2\u20ac|\u00ef\u00bb\u00bf")
# Persian and the scripts of India write with them.
_JOINERS = ("\u200c", "\u200d")


def oddities(text: str) -> set[str]:
    """The kinds of `KINDS` that a line holds."""
    found = {"markup"} if _MARKUP.search(text) else set()
    if text.isascii() and text.isprintable():
        return found
    found |= {kind for kind in map(_kind, set(text)) if kind}
    if _MOJIBAKE.search(text):
        found.add("mojibake")
    if not unicodedata.is_normalized("NFC", text):
        found.add("not NFC")
    return found


@functools.cache
def _kind(character: str) -> str:
    category = unicodedata.category(character)
    if character == "\ufffd":
        return "replacement character"
    if category in ("Zl", "Zp") or (category == "Cc" and character != "\t"):
        return "control character"
    if category == "Cf" and character not in _JOINERS:
        return "invisible character"
    return "private or unassigned" if category in ("Co", "Cn", "Cs") else ""
