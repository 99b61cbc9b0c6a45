"""Runs again, with a gradient, what matters of a traced search: each prefix once, and only those that weigh."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nmt.models.seq2seq import Seq2Seq
from nmt.search.trace import Trace
from nmt.tree import take_rows


@dataclass(frozen=True)
class Replay:
    """The decoder's features at the prefixes that were run, and who asks for them.

    Attributes:
        features: (nodes, features), one node a prefix.
        rows, tokens, weights: (queries,): the log-probability of a token at a node, and its weight.
        gold: (batch, longest) node of each prefix of the reference, -1 where there is none or it was not asked for.
        held: (batch, longest), true where the beam held that prefix.
    """

    features: Tensor
    rows: Tensor
    tokens: Tensor
    weights: Tensor
    gold: Tensor
    held: Tensor


def replay(
    model: Seq2Seq,
    memory: Any,
    trace: Trace,
    weights: Sequence[Tensor],
    gold: Tensor,
    gold_lengths: Tensor,
    tolerance: float = 0.0,
    led: Tensor | None = None,
) -> Replay:
    """Decodes the prefixes of a traced search that have weight, and those of the references beside them.

    A prefix of the reference that the beam held is one of its prefixes and is decoded once.

    Args:
        model: the model.
        memory: what it left of the sources.
        trace: the search.
        weights: for each step (batch, C): the weight of the log-probability of a candidate's token.
        gold: (batch, longest) references, each ending in EOS, then padding.
        gold_lengths: (batch,), EOS counted.
        tolerance: weights of at most this size are dropped, and with them the prefixes that nothing else needs.
        led: (batch,), true where the reference's prefixes are decoded; None: everywhere.
    """
    rows, longest = gold.shape
    device = gold.device
    heavy = [weight.abs() > tolerance for weight in weights]
    needed = _needed(trace, heavy)
    nothing = torch.zeros(rows, 1, dtype=torch.bool, device=device)
    state, advance_nodes = model.start(memory), model.unrolled().advance_nodes
    features: list[Tensor] = []
    queries: list[tuple[Tensor, Tensor, Tensor]] = []
    held = torch.zeros(rows, longest, dtype=torch.bool, device=device)
    gold_nodes = torch.full((rows, longest), -1, dtype=torch.long, device=device)
    # The slot that holds the reference's prefix: one of the beam's, or one of its own behind them.
    gold_slot = torch.zeros(rows, 1, dtype=torch.long, device=device)
    # The node of each slot of the step before; the search begins with one a sentence.
    before = torch.arange(rows, device=device).unsqueeze(1)
    parents = torch.zeros(rows, 2, dtype=torch.long, device=device)
    reads = torch.full((rows, 2), model.bos, dtype=torch.long, device=device)
    count = 0
    for step in range(max(len(trace.steps), longest)):
        slots = needed[step] if step < len(trace.steps) else nothing
        there = gold_lengths > step
        asked_for = there if led is None else there & led
        if step:
            parents, reads, gold_slot = _origins(trace, step, slots.shape[1], gold_slot, gold)
        if step < longest:
            held[:, step] = there & (gold_slot.squeeze(1) < slots.shape[1])
        slots = torch.cat([slots, nothing], dim=1)
        slots = slots.scatter(1, gold_slot, slots.gather(1, gold_slot) | asked_for.unsqueeze(1))
        nodes = slots.flatten().nonzero().squeeze(1)
        if len(nodes) == 0:
            # What nobody needs leads to nothing that is needed.
            continue
        state = take_rows(state, before.gather(1, parents).flatten().index_select(0, nodes))
        embedding = model.embed(reads.flatten().index_select(0, nodes).unsqueeze(1))
        advanced = advance_nodes(embedding, state, memory, nodes // slots.shape[1])
        state = advanced.state
        features.append(advanced.features.squeeze(1))
        # Slots that were not run have a number, too, but nobody asks for it.
        before = (slots.flatten().cumsum(dim=0) - 1).clamp_min(0).view_as(slots)
        numbers = before + count
        count += len(nodes)
        if step < longest:
            gold_nodes[:, step] = torch.where(asked_for, numbers.gather(1, gold_slot).squeeze(1), -1)
        if step < len(trace.steps):
            candidates, chosen = trace.steps[step].candidates, heavy[step]
            asked = numbers.gather(1, candidates.slots)[chosen]
            queries.append((asked, candidates.tokens[chosen], weights[step][chosen]))
    asked, tokens, wanted = (torch.cat(part) for part in zip(*queries, strict=True))
    return Replay(torch.cat(features), asked, tokens, wanted, gold_nodes, held)


def _needed(trace: Trace, heavy: Sequence[Tensor]) -> list[Tensor]:
    """For each step (batch, slots): which slots have a heavy candidate, or one that leads to such."""
    needed: list[Tensor] = []
    below: Tensor | None = None
    for step in range(len(trace.steps) - 1, -1, -1):
        slots = trace.selected(step - 1) if step else 1
        parents = trace.steps[step].candidates.slots
        votes = torch.zeros(len(parents), slots, device=parents.device).scatter_add_(1, parents, heavy[step].float())
        if below is not None:
            votes.scatter_add_(1, parents[:, : below.shape[1]], below.float())
        below = votes > 0
        needed.append(below)
    return needed[::-1]


def _origins(trace: Trace, step: int, width: int, gold_slot: Tensor, gold: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where the `width` slots of the beam and, behind them, the reference's own come from.

    Returns:
        their slots of the step before and the tokens read, (batch, width + 1) each, and the slot that holds the
        reference's prefix now, (batch, 1).
    """
    previous = gold[:, min(step, gold.shape[1]) - 1].unsqueeze(1)
    own = torch.full_like(gold_slot, width)
    if step >= len(trace.steps):
        return torch.cat([gold_slot] * 2, dim=1), torch.cat([previous] * 2, dim=1), own
    candidates, _, ended = trace.steps[step - 1]
    scores, slots, tokens = (part[:, : trace.selected(step - 1)] for part in candidates)
    same = (slots == gold_slot) & (tokens == previous) & (scores > -torch.inf) & ~ended[:, : slots.shape[1]]
    held = same.int().argmax(dim=1, keepdim=True)
    gold_now = torch.where(same.any(dim=1, keepdim=True), held, own)
    return torch.cat([slots, gold_slot], dim=1), torch.cat([tokens, previous], dim=1), gold_now
