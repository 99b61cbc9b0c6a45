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

    A draw is the largest of log-probability + Gumbel noise, each token with noise of its own (Maddison et al. 2014).
    What a sentence draws depends on the seed and on its number, not on the batch in which it stands: in another batch
    the last digits of the logits are others, which moves all the borders of a cumulative distribution, and hardly ever
    the largest of a sum.
    """

    def __init__(self, config: SearchConfig, numbers: Sequence[int]) -> None:
        """Notes what decides the draws.

        Args:
            config: the search.
            numbers: of the sentences, one each, 0 or more.
        """
        self.config, self._numbers = config, list(numbers)

    def select(self, model: Seq2Seq, scored: Scored, rows: Tensor, step: int) -> HardSelection:
        """Every slot goes on by one token; the first beam, of one slot, by as many as there are hypotheses.

        Args:
            model: tells what its tokens are.
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
        # A start token that is also EOS may end a hypothesis.
        allowed[..., sorted({model.padding, model.bos} - {model.eos})] = -torch.inf
        others = torch.arange(allowed.shape[2], device=rows.device) != model.eos
        allowed = allowed.masked_fill(scored.only_eos.view(-1, 1, 1) & others, -torch.inf)
        allowed = allowed / self.config.temperature
        if self.config.top_k or self.config.top_p < 1:
            size = min(self.config.top_k or allowed.shape[2], allowed.shape[2])
            best, order = allowed.topk(size, dim=2)
            share = best.softmax(dim=2)
            # A token is in the nucleus when those before it hold less than top_p.
            best = best.masked_fill(share.cumsum(dim=2) - share >= self.config.top_p, -torch.inf)
            allowed = torch.full_like(allowed, -torch.inf).scatter(2, order, best)
        every = torch.arange(allowed.shape[2], device=rows.device) if model.ids is None else model.ids
        tokens = (allowed + self._noise(rows, step, every, slots)).argmax(dim=2)
        return HardSelection(parents, tokens, scored.score(parents, tokens))

    def _noise(self, rows: Tensor, step: int, ids: Tensor, slots: int) -> Tensor:
        """Standard Gumbel noise (batch, slots, ids), that of a token whatever others there are."""
        size = int(ids.max()) + 1
        seeds = [[self.config.seed % 2**63, self._numbers[row], step] for row in rows.tolist()]
        uniform = torch.from_numpy(np.stack([np.random.default_rng(seed).random((size, slots)) for seed in seeds]))
        # Above 0, whose logarithm is not finite.
        noise = uniform.clamp_min_(1e-300).log_().neg_().log_().neg_()
        return noise.to(ids.device).index_select(1, ids).transpose(1, 2)
