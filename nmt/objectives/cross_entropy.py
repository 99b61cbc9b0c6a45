"""Cross-entropy of the reference under teacher forcing."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nmt.errors import UserError
from nmt.models.seq2seq import Seq2Seq
from nmt.objectives.likelihood import token_log_likelihood
from nmt.objectives.objective import Loss, shifted
from nmt.text.batching import Batch


@dataclass
class CrossEntropyConfig:
    """Cross-entropy with label smoothing (Szegedy et al., CVPR 2016)."""

    label_smoothing: float = 0.1
    """Share of the probability that is spread evenly over the vocabulary."""

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"cross_entropy.label_smoothing is {self.label_smoothing}; give a share from 0 up to 1")


def forced_nll(model: Seq2Seq, features: Tensor, target: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """Sums, in nats, over the tokens of a batch: the smoothed loss, which carries the gradient, and the plain negative
    log-likelihood, which does not. Where the target is padding no logits are made.

    Args:
        model: whose `project` gives the logits.
        features: (batch, target length, features) of `teacher_force`.
        target: (batch, target length).
    """
    places = (target.flatten() != model.padding).nonzero().squeeze(1)
    return _nll(model, features.flatten(0, 1).index_select(0, places), target.flatten()[places], smoothing)


def reference_nll(model: Seq2Seq, memory: Any, target: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """`forced_nll` of `teacher_force` over the target, without features at padding."""
    features, places = model.forced_features(shifted(model, target), target != model.padding, memory)
    return _nll(model, features, target.flatten()[places], smoothing)


def _nll(model: Seq2Seq, features: Tensor, tokens: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """See `forced_nll`, of features (tokens, features)."""
    rows = torch.arange(len(tokens), device=tokens.device)
    ones = torch.ones_like(rows, dtype=torch.float32)
    uniform = smoothing * ones if smoothing else None
    likelihood, log_probability = token_log_likelihood(model, features, rows, tokens, (1 - smoothing) * ones, uniform)
    return -likelihood, -log_probability.sum()


class CrossEntropy:
    """Mean smoothed negative log-likelihood a target token (EOS counted)."""

    def __init__(self, config: CrossEntropyConfig) -> None:
        self.config = config

    def __call__(self, model: Seq2Seq, batch: Batch, update: int = 0) -> Loss:
        memory = model.encode(batch.source, batch.source_lengths)
        loss, plain = reference_nll(model, memory, batch.target, self.config.label_smoothing)
        tokens = batch.target_lengths.sum().to(loss.dtype)
        return Loss(loss / tokens, {"nll": plain / tokens}, normaliser=tokens)
