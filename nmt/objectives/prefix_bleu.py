"""BLEU of hypotheses while they grow: what a prefix has matched, and the best that it can still become."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from nmt.objectives.soft_bleu import ORDER
from nmt.objectives.words import WordBoundaries


class PrefixMatches(NamedTuple):
    """What BLEU knows of a prefix; a tree that a search re-parents as it does a decoder's state.

    Attributes:
        run: (batch, slots, longest), words at the end of the prefix that match the reference's up to and with piece j,
            the last word as far as it is spelled; at most 4, 0 where that word does not match.
        seen: (batch, slots, words, 4), how often the n-gram of the reference that ends with a word occurs among the
            words of the prefix that are whole.
        length: (batch, slots), words of the prefix, one that has only begun counted.
        last: (batch, slots), the last piece, -1 at the start.
    """

    run: Tensor
    seen: Tensor
    length: Tensor
    last: Tensor


class BLEUCounts(NamedTuple):
    """What BLEU is computed from.

    Attributes:
        matched: (..., 4), clipped matches of n-grams.
        total: (..., 4), n-grams of the hypothesis.
        length: (...), its words.
    """

    matched: Tensor
    total: Tensor
    length: Tensor


class PrefixBLEU:
    """BLEU of prefixes against the references of a batch, in words.

    A word matches one that is spelled in the same pieces; a model that spells in another way than its vocabulary does
    gets no match for it.

    Args:
        target: (batch, longest) ids of the references, EOS and padding included.
        lengths: (batch,) pieces of the references, EOS not counted.
        eos: the id of EOS.
        boundaries: which pieces begin a word; None: each is one.
    """

    def __init__(self, target: Tensor, lengths: Tensor, eos: int, boundaries: WordBoundaries | None = None) -> None:
        self.eos = eos
        self.boundaries = boundaries
        device = target.device
        rows, longest = target.shape
        places = torch.arange(longest, device=device)
        inside = places < lengths.unsqueeze(1)
        previous = torch.nn.functional.pad(target[:, :-1], (1, 0), value=-1)
        # EOS and padding begin a word each that has no place among the reference's.
        self.begins = self._begins(target, previous) | ~inside
        # -1 is no piece: EOS and padding match nothing.
        self.target = target.masked_fill(~inside, -1)
        self.lengths = (self.begins & inside).sum(dim=1)
        self.word = (self.begins.cumsum(dim=1) - 1).clamp_min(0)
        words = max(int(self.lengths.max()), 1)
        ends = torch.zeros(rows, longest + 1, dtype=torch.long, device=device)
        self.ends = ends.scatter_reduce(1, self.word, places.expand(rows, -1), "amax")[:, :words]
        # Two words are the same if their pieces are: compared by a polynomial of them, modulo 2^64.
        code, codes = torch.zeros_like(self.lengths), []
        for place in range(longest):
            code = torch.where(self.begins[:, place], 0, code * 6_364_136_223_846_793_005) + target[:, place] + 1
            codes.append(code)
        spelled = torch.stack(codes, dim=1).gather(1, self.ends)
        self.orders = torch.arange(ORDER, device=device)
        self._count(spelled)

    def _count(self, spelled: Tensor) -> None:
        """Tables of the references' n-grams, each at the word where it ends, from (batch, words) codes."""
        words = spelled.shape[1]
        inside = torch.arange(words, device=spelled.device) < self.lengths.unsqueeze(1)
        one = (spelled.unsqueeze(2) == spelled.unsqueeze(1)) & inside.unsqueeze(2) & inside.unsqueeze(1)
        alike = [one]
        for _ in range(1, ORDER):
            alike.append(torch.nn.functional.pad(alike[-1][:, :-1, :-1], (1, 0, 1, 0)) & one)
        same = torch.stack(alike, dim=3).float()
        counts = same.sum(dim=2)
        # Each of the places of an n-gram sees the same clipped count.
        self.share = 1 / counts.clamp_min(1) * (counts > 0)
        # Of a suffix that begins behind `cut` words, when the `run` words before match: the n-grams that it adds ...
        cut = torch.arange(words + 1, device=spelled.device).view(-1, 1, 1, 1)
        run = torch.arange(ORDER + 1, device=spelled.device).view(-1, 1, 1)
        place = torch.arange(words, device=spelled.device).view(-1, 1)
        added = ((place >= cut) & (self.orders - (place - cut) <= run)).float()
        self.added = torch.einsum("bwn,crwn->bcrn", (counts > 0).float(), added)
        # ... and how many of an n-gram's occurrences it leaves to the prefix.
        self.left = counts.unsqueeze(1).unsqueeze(1) - torch.einsum("bvwn,crwn->bcrvn", same, added)
        self.suffixes = torch.arange(words + 1, device=spelled.device)

    def start(self) -> PrefixMatches:
        rows, longest = self.target.shape
        zeros = torch.zeros(rows, 1, longest, device=self.target.device)
        seen = torch.zeros_like(self.share).unsqueeze(1)
        return PrefixMatches(zeros, seen, zeros[..., 0], torch.full_like(self.target[:, :1], -1))

    def extend(self, matches: PrefixMatches, tokens: Tensor) -> PrefixMatches:
        """The prefixes, each with one more token, (batch, slots); EOS ends the last word."""
        grows = tokens != self.eos
        begins = self._begins(tokens, matches.last)
        ended = self._at_ends(matches.run) * (begins | ~grows).unsqueeze(2)
        seen = matches.seen + (ended.unsqueeze(3) > self.orders)
        before = torch.nn.functional.pad(matches.run[..., :-1], (1, 0))
        # Where one begins a word and the other does not, they differ.
        opens, reference_opens = begins.unsqueeze(2), self.begins.unsqueeze(1)
        run = torch.where(opens, (before + 1).clamp_max(ORDER), before)
        equal = (tokens.unsqueeze(2) == self.target.unsqueeze(1)) & (opens == reference_opens)
        run = torch.where(equal, run, 0.0)
        length = matches.length + (grows & begins)
        return PrefixMatches(run, seen, length, tokens)

    def finished(self, matches: PrefixMatches) -> BLEUCounts:
        """The counts (batch, slots) of prefixes that have read EOS."""
        counts = self.left[:, -1, 0].unsqueeze(1)
        matched = (torch.minimum(matches.seen, counts) * self.share.unsqueeze(1)).sum(dim=2)
        return BLEUCounts(matched, self._totals(matches.length), matches.length)

    def completed(self, matches: PrefixMatches) -> tuple[BLEUCounts, Tensor]:
        """The counts (batch, slots, words + 1) of prefixes, each completed by each suffix of its reference, the longest
        first, and which of them there are, (batch, 1, words + 1).

        The word that stands last counts as whole where a word of the reference begins so. Of the n-grams that begin in
        the prefix and end in the suffix, those match that are the reference's at that place.
        """
        rows, slots, longest = matches.run.shape
        opened = matches.run.new_zeros(rows, slots, longest + 1)
        opened = opened.scatter_reduce(2, self.word.unsqueeze(1).expand(-1, slots, -1), matches.run, "amax")
        opened = opened[..., : self.ends.shape[1]]
        seen = matches.seen + (opened.unsqueeze(3) > self.orders)
        run = torch.nn.functional.pad(opened, (1, 0)).long()
        which = torch.arange(rows, device=run.device).view(-1, 1, 1), self.suffixes, run
        matched = torch.einsum("bscwn,bwn->bscn", torch.minimum(seen.unsqueeze(2), self.left[which]), self.share)
        wanted = self.lengths.view(-1, 1, 1)
        length = matches.length.unsqueeze(2) + (wanted - self.suffixes).clamp_min(0)
        total = self._totals(length)
        matched = torch.minimum(matched + self.added[which], total)
        return BLEUCounts(matched, total, length), self.suffixes <= wanted

    def _totals(self, length: Tensor) -> Tensor:
        return (length.unsqueeze(-1) - self.orders).clamp_min(0)

    def _begins(self, tokens: Tensor, previous: Tensor) -> Tensor:
        if self.boundaries is None:
            return torch.ones_like(tokens, dtype=torch.bool)
        return self.boundaries.begins(tokens, previous)

    def _at_ends(self, run: Tensor) -> Tensor:
        return run.gather(2, self.ends.unsqueeze(1).expand(-1, run.shape[1], -1))


def worth(scorer: PrefixBLEU, matches: PrefixMatches, ended: Tensor, score: Callable[[BLEUCounts], Tensor]) -> Tensor:
    """What prefixes are worth, (batch, slots): the score of those that have ended; of another the score of its best
    completion by a suffix of the reference.

    Args:
        scorer, matches: the prefixes.
        ended: (batch, slots), true where a prefix has read EOS.
        score: of counts (batch, ...).
    """
    counts, there = scorer.completed(matches)
    best = score(counts).masked_fill(~there, -torch.inf).amax(dim=2)
    return torch.where(ended, score(scorer.finished(matches)), best)


def sentence_bleu(counts: BLEUCounts, reference_length: Tensor) -> Tensor:
    """BLEU of single sentences, in [0, 1], add-one smoothed for n > 1 (Lin and Och, COLING 2004).

    Args:
        counts: (batch, ...).
        reference_length: (batch,).
    """
    reference_length = reference_length.view(-1, *(1,) * (counts.length.dim() - 1))
    smooth = torch.zeros(ORDER, device=counts.total.device).index_fill_(
        0, torch.arange(1, ORDER, device=counts.total.device), 1
    )
    precision = (counts.matched + smooth) / (counts.total + smooth).clamp_min(1e-6)
    log_precision = precision.clamp_min(1e-12).log().mean(dim=-1)
    brevity = (1 - reference_length / counts.length.clamp_min(1e-6)).clamp(min=-30, max=0)
    score = (log_precision + brevity).exp()
    return torch.where((counts.matched[..., 0] > 0) & (counts.length > 0), score, torch.zeros_like(score))
