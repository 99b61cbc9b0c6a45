"""What a user wishes of a translation, as text; the search takes it as pieces."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from nmt.errors import UserError
from nmt.search import Demand
from nmt.text.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

_SPACE = "▁"


@dataclass(frozen=True)
class Wish:
    """What is wished of the translation of one line.

    Attributes:
        prefix: what it begins with.
        include: words or phrases that it holds; one that is given twice is held twice.
        exclude: words or phrases that it does not hold.
    """

    prefix: str = ""
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()


def demand_of(wish: Wish, vocabulary: Vocabulary, line: int, most_tokens: int | None = None) -> Demand:
    """The wish in the pieces of a vocabulary.

    Args:
        wish: blank parts are no wish.
        vocabulary: of the target.
        line: its number, for messages.
        most_tokens: see `Seq2Seq.most_tokens`; of a longer prefix the beginning is wished, and that is told.

    Raises:
        UserError: a prefix or a phrase to include that the vocabulary cannot spell, or one that is excluded, too.
    """
    include = [text for text in wish.include if text.strip()]
    for text in (wish.prefix, *include):
        if unknown := vocabulary.unknown_pieces(text):
            raise UserError(
                f"line {line:,}: {text!r} cannot be asked for, the model's vocabulary lacks {', '.join(unknown)}"
            )
    ids = vocabulary.encode([wish.prefix, *include])
    exclude = tuple(spelt for text in wish.exclude if (spelt := spell(text, vocabulary)))
    for text in include:
        for phrase in exclude:
            if f"{_SPACE}{phrase}" in _SPACE + spell(text, vocabulary):
                raise UserError(
                    f"line {line:,}: {text!r} is to be included and {phrase.replace(_SPACE, ' ')!r} to be excluded; "
                    "leave out one"
                )
    prefix = ids[0]
    if most_tokens is not None and len(prefix) >= most_tokens:
        told = "line %d: its prefix has %d pieces, more than the model has positions for, %d: kept up to there"
        logger.warning(told, line, len(prefix), most_tokens - 1)
        prefix = prefix[: most_tokens - 1]
    return Demand(tuple(prefix), tuple(tuple(phrase) for phrase in ids[1:] if phrase), exclude)


def spell(text: str, vocabulary: Vocabulary) -> str:
    """A text as its pieces spell it, normalised, "▁" for a space, without the first."""
    return "".join(vocabulary.surfaces(text)).lstrip(_SPACE)


def warn_unmet(demand: Demand, tokens: Sequence[int], pieces: Sequence[str], line: int) -> None:
    """Tells of phrases for which the longest translation allowed had no room."""
    text = tuple(tokens)
    for phrase in demand.include:
        if not any(text[at : at + len(phrase)] == phrase for at in range(len(text))):
            words = "".join(pieces[token] for token in phrase).replace(_SPACE, " ").strip()
            logger.warning("line %d: %r found no place; raise max_extra or beam_size", line, words)
