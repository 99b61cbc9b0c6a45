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


def log_normaliser(logits: Tensor) -> Tensor:
    """log sum exp (batch, slots) of logits (batch, slots, vocabulary), in float32 at least."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).logsumexp(dim=2)


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
    rows, slots, vocabulary = logits.shape
    with torch.no_grad():
        # EOS is set apart: a finished slot's EOS may be its best candidate with the lowest of logits.
        tokens = logits.topk(min(size + 3, vocabulary), dim=2).indices
        banned = (tokens == model.eos) | (tokens == model.padding) | (tokens == model.bos)
        tokens = torch.cat([tokens, tokens.new_full((rows, slots, 1), model.eos)], dim=2)
        banned = torch.cat([banned, banned.new_zeros(rows, slots, 1)], dim=2)
        if only_eos is not None:
            banned[..., :-1] |= only_eos.view(-1, 1, 1)
    log_probability = logits.gather(2, tokens).to(normaliser.dtype) - normaliser.unsqueeze(2)
    going = 1 - beam.finished
    open_ = going > 0
    log_going = torch.where(open_, torch.where(open_, going, 1.0).log(), -torch.inf)
    ended = torch.where(
        beam.finished > 0,
        (beam.finished + going * log_probability[..., -1].exp()).clamp_min(1e-30).log(),
        log_probability[..., -1],
    )
    scores = torch.cat([log_probability[..., :-1] + log_going.unsqueeze(2), ended.unsqueeze(2)], dim=2)
    scores = (scores + beam.scores.unsqueeze(2)).masked_fill(banned, -torch.inf).flatten(1)
    with torch.no_grad():
        order = scores.topk(min(size, scores.shape[1]), dim=1).indices
    width = tokens.shape[2]
    return Candidates(scores.gather(1, order), order // width, tokens.flatten(1).gather(1, order))
