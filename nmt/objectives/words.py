"""Words among pieces: where BLEU sees a token begin in a text that a model spells in subword pieces."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

SPACE = "\u2581"
# What sacreBLEU's tokeniser 13a sets apart (mteval-v13a.pl); '.', ',' and '-' it leaves where digits stand beside.
APART = frozenset('{|}~[\\]^_`!"#$%&()*+:;<=>?@/.,')


class WordBoundaries(NamedTuple):
    """What decides whether a word begins between two pieces; (vocabulary,) each.

    Attributes:
        first: true for pieces that begin a word wherever they stand.
        last: true for pieces behind which a word begins.
        blank: true for pieces of white space alone, whose word goes on with the next piece.
    """

    first: Tensor
    last: Tensor
    blank: Tensor

    def begins(self, tokens: Tensor, previous: Tensor) -> Tensor:
        """Whether a word begins with each of `tokens`, which stand behind `previous` (-1: behind nothing)."""
        inside = previous >= 0
        before = previous.clamp_min(0)
        return (self.first[tokens] | self.last[before]) & ~self.blank[before] | ~inside

    def to(self, device: torch.device) -> "WordBoundaries":
        return WordBoundaries(*(part.to(device) for part in self))


def word_boundaries(pieces: Sequence[str]) -> WordBoundaries:
    """The boundaries of SentencePiece's pieces: white space, and the symbols that sacreBLEU's 13a sets apart.

    Two things of 13a are left out, because they take more than two pieces to see: '.' and ',' between digits stay one
    word there, and '-' behind a digit begins one.
    """
    first, last, blank = [], [], []
    for piece in pieces:
        text = piece.lstrip(SPACE)
        first.append(piece.startswith(SPACE) or text[:1] in APART)
        last.append(text[-1:] in APART)
        blank.append(piece.startswith(SPACE) and not text)
    return WordBoundaries(*(torch.tensor(part) for part in (first, last, blank)))
