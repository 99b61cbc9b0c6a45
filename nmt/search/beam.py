"""The loop of beam search with one open place: how the k best are selected.

Decoding and training run the same three moves a step: `expand` every slot into candidates, *select* k of
them, re-parent the decoder state. A hard selection (nmt.search.hard) gives indices, a soft one
(nmt.search.soft) gives weights; everything else is shared and stands here.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nmt.models.seq2seq import Seq2Seq
from nmt.search.peaks import largest
from nmt.tree import map_tree, where_rows


@dataclass(frozen=True)
class Beam:
    """What a search carries from step to step.

    Attributes:
        state: the decoder's state, a tree with leaves (batch, slots, ...).
        embedding: (batch, slots, embedding), of the token that each slot took last.
        scores: (batch, slots), log-probabilities; -inf marks a slot that holds nothing.
        finished: (batch, slots), the probability that the slot has ended.
    """

    state: Any
    embedding: Tensor
    scores: Tensor
    finished: Tensor

    @property
    def slots(self) -> int:
        return self.scores.shape[1]


class Candidates(NamedTuple):
    """The C best continuations of a beam, best first.

    Attributes:
        scores: (batch, C), log-probability of the whole hypothesis; -inf where there is no candidate.
        slots: (batch, C), the slot that each continues.
        tokens: (batch, C), the token that each adds.
    """

    scores: Tensor
    slots: Tensor
    tokens: Tensor


def first_beam(model: Seq2Seq, memory: Any, rows: int) -> Beam:
    """A beam of one slot that holds the empty hypothesis."""
    state = model.start(memory)
    device = next(model.parameters()).device
    embedding = model.embed(torch.full((rows, 1), model.bos, dtype=torch.long, device=device))
    # Scores are sums over many steps: float32 at least, whatever the precision of the model.
    scores = torch.zeros(rows, 1, device=device, dtype=torch.promote_types(embedding.dtype, torch.float32))
    return Beam(state, embedding, scores, torch.zeros_like(scores))


def restart_beam(beam: Beam, rows: Tensor, state: Any, embedding: Tensor, score: Tensor) -> Beam:
    """The beam with one hypothesis, alone, in place of all slots of some sentences.

    Args:
        beam: the beam.
        rows: (batch,), true where it begins anew.
        state: of the hypothesis, a tree with leaves (batch, 1, ...).
        embedding: (batch, 1, embedding), of its last token.
        score: (batch,), its log-probability.
    """

    def widen(leaf: Tensor) -> Tensor:
        return leaf.expand(-1, beam.slots, *leaf.shape[2:])

    first = torch.arange(beam.slots, device=rows.device) == 0
    return Beam(
        state=where_rows(rows, map_tree(widen, state), beam.state),
        embedding=where_rows(rows, widen(embedding), beam.embedding),
        scores=where_rows(rows, torch.where(first, score.unsqueeze(1), -torch.inf), beam.scores),
        finished=where_rows(rows, torch.zeros_like(beam.finished), beam.finished),
    )


def expand(
    model: Seq2Seq,
    logits: Tensor,
    normaliser: Tensor,
    beam: Beam,
    size: int,
    *,
    only_eos: Tensor | None = None,
) -> Candidates:
    """The `size` best continuations of a beam, or as many as there are.

    A finished slot continues with EOS at no cost and with nothing else: with f its finished probability,
    p'(v) = f [v = EOS] + (1 - f) p(v), and a candidate's score is the slot's score + log p'(v).

    Padding and BOS are no candidates but keep their probability, so that a score is the model's own.
    The vocabulary is read for its largest entries; log-probabilities are computed for the candidates alone.

    Args:
        model: tells which ids are special.
        logits: (batch, slots, vocabulary).
        normaliser: (batch, slots), `log_normaliser(logits)`.
        beam: the beam that gave them.
        size: C.
        only_eos: (batch,), true where the sentence must end now.
    """
    going = _log_going(beam.finished)
    with torch.no_grad():
        # EOS is set apart: a finished slot's EOS may be its best candidate with the lowest of logits.
        slots, tokens = largest(
            logits, beam.scores + going - normaliser, size, sorted({model.padding, model.bos, model.eos})
        )
        if only_eos is not None:
            tokens.masked_fill_(only_eos.unsqueeze(1), model.eos)
        banned = (tokens == model.eos) | (tokens == model.padding) | (tokens == model.bos)
        every = torch.arange(beam.slots, device=logits.device).expand(len(slots), -1)
    rows = torch.arange(len(slots), device=logits.device).unsqueeze(1)
    log_probability = logits[rows, slots, tokens].to(normaliser.dtype) - normaliser.gather(1, slots)
    gone_on = (log_probability + going.gather(1, slots) + beam.scores.gather(1, slots)).masked_fill(banned, -torch.inf)
    of_eos = logits[..., model.eos].to(normaliser.dtype) - normaliser
    scores = torch.cat([gone_on, _log_ended(of_eos, beam.finished) + beam.scores], dim=1)
    slots = torch.cat([slots, every], dim=1)
    tokens = torch.cat([tokens, torch.full_like(every, model.eos)], dim=1)
    with torch.no_grad():
        order = scores.topk(min(size, scores.shape[1]), dim=1).indices
    return Candidates(*(part.gather(1, order) for part in (scores, slots, tokens)))


def include(
    model: Seq2Seq, candidates: Candidates, logits: Tensor, normaliser: Tensor, beam: Beam, slot: Tensor, token: Tensor
) -> Candidates:
    """The candidates with one that shall compete in any case; if it is not among them it takes the last one's place.

    Args:
        model, logits, normaliser, beam: as those of `expand`.
        candidates: what `expand` gave.
        slot, token: (batch,), the slot that is continued and the token that is added.
    """
    rows = torch.arange(len(slot), device=slot.device)
    log_probability = logits[rows, slot, token].to(normaliser.dtype) - normaliser[rows, slot]
    finished = beam.finished[rows, slot]
    score = beam.scores[rows, slot] + continued(log_probability, finished, token == model.eos)
    there = ((candidates.slots == slot.unsqueeze(1)) & (candidates.tokens == token.unsqueeze(1))).any(dim=1)
    place = torch.arange(candidates.scores.shape[1], device=slot.device) == candidates.scores.shape[1] - 1
    new = place & ~there.unsqueeze(1)
    return Candidates(
        torch.where(new, score.unsqueeze(1), candidates.scores),
        torch.where(new, slot.unsqueeze(1), candidates.slots),
        torch.where(new, token.unsqueeze(1), candidates.tokens),
    )


def continued(log_probability: Tensor, finished: Tensor, ends: Tensor) -> Tensor:
    """log p'(v) of `expand`: what a token's log-probability is where its slot has ended with a probability.

    Args:
        log_probability, finished: of the token and of its slot.
        ends: whether the token is EOS.
    """
    return torch.where(ends, _log_ended(log_probability, finished), log_probability + _log_going(finished))


def _log_going(finished: Tensor) -> Tensor:
    """log(1 - f), -inf where a slot has ended."""
    going = 1 - finished
    open_ = going > 0
    return torch.where(open_, torch.where(open_, going, 1.0).log(), -torch.inf)


def _log_ended(log_probability: Tensor, finished: Tensor) -> Tensor:
    """log(f + (1 - f) p) of the log-probability of EOS."""
    total = finished + (1 - finished) * log_probability.exp()
    return torch.where(finished > 0, total.clamp_min(1e-30).log(), log_probability)
