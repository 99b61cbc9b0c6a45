"""Translation memories and catalogues: TMX, XLIFF and gettext PO, read through translate-toolkit."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nmt.errors import UserError

logger = logging.getLogger(__name__)

KINDS = (".tmx", ".xlf", ".xliff", ".po")
"""Endings of the files that are read; `.gz` may follow."""

# Of TMX and XLIFF; what else stands inside a text (hi, g, mrk) holds words.
_CODES = ("bpt", "ept", "ph", "it", "ut", "x", "bx", "ex")


def read_memory(path: Path, languages: tuple[str, str]) -> tuple[list[str], list[str]]:
    """Reads the translated units of a file; fuzzy and untranslated ones are left out and counted in the log.

    Inline codes (the markup of the format that was translated) are left out of the texts. Both forms of a PO entry with
    a plural are pairs of their own: the first and the last. Line ends become spaces.

    Args:
        path: the file, of an ending in `KINDS`.
        languages: of source and target. A TMX holds texts by language ("en" finds "en-GB", too); in the other kinds, a
            file has one source and one target.

    Raises:
        UserError: another kind of file, a damaged one, or no translate-toolkit.
    """
    kind = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if kind.lower() not in KINDS:
        raise UserError(f"{path} is not a translation memory that can be read; the kinds are {', '.join(KINDS)}")
    try:
        from translate.storage import factory
    except ImportError:
        raise UserError(f"{path} is read by translate-toolkit, which is not installed; pip install 'nmt[tm]'") from None
    try:
        open(path, "rb").close()  # the library takes a file that is not there for an empty one
        units = factory.getobject(str(path)).units
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception as error:
        # The parsers behind it raise whatever they have.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} is not a whole {kind} file: {reason[:200]}") from None
    sides: tuple[list[str], list[str]] = ([], [])
    missing = 0
    for unit in units:
        if unit.isheader():
            continue
        pairs = list(_pairs(unit, languages))
        missing += not pairs
        for pair in pairs:
            for side, text in zip(sides, pair, strict=True):
                side.append(" ".join(text.splitlines()))
    left_out = f"; {missing:,} units without a finished translation were left out" if missing else ""
    logger.info("%s: %s pairs%s", path, f"{len(sides[0]):,}", left_out)
    return sides


def _pairs(unit: Any, languages: tuple[str, str]) -> Iterator[tuple[str, str]]:
    if hasattr(unit, "languageNode") and unit.languageNode == "tuv":
        source, target = (_in_language(unit, language) for language in languages)
    elif unit.istranslatable() and _is_done(unit):
        source, target = unit.source, unit.target
        if hasattr(unit, "source_dom"):
            source, target = _words(unit.source_dom), _words(unit.target_dom)
    else:
        return
    forms = [getattr(side, "strings", None) or [side] for side in (source, target)]
    for place in (0, -1) if len(forms[0]) > 1 else (0,):
        first, second = (str(form[place] or "") for form in forms)
        if first.strip() and second.strip():
            yield first, second


def _is_done(unit: Any) -> bool:
    if not hasattr(unit, "isapproved"):
        return bool(unit.istranslated())
    # XLIFF: "approved" is rarely written, and its absence means nothing; a state says that there is work to do.
    target = unit.getlanguageNode(lang=None, index=1)
    state = "" if target is None else target.get("state") or ""
    return bool(unit.target) and state != "new" and not state.startswith("needs-")


def _in_language(unit: Any, language: str) -> str:
    """The text of a TMX unit in a language, "" when there is none; a node of just that language comes first."""
    from translate.storage.lisa import getXMLlang

    nodes = [(str(getXMLlang(node)).replace("_", "-").lower(), node) for node in unit.getlanguageNodes()]
    wanted = language.replace("_", "-").lower()
    for fits in (lambda found: found == wanted, lambda found: found.split("-")[0] == wanted.split("-")[0]):
        for found, node in nodes:
            if fits(found):
                return "".join(_words(part) for part in node if _name(part) == "seg")
    return ""


def _words(element: Any) -> str:
    """The text of an element without what inline elements hold of another language: the codes of a format."""
    parts = [element.text or ""]
    for child in element:
        if isinstance(child.tag, str) and _name(child) not in _CODES:
            parts.append(_words(child))
        parts.append(child.tail or "")
    return "".join(parts)


def _name(element: Any) -> str:
    return str(element.tag).rpartition("}")[2]
