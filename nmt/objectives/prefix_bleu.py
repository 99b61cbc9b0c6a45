"""BLEU of hypotheses while they grow: what a prefix has matched, and the best that it can still become."""

from typing import NamedTuple

import torch
from torch import Tensor

from nmt.objectives.soft_bleu import ORDER, count_reference
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
    """What BLEU is computed from, a row a hypothesis.

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
        rows, longest = target.shape
        inside = torch.arange(longest, device=target.device) < lengths.unsqueeze(1)
        previous = torch.nn.functional.pad(target[:, :-1], (1, 0), value=-1)
        # EOS and padding begin a word each that has no place among the reference's.
        self.begins = self._begins(target, previous) | ~inside
        # -1 is no piece: EOS and padding match nothing.
        self.target = target.masked_fill(~inside, -1)
        self.lengths = (self.begins & inside).sum(dim=1)
        self.word = (self.begins.cumsum(dim=1) - 1).clamp_min(0)
        words = int(self.lengths.max()) if rows else 0
        places = torch.arange(longest, device=target.device).expand(rows, -1)
        ends = torch.zeros(rows, longest + 1, dtype=torch.long, device=target.device)
        self.ends = ends.scatter_reduce(1, self.word, places, "amax")[:, : max(words, 1)]
        # Two words are the same if their pieces are: compared by a polynomial of them, modulo 2^64.
        code, codes = torch.zeros_like(self.lengths), []
        for place in range(longest):
            code = torch.where(self.begins[:, place], 0, code * 6_364_136_223_846_793_005) + target[:, place] + 1
            codes.append(code)
        spelled = torch.stack(codes, dim=1).gather(1, self.ends)
        # Counts by where an n-gram ends instead of where it begins.
        self.counts = torch.zeros(*spelled.shape, ORDER, device=target.device)
        for n, counts in enumerate(count_reference(spelled, self.lengths).counts):
            self.counts[:, n:, n] = counts
        self.orders = torch.arange(ORDER, device=target.device)
        self.totals = (self.lengths.unsqueeze(1) - self.orders).clamp_min(0).float()

    def start(self) -> PrefixMatches:
        rows, longest = self.target.shape
        zeros = torch.zeros(rows, 1, longest, device=self.target.device)
        seen = torch.zeros_like(self.counts).unsqueeze(1)
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

    def counts_of(self, matches: PrefixMatches, finished: Tensor) -> BLEUCounts:
        """The counts (batch, slots) of finished hypotheses; of the others, those that they reach if all words to come,
        up to the reference's length, match the reference as far as what stands allows."""
        counts = self.counts.unsqueeze(1)

        def clipped(seen: Tensor) -> Tensor:
            return (torch.minimum(seen, counts) / counts.clamp_min(1)).sum(dim=2)

        matched = clipped(matches.seen)
        rest = (self.lengths.unsqueeze(1) - matches.length).clamp_min(0).unsqueeze(2)
        # The word that stands last may be whole or go on to be what it matches so far.
        rows, slots, _ = matches.run.shape
        opened = matches.run.new_zeros(rows, slots, matches.run.shape[2] + 1)
        opened = opened.scatter_reduce(2, self.word.unsqueeze(1).expand(-1, slots, -1), matches.run, "amax")
        opened = opened[..., : self.ends.shape[1]].unsqueeze(3) > self.orders
        gain = (clipped(matches.seen + opened) - matched).clamp_max(1)
        # An n-gram that begins in the prefix can match only where the prefix ends in a match.
        run = matches.run.amax(dim=2, keepdim=True)
        broken = (torch.minimum(self.orders, matches.length.unsqueeze(2)) - run).clamp_min(0)
        gain = torch.minimum(gain + (rest - broken).clamp_min(0), self.totals.unsqueeze(1) - matched)
        matched = matched + torch.where(finished.unsqueeze(2), 0.0, gain.clamp_min(0))
        length = matches.length + torch.where(finished, 0.0, rest.squeeze(2))
        return BLEUCounts(matched, (length.unsqueeze(2) - self.orders).clamp_min(0), length)

    def bleu(self, matches: PrefixMatches, finished: Tensor) -> Tensor:
        """Smoothed sentence BLEU (batch, slots) of finished hypotheses; the best within reach of the others."""
        return sentence_bleu(self.counts_of(matches, finished), self.lengths.unsqueeze(1))

    def _begins(self, tokens: Tensor, previous: Tensor) -> Tensor:
        if self.boundaries is None:
            return torch.ones_like(tokens, dtype=torch.bool)
        return self.boundaries.begins(tokens, previous)

    def _at_ends(self, run: Tensor) -> Tensor:
        return run.gather(2, self.ends.unsqueeze(1).expand(-1, run.shape[1], -1))


def sentence_bleu(counts: BLEUCounts, reference_length: Tensor) -> Tensor:
    """BLEU of single sentences, in [0, 1], add-one smoothed for n > 1 (Lin and Och, COLING 2004)."""
    smooth = torch.zeros(ORDER, device=counts.total.device).index_fill_(
        0, torch.arange(1, ORDER, device=counts.total.device), 1
    )
    precision = (counts.matched + smooth) / (counts.total + smooth).clamp_min(1e-6)
    log_precision = precision.clamp_min(1e-12).log().mean(dim=-1)
    brevity = (1 - reference_length / counts.length.clamp_min(1e-6)).clamp(min=-30, max=0)
    score = (log_precision + brevity).exp()
    return torch.where((counts.matched[..., 0] > 0) & (counts.length > 0), score, torch.zeros_like(score))
