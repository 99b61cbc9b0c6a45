"""The hard beam search, with what competed at every step: what training weighs."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nmt.models.seq2seq import Seq2Seq
from nmt.search.beam import Beam, Candidates, expand, first_beam
from nmt.search.peaks import log_normaliser
from nmt.search.selection import hard_reparent, hard_select
from nmt.tree import take_rows


class TraceStep(NamedTuple):
    """One step of a search. The first `beam_size` candidates were selected: candidate m is slot m of the next step,
    unless it has ended.

    Attributes:
        candidates: what competed, best first, (batch, C); scores are -inf where there is none.
        log_probability: (batch, C) of the candidates' tokens alone; 0 where there is none.
        ended: (batch, C), true where a candidate is a whole hypothesis.
    """

    candidates: Candidates
    log_probability: Tensor
    ended: Tensor


@dataclass(frozen=True)
class Trace:
    """A search over a batch, step by step.

    Attributes:
        beam_size: k.
        alpha: exponent of the length normalisation that decided when a sentence was done.
        steps: a sentence that is done has no candidates any more.
    """

    beam_size: int
    alpha: float
    steps: list[TraceStep]

    def selected(self, step: int) -> int:
        """How many candidates of a step were selected."""
        return min(self.beam_size, self.steps[step].ended.shape[1])


@torch.no_grad()
def trace_search(
    model: Seq2Seq, memory: Any, limits: Tensor, beam_size: int, candidates: int, *, alpha: float = 1.0, n_best: int = 1
) -> Trace:
    """Runs the search that `beam_search` runs, with the same hypotheses, and keeps what competed.

    Args:
        model: the model; its mode is the caller's.
        memory: what it left of the sources.
        limits: (batch,), most tokens of a hypothesis, its end counted; the decoder may have positions for fewer.
        beam_size: k.
        candidates: C, at least k: how many competitors are kept of each step.
        alpha: hypotheses are ranked by log p / |y|^alpha.
        n_best: a sentence is done when no open hypothesis can become one of its n best any more.
    """
    rows, device, limits = len(limits), limits.device, model.within_positions(limits)
    beam = first_beam(model, memory, rows)
    best = torch.full((rows, n_best), -torch.inf, device=device, dtype=beam.scores.dtype)
    steps: list[TraceStep] = []
    open_rows = torch.arange(rows, device=device)
    for step in range(int(limits.max())):
        advanced = model.advance(beam.embedding, beam.state, memory)
        logits = model.project(advanced.features)
        found = expand(model, logits, log_normaliser(logits), beam, candidates, only_eos=limits == step + 1)
        there = found.scores > -torch.inf
        before = beam.scores.gather(1, found.slots)
        log_probability = torch.where(there, found.scores - torch.where(there, before, 0.0), 0.0)
        ended = (found.tokens == model.eos) & there
        steps.append(_spread(TraceStep(found, log_probability, ended), open_rows, rows))

        selection = hard_select(found, beam_size)
        after = hard_reparent(model, selection, beam, advanced.state)
        done_now = ended[:, : after.slots]
        divisor = float(step + 1) ** alpha
        ranked = (after.scores / divisor).masked_fill(~done_now, -torch.inf)
        best = torch.cat([best, ranked], dim=1).topk(n_best, dim=1).values
        alive = after.scores.masked_fill(done_now, -torch.inf)
        beam = Beam(after.state, after.embedding, alive, torch.zeros_like(alive))
        # A log-probability only falls: the best that an open hypothesis can still reach.
        reachable = alive.amax(dim=1) / limits.to(alive.dtype) ** alpha
        keep = (reachable > best[:, -1]).nonzero().squeeze(1)
        if len(keep) == 0:
            break
        if len(keep) < len(open_rows):
            open_rows, limits, best = open_rows[keep], limits[keep], best[keep]
            memory = take_rows(memory, keep)
            beam = Beam(*take_rows((beam.state, beam.embedding, beam.scores, beam.finished), keep))
    return Trace(beam_size, alpha, steps)


def _spread(step: TraceStep, open_rows: Tensor, rows: int) -> TraceStep:
    """A step over the open sentences as one over all."""
    if len(open_rows) == rows:
        return step

    def spread(leaf: Tensor, fill: float = 0) -> Tensor:
        return leaf.new_full((rows, leaf.shape[1]), fill).index_copy_(0, open_rows, leaf)

    (scores, slots, tokens), log_probability, ended = step
    candidates = Candidates(spread(scores, -torch.inf), spread(slots), spread(tokens))
    return TraceStep(candidates, spread(log_probability), spread(ended))
