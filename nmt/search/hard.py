"""Beam search as it decodes: selection by indices, finished hypotheses kept in a pool."""

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from nmt.errors import UserError
from nmt.models.seq2seq import Seq2Seq
from nmt.search.beam import Beam, Candidates, expand, first_beam, log_normaliser
from nmt.tree import map_tree, take_rows, take_slots


@dataclass
class SearchConfig:
    """How a file is decoded."""

    beam_size: int = 5
    """Slots of the beam; 1 is greedy search."""
    normalization: Literal["none", "length", "gnmt"] = "length"
    """Final score: none: log p; length: log p / |y|^alpha; gnmt: log p / ((5 + |y|) / 6)^alpha. |y| counts
    the end of the sentence."""
    alpha: float = 1.0
    """Exponent of the length normalisation, 0 or more."""
    max_ratio: float = 1.5
    """A hypothesis holds at most max_ratio * source length + max_extra tokens."""
    max_extra: int = 10
    """See max_ratio."""
    n_best: int = 1
    """Hypotheses returned for each sentence, at most beam_size."""

    def __post_init__(self) -> None:
        for name in ("beam_size", "n_best"):
            if getattr(self, name) < 1:
                raise UserError(f"search.{name} is {getattr(self, name)}; give at least 1")
        if self.n_best > self.beam_size:
            raise UserError(
                f"search.n_best is {self.n_best}, more than search.beam_size {self.beam_size}; raise beam_size"
            )
        if self.normalization not in ("none", "length", "gnmt"):
            raise UserError(f"search.normalization is '{self.normalization}'; choose none, length or gnmt")
        if not 0 <= self.alpha < math.inf:
            raise UserError(f"search.alpha is {self.alpha}; give 0 or more")
        if not (0 <= self.max_ratio < math.inf and self.max_extra >= 0 and self.max_ratio + self.max_extra > 0):
            raise UserError(
                f"search.max_ratio {self.max_ratio} and search.max_extra {self.max_extra} allow no token; "
                "neither may be negative and one must be positive"
            )

    @property
    def formula(self) -> str:
        """The final score, spelled out."""
        return {
            "none": "log p",
            "length": f"log p / |y|^{self.alpha:g}",
            "gnmt": f"log p / ((5 + |y|) / 6)^{self.alpha:g}",
        }[self.normalization]

    def divisor(self, length: Tensor) -> Tensor:
        """What a log-probability is divided by; `length` counts the end of the sentence."""
        if self.normalization == "none":
            return torch.ones_like(length)
        base = length if self.normalization == "length" else (5 + length) / 6
        return base**self.alpha

    def max_length(self, source_length: int) -> int:
        """The most tokens of a hypothesis, its end counted, for a source of so many tokens."""
        return max(1, math.floor(self.max_ratio * source_length + self.max_extra))


@dataclass(frozen=True)
class Hypothesis:
    """One translation as the search left it.

    Attributes:
        tokens: target ids, EOS not among them.
        log_probability: sum over the tokens and EOS, in nats.
        score: the log-probability after length normalisation, what the search ranks by.
        attention: (tokens and EOS, source length), when asked for.
    """

    tokens: list[int]
    log_probability: float
    score: float
    attention: Tensor | None = None


class HardSelection(NamedTuple):
    """The k best candidates themselves: parents and tokens, (batch, k) each, best first."""

    parents: Tensor
    tokens: Tensor
    scores: Tensor


def hard_select(candidates: Candidates, size: int) -> HardSelection:
    """The first `size` candidates; they come sorted."""
    return HardSelection(candidates.slots[:, :size], candidates.tokens[:, :size], candidates.scores[:, :size])


def hard_reparent(model: Seq2Seq, selection: HardSelection, beam: Beam, state: Any) -> Beam:
    """Every slot takes the state of its parent and the embedding of its token."""
    ended = (selection.tokens == model.eos).to(beam.finished.dtype)
    return Beam(
        state=take_slots(state, selection.parents),
        embedding=model.embed(selection.tokens),
        scores=selection.scores,
        finished=beam.finished.gather(1, selection.parents).maximum(ended),
    )


class History(NamedTuple):
    """What a hypothesis has gathered: tokens (batch, slots, longest), padded, and, when asked for, attention
    (batch, slots, longest, source length)."""

    tokens: Tensor
    attention: Tensor


class Pool(NamedTuple):
    """The n best finished hypotheses of each sentence, best first; -inf marks an empty place."""

    scores: Tensor
    log_probabilities: Tensor
    lengths: Tensor
    history: History

    def add(self, other: "Pool") -> "Pool":
        """Keeps the best of both."""
        both = map_tree(lambda a, b: torch.cat([a, b], dim=1), self, other)
        order = both.scores.topk(self.scores.shape[1], dim=1).indices
        return take_slots(both, order)


@torch.inference_mode()
def beam_search(
    model: Seq2Seq,
    source: Tensor,
    lengths: Tensor,
    config: SearchConfig,
    *,
    attention: bool = False,
) -> list[list[Hypothesis]]:
    """Translates a batch.

    A hypothesis that ends leaves its slot for the pool, so that the next step fills all slots with open
    ones. A sentence is done, and leaves the batch, when no open hypothesis can still enter its pool: a
    log-probability only falls, so the best that an open one can reach is its present log-probability over
    the divisor of the longest length allowed. At that length a hypothesis must end.

    Args:
        model: in evaluation mode.
        source: (batch, source length) ids.
        lengths: (batch,), each at least 1.
        config: beam size, normalisation and lengths.
        attention: whether hypotheses carry their attention matrix.

    Returns:
        For each sentence its n best hypotheses (fewer when fewer exist), best first.
    """
    rows, device = source.shape[0], source.device
    memory = model.encode(source, lengths)
    limits = torch.tensor([config.max_length(int(length)) for length in lengths], device=device)
    longest = int(limits.max())
    beam = first_beam(model, memory, rows)
    width = source.shape[1] if attention else 0

    def blank(slots: int) -> History:
        return History(
            torch.full((rows, slots, longest), model.padding, device=device),
            torch.zeros(rows, slots, longest, width, device=device),
        )

    history = blank(1)
    empty = torch.full((rows, config.n_best), -torch.inf, device=device, dtype=beam.scores.dtype)
    pool = Pool(empty, empty.clone(), torch.zeros_like(empty, dtype=torch.long), blank(config.n_best))
    results: list[list[Hypothesis]] = [[] for _ in range(rows)]
    open_rows = torch.arange(rows, device=device)

    for step in range(longest):
        advanced = model.advance(beam.embedding, beam.state, memory)
        logits = model.project(advanced.features)
        candidates = expand(model, logits, log_normaliser(logits), beam, config.beam_size, only_eos=limits == step + 1)
        selection = hard_select(candidates, config.beam_size)
        beam = hard_reparent(model, selection, beam, advanced.state)
        history = take_slots(history, selection.parents)
        history.tokens[:, :, step] = selection.tokens
        if attention:
            history.attention[:, :, step] = take_slots(advanced.attention, selection.parents)

        length = torch.full_like(beam.scores, step + 1)
        ended = (beam.finished > 0) & (beam.scores > -torch.inf)
        if ended.any():
            scores = (beam.scores / config.divisor(length)).masked_fill(~ended, -torch.inf)
            pool = pool.add(Pool(scores, beam.scores, length.long(), history))
        alive = beam.scores.masked_fill(beam.finished > 0, -torch.inf)
        beam = Beam(beam.state, beam.embedding, alive, torch.zeros_like(alive))
        reachable = alive.amax(dim=1) / config.divisor(limits.to(alive.dtype))
        done = reachable <= pool.scores[:, -1]
        if done.any():
            for row in done.nonzero().squeeze(1).tolist():
                sentence = int(open_rows[row])
                results[sentence] = _read(pool, row, int(lengths[sentence]))
            keep = (~done).nonzero().squeeze(1)
            if len(keep) == 0:
                break
            open_rows, limits = open_rows[keep], limits[keep]
            memory, history, pool = take_rows((memory, history, pool), keep)
            beam = Beam(*take_rows((beam.state, beam.embedding, beam.scores, beam.finished), keep))
    return results


def _read(pool: Pool, row: int, source_length: int) -> list[Hypothesis]:
    """The hypotheses of one sentence, off the device."""
    found = []
    for place, score in enumerate(pool.scores[row].tolist()):
        if score == -math.inf:
            break
        length = int(pool.lengths[row, place])
        weights = pool.history.attention[row, place, :length, :source_length]
        found.append(
            Hypothesis(
                tokens=pool.history.tokens[row, place, : length - 1].tolist(),
                log_probability=float(pool.log_probabilities[row, place]),
                score=score,
                attention=weights.cpu() if weights.shape[1] else None,
            )
        )
    return found
