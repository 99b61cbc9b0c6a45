"""Hypotheses drawn from the model, token by token, instead of searched for."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from nmt.models.seq2seq import Seq2Seq
from nmt.search.config import SearchConfig
from nmt.search.selection import HardSelection, Scored


class Sampler:
    """Draws from softmax(logits / temperature), cut to the top_k tokens (Fan et al. 2018) and to the nucleus top_p
    (Holtzman et al. 2020).

    What a sentence draws depends on the seed and on its number, not on the batch in which it stands.
    """

    def __init__(self, config: SearchConfig, numbers: Sequence[int], longest: int, device: torch.device) -> None:
        """Draws all uniform numbers at once.

        Args:
            config: the search.
            numbers: of the sentences, one each, 0 or more.
            longest: most tokens of a hypothesis.
            device: where the search runs.
        """
        self.config = config
        # Column by column, so that a sentence's draws do not depend on the longest sentence of its batch.
        uniform = [
            np.random.default_rng([config.seed % 2**63, number]).random((longest, config.slots)) for number in numbers
        ]
        self._uniform = torch.from_numpy(np.stack(uniform)).to(device)

    def select(self, model: Seq2Seq, scored: Scored, rows: Tensor, step: int) -> HardSelection:
        """Every slot goes on by one token; the first beam, of one slot, by as many as there are hypotheses.

        Args:
            model: tells which ids are special.
            scored: the beam.
            rows: (batch,), the sentences that are still open.
            step: counted from 0.
        """
        logits, slots = scored.logits, self.config.slots
        parents = torch.arange(slots, device=rows.device).expand(len(rows), slots)
        if scored.beam.slots < slots:
            parents = torch.zeros_like(parents)
            logits = logits.expand(-1, slots, -1)
        allowed = logits.to(torch.float64)
        allowed[..., [model.padding, model.bos]] = -torch.inf
        others = torch.arange(allowed.shape[2], device=rows.device) != model.eos
        allowed = allowed.masked_fill(scored.only_eos.view(-1, 1, 1) & others, -torch.inf)
        allowed = allowed / self.config.temperature
        size = allowed.shape[2] if not self.config.top_k else min(self.config.top_k, allowed.shape[2])
        best, order = allowed.topk(size, dim=2)
        share = best.softmax(dim=2)
        below = share.cumsum(dim=2)
        if self.config.top_p < 1:
            # A token is in the nucleus when those before it hold less than top_p.
            share = share.masked_fill(below - share >= self.config.top_p, 0.0)
            below = share.cumsum(dim=2)
        drawn = self._uniform[rows, step].unsqueeze(2) * below[..., -1:]
        # By rounding a draw may lie at the very end, behind all that has weight.
        place = torch.minimum((below <= drawn).sum(dim=2), (share > 0).sum(dim=2) - 1)
        tokens = order.gather(2, place.unsqueeze(2)).squeeze(2)
        return HardSelection(parents, tokens, scored.score(parents, tokens))
