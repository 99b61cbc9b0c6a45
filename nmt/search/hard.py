"""Beam search as it decodes: selection by indices, finished hypotheses kept in a pool."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from nmt.models.seq2seq import Seq2Seq
from nmt.search.beam import Beam, expand, first_beam
from nmt.search.config import SearchConfig
from nmt.search.constraints import Constraints
from nmt.search.lattice import Lattice
from nmt.search.peaks import log_normaliser
from nmt.search.sampling import Sampler
from nmt.search.selection import (
    HardSelection,
    Scored,
    diverse_select,
    hard_reparent,
    hard_select,
    refilling_select,
)
from nmt.tree import map_tree, take_rows, take_slots

# Attention below this counts as this: the logarithm of a source token that was never looked at is finite.
_LEAST_COVERAGE = 1e-10


@dataclass(frozen=True)
class Hypothesis:
    """One translation as the search left it.

    Attributes:
        tokens: target ids, EOS not among them.
        log_probability: sum over the tokens and EOS, in nats.
        score: the log-probability after length normalisation and coverage, what the search ranks by.
        token_log_probabilities: of each token and EOS, in nats.
        attention: (tokens and EOS, source length), when asked for.
    """

    tokens: list[int]
    log_probability: float
    score: float
    token_log_probabilities: list[float]
    attention: Tensor | None = None


class Pool(NamedTuple):
    """The best finished hypotheses of each sentence, best first, by where they ended in the lattice; a score of -inf
    marks an empty place."""

    scores: Tensor
    log_probabilities: Tensor
    steps: Tensor
    slots: Tensor

    @classmethod
    def empty(cls, rows: int, places: int, like: Tensor) -> "Pool":
        """Without a hypothesis; scores in the precision of `like`."""
        scores = like.new_full((rows, places), -torch.inf)
        steps = torch.zeros(rows, places, dtype=torch.long, device=like.device)
        return cls(scores, scores.clone(), steps, steps.clone())

    def add(self, other: "Pool") -> "Pool":
        """Keeps the best of both."""
        both = map_tree(lambda a, b: torch.cat([a, b], dim=1), self, other)
        order = both.scores.topk(self.scores.shape[1], dim=1).indices
        return map_tree(lambda leaf: leaf.gather(1, order), both)


@torch.inference_mode()
def beam_search(
    model: Seq2Seq,
    source: Tensor,
    lengths: Tensor,
    config: SearchConfig,
    *,
    attention: bool = False,
    constraints: Constraints | None = None,
    numbers: Sequence[int] | None = None,
) -> list[list[Hypothesis]]:
    """Translates a batch.

    A hypothesis that ends leaves its slot for the pool, so that the next step fills all slots with open
    ones (with `config.refill` this step already). A sentence is done, and leaves the batch, when no open hypothesis
    can still enter its pool: a log-probability only falls, so the best that an open one can reach is its present
    log-probability over the divisor of the longest length allowed (and no coverage penalty); `config.stop` may say
    otherwise. At that length a hypothesis must end.

    Args:
        model: in evaluation mode.
        source: (batch, source length) ids.
        lengths: (batch,), each at least 1.
        config: the search.
        attention: whether hypotheses carry their attention matrix.
        constraints: what is demanded of each sentence.
        numbers: (batch,), of the sentences in the whole text, which decide what is drawn; 0, 1, ... by default.

    Returns:
        For each sentence its n best hypotheses (fewer when fewer exist), best first.
    """
    if constraints is not None:
        constraints.check(config)
    rows, device = source.shape[0], source.device
    memory = model.encode(source, lengths)
    sizes = lengths.tolist()
    limits = torch.tensor([config.max_length(size) for size in sizes], device=device)
    least = torch.tensor([config.min_length(size) for size in sizes], device=device)
    if constraints is not None:
        limits = constraints.limits(limits)
    limits = model.within_positions(limits)
    least = torch.minimum(least, limits)
    longest, shortest = int(limits.max()), int(least.max())
    sampler = None
    if config.strategy == "sample":
        sampler = Sampler(config, range(rows) if numbers is None else numbers)

    beam = first_beam(model, memory, rows)
    coverage = beam.scores.new_zeros(rows, 1, source.shape[1])
    # Groups may come to the same hypothesis, which is returned once.
    places = config.n_best * config.groups if config.stop == "exact" else config.beam_size
    pool = Pool.empty(rows, places, beam.scores)
    results, lattice = Pool(*map_tree(torch.clone, pool)), Lattice()
    open_rows = torch.arange(rows, device=device)

    for step in range(longest):
        advanced = model.advance(beam.embedding, beam.state, memory)
        logits = model.project(advanced.features)
        normaliser, only_eos = log_normaliser(logits), limits == step + 1
        if step + 1 < shortest:
            logits[..., model.eos] = logits[..., model.eos].masked_fill((least > step + 1).unsqueeze(1), -torch.inf)
        if constraints is not None:
            logits = constraints.forbid(logits, only_eos, open_rows, step)
        scored = Scored(logits, normaliser, beam, only_eos)
        selection = _select(model, scored, config, sampler, open_rows, step)
        if constraints is not None:
            selection = constraints.select(selection, scored, open_rows, step)
        # The largest of what a step makes: they go before those of the next step come.
        del logits, scored
        lattice.add(open_rows, *selection, advanced.attention if attention else None)
        if config.coverage:
            coverage = take_slots(coverage + advanced.attention, selection.parents)

        present = torch.full_like(selection.scores, step + 1 + model.forced)
        ended = (selection.tokens == model.eos) & (selection.scores > -torch.inf)
        if ended.any():
            scores = selection.scores / config.divisor(present)
            if config.coverage:
                scores = scores + config.coverage * coverage_penalty(coverage, lengths.to(device)[open_rows])
            steps = torch.full_like(selection.parents, step)
            slots = torch.arange(steps.shape[1], device=device).expand_as(steps)
            pool = pool.add(Pool(scores.masked_fill(~ended, -torch.inf), selection.scores, steps, slots))
        if config.refill:
            # What ended stands behind the slots.
            going = selection.parents.shape[1] // 2
            selection = HardSelection(*(part[:, :going] for part in selection))
            coverage = coverage[:, :going] if config.coverage else coverage
        beam = hard_reparent(model, selection, beam, advanced.state)
        alive = beam.scores.masked_fill(beam.finished > 0, -torch.inf)
        beam = Beam(beam.state, beam.embedding, alive, torch.zeros_like(alive))
        longest_reachable = limits + model.forced if config.stop == "exact" else present[:, 0]
        reachable = alive.amax(dim=1) / config.divisor(longest_reachable.to(alive.dtype))
        done = reachable <= pool.scores[:, -1]
        if config.stop == "full":
            done |= pool.scores[:, -1] > -torch.inf
        if done.any():
            leaving = open_rows[done]
            for result, part in zip(results, pool, strict=True):
                result[leaving] = part[done]
            keep = (~done).nonzero().squeeze(1)
            if len(keep) == 0:
                break
            open_rows, limits, least, memory, pool = take_rows((open_rows, limits, least, memory, pool), keep)
            beam = Beam(*take_rows((beam.state, beam.embedding, beam.scores, beam.finished), keep))
            coverage = coverage.index_select(0, keep) if config.coverage else coverage
    return _read(results, lattice, sizes, config)


def _select(
    model: Seq2Seq, scored: Scored, config: SearchConfig, sampler: Sampler | None, rows: Tensor, step: int
) -> HardSelection:
    if sampler is not None:
        return sampler.select(model, scored, rows, step)
    if config.groups > 1:
        return diverse_select(model, scored, config.beam_size, config.groups, config.diversity)
    logits, normaliser, beam, only_eos = scored
    if config.refill:
        candidates = expand(model, logits, normaliser, beam, 2 * config.beam_size, only_eos=only_eos)
        return refilling_select(model, candidates, config.beam_size)
    return hard_select(expand(model, logits, normaliser, beam, config.beam_size, only_eos=only_eos), config.beam_size)


def coverage_penalty(coverage: Tensor, lengths: Tensor) -> Tensor:
    """sum over source tokens i of log min(coverage_i, 1); Wu et al. 2016 (arXiv:1609.08144), equation 14.

    Args:
        coverage: (batch, slots, source length), the attention that each source token has had.
        lengths: (batch,), of the sources, their end counted.

    Returns:
        (batch, slots), at most 0.
    """
    there = torch.arange(coverage.shape[2], device=coverage.device) < lengths.view(-1, 1, 1)
    return coverage.clamp(_LEAST_COVERAGE, 1.0).log().masked_fill(~there, 0.0).sum(dim=2)


def _read(pool: Pool, lattice: Lattice, lengths: list[int], config: SearchConfig) -> list[list[Hypothesis]]:
    """The hypotheses of the pools, off the device."""
    found: list[list[Hypothesis]] = [[] for _ in lengths]
    known: set[tuple[int, ...]] = set()
    scores, log_probabilities, steps, slots = (part.cpu().numpy() for part in pool)
    sentences, places = np.nonzero(scores > -math.inf)
    where = sentences, places
    paths = lattice.read(sentences, steps[where], slots[where])
    for sentence, path, score, total in zip(
        sentences.tolist(), paths, scores[where].tolist(), log_probabilities[where].tolist(), strict=True
    ):
        tokens = path.tokens[:-1].tolist()
        if len(found[sentence]) == config.n_best or (sentence, *tokens) in known:
            continue
        if config.groups > 1:
            known.add((sentence, *tokens))
        weights = None
        if path.attention is not None:
            weights = torch.from_numpy(path.attention[:, : lengths[sentence]].copy())
        found[sentence].append(Hypothesis(tokens, total, score, path.log_probabilities.tolist(), weights))
    return found
