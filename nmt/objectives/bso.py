"""Beam-search optimisation: a margin between the reference and the beam's last slot (Wiseman and Rush, EMNLP 2016)."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nmt.errors import UserError
from nmt.models.seq2seq import Seq2Seq
from nmt.objectives.cross_entropy import forced_nll
from nmt.objectives.objective import Loss, shifted
from nmt.objectives.scorer import make_scorer
from nmt.objectives.words import Unit, Words, check_units
from nmt.recompute import recomputed
from nmt.search.beam import Beam, expand, first_beam, restart_beam
from nmt.search.peaks import log_normaliser
from nmt.search.selection import hard_reparent, hard_select
from nmt.text.batching import Batch
from nmt.tree import join_slots, map_tree, split_slots, take_slots, where_rows


@dataclass
class BSOConfig:
    """Beam-search optimisation.

    The paper scores a prefix by an unnormalised number of its last token alone and gives up the probabilities; here
    the score is the log-probability that the decoder ranks by, so that the model stays one of this toolkit's.
    """

    beam_size: int = 5
    """Slots of the beam while training, K."""
    margin: float = 1.0
    """By how many nats the reference's prefix has to lead the K-th best other prefix, and at its end the best."""
    cost: Literal["bleu", "one"] = "bleu"
    """What a violation is multiplied by: one, or 1 - the best BLEU that the offending prefix can still become."""
    word_share: float = 0.0
    """share of BLEU of words in what a prefix is worth, from 0 to 1; the rest is BLEU of pieces. Languages
    without spaces want 0."""
    brevity: Unit = "pieces"
    """What the brevity penalty of BLEU of pieces counts: pieces, or words, for translations that have fewer pieces than
    their references and as many words."""
    cross_entropy: float = 0.3
    """Weight of the cross-entropy that is added."""
    label_smoothing: float = 0.1
    """Label smoothing of that cross-entropy."""
    recompute: bool = False
    """The backward pass runs each step again instead of keeping what it has made: the same gradients in less memory and
    more time."""

    def __post_init__(self) -> None:
        if self.beam_size < 1:
            raise UserError(f"bso.beam_size is {self.beam_size}; give at least 1")
        for name in ("margin", "cross_entropy"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"bso.{name} is {getattr(self, name)}; give 0 or more")
        check_units("bso", self.word_share, self.brevity)
        if self.cost not in ("bleu", "one"):
            raise UserError(f"bso.cost is '{self.cost}'; choose bleu or one")
        for name, default in (("word_share", 0.0), ("brevity", "pieces")):
            if self.cost == "one" and getattr(self, name) != default:
                raise UserError(
                    f"bso.{name} is {getattr(self, name)}, but bso.cost 'one' knows no BLEU; leave it {default}, or "
                    "use bleu"
                )
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"bso.label_smoothing is {self.label_smoothing}; give a share from 0 up to 1")


class BSO(nn.Module):
    """Sum over the steps of cost * (margin - score of the reference's prefix + score of the K-th best other prefix),
    where positive; a mean over the sentences' tokens. After a violation the beam begins anew from the reference's
    prefix (LaSO); at the reference's end it has to lead the best other hypothesis.

    Args:
        config: its settings.
        words: of the target vocabulary, for the share of BLEU of words.
    """

    def __init__(self, config: BSOConfig, words: Words | None = None) -> None:
        super().__init__()
        self.config = config
        self.words = words

    def forward(self, model: Seq2Seq, batch: Batch, update: int = 0) -> Loss:
        config, target = self.config, batch.target
        rows, longest = target.shape
        size = config.beam_size
        memory = model.encode(batch.source, batch.source_lengths)
        embeddings = model.embed(shifted(model, target)).split(1, dim=1)
        # The tag of a slot says whether it holds the reference's prefix.
        beam, tag = first_beam(model, memory, rows), torch.ones(rows, 1, dtype=torch.bool, device=target.device)
        gold_state, gold_score = model.start(memory), beam.scores.squeeze(1)
        scorer = make_scorer(batch, model.eos, self.words)
        matches = scorer.start()
        gold_matches = scorer.start()
        gold_features: list[Tensor] = []
        losses: list[Tensor] = []
        violations = torch.zeros((), device=target.device)

        def take(embedding: Tensor, beam: Beam, led: Tensor, led_state: Any, token: Tensor) -> Any:
            """The states of beam and reference, its features, the log-probability of its token, and what competes."""
            advanced = model.advance(torch.cat([embedding, led], dim=1), join_slots(beam.state, led_state), memory)
            parts = (advanced.state, advanced.features)
            (state, _), gold = split_slots(parts, beam.slots)
            if config.recompute:
                # What is a part of a tensor keeps all of it.
                gold = map_tree(torch.clone, gold)
            logits = model.project(advanced.features)
            normaliser = log_normaliser(logits)
            score = logits[:, -1].gather(1, token.unsqueeze(1)).squeeze(1) - normaliser[:, -1]
            # One more candidate than slots: the reference itself may be among them.
            return state, *gold, score, expand(model, logits[:, :-1], normaliser[:, :-1], beam, size + 1)

        for position in range(longest):
            token = target[:, position]
            inputs = beam.embedding, beam, embeddings[position], gold_state, token
            step = recomputed(take, *inputs) if config.recompute else take(*inputs)
            state, gold_state, features, step_score, candidates = step
            gold_features.append(features)
            gold_score = gold_score + step_score
            is_gold = tag.gather(1, candidates.slots) & (candidates.tokens == token.unsqueeze(1))
            last = batch.target_lengths == position + 1
            inside = batch.target_lengths > position
            # The K-th best, and at the end the best, of those that are not the reference.
            others = candidates.scores.masked_fill(is_gold, -torch.inf)
            rank = torch.where(last, 0, min(size, others.shape[1]) - 1)
            order = others.detach().argsort(dim=1, descending=True, stable=True)
            rival = order.gather(1, rank.unsqueeze(1))
            rival_score = others.gather(1, rival).squeeze(1)
            there = inside & (rival_score > -torch.inf)
            excess = config.margin - gold_score + torch.where(there, rival_score, 0.0)
            violated = there & (excess > 0)
            with torch.no_grad():
                extended = scorer.extend(take_slots(matches, candidates.slots), candidates.tokens)
                gold_matches = scorer.extend(gold_matches, token.unsqueeze(1))
                ended = torch.maximum(
                    beam.finished.gather(1, candidates.slots), (candidates.tokens == model.eos).to(beam.finished.dtype)
                )
                cost = torch.ones_like(gold_score)
                if config.cost == "bleu":
                    best = scorer.bleu(scorer.counts(extended, (ended > 0) | last.unsqueeze(1)))
                    cost = 1 - best.gather(1, rival).squeeze(1).to(cost.dtype)
                violations = violations + violated.sum()
            losses.append(torch.where(violated, cost * excess, 0.0))

            selection = hard_select(candidates, size)
            after = hard_reparent(model, selection, beam, state)
            width = after.slots
            tag, matches = is_gold[:, :width], map_tree(lambda leaf, width=width: leaf[:, :width], extended)
            if position + 1 < longest:
                beam = restart_beam(after, violated, gold_state, embeddings[position + 1], gold_score)
                first = torch.arange(width, device=tag.device) == 0
                tag = where_rows(violated, first.expand_as(tag), tag)
                fresh = map_tree(lambda leaf, width=width: leaf.expand(-1, width, *leaf.shape[2:]), gold_matches)
                matches = where_rows(violated, fresh, matches)
        count = batch.target_lengths.sum()
        value = torch.stack(losses).sum() / count
        nll, plain = forced_nll(model, torch.cat(gold_features, dim=1), target, config.label_smoothing)
        figures = {"bso": value.detach(), "violations": violations / count, "nll": plain / count}
        return Loss(value + config.cross_entropy * nll / count, figures, normaliser=count)
