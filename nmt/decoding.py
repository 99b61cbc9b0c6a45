"""Ids in, hypotheses out: sources sorted into batches, each searched, and put in order again."""

import dataclasses
from collections.abc import Sequence

import torch

from nmt.errors import UserError
from nmt.models import Narrowed, Seq2Seq
from nmt.search import Constraints, Demand, Hypothesis, SearchConfig, beam_search
from nmt.shortlist import Shortlist
from nmt.text.batching import evaluation_batches

# What a batch takes in memory grows with the hypotheses, too; a beam wider than this has smaller batches.
_SLOTS = 16


def search_ids(
    model: Seq2Seq,
    sources: Sequence[Sequence[int]],
    config: SearchConfig,
    *,
    batch_tokens: int = 2048,
    attention: bool = False,
    demands: Sequence[Demand] | None = None,
    pieces: Sequence[str] = (),
    numbers: Sequence[int] | None = None,
    shortlist: Shortlist | None = None,
) -> list[list[Hypothesis]]:
    """Searches for every source (ids without EOS), sorted into batches inside, returned in order.

    Args:
        model: in evaluation mode.
        sources: none empty.
        config: the search.
        batch_tokens: most source tokens of a batch, padding counted (a longer sentence goes alone), for up to 16
            hypotheses a sentence; for more, fewer in proportion.
        attention: whether hypotheses carry attention.
        demands: on each source's hypotheses.
        pieces: the target vocabulary, for the demands; see `Constraints`.
        numbers: of the sources in the whole text, which decide what is drawn; 0, 1, ... by default.
        shortlist: candidates of the output layer; a batch with demands goes without.
    """
    if not sources:
        return []
    if batch_tokens < 1:
        raise UserError(f"batch_tokens is {batch_tokens}; give at least 1")
    device = next(model.parameters()).device
    lengths = [len(source) + 1 for source in sources]
    results: list[list[Hypothesis]] = [[] for _ in sources]
    budget = batch_tokens * _SLOTS // max(config.slots, _SLOTS)
    for rows in evaluation_batches([len(source) for source in sources], budget):
        longest = max(lengths[row] for row in rows)
        block = torch.full((len(rows), longest), model.padding)
        for place, row in enumerate(rows):
            block[place, : lengths[row]] = torch.tensor([*sources[row], model.eos])
        constraints = None
        if demands is not None and any(demands[row] != Demand() for row in rows):
            never = sorted({model.padding, model.bos} - {model.eos})
            constraints = Constraints([demands[row] for row in rows], pieces, eos=model.eos, never=never)
        searched, candidates = model, None
        if shortlist is not None and constraints is None:
            candidates, allowed = shortlist.candidates([sources[row] for row in rows])
            remainder = None if shortlist.remainder is None else shortlist.remainder.to(device)
            searched = Narrowed(model, candidates.to(device), allowed.to(device), remainder)
        found = beam_search(
            searched,
            block.to(device),
            torch.tensor([lengths[row] for row in rows]),
            config,
            attention=attention,
            constraints=constraints,
            numbers=[int(row) if numbers is None else numbers[row] for row in rows],
        )
        for row, hypotheses in zip(rows, found, strict=True):
            if not hypotheses:
                raise UserError(
                    "The model's probabilities are not numbers; its training diverged or its file is damaged. "
                    "Take an earlier checkpoint."
                )
            if candidates is not None:
                spelt = [candidates[hypothesis.tokens].tolist() for hypothesis in hypotheses]
                pairs = zip(hypotheses, spelt, strict=True)
                hypotheses = [dataclasses.replace(hypothesis, tokens=tokens) for hypothesis, tokens in pairs]
            results[row] = hypotheses
    return results
