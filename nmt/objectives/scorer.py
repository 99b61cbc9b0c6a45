"""What counts as BLEU in training: that of pieces, of words, or of both."""

from typing import Any, Protocol

from torch import Tensor

from nmt.objectives.prefix_bleu import PrefixBLEU
from nmt.objectives.soft_bleu import count_reference
from nmt.objectives.word_bleu import WordBLEU, WordBrevity
from nmt.objectives.words import Words
from nmt.text.batching import Batch


class Scorer(Protocol):
    """Follows hypotheses token by token; what it knows of them is a tree that is re-parented like a state."""

    def start(self) -> Any: ...

    def extend(self, matches: Any, tokens: Tensor) -> Any:
        """The prefixes, each with one more token (batch, slots); EOS leaves a prefix as it is."""
        ...

    def counts(self, matches: Any, finished: Tensor) -> Any:
        """What BLEU is a function of, of finished hypotheses (batch, slots); of the others, the best within reach. A
        tree of sums: that of several hypotheses together is the sum of theirs."""
        ...

    def bleu(self, counts: Any) -> Tensor:
        """Smoothed BLEU (batch, slots)."""
        ...


def make_scorer(batch: Batch, eos: int, words: Words | None) -> Scorer:
    """Of the pieces of a batch's references, of their words, or of both by shares."""
    lengths = batch.target_lengths - 1
    if words is not None and words.share == 1:
        return WordBLEU(words, batch.target, lengths, eos)
    pieces = PrefixBLEU(batch.target, count_reference(batch.target, lengths), eos)
    if words is None:
        return pieces
    of_pieces = WordBrevity(words, batch.target, lengths, pieces) if words.brevity == "words" else pieces
    if words.share == 0:
        return of_pieces
    return MixedBLEU(WordBLEU(words, batch.target, lengths, eos), of_pieces, words.share)


class MixedBLEU:
    """The mean of two scorers' values, the first one's with weight `share`."""

    def __init__(self, first: Scorer, second: Scorer, share: float) -> None:
        self.scorers = first, second
        self.shares = share, 1 - share

    def start(self) -> tuple[Any, ...]:
        return tuple(scorer.start() for scorer in self.scorers)

    def extend(self, matches: tuple[Any, ...], tokens: Tensor) -> tuple[Any, ...]:
        """The prefixes, each with one more token."""
        return tuple(scorer.extend(known, tokens) for scorer, known in zip(self.scorers, matches, strict=True))

    def counts(self, matches: tuple[Any, ...], finished: Tensor) -> tuple[Any, ...]:
        """Of both."""
        return tuple(scorer.counts(known, finished) for scorer, known in zip(self.scorers, matches, strict=True))

    def bleu(self, counts: tuple[Any, ...]) -> Tensor:
        """The weighted mean of the values."""
        first, second = (scorer.bleu(known) for scorer, known in zip(self.scorers, counts, strict=True))
        return self.shares[0] * first + self.shares[1] * second
