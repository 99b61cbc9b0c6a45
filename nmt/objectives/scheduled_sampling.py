"""Scheduled sampling: the decoder reads its own tokens more and more often (Bengio et al., NIPS 2015)."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nmt.errors import UserError
from nmt.models.seq2seq import Seq2Seq
from nmt.objectives.cross_entropy import forced_nll
from nmt.objectives.objective import Loss, shifted
from nmt.text.batching import Batch


@dataclass
class ScheduledSamplingConfig:
    """How often the decoder reads the reference, and how that falls."""

    schedule: Literal["linear", "exponential", "inverse_sigmoid"] = "linear"
    """With i the update, from 1 to `end`: linear: 1 - (1 - end) i / updates; exponential: end^(i / updates); the
    paper's inverse sigmoid: k / (k + exp(i / k)) with k = updates."""
    end: float = 0.75
    """Smallest probability that the decoder reads the reference's token."""
    updates: int = 2000
    """Updates after which `end` is reached; inverse_sigmoid: the paper's k."""
    choice: Literal["sample", "argmax"] = "sample"
    """What it reads otherwise: a token drawn from its own distribution, or the likeliest."""
    label_smoothing: float = 0.1
    """Label smoothing of the cross-entropy."""

    def __post_init__(self) -> None:
        for name, known in (
            ("schedule", ("linear", "exponential", "inverse_sigmoid")),
            ("choice", ("sample", "argmax")),
        ):
            if getattr(self, name) not in known:
                choices = f"{', '.join(known[:-1])} or {known[-1]}"
                raise UserError(f"scheduled_sampling.{name} is '{getattr(self, name)}'; choose {choices}")
        if not 0 <= self.end <= 1:
            raise UserError(f"scheduled_sampling.end is {self.end}; give a probability from 0 to 1")
        if self.schedule == "exponential" and not self.end:
            raise UserError(
                "scheduled_sampling.end is 0, where an exponential schedule is from the first update; give more "
                "(0.01), or use linear"
            )
        if self.updates < 1:
            raise UserError(f"scheduled_sampling.updates is {self.updates}; give at least 1")
        if not 0 <= self.label_smoothing < 1:
            raise UserError(
                f"scheduled_sampling.label_smoothing is {self.label_smoothing}; give a share from 0 up to 1"
            )

    def probability(self, update: int) -> float:
        """Of reading the reference at an update, counted from 0."""
        if self.schedule == "linear":
            value = 1 - (1 - self.end) * (update + 1) / self.updates
        elif self.schedule == "exponential":
            value = self.end ** ((update + 1) / self.updates)
        else:
            # exp overflows beyond 709; the value is 0 long before.
            value = self.updates / (self.updates + math.exp(min((update + 1) / self.updates, 700)))
        return max(self.end, value)


class ScheduledSampling:
    """Mean smoothed negative log-likelihood of the reference a token, under a decoder that reads a mixture of the
    reference and of its own tokens. The choice of a token carries no gradient, as in the paper."""

    def __init__(self, config: ScheduledSamplingConfig) -> None:
        self.config = config

    def __call__(self, model: Seq2Seq, batch: Batch, update: int = 0) -> Loss:
        probability = self.config.probability(update)
        memory = model.encode(batch.source, batch.source_lengths)
        state = model.start(memory)
        given = shifted(model, batch.target)
        features: list[Tensor] = []
        for position in range(given.shape[1]):
            tokens = given[:, position]
            if position and probability < 1:
                tokens = self._mixed(model, tokens, features[-1], probability)
            advanced = model.advance(model.embed(tokens.unsqueeze(1)), state, memory)
            state = advanced.state
            features.append(advanced.features)
        nll, plain = forced_nll(model, torch.cat(features, dim=1), batch.target, self.config.label_smoothing)
        count = batch.target_lengths.sum()
        figures = {"nll": plain / count, "gold_probability": torch.tensor(probability)}
        return Loss(nll / count, figures, normaliser=count)

    @torch.no_grad()
    def _mixed(self, model: Seq2Seq, gold: Tensor, features: Tensor, probability: float) -> Tensor:
        """The reference's tokens (batch,), some replaced by the model's own."""
        own = (torch.rand(gold.shape, device=gold.device) >= probability).nonzero().squeeze(1)
        if not len(own):
            return gold
        logits = model.project(features[own, 0]).float()
        logits[:, sorted({model.padding, model.bos} - {model.eos})] = -torch.inf
        if self.config.choice == "argmax":
            chosen = logits.argmax(dim=1)
        else:
            chosen = torch.multinomial(logits.softmax(dim=1), 1).squeeze(1)
        return gold.index_copy(0, own, chosen)
