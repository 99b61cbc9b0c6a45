"""How pieces make words, so that BLEU in training can count what sacreBLEU counts."""

import logging
import random
import string
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from nmt.errors import UserError
from nmt.text.vocabulary import Spelling, Vocabulary

logger = logging.getLogger(__name__)

# What sacreBLEU's tokenizer 13a splits off, but for the digits around ".", "," and "-".
PUNCTUATION = frozenset(string.punctuation) - frozenset("'-")
_WRAP = (1 << 64) - 1
# Beyond it, what stands between spaces are no words.
MOST_PIECES = 8
# Odd, so that powers lose nothing; fixed, so that a run repeats itself.
_BASE = random.Random(13).getrandbits(63) | 1


Unit = Literal["pieces", "words"]


def check_units(section: str, share: float, brevity: str) -> None:
    """Refuses what is no share of BLEU of words, and no unit of its brevity penalty.

    Raises:
        UserError: the share is not within 0..1, or the unit neither pieces nor words.
    """
    if not 0 <= share <= 1:
        raise UserError(f"{section}.word_share is {share}; give a number from 0 (pieces alone) to 1 (words alone)")
    if brevity not in ("pieces", "words"):
        raise UserError(f"{section}.brevity is '{brevity}'; choose pieces or words")


class ReferenceWords(NamedTuple):
    """The words of references, as hashes of their bytes; 0 stands for none and equals no hash.

    Attributes:
        words: (batch, words) int64; a word with an unknown piece is 0.
        lengths: (batch,) words.
        prefixes: (batch, words, 1 + longest) int64, of their first 0, 1, ... bytes; 0 from where a word has ended.
    """

    words: Tensor
    lengths: Tensor
    prefixes: Tensor


class Words(nn.Module):
    """Tables of a vocabulary's pieces, for words that are followed piece by piece.

    A word is what stands between spaces; a piece of nothing but ASCII punctuation (apostrophe and hyphen aside) is a
    word of its own. That is sacreBLEU's tokenizer 13a, but for numbers ("3.5" is three words) and for pieces that hold
    punctuation among other characters. How a word is cut into pieces makes no difference.

    Attributes:
        left, right: (pieces,) bool, whether a piece goes on with the word before it, or lets the one after it go on.
        hashes, powers: (pieces,) int64: the polynomial hash modulo 2^64 of a piece's bytes, and what a hash before it
            is multiplied with.
        sizes: (pieces,) int64, its bytes; 0 for special pieces.

    Args:
        vocabulary: of the target side.
        share: of BLEU of words in what a prefix is worth.
        brevity: what the brevity penalty of the rest, BLEU of pieces, counts.
    """

    left: Tensor
    right: Tensor
    hashes: Tensor
    powers: Tensor
    sizes: Tensor

    def __init__(self, vocabulary: Vocabulary, share: float = 1.0, brevity: Unit = "pieces") -> None:
        super().__init__()
        self.share = share
        self.brevity = brevity
        special = vocabulary.special
        self.unknown = special.unknown
        self.warned = False
        spelt = vocabulary.spellings()
        for i in (special.padding, special.bos, special.eos):
            spelt[i] = Spelling(b"", left=True, right=True)
        spelt[special.unknown] = spelt[special.unknown]._replace(left=False, right=False)
        self.contents = [each.content for each in spelt]
        apart = [bool(each.content) and PUNCTUATION.issuperset(each.content.decode("latin-1")) for each in spelt]
        left = [each.left and not alone for each, alone in zip(spelt, apart, strict=True)]
        right = [each.right and not alone for each, alone in zip(spelt, apart, strict=True)]
        for name, values in (("left", left), ("right", right)):
            self.register_buffer(name, torch.tensor(values), persistent=False)
        hashes = [prefix_hashes(content)[-1] for content in self.contents]
        powers = [_signed(pow(_BASE, len(content), 1 << 64)) for content in self.contents]
        sizes = [len(content) for content in self.contents]
        for name, numbers in (("hashes", hashes), ("powers", powers), ("sizes", sizes)):
            self.register_buffer(name, torch.tensor(numbers, dtype=torch.int64), persistent=False)
        self._joints = list(zip(left, right, strict=True))

    def split(self, ids: Sequence[int]) -> list[bytes | None]:
        """The words of ids; None for one with an unknown piece."""
        words: list[bytes | None] = []
        joinable = False
        for i in ids:
            left, right = self._joints[i]
            content = self.contents[i]
            if not (left and joinable):
                words.append(b"")
            known = words[-1]
            words[-1] = None if known is None or i == self.unknown else known + content
            joinable = right
        return [word for word in words if word is None or word]

    def count(self, target: Tensor, lengths: Tensor) -> Tensor:
        """How many words, (batch,), the ids (batch, longest) are, of which `lengths` (batch,) count (without EOS)."""
        return torch.tensor([len(row) for row in self._rows(target, lengths)], device=target.device)

    def references(self, target: Tensor, lengths: Tensor) -> ReferenceWords:
        """The words of the ids (batch, longest), of which `lengths` (batch,) count (without EOS)."""
        rows = self._rows(target, lengths)
        hashed = [[(0,) if word is None else prefix_hashes(word) for word in row] for row in rows]
        most = max((len(row) for row in rows), default=0) or 1
        longest = max((len(each) for row in hashed for each in row), default=1)
        prefixes = np.zeros((len(rows), most, longest), dtype=np.int64)
        words = np.zeros((len(rows), most), dtype=np.int64)
        for number, row in enumerate(hashed):
            for place, each in enumerate(row):
                prefixes[number, place, : len(each)] = each
                words[number, place] = each[-1]
        counts = torch.tensor([len(row) for row in rows], dtype=torch.int64)
        found = ReferenceWords(torch.from_numpy(words), counts, torch.from_numpy(prefixes))
        return ReferenceWords(*(tensor.to(target.device) for tensor in found))

    def _rows(self, target: Tensor, lengths: Tensor) -> list[list[bytes | None]]:
        rows = [self.split(ids[:length]) for ids, length in zip(target.tolist(), lengths.tolist(), strict=True)]
        if not self.warned and sum(map(len, rows)) * MOST_PIECES < int(lengths.sum()):
            self.warned = True
            logger.warning(
                f"the references have more than {MOST_PIECES} pieces a word: BLEU of words tells little of a language "
                "that puts no spaces; set the objective's word_share to 0 and its brevity to pieces"
            )
        return rows


@lru_cache(maxsize=1 << 17)
def prefix_hashes(content: bytes) -> tuple[int, ...]:
    """Hashes, as signed 64-bit integers, of the first 0, 1, ... bytes; that of none is 0."""
    found, value = [0], 0
    for byte in content:
        value = (value * _BASE + byte + 1) & _WRAP
        found.append(_signed(value))
    return tuple(found)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
