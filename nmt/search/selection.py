"""Selection by indices: the k best, and the k best of groups that keep apart."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from nmt.models.seq2seq import Seq2Seq
from nmt.search.beam import Beam, Candidates, expand
from nmt.tree import take_slots


class HardSelection(NamedTuple):
    """The chosen candidates themselves: parents, tokens and scores, (batch, k) each; -inf where there is none."""

    parents: Tensor
    tokens: Tensor
    scores: Tensor


class Scored(NamedTuple):
    """A beam with what its model says of the next token.

    Attributes:
        logits: (batch, slots, vocabulary), -inf where a token is forbidden.
        normaliser: (batch, slots), `log_normaliser` of the logits before anything was forbidden.
        beam: the beam.
        only_eos: (batch,), true where the sentence must end now.
    """

    logits: Tensor
    normaliser: Tensor
    beam: Beam
    only_eos: Tensor

    def score(self, slots: Tensor, tokens: Tensor) -> Tensor:
        """Log-probabilities (batch, n) of the hypotheses of `slots` (batch, n), each with one of `tokens`."""
        rows = torch.arange(len(slots), device=slots.device).unsqueeze(1)
        log_probability = self.logits[rows, slots, tokens].to(self.normaliser.dtype) - self.normaliser[rows, slots]
        return self.beam.scores[rows, slots] + log_probability


def hard_select(candidates: Candidates, size: int) -> HardSelection:
    """The first `size` candidates; they come sorted, best first."""
    return HardSelection(candidates.slots[:, :size], candidates.tokens[:, :size], candidates.scores[:, :size])


def refilling_select(model: Seq2Seq, candidates: Candidates, size: int) -> HardSelection:
    """The `size` best candidates that go on, and behind them the `size` best of all, where those that do not end count
    for nothing. So a beam is full until its end, as in fairseq and transformers.

    Args:
        model: tells which token ends.
        candidates: 2 `size` of them, of which no more than `size` can end, one a slot.
        size: k.

    Returns:
        (batch, 2 k), or less where there are fewer candidates.
    """
    ends = candidates.tokens == model.eos
    # Sorting keeps the order, so those that go on come first, best first.
    going = ends.to(torch.uint8).argsort(dim=1, stable=True)[:, :size]
    on = Candidates(*(part.gather(1, going) for part in candidates))
    ended = Candidates(*(part[:, :size] for part in candidates))
    return HardSelection(
        torch.cat([on.slots, ended.slots], dim=1),
        torch.cat([on.tokens, ended.tokens], dim=1),
        torch.cat(
            [
                on.scores.masked_fill(on.tokens == model.eos, -torch.inf),
                ended.scores.masked_fill(~ends[:, :size], -torch.inf),
            ],
            dim=1,
        ),
    )


def hard_reparent(model: Seq2Seq, selection: HardSelection, beam: Beam, state: Any) -> Beam:
    """Every slot takes the state of its parent and the embedding of its token."""
    ended = (selection.tokens == model.eos).to(beam.finished.dtype)
    return Beam(
        state=take_slots(state, selection.parents),
        embedding=model.embed(selection.tokens),
        scores=selection.scores,
        finished=beam.finished.gather(1, selection.parents).maximum(ended),
    )


def diverse_select(model: Seq2Seq, scored: Scored, size: int, groups: int, diversity: float) -> HardSelection:
    """Diverse beam search with the Hamming penalty (Vijayakumar et al., AAAI 2018, section 3).

    The groups are searched one after the other; for a group, a token that earlier groups took at this step costs
    `diversity` nats for each time. The penalty decides what is selected; scores remain log-probabilities.

    Args:
        model: tells which ids are special.
        scored: a beam of `size` slots, group by group, or the first one, of one slot.
        size: k, a multiple of `groups`.
        groups: how many.
        diversity: in nats.
    """
    logits, normaliser, beam, only_eos = scored
    share = size // groups
    taken = torch.zeros_like(logits[:, 0])
    chosen: list[HardSelection] = []
    for group in range(groups):
        first = group * share if beam.slots > 1 else 0
        own = slice(first, first + share)
        part = Beam(None, beam.embedding[:, own], beam.scores[:, own], beam.finished[:, own])
        penalised = logits[:, own] - diversity * taken.unsqueeze(1)
        found = expand(model, penalised, normaliser[:, own], part, share, only_eos=only_eos)
        missing = share - found.scores.shape[1]
        slots = torch.nn.functional.pad(found.slots + first, (0, missing), value=first)
        tokens = torch.nn.functional.pad(found.tokens, (0, missing), value=model.padding)
        there = torch.nn.functional.pad(found.scores, (0, missing), value=-torch.inf) > -torch.inf
        scores = scored.score(slots, tokens).masked_fill(~there, -torch.inf)
        chosen.append(HardSelection(slots, tokens, scores))
        taken = taken.scatter_add(1, tokens, there.to(taken.dtype))
    return HardSelection(*(torch.cat(parts, dim=1) for parts in zip(*chosen, strict=True)))
