"""Sentence BLEU of hypotheses while they grow: what a prefix has matched, and the best that it can still become."""

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from nmt.objectives.soft_bleu import ORDER, ReferenceCounts, count_reference
from nmt.objectives.words import Words
from nmt.text.batching import Batch


class Scorer(Protocol):
    """Follows hypotheses token by token; what it knows of them is a tree that is re-parented like a state."""

    def start(self) -> Any: ...

    def extend(self, matches: Any, tokens: Tensor) -> Any:
        """The prefixes, each with one more token (batch, slots); EOS leaves a prefix as it is."""
        ...

    def bleu(self, matches: Any, finished: Tensor) -> Tensor:
        """Smoothed sentence BLEU (batch, slots) of finished hypotheses; of the others, the best within reach."""
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


class PrefixMatches(NamedTuple):
    """What BLEU knows of a prefix; a tree that a search re-parents as it does a decoder's state.

    Attributes:
        run: (batch, slots, longest), tokens at the end of the prefix that match the reference's tokens up to and with
            position j, at most 4.
        seen: (batch, slots, longest, 4), how often the n-gram of the reference that ends at j occurs in the prefix.
        length: (batch, slots), tokens of the prefix, EOS not counted.
    """

    run: Tensor
    seen: Tensor
    length: Tensor


class PrefixBLEU:
    """BLEU of prefixes against the references of a batch.

    Args:
        target: (batch, longest) ids of the references, EOS and padding included.
        reference: their n-gram counts.
        eos: the id of EOS.
    """

    def __init__(self, target: Tensor, reference: ReferenceCounts, eos: int) -> None:
        self.eos = eos
        longest = target.shape[1]
        positions = torch.arange(longest, device=target.device)
        # -1 is no token: EOS and padding match nothing.
        self.target = target.masked_fill(positions >= reference.lengths.unsqueeze(1), -1)
        # Counts by where an n-gram ends instead of where it begins.
        ends = torch.zeros(*target.shape, ORDER, device=target.device)
        for n, counts in enumerate(reference.counts):
            ends[:, n:, n] = counts
        self.counts = ends
        orders = torch.arange(ORDER, device=target.device)
        self.orders = orders
        self.lengths = reference.lengths
        self.totals = (reference.lengths.unsqueeze(1) - orders).clamp_min(0).float()

    def start(self) -> PrefixMatches:
        rows, longest = self.target.shape
        zeros = torch.zeros(rows, 1, longest, device=self.target.device)
        return PrefixMatches(zeros, zeros.unsqueeze(3).expand(-1, -1, -1, ORDER), zeros[..., 0])

    def extend(self, matches: PrefixMatches, tokens: Tensor) -> PrefixMatches:
        """The prefixes, each with one more token; EOS leaves a prefix as it is."""
        return self.add(matches, tokens.unsqueeze(2) == self.target.unsqueeze(1), tokens != self.eos)

    def add(self, matches: PrefixMatches, equal: Tensor, grown: Tensor) -> PrefixMatches:
        """The prefixes, each with one more token where it is `grown` (batch, slots).

        Args:
            matches: of the prefixes.
            equal: (batch, slots, longest), whether that token is the reference's at j.
            grown: (batch, slots).
        """
        grows = grown.to(matches.run.dtype)
        before = torch.nn.functional.pad(matches.run[..., :-1], (1, 0))
        run = torch.where(equal, (before + 1).clamp_max(ORDER), 0.0)
        run = torch.where(grows.unsqueeze(2) > 0, run, matches.run)
        seen = matches.seen + (run.unsqueeze(3) > self.orders) * grows[..., None, None]
        return PrefixMatches(run, seen, matches.length + grows)

    def bleu(self, matches: PrefixMatches, finished: Tensor, brevity: Tensor | None = None) -> Tensor:
        """Smoothed sentence BLEU (batch, slots) of finished hypotheses; of the others, the BLEU that they reach if
        all tokens to come match the reference as far as what stands allows.

        Args:
            matches: of the prefixes.
            finished: (batch, slots).
            brevity: (batch, slots), instead of this BLEU's own, the logarithm of the brevity penalty.
        """
        counts = self.counts.unsqueeze(1)
        matched = (torch.minimum(matches.seen, counts) / counts.clamp_min(1)).sum(dim=2)
        length, target = matches.length, self.lengths.unsqueeze(1).to(matches.length.dtype)
        rest = torch.where(finished, 0.0, (target - length).clamp_min(0))
        # An n-gram that begins in the prefix can match only where the prefix ends in a match.
        run = matches.run.amax(dim=2)
        broken = (torch.minimum(self.orders, length.unsqueeze(2)) - run.unsqueeze(2)).clamp_min(0)
        gain = torch.minimum(
            (rest.unsqueeze(2) - broken).clamp_min(0), (self.totals.unsqueeze(1) - matched).clamp_min(0)
        )
        matched = matched + gain
        length = length + rest
        total = (length.unsqueeze(2) - self.orders).clamp_min(0)
        smooth = (self.orders > 0).to(total.dtype)
        precision = (matched + smooth) / (total + smooth).clamp_min(1e-6)
        log_precision = precision.clamp_min(1e-12).log().mean(dim=2)
        if brevity is None:
            brevity = log_brevity(length, target)
        score = (log_precision + brevity).exp()
        return torch.where((matched[..., 0] > 0) & (length > 0), score, torch.zeros_like(score))


def log_brevity(length: Tensor, target: Tensor) -> Tensor:
    """The logarithm of BLEU's brevity penalty, min(0, 1 - target / length), not below -30."""
    return (1 - target / length.clamp_min(1e-6)).clamp(min=-30, max=0)


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

    def bleu(self, matches: SpeltMatches, finished: Tensor) -> Tensor:
        """Smoothed sentence BLEU (batch, slots) of finished hypotheses; of the others, which can still become as long
        as they like, the best within reach."""
        target = self.targets.to(matches.ended.dtype)
        brevity = log_brevity(matches.ended + matches.begun, target)
        return self.scorer.bleu(matches.pieces, finished, torch.where(finished, brevity, 0.0))


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

    A word that may go on counts as each word of the reference that begins like it, since it can become that.

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

    def bleu(self, matches: WordMatches, finished: Tensor) -> Tensor:
        """Smoothed sentence BLEU (batch, slots) of finished hypotheses; of the others, the BLEU that they reach if all
        words to come match the reference as far as what stands allows."""
        ended, value, size, _ = matches
        prefixes = self.reference.prefixes.unsqueeze(1)
        longest = prefixes.shape[3] - 1
        place = size.clamp_max(longest)[..., None, None].expand(-1, -1, prefixes.shape[2], 1)
        begins = prefixes.expand(-1, size.shape[1], -1, -1).gather(3, place).squeeze(3) == value.unsqueeze(2)
        begins = begins & (size <= longest).unsqueeze(2)
        equal = torch.where(finished.unsqueeze(2), self._is_word(value), begins)
        return self.scorer.bleu(self.scorer.add(ended, equal, size > 0), finished)

    def _is_word(self, value: Tensor) -> Tensor:
        return value.unsqueeze(2) == self.reference.words.unsqueeze(1)


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

    def bleu(self, matches: tuple[Any, ...], finished: Tensor) -> Tensor:
        """The weighted mean of the values."""
        first, second = (scorer.bleu(known, finished) for scorer, known in zip(self.scorers, matches, strict=True))
        return self.shares[0] * first + self.shares[1] * second
