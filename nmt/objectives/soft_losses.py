"""Losses on the soft search, whose states are mixtures: they watch its steps and give their value at the end."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from nmt.models.seq2seq import Seq2Seq
from nmt.objectives.objective import shares
from nmt.objectives.soft_bleu import count_reference, soft_bleu
from nmt.search.beam import Beam, continued
from nmt.search.soft import SoftSearchConfig, SoftStep, scale_gradient
from nmt.text.batching import Batch
from nmt.tree import product


class SoftLoss(ABC):
    """What the unrolled search asks of a loss.

    Attributes:
        steps: how many steps the search takes.
    """

    steps: int

    def required(self, position: int) -> tuple[Tensor, Tensor] | None:
        """A slot and a token, (batch,) each, that have to be among the candidates of the step; None: none."""
        return None

    @abstractmethod
    def observe(self, position: int, step: SoftStep) -> None:
        """Sees a step."""

    def restarts(self, position: int) -> Tensor | None:
        """The sentences, (batch,) true, whose beam begins anew from the reference's prefix after the step."""
        return None

    @abstractmethod
    def finish(self, beam: Beam) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and figures to log."""


# Of a slot that has ended so much counts as open, where the reference goes on: the slope of its logarithm stays finite.
LEAST_OPEN = 1e-3


class TokenLoss(SoftLoss):
    """-log sum_l pi_l p'_l(gold_t), a mean over the reference's tokens; p' is that of the search, in which a slot that
    has ended continues with EOS alone."""

    def __init__(self, batch: Batch, restart: float, eos: int) -> None:
        self.batch = batch
        self.eos = eos
        self.restart = restart
        self.steps = batch.target.shape[1]
        self.parts: list[Tensor] = []

    def restarts(self, position: int) -> Tensor | None:
        rows = self.batch.target_lengths
        return torch.rand(rows.shape, device=rows.device) < self.restart

    def observe(self, position: int, step: SoftStep) -> None:
        gold = self.batch.target[:, position]
        # By indices: gather would keep all logits for the backward pass.
        logits = step.logits[torch.arange(len(gold), device=gold.device), :, gold]
        ends = (gold == self.eos).unsqueeze(1)
        finished = torch.where(ends, step.before.finished, step.before.finished.clamp_max(1 - LEAST_OPEN))
        token = continued(logits - step.normaliser, finished, ends)
        mixture = step.before.scores.log_softmax(dim=1) + token
        inside = self.batch.target_lengths > position
        self.parts.append(-mixture.logsumexp(dim=1) * inside)

    def finish(self, beam: Beam) -> tuple[Tensor, dict[str, Tensor]]:
        value = torch.stack(self.parts).sum() / self.batch.target_lengths.sum()
        return value, {"soft_nll": value.detach()}


class GoldInBeamLoss(SoftLoss):
    """-log of the soft inclusion of the reference's prefix in the beam, a mean over the reference's tokens.

    With g_l the share of slot l that is the reference's prefix, g'_m = sum over l of A_(l,gold),m g_l is its share of
    the next one, and sum g' / sum g its inclusion in the step; the product over the steps telescopes to the inclusion
    of the whole prefix. Where less than half of it is left, it has fallen off: the beam begins anew from it. At its end
    the reference has to be the first, not only in the beam.
    """

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.steps = batch.target.shape[1]
        rows = batch.target.shape[0]
        self.share = torch.ones(rows, 1, device=batch.target.device)
        self.lost = torch.zeros(rows, dtype=torch.bool, device=batch.target.device)
        self.parts: list[Tensor] = []
        self.kept: list[Tensor] = []

    def required(self, position: int) -> tuple[Tensor, Tensor] | None:
        return self.share.argmax(dim=1), self.batch.target[:, position]

    def observe(self, position: int, step: SoftStep) -> None:
        candidates, weights = step.selection.candidates, step.selection.weights
        gold = candidates.tokens == self.batch.target[:, position].unsqueeze(1)
        share = self.share.to(weights.dtype)
        inside = self.batch.target_lengths > position
        last = (self.batch.target_lengths == position + 1).unsqueeze(1)
        after = product((share.gather(1, candidates.slots) * gold).unsqueeze(1), weights).squeeze(1)
        first = torch.arange(after.shape[1], device=after.device) == 0
        held = (after * (first | ~last)).sum(dim=1)
        # Far below the k-th the weight underflows: the loss is then as large as it gets, and flat.
        included = held.clamp_min(torch.finfo(held.dtype).tiny) / share.sum(dim=1).clamp_min(1e-6)
        self.parts.append(torch.where(inside, -included.log(), 0.0))
        self.lost = after.detach().sum(dim=1) < 0.5
        self.kept.append((~self.lost & inside).sum())
        # Begun anew, the first slot is the reference's prefix.
        self.share = torch.where(self.lost.unsqueeze(1), first.to(after.dtype), after)

    def restarts(self, position: int) -> Tensor | None:
        return self.lost

    def finish(self, beam: Beam) -> tuple[Tensor, dict[str, Tensor]]:
        count = self.batch.target_lengths.sum()
        value = torch.stack(self.parts).sum() / count
        return value, {"gold_nll": value.detach(), "gold_kept": torch.stack(self.kept).sum() / count}


class BLEULoss(SoftLoss):
    """1 - sum_l pi_l BLEU_l, a mean over the sentences.

    Matches, like any state, follow the slots' parents: M'_m = sum_l R_ml M_l. That recursion is linear, so
    it is run once, backwards, over the steps kept: O(k^2) products a step instead of moving all rows of M at
    every step.
    """

    def __init__(self, model: Seq2Seq, batch: Batch, search: SoftSearchConfig, sharpness: float, overrun: int) -> None:
        # Rewards of hard values have the soft gradient, which has to be damped like that of the states.
        self.damping = search.damping if search.values == "hard" else 1.0
        self.eos = model.eos
        self.sharpness = sharpness
        longest = batch.target.shape[1] + overrun
        self.steps = min(longest, model.most_tokens or longest)
        lengths = batch.target_lengths - 1
        self.reference = count_reference(batch.target, lengths)
        positions = torch.arange(batch.target.shape[1], device=batch.target.device)
        self.target = batch.target.masked_fill(positions >= lengths.unsqueeze(1), -1)
        self.parents: list[Tensor] = []
        self.rows: list[Tensor] = []

    def observe(self, position: int, step: SoftStep) -> None:
        candidates = step.selection.candidates
        moves = scale_gradient(step.selection.moves, self.damping)
        matches = (candidates.tokens.unsqueeze(2) == self.target.unsqueeze(1)).to(moves.dtype)
        grows = (candidates.tokens != self.eos).to(moves.dtype).unsqueeze(2)
        # The last column counts the token itself, so that lengths travel with the matches.
        seen = torch.cat([matches, grows], dim=2)
        going = 1 - step.before.finished.gather(1, candidates.slots)
        self.rows.append(product(moves.transpose(1, 2), going.unsqueeze(2) * seen))
        self.parents.append(scale_gradient(step.selection.parents, self.damping))

    def matches(self) -> tuple[Tensor, Tensor]:
        """M (batch, slots, steps, reference length) and lengths (batch, slots) of the final slots."""
        slots = self.parents[-1].shape[1]
        descent = torch.eye(slots, device=self.rows[-1].device, dtype=self.rows[-1].dtype)
        descent = descent.expand(self.rows[-1].shape[0], slots, slots)
        rows: list[Tensor] = []
        for row, parents in zip(reversed(self.rows), reversed(self.parents), strict=True):
            rows.append(product(descent, row))
            descent = product(descent, parents)
        everything = torch.stack(rows[::-1], dim=2)
        return everything[..., :-1], everything[..., -1].sum(dim=2)

    def finish(self, beam: Beam) -> tuple[Tensor, dict[str, Tensor]]:
        match, length = self.matches()
        bleu = soft_bleu(match, length, self.reference)
        pi = shares(beam.scores, self.sharpness)
        value = 1 - (pi * bleu).sum(dim=1).mean()
        return value, {
            "soft_bleu": 1 - value.detach(),
            "best_slot_bleu": bleu.detach().amax(dim=1).mean(),
            "finished": beam.finished.detach().mean(),
        }
