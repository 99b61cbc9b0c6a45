"""Training through differentiable beam search.

Two families of losses. `token`, `gold_in_beam` and `expected_bleu` unroll the soft search, whose states are mixtures
(`nmt.search.soft`). `reachable_bleu` keeps the states of the hard search and lets SOFT top-k decide, softly, which
candidates stay in the beam; a candidate is worth the BLEU that is still within its reach. Each is mixed with
cross-entropy, whose prefixes are decoded in the same steps.
"""

import copy
import logging
import math
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from nmt.errors import UserError, did_you_mean
from nmt.models.seq2seq import Seq2Seq
from nmt.objectives.cross_entropy import forced_nll
from nmt.objectives.objective import Loss, shares, shifted
from nmt.objectives.soft_losses import BLEULoss, GoldInBeamLoss, SoftLoss, TokenLoss
from nmt.objectives.traced import Figures, check_bleu, is_open, pool_risk, traced_loss
from nmt.objectives.words import Unit, Words, check_units
from nmt.recompute import recomputed
from nmt.search.beam import Beam, first_beam, restart_beam
from nmt.search.soft import LossScale, Operator, SoftSearchConfig, SoftStep, cut_off, soft_advance
from nmt.search.trace import Trace
from nmt.text.batching import Batch
from nmt.topk import Constant, Exponential, Learned, Linear, Schedule, soft_topk, sorted_soft_topk
from nmt.topk.rivals import OPERATORS
from nmt.tree import join_slots, map_tree, product, split_slots

logger = logging.getLogger(__name__)

_UNROLLED = ("token", "gold_in_beam", "expected_bleu")
# The losses that read a setting; all read the others, or it is refused where they do not.
READ_BY = {
    "restart": ("token",),
    "overrun": ("reachable_bleu", "expected_bleu"),
    "sharpness": ("reachable_bleu", "expected_bleu"),
    **dict.fromkeys(("risk", "tolerance", "references"), ("reachable_bleu",)),
    **dict.fromkeys(("recompute", "search.damping", "search.values", "search.clip", "search.rollout"), _UNROLLED),
}

# Scores are log p / |y|: their differences are a tenth of those of log p.
RISK_SHARPNESS = 10.0


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

    loss: Literal["reachable_bleu", "token", "gold_in_beam", "expected_bleu"] = "reachable_bleu"
    """reachable_bleu: 1 - the mean over the steps of sum_l pi_l BLEU_l, the BLEU within reach of what SOFT top-k puts
    into the slots of the hard search; token: -log sum_l pi_l p_l(gold_t); gold_in_beam: -log of the soft
    inclusion of the reference's prefix; expected_bleu: 1 - sum_l pi_l BLEU_l at the end of a free search."""
    search: SoftSearchConfig = field(default_factory=SoftSearchConfig)
    """The soft search that is unrolled."""
    operator: str = "sorted_soft_topk"
    """What selects softly: any operator of nmt.topk.rivals.OPERATORS. All losses but reachable_bleu need one that
    sorts; for reachable_bleu one that does not weighs all slots alike."""
    temperature: TemperatureConfig = field(default_factory=TemperatureConfig)
    """How its temperature moves."""
    restart: float = 0.6
    """token: the probability, a sentence and step, that the beam starts anew from the reference's prefix; a
    soft roll-out has a geometric length of mean 1 / restart."""
    overrun: int = 5
    """expected_bleu: steps that the search may take beyond the longest reference of the batch; reachable_bleu: beyond
    each reference."""
    sharpness: float = 1.0
    """expected_bleu, reachable_bleu: pi is the softmax of sharpness * score over the slots; 0 weighs them alike."""
    risk: float = 0.3
    """reachable_bleu: weight of the risk, 1 - sum of softmax(10 * score) * BLEU over the hypotheses that the search
    finished, score = log p / |y|, that is added."""
    tolerance: float = 0.05
    """reachable_bleu: prefixes whose log-probabilities all weigh less than this share of the batch's largest weight
    are not decoded again."""
    cross_entropy: float = 0.03
    """Weight of the cross-entropy (nats a token) that is added. The BLEU losses lie between 0 and 1, and their
    gradients are a tenth of its; token and gold_in_beam are nats a token themselves and want 0.3."""
    label_smoothing: float = 0.1
    """Label smoothing of that cross-entropy."""
    divergence: float = 0.0
    """reachable_bleu: weight of KL(start || model), nats, the mean over the prefixes that are decoded again; the start
    is the model that the run began with, by --from. It costs a decoding without gradient."""
    word_share: float = 0.0
    """reachable_bleu: share of BLEU of words in what a prefix is worth, from 0 to 1; the rest is BLEU of pieces.
    Languages without spaces want 0."""
    brevity: Unit = "pieces"
    """reachable_bleu: what the brevity penalty of BLEU of pieces counts: pieces, or words, for translations that have
    fewer pieces than their references and as many words. Languages without spaces want pieces."""
    bleu: Literal["sentence", "batch"] = "sentence"
    """reachable_bleu: of what a prefix is worth the BLEU: of its sentence, or of the whole batch, with the other
    sentences' best hypotheses; the difference that it makes there is multiplied by the number of sentences."""
    future: Literal["best", "expected"] = "best"
    """reachable_bleu: what an unfinished prefix has within reach: best: all the n-grams that can still match;
    expected: of these the share that matched in the batch's best hypotheses, since what can still match, and does not,
    speaks for never ending."""
    references: float = 1.0
    """reachable_bleu: share of the sentences, at least one, drawn anew for every batch, that the cross-entropy is the
    mean of. Only their references are decoded."""
    recompute: bool = False
    """token, gold_in_beam, expected_bleu: the backward pass runs each step again instead of keeping what it has made:
    the same gradients in less memory and more time."""

    def __post_init__(self) -> None:
        if self.loss not in ("reachable_bleu", "token", "gold_in_beam", "expected_bleu"):
            raise UserError(
                f"soft_beam.loss is '{self.loss}'; choose reachable_bleu, token, gold_in_beam or expected_bleu"
            )
        if self.operator not in OPERATORS:
            suggestion = did_you_mean(self.operator, OPERATORS)
            raise UserError(
                f"soft_beam.operator is '{self.operator}'.{suggestion} The operators are {', '.join(OPERATORS)}"
            )
        if self.loss != "reachable_bleu" and not OPERATORS[self.operator].ranked:
            able = ", ".join(name for name, operator in OPERATORS.items() if operator.ranked)
            raise UserError(
                f"soft_beam.operator is '{self.operator}', which does not sort; soft_beam.loss '{self.loss}' needs "
                f"one of {able}"
            )
        if self.loss == "gold_in_beam" and self.search.values == "hard":
            raise UserError(
                "soft_beam.search.values is 'hard', but soft_beam.loss 'gold_in_beam' follows the reference's soft "
                "share of mixed states; use soft, or another loss"
            )
        check_units("soft_beam", self.word_share, self.brevity)
        if self.word_share and self.loss != "reachable_bleu":
            raise UserError(
                f"soft_beam.word_share is {self.word_share}, but soft_beam.loss '{self.loss}' knows none; leave it 0, "
                "or use reachable_bleu"
            )
        check_bleu("soft_beam", self.bleu)
        if self.future not in ("best", "expected"):
            raise UserError(f"soft_beam.future is '{self.future}'; choose best or expected")
        for name, default in (("brevity", "pieces"), ("bleu", "sentence"), ("future", "best")):
            if getattr(self, name) != default and self.loss != "reachable_bleu":
                raise UserError(
                    f"soft_beam.{name} is {getattr(self, name)}, but soft_beam.loss '{self.loss}' knows {default} "
                    f"alone; leave it {default}, or use reachable_bleu"
                )
        for name in ("restart", "references"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"soft_beam.{name} is {getattr(self, name)}; give a number from 0 to 1")
        for name in ("tolerance", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"soft_beam.{name} is {getattr(self, name)}; give a share from 0 up to 1")
        if self.temperature.schedule == "learned" and self.operator == "perturbed_topk":
            raise UserError(
                "soft_beam.operator is 'perturbed_topk', which has no gradient for its temperature, but "
                "soft_beam.temperature.schedule is 'learned'; use another operator or schedule"
            )
        if self.divergence and self.loss != "reachable_bleu":
            raise UserError(
                f"soft_beam.divergence is {self.divergence}, but soft_beam.loss '{self.loss}' knows none; leave it 0, "
                "or use reachable_bleu"
            )
        for name in ("overrun", "sharpness", "risk", "cross_entropy", "divergence"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"soft_beam.{name} is {getattr(self, name)}; give 0 or more")


def unread(config: SoftBeamConfig) -> dict[str, Any]:
    """The settings that are not the default and that the loss does not read, with their values. A configuration may be
    shared by several losses: they are told, not refused."""
    plain = SoftBeamConfig()
    values = {name: attrgetter(name)(config) for name, losses in READ_BY.items() if config.loss not in losses}
    return {name: value for name, value in values.items() if value != attrgetter(name)(plain)}


class SoftBeam(nn.Module):
    """The objective; its only parameter is a learned temperature, where that is asked for.

    Where the divergence from the start counts, it holds a frozen copy of that model, which is part of the run's state.

    Args:
        config: its settings.
        operator: instead of the configuration's; any function of the signature of `nmt.topk`.
        words: of the target vocabulary, for the share of BLEU of words.
    """

    def __init__(self, config: SoftBeamConfig, operator: Operator | None = None, words: Words | None = None) -> None:
        super().__init__()
        self.config = config
        self.words = words
        if idle := unread(config):
            told = ", ".join(f"soft_beam.{name} ({value})" for name, value in idle.items())
            logger.warning(f"soft_beam.loss '{config.loss}' does not read {told}")
        if operator is None:
            operator = OPERATORS[config.operator].operator
            if operator not in (soft_topk, sorted_soft_topk):
                operator = without_masks(operator)
        self.operator: Operator = operator
        self.temperature = config.temperature.build(config.search.temperature)
        self.anchor: Seq2Seq | None = None

    def stay_near(self, start: Seq2Seq) -> None:
        """Keeps a frozen copy of the model that the run begins with, if the divergence from it counts."""
        if self.config.divergence:
            self.anchor = copy.deepcopy(start).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "SoftBeam":
        """As of every module; the start's dropout stays off."""
        super().train(mode)
        if self.anchor is not None:
            self.anchor.eval()
        return self

    def forward(self, model: Seq2Seq, batch: Batch, update: int = 0) -> Loss:
        temperature = self.temperature(update)
        if self.config.loss == "reachable_bleu":
            found = self._reach(model, batch, temperature)
        else:
            found = self._unroll(model, batch, temperature)
        found.figures["temperature"] = torch.as_tensor(temperature).detach()
        return found

    def _reach(self, model: Seq2Seq, batch: Batch, temperature: float | Tensor) -> Loss:
        """The loss on the states of the hard search."""
        config = self.config
        if config.divergence and self.anchor is None:
            raise UserError(
                f"soft_beam.divergence is {config.divergence}, but there is no model to stay near; call "
                "stay_near(model) first, or leave it 0"
            )

        def loss(trace: Trace, scores: list[Tensor], values: list[Tensor]) -> tuple[Figures, Figures]:
            reached, figures = reachable_bleu(trace, scores, values, self.operator, temperature, config.sharpness)
            risk, more = pool_risk(trace, scores, values, RISK_SHARPNESS)
            return {"reach": 1 - reached, "risk": config.risk * risk}, figures | more

        return traced_loss(
            model,
            batch,
            loss,
            beam_size=config.search.beam_size,
            candidates=config.search.candidates,
            alpha=1.0,
            n_best=1,
            overrun=config.overrun,
            tolerance=config.tolerance,
            cross_entropy=config.cross_entropy,
            label_smoothing=config.label_smoothing,
            references=config.references,
            temperature=temperature,
            anchor=self.anchor,
            divergence=config.divergence,
            words=self.words,
            together=config.bleu == "batch",
            sober=config.future == "expected",
        )

    def _make_loss(self, model: Seq2Seq, batch: Batch) -> SoftLoss:
        if self.config.loss == "token":
            return TokenLoss(batch, self.config.restart, model.eos)
        if self.config.loss == "gold_in_beam":
            return GoldInBeamLoss(batch)
        return BLEULoss(model, batch, self.config.search, self.config.sharpness, self.config.overrun)

    def _unroll(self, model: Seq2Seq, batch: Batch, temperature: float | Tensor) -> Loss:
        """The losses on the soft search."""
        loss = self._make_loss(model, batch)
        longest = batch.target.shape[1]
        tokens = batch.target_lengths.sum()
        memory = model.encode(batch.source, batch.source_lengths)
        gold_embeddings = model.embed(shifted(model, batch.target)).split(1, dim=1)
        gold_state = model.start(memory)
        gold_features: list[Tensor] = []
        softness: list[Tensor] = []
        entropy: list[Tensor] = []
        scale = LossScale()
        squares = {f"gradient_{path}": torch.zeros((), device=batch.target.device) for path in ("states", "scores")}

        def watch(path: str, weights: Tensor) -> Tensor:
            def add(grad: Tensor) -> None:
                squares[f"gradient_{path}"].add_((grad.detach() / scale.factor).square().sum())

            if weights.requires_grad:
                weights = weights.view_as(weights)
                weights.register_hook(add)
            return weights

        def take(embedding: Tensor, beam: Beam, led: Any, required: Any) -> tuple[SoftStep, Any, Tensor]:
            """A step of the beam, and the state and features of the reference's prefix; `led` are its embedding and the
            state before. It is one more slot until it ends: one step serves both searches."""
            state = beam.state
            if led is not None:
                embedding, state = torch.cat([embedding, led[0]], dim=1), join_slots(state, led[1])
            advanced = model.advance(embedding, state, memory)
            parts = (advanced.state, advanced.features)
            (free_state, free), (led_state, led_features) = split_slots(parts, beam.slots)
            config, operator = self.config.search, self.operator
            step = soft_advance(model, free, free_state, beam, config, operator, temperature, required, watch, scale)
            if self.config.recompute:
                # What is a part of a tensor keeps all of it.
                led_state, led_features = map_tree(torch.clone, (led_state, led_features))
            return step, led_state, led_features

        beam = first_beam(model, memory, batch.source.shape[0])
        for position in range(loss.steps):
            led = (gold_embeddings[position], gold_state) if position < longest else None
            inputs = beam.embedding, beam, led, loss.required(position)
            step, gold_state, features = recomputed(take, *inputs) if self.config.recompute else take(*inputs)
            if led is not None:
                gold_features.append(features)
            loss.observe(position, step)
            beam = cut_off(step.after, position, self.config.search.rollout)
            rows = loss.restarts(position)
            if rows is not None and position + 1 < longest:
                zero = torch.zeros_like(beam.scores[:, 0])
                beam = restart_beam(beam, rows, gold_state, gold_embeddings[position + 1], zero)
            with torch.no_grad():
                weights = step.selection.weights
                softness.append((weights * (1 - weights)).sum(dim=(1, 2)) / weights.shape[2])
                entropy.append(slot_entropy(beam.scores))

        value, figures = loss.finish(beam)
        figures["softness"] = torch.stack(softness).mean()
        figures["slot_entropy"] = torch.stack(entropy).mean()
        nll, plain = forced_nll(model, torch.cat(gold_features, dim=1), batch.target, self.config.label_smoothing)
        figures["nll"] = plain / tokens
        # As in a traced loss, the main term decides what a batch of an update weighs.
        normaliser = len(batch) if self.config.loss == "expected_bleu" else tokens
        total = scale.watch(value + self.config.cross_entropy * nll / tokens)
        return Loss(total, figures, squares, normaliser)


def without_masks(operator: Operator) -> Operator:
    """An operator that takes no -inf, made to take it: a masked candidate scores far below the others, and whatever
    the operator gives it is taken away."""

    def select(scores: Tensor, k: int, temperature: float | Tensor) -> Tensor:
        there = scores > -torch.inf
        if there.all():
            return operator(scores, k, temperature)
        lowest = torch.where(there, scores.detach(), torch.inf).amin(dim=-1, keepdim=True)
        lowest = torch.where(lowest < torch.inf, lowest, 0.0)
        # How far below is no matter of the temperature's gradient.
        below = 20 * (temperature.detach() if isinstance(temperature, Tensor) else temperature)
        weights = operator(torch.where(there, scores, lowest - below), k, temperature)
        return weights * (there if weights.dim() == there.dim() else there.unsqueeze(-1))

    return select


def reachable_bleu(
    trace: Trace,
    scores: list[Tensor],
    values: list[Tensor],
    operator: Operator,
    temperature: float | Tensor,
    sharpness: float,
) -> tuple[Tensor, Figures]:
    """The mean, over the steps of each sentence, of the values of the candidates that a soft top-k puts into the slots,
    each slot weighed by the softmax of its score; the mean over the sentences.

    Args:
        trace, scores, values: see `nmt.objectives.traced.TraceLoss`.
        operator: a soft top-k: (C, k) with a column a slot, or (C,), where all slots weigh alike.
        temperature: of the operator, in nats.
        sharpness: of the softmax.
    """
    # All steps at once: an operator takes as long for one as for all of them.
    width = max(score.shape[1] for score in scores)
    score = torch.stack([pad(each, (0, width - each.shape[1]), value=-torch.inf) for each in scores])
    value = torch.stack([pad(each, (0, width - each.shape[1])) for each in values])
    live = torch.stack([is_open(step) for step in trace.steps])
    score = torch.where(live.unsqueeze(2), score, 0.0)
    size = min(trace.beam_size, width)
    kept = operator(score, size, temperature)
    if kept.dim() > score.dim():
        pi = shares(score[..., :size], sharpness)
        share = product(kept.flatten(0, 1), pi.flatten(0, 1).unsqueeze(2)).view(score.shape)
        kept = kept.sum(dim=3)
    else:
        share = kept / size

    def over_steps(each: Tensor) -> Tensor:
        return (torch.where(live, each, 0.0).sum(dim=0) / live.sum(dim=0)).mean()

    reached = over_steps((share * value).sum(dim=2))
    with torch.no_grad():
        figures = {
            "reached_bleu": reached.detach(),
            "softness": over_steps((kept * (1 - kept)).sum(dim=2) / size),
            "slot_entropy": over_steps(slot_entropy(score[..., :size])),
        }
    return reached, figures


def slot_entropy(scores: Tensor) -> Tensor:
    """Entropy in nats, (...,), of the softmax of the slots' scores (..., slots): 0 where one slot has it all."""
    return torch.special.entr(scores.softmax(dim=-1)).sum(dim=-1)
