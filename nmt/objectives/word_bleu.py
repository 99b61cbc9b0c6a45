"""Sentence BLEU of hypotheses while they grow, of the words that their pieces spell."""

from typing import NamedTuple

import torch
from torch import Tensor

from nmt.objectives.prefix_bleu import Counts, PrefixBLEU, PrefixMatches, smoothed_bleu
from nmt.objectives.soft_bleu import count_reference
from nmt.objectives.words import Words


class WordMatches(NamedTuple):
    """What BLEU knows of a prefix whose last word may go on.

    Attributes:
        ended: of the words before that one.
        value, size: (batch, slots) int64, hash and bytes of the last word, 0 where there is none.
        joinable: (batch, slots), whether the next piece may belong to it.
    """

    ended: PrefixMatches
    value: Tensor
    size: Tensor
    joinable: Tensor


class WordBLEU:
    """BLEU of the words that prefixes spell; what it counts as one is told by `Words`.

    A word that may go on counts as each word of the reference that begins like it, since it can become that: of
    several such words as all of them.

    Args:
        words: of the target vocabulary.
        target: (batch, longest) ids of the references, EOS and padding included.
        lengths: (batch,) of them that count.
        eos: the id of EOS.
    """

    def __init__(self, words: Words, target: Tensor, lengths: Tensor, eos: int) -> None:
        self.words = words
        self.eos = eos
        self.reference = words.references(target, lengths)
        self.scorer = PrefixBLEU(
            self.reference.words, count_reference(self.reference.words, self.reference.lengths), eos
        )

    def start(self) -> WordMatches:
        ended = self.scorer.start()
        none = torch.zeros_like(ended.length, dtype=torch.int64)
        return WordMatches(ended, none, none, none.bool())

    def extend(self, matches: WordMatches, tokens: Tensor) -> WordMatches:
        """The prefixes, each with one more piece; EOS leaves a prefix as it is."""
        ended, value, size, joinable = matches
        tables, grows = self.words, tokens != self.eos
        joins = tables.left[tokens] & joinable
        ended = self.scorer.add(ended, self._is_word(value), grows & ~joins & (size > 0))
        grown = WordMatches(
            ended,
            torch.where(joins, value, 0) * tables.powers[tokens] + tables.hashes[tokens],
            torch.where(joins, size, 0) + tables.sizes[tokens],
            tables.right[tokens],
        )
        return WordMatches(ended, *(torch.where(grows, *pair) for pair in zip(grown[1:], matches[1:], strict=True)))

    def counts(self, matches: WordMatches, finished: Tensor) -> Counts:
        """Of finished hypotheses (batch, slots); of the others, what they reach if all words to come match the
        reference as far as what stands allows."""
        ended, value, size, joinable = matches
        prefixes = self.reference.prefixes.unsqueeze(1)
        longest = prefixes.shape[3] - 1
        place = size.clamp_max(longest)[..., None, None].expand(-1, -1, prefixes.shape[2], 1)
        begins = prefixes.expand(-1, size.shape[1], -1, -1).gather(3, place).squeeze(3) == value.unsqueeze(2)
        begins = begins & (size <= longest).unsqueeze(2)
        equal = torch.where((finished | ~joinable).unsqueeze(2), self._is_word(value), begins)
        return self.scorer.counts(self.scorer.add(ended, equal, size > 0), finished)

    bleu = staticmethod(smoothed_bleu)

    def _is_word(self, value: Tensor) -> Tensor:
        return value.unsqueeze(2) == self.reference.words.unsqueeze(1)


class SpeltMatches(NamedTuple):
    """What BLEU of pieces knows of a prefix, and how many words that spells.

    Attributes:
        pieces: what BLEU of pieces knows.
        ended: (batch, slots), words before the last one.
        begun: (batch, slots), whether there is a last word.
        joinable: (batch, slots), whether the next piece may belong to it.
    """

    pieces: PrefixMatches
    ended: Tensor
    begun: Tensor
    joinable: Tensor


class WordBrevity:
    """BLEU of pieces with the brevity penalty of BLEU of words.

    A translation that says the same in commoner words has fewer pieces and as many words. A penalty that counts pieces
    rewards it for words that nobody asked for.

    Args:
        words: of the target vocabulary.
        target: (batch, longest) ids of the references, EOS and padding included.
        lengths: (batch,) of them that count.
        scorer: BLEU of pieces.
    """

    def __init__(self, words: Words, target: Tensor, lengths: Tensor, scorer: PrefixBLEU) -> None:
        self.words = words
        self.scorer = scorer
        self.targets = words.count(target, lengths).unsqueeze(1)

    def start(self) -> SpeltMatches:
        pieces = self.scorer.start()
        none = torch.zeros_like(pieces.length, dtype=torch.bool)
        return SpeltMatches(pieces, torch.zeros_like(pieces.length), none, none)

    def extend(self, matches: SpeltMatches, tokens: Tensor) -> SpeltMatches:
        """The prefixes, each with one more piece; EOS leaves a prefix as it is."""
        grows = tokens != self.scorer.eos
        joins = self.words.left[tokens] & matches.joinable
        begun = (self.words.sizes[tokens] > 0) | (joins & matches.begun)
        return SpeltMatches(
            self.scorer.extend(matches.pieces, tokens),
            matches.ended + (grows & ~joins & matches.begun),
            torch.where(grows, begun, matches.begun),
            torch.where(grows, self.words.right[tokens], matches.joinable),
        )

    def counts(self, matches: SpeltMatches, finished: Tensor) -> Counts:
        """Of finished hypotheses (batch, slots); of the others, which can still become long enough, what they reach."""
        length = matches.ended + matches.begun
        target = self.targets.to(length.dtype).expand_as(length)
        length = torch.where(finished, length, torch.maximum(length, target))
        return self.scorer.counts(matches.pieces, finished)._replace(length=length, target=target)

    bleu = staticmethod(smoothed_bleu)
