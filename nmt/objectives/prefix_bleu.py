"""Sentence BLEU of hypotheses while they grow: what a prefix has matched, and the best that it can still become."""

from typing import NamedTuple

import torch
from torch import Tensor

from nmt.objectives.soft_bleu import ORDER, ReferenceCounts


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
        grows = (tokens != self.eos).to(matches.run.dtype)
        equal = tokens.unsqueeze(2) == self.target.unsqueeze(1)
        before = torch.nn.functional.pad(matches.run[..., :-1], (1, 0))
        run = torch.where(equal, (before + 1).clamp_max(ORDER), 0.0)
        run = torch.where(grows.unsqueeze(2) > 0, run, matches.run)
        seen = matches.seen + (run.unsqueeze(3) > self.orders) * grows[..., None, None]
        return PrefixMatches(run, seen, matches.length + grows)

    def bleu(self, matches: PrefixMatches, finished: Tensor) -> Tensor:
        """Smoothed sentence BLEU (batch, slots) of finished hypotheses; of the others, the BLEU that they reach if
        all tokens to come match the reference as far as what stands allows."""
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
        brevity = (1 - target / length.clamp_min(1e-6)).clamp(min=-30, max=0)
        score = (log_precision + brevity).exp()
        return torch.where((matched[..., 0] > 0) & (length > 0), score, torch.zeros_like(score))
