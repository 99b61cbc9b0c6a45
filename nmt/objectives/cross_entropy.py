"""Cross-entropy of the reference under teacher forcing."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nmt.batching import Batch
from nmt.errors import UserError
from nmt.models.seq2seq import Seq2Seq
from nmt.objectives.likelihood import token_log_likelihood
from nmt.objectives.objective import Loss, shifted


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
    flat = target.flatten()
    kept = (flat != model.padding).nonzero().squeeze(1)
    rows = torch.arange(len(kept), device=kept.device)
    ones = torch.ones_like(rows, dtype=torch.float32)
    likelihood, log_probability = token_log_likelihood(
        model,
        features.flatten(0, 1).index_select(0, kept),
        rows,
        flat[kept],
        (1 - smoothing) * ones,
        smoothing * ones if smoothing else None,
    )
    return -likelihood, -log_probability.sum()


class CrossEntropy:
    """Mean smoothed negative log-likelihood a target token (EOS counted)."""

    def __init__(self, config: CrossEntropyConfig) -> None:
        self.config = config

    def __call__(self, model: Seq2Seq, batch: Batch, update: int = 0) -> Loss:
        memory = model.encode(batch.source, batch.source_lengths)
        features = model.teacher_force(shifted(model, batch.target), memory)
        loss, plain = forced_nll(model, features, batch.target, self.config.label_smoothing)
        tokens = batch.target_lengths.sum().to(loss.dtype)
        return Loss(loss / tokens, {"nll": plain / tokens}, normaliser=tokens)
