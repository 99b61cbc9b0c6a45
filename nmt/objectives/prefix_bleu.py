"""Sentence BLEU of hypotheses while they grow: what a prefix has matched, and the best that it can still become."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from nmt.objectives.soft_bleu import ORDER, ReferenceCounts


class Counts(NamedTuple):
    """What BLEU is a function of; of several hypotheses together, the sums.

    Attributes:
        matched, total: (batch, slots, 4), n-grams of the hypothesis that match, and all of them.
        hoped: (batch, slots, 4), of those that are still to come how many match; 0 where there are none.
        length, target: (batch, slots), of the hypothesis and of its reference, for the brevity penalty.
    """

    matched: Tensor
    total: Tensor
    hoped: Tensor
    length: Tensor
    target: Tensor


def smoothed_bleu(counts: Counts) -> Tensor:
    """BLEU (batch, slots), add-one for n > 1 (Lin and Och, 2004; sacreBLEU's `add-k` with k = 1); 0 without a match."""
    matched, total, hoped, length, target = counts
    matched = matched + hoped
    smooth = (torch.arange(ORDER, device=total.device) > 0).to(total.dtype)
    precision = (matched + smooth) / (total + smooth).clamp_min(1e-6)
    log_precision = precision.clamp_min(1e-12).log().mean(dim=2)
    brevity = (1 - target / length.clamp_min(1e-6)).clamp(min=-30, max=0)
    score = (log_precision + brevity).exp()
    return torch.where((matched[..., 0] > 0) & (length > 0), score, torch.zeros_like(score))


def sobered(counts: Any, seen: Any) -> Any:
    """Of the n-grams to come, instead of all that can match, the share that matched in what is known.

    Args:
        counts: of prefixes; a tree of `Counts`.
        seen: of finished hypotheses together, (1, 1) where those have (batch, slots).
    """
    if not isinstance(counts, Counts):
        return tuple(sobered(*pair) for pair in zip(counts, seen, strict=True))
    return counts._replace(hoped=counts.hoped * (seen.matched / seen.total.clamp_min(1)))


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
        self.reference_counts = ends
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

    def counts(self, matches: PrefixMatches, finished: Tensor) -> Counts:
        """Of finished hypotheses (batch, slots); of the others, what they reach if all tokens to come match the
        reference as far as what stands allows."""
        counts = self.reference_counts.unsqueeze(1)
        matched = (torch.minimum(matches.seen, counts) / counts.clamp_min(1)).sum(dim=2)
        length, target = matches.length, self.lengths.unsqueeze(1).to(matches.length.dtype)
        rest = torch.where(finished, 0.0, (target - length).clamp_min(0))
        # An n-gram that begins in the prefix can match only where the prefix ends in a match.
        run = matches.run.amax(dim=2)
        broken = (torch.minimum(self.orders, length.unsqueeze(2)) - run.unsqueeze(2)).clamp_min(0)
        gain = torch.minimum(
            (rest.unsqueeze(2) - broken).clamp_min(0), (self.totals.unsqueeze(1) - matched).clamp_min(0)
        )
        length = length + rest
        total = (length.unsqueeze(2) - self.orders).clamp_min(0)
        return Counts(matched, total, gain, length, target.expand_as(length))

    bleu = staticmethod(smoothed_bleu)
