"""Training through differentiable beam search: the losses on the soft search.

`token` asks the soft beam for the reference token at every step; `expected_bleu` unrolls the soft search
freely and asks its slots for sentence BLEU. Each is mixed with cross-entropy, whose teacher-forced decoder
runs as one more slot of the same steps.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from nmt.batching import Batch
from nmt.errors import UserError
from nmt.models.seq2seq import Seq2Seq
from nmt.objectives.cross_entropy import forced_nll
from nmt.objectives.objective import Loss, shifted
from nmt.objectives.soft_bleu import count_reference, soft_bleu
from nmt.search.beam import Beam, first_beam, restart_beam
from nmt.search.soft import Operator, SoftSearchConfig, SoftStep, soft_advance
from nmt.topk import Constant, Exponential, Learned, Linear, Schedule, sorted_soft_topk
from nmt.tree import join_slots, split_slots


@dataclass
class TemperatureConfig:
    """How the temperature of the soft beam moves from `soft_beam.search.temperature`."""

    schedule: Literal["constant", "linear", "exponential", "learned"] = "constant"
    """constant; linear or exponential: to `end` in `updates` updates; learned: trained with the model, by its
    logarithm."""
    end: float = 0.05
    """linear, exponential: the temperature from `updates` on, in nats."""
    updates: int = 1000
    """linear, exponential: updates until then, counted from the beginning of the run."""

    def __post_init__(self) -> None:
        if self.schedule not in ("constant", "linear", "exponential", "learned"):
            raise UserError(
                f"soft_beam.temperature.schedule is '{self.schedule}'; choose constant, linear, exponential or learned"
            )
        if not 0 < self.end < math.inf:
            raise UserError(f"soft_beam.temperature.end is {self.end}; give a positive number of nats (0.05)")
        if self.updates < 1:
            raise UserError(f"soft_beam.temperature.updates is {self.updates}; give at least 1")

    def build(self, start: float) -> Schedule | Learned:
        """The schedule that begins at the temperature `start`."""
        if self.schedule == "linear":
            return Linear(start, self.end, self.updates)
        if self.schedule == "exponential":
            return Exponential(start, self.end, self.updates)
        return Learned(start) if self.schedule == "learned" else Constant(start)


@dataclass
class SoftBeamConfig:
    """The soft-beam objective."""

    loss: Literal["token", "expected_bleu"] = "token"
    """token: -log sum_l pi_l p_l(gold_t), pi the softmax of the slots' scores; expected_bleu: 1 - sum_l pi_l
    BLEU_l at the end of a free search."""
    search: SoftSearchConfig = field(default_factory=SoftSearchConfig)
    """The soft search that is unrolled."""
    temperature: TemperatureConfig = field(default_factory=TemperatureConfig)
    """How its temperature moves."""
    restart: float = 0.6
    """token: the probability, a sentence and step, that the beam starts anew from the reference's prefix; a
    soft roll-out has a geometric length of mean 1 / restart."""
    overrun: int = 3
    """expected_bleu: steps that the search may take beyond the longest reference of the batch."""
    sharpness: float = 1.0
    """expected_bleu: pi is the softmax of sharpness * score."""
    cross_entropy: float = 0.3
    """Weight of the cross-entropy that is added."""
    label_smoothing: float = 0.1
    """Label smoothing of that cross-entropy."""

    def __post_init__(self) -> None:
        if self.loss not in ("token", "expected_bleu"):
            raise UserError(f"soft_beam.loss is '{self.loss}'; choose token or expected_bleu")
        for name, high in (("restart", 1.0), ("label_smoothing", 0.999)):
            if not 0 <= getattr(self, name) <= high:
                raise UserError(f"soft_beam.{name} is {getattr(self, name)}; give a number from 0 to 1")
        for name in ("overrun", "sharpness", "cross_entropy"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"soft_beam.{name} is {getattr(self, name)}; give 0 or more")


class SoftBeam(nn.Module):
    """The objective; its only parameter is a learned temperature, where that is asked for.

    Args:
        config: its settings.
        operator: any differentiable sorted top-k of the signature of `nmt.topk`.
    """

    def __init__(self, config: SoftBeamConfig, operator: Operator = sorted_soft_topk) -> None:
        super().__init__()
        self.config = config
        self.operator = operator
        self.temperature = config.temperature.build(config.search.temperature)

    def forward(self, model: Seq2Seq, batch: Batch, update: int = 0) -> Loss:
        temperature = self.temperature(update)
        loss = TokenLoss(batch) if self.config.loss == "token" else BLEULoss(model, batch, self.config)
        longest = batch.target.shape[1]
        tokens = batch.target_lengths.sum()
        memory = model.encode(batch.source, batch.source_lengths)
        gold_embeddings = model.embed(shifted(model, batch.target)).split(1, dim=1)
        gold_state = model.start(memory)
        gold_features: list[Tensor] = []
        softness: list[Tensor] = []
        beam = first_beam(model, memory, batch.source.shape[0])
        for position in range(loss.steps(longest, self.config)):
            # The reference's prefix is one more slot until it ends: one step serves both searches.
            led = position < longest
            embedding, state = beam.embedding, beam.state
            if led:
                embedding = torch.cat([embedding, gold_embeddings[position]], dim=1)
                state = join_slots(state, gold_state)
            advanced = model.advance(embedding, state, memory)
            free_state, gold_state = split_slots(advanced.state, beam.slots)
            if led:
                gold_features.append(advanced.features[:, beam.slots :])
            step = soft_advance(
                model,
                advanced.features[:, : beam.slots],
                free_state,
                beam,
                self.config.search,
                self.operator,
                temperature,
            )
            loss.observe(position, step)
            beam = step.after
            if loss.restarts and position + 1 < longest:
                # The reference's prefix, alone, in the beams that chance picks.
                rows = torch.rand(beam.scores.shape[0], device=beam.scores.device) < self.config.restart
                zero = torch.zeros_like(beam.scores[:, 0])
                beam = restart_beam(beam, rows, gold_state, gold_embeddings[position + 1], zero)
            with torch.no_grad():
                weights = step.selection.weights
                softness.append((weights * (1 - weights)).sum(dim=(1, 2)) / weights.shape[2])

        value, figures = loss.finish(beam)
        figures["softness"] = torch.stack(softness).mean()
        figures["temperature"] = torch.as_tensor(temperature).detach()
        nll, plain = forced_nll(model, torch.cat(gold_features, dim=1), batch.target, self.config.label_smoothing)
        figures["nll"] = plain / tokens
        return Loss(value + self.config.cross_entropy * nll / tokens, figures)


class TokenLoss:
    """-log sum_l pi_l p_l(gold_t), a mean over the reference's tokens."""

    restarts = True

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.parts: list[Tensor] = []

    def steps(self, longest: int, config: SoftBeamConfig) -> int:
        return longest

    def observe(self, position: int, step: SoftStep) -> None:
        gold = self.batch.target[:, position]
        logits = step.logits.gather(2, gold.view(-1, 1, 1).expand(-1, step.logits.shape[1], 1)).squeeze(2)
        mixture = step.before.scores.log_softmax(dim=1) + (logits - step.normaliser)
        inside = self.batch.target_lengths > position
        self.parts.append(-mixture.logsumexp(dim=1) * inside)

    def finish(self, beam: Beam) -> tuple[Tensor, dict[str, Tensor]]:
        value = torch.stack(self.parts).sum() / self.batch.target_lengths.sum()
        return value, {"soft_nll": value.detach()}


class BLEULoss:
    """1 - sum_l pi_l BLEU_l, a mean over the sentences.

    Matches, like any state, follow the slots' parents: M'_m = sum_l R_ml M_l. That recursion is linear, so
    it is run once, backwards, over the steps kept: O(k^2) products a step instead of moving all rows of M at
    every step.
    """

    restarts = False

    def __init__(self, model: Seq2Seq, batch: Batch, config: SoftBeamConfig) -> None:
        self.eos = model.eos
        self.sharpness = config.sharpness
        lengths = batch.target_lengths - 1
        self.reference = count_reference(batch.target, lengths)
        positions = torch.arange(batch.target.shape[1], device=batch.target.device)
        self.target = batch.target.masked_fill(positions >= lengths.unsqueeze(1), -1)
        self.parents: list[Tensor] = []
        self.rows: list[Tensor] = []

    def steps(self, longest: int, config: SoftBeamConfig) -> int:
        return longest + config.overrun

    def observe(self, position: int, step: SoftStep) -> None:
        candidates, weights, parents = step.selection
        matches = (candidates.tokens.unsqueeze(2) == self.target.unsqueeze(1)).to(weights.dtype)
        grows = (candidates.tokens != self.eos).to(weights.dtype).unsqueeze(2)
        # The last column counts the token itself, so that lengths travel with the matches.
        seen = torch.cat([matches, grows], dim=2)
        going = 1 - step.before.finished.gather(1, candidates.slots)
        self.rows.append(torch.bmm(weights.transpose(1, 2), going.unsqueeze(2) * seen))
        self.parents.append(parents)

    def matches(self) -> tuple[Tensor, Tensor]:
        """M (batch, slots, steps, reference length) and lengths (batch, slots) of the final slots."""
        slots = self.parents[-1].shape[1]
        descent = torch.eye(slots, device=self.rows[-1].device, dtype=self.rows[-1].dtype)
        descent = descent.expand(self.rows[-1].shape[0], slots, slots)
        rows: list[Tensor] = []
        for row, parents in zip(reversed(self.rows), reversed(self.parents), strict=True):
            rows.append(torch.bmm(descent, row))
            descent = torch.bmm(descent, parents)
        everything = torch.stack(rows[::-1], dim=2)
        return everything[..., :-1], everything[..., -1].sum(dim=2)

    def finish(self, beam: Beam) -> tuple[Tensor, dict[str, Tensor]]:
        match, length = self.matches()
        bleu = soft_bleu(match, length, self.reference)
        pi = (self.sharpness * beam.scores).softmax(dim=1)
        value = 1 - (pi * bleu).sum(dim=1).mean()
        return value, {
            "soft_bleu": 1 - value.detach(),
            "best_slot_bleu": bleu.detach().amax(dim=1).mean(),
            "finished": beam.finished.detach().mean(),
        }
