"""Several models of one vocabulary as one: the mean of their probabilities at every step."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nmt.errors import UserError
from nmt.models.seq2seq import Advance, Seq2Seq


class Ensemble(Seq2Seq):
    """Memory and state are tuples, one part a model; embeddings and features are those of all models side by side."""

    def __init__(self, models: Sequence[Seq2Seq]) -> None:
        """Puts models together.

        Raises:
            UserError: none, or models of different target vocabularies.
        """
        if not models:
            raise UserError("An ensemble of 0 models; give at least one.")
        first = models[0]
        super().__init__(first.padding, first.bos, first.eos)
        self.forced = first.forced
        self.models = nn.ModuleList(models)
        sizes = [_sizes(model) for model in models]
        self._embeddings, self._features = ([size[part] for size in sizes] for part in (0, 1))
        if len({size[2] for size in sizes}) > 1 or any(
            (m.padding, m.bos, m.eos, m.forced) != (first.padding, first.bos, first.eos, first.forced) for m in models
        ):
            raise UserError("The models of an ensemble have different target vocabularies; give models of one.")

    @property
    def parts(self) -> list[Seq2Seq]:
        """The models."""
        return list(self.models)  # type: ignore[arg-type]

    @property
    def most_pieces(self) -> int | None:
        """What all models can read."""
        return min((model.most_pieces for model in self.parts if model.most_pieces is not None), default=None)

    @property
    def most_tokens(self) -> int | None:
        """What all models can write."""
        return min((model.most_tokens for model in self.parts if model.most_tokens is not None), default=None)

    def encode(self, source: Tensor, lengths: Tensor) -> Any:
        return tuple(model.encode(source, lengths) for model in self.parts)

    def start(self, memory: Any) -> Any:
        return tuple(model.start(part) for model, part in zip(self.parts, memory, strict=True))

    def embed(self, tokens: Tensor) -> Tensor:
        return torch.cat([model.embed(tokens) for model in self.parts], dim=-1)

    def advance(self, embedding: Tensor, state: Any, memory: Any) -> Advance:
        """As of one model; the attention is the mean."""
        parts = zip(self.parts, embedding.split(self._embeddings, dim=-1), state, memory, strict=True)
        advanced = [model.advance(*part) for model, *part in parts]
        attention = torch.stack([one.attention for one in advanced]).mean(dim=0)
        states = tuple(one.state for one in advanced)
        return Advance(torch.cat([one.features for one in advanced], dim=-1), states, attention)

    def project(self, features: Tensor) -> Tensor:
        """Log-probabilities of the mean of the models' probabilities."""
        parts = zip(self.parts, features.split(self._features, dim=-1), strict=True)
        logits = [model.project(part) for model, part in parts]
        together = torch.stack([part.float().log_softmax(dim=-1) for part in logits])
        return together.logsumexp(dim=0) - math.log(len(logits))


@torch.no_grad()
def _sizes(model: Seq2Seq) -> tuple[int, int, int]:
    """Of a model's embeddings, features and logits; one step tells."""
    token = torch.full((1, 1), model.eos, device=next(model.parameters()).device)
    memory = model.encode(token, torch.ones(1, dtype=torch.long))
    embedding = model.embed(token)
    features = model.advance(embedding, model.start(memory), memory).features
    return embedding.shape[-1], features.shape[-1], model.project(features).shape[-1]
