"""Cross-entropy of the reference under teacher forcing."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nmt.batching import Batch
from nmt.errors import UserError
from nmt.models.seq2seq import Seq2Seq
from nmt.objectives.objective import Loss, shifted


@dataclass
class CrossEntropyConfig:
    """Cross-entropy with label smoothing (Szegedy et al., CVPR 2016)."""

    label_smoothing: float = 0.1
    """Share of the probability that is spread evenly over the vocabulary."""

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"cross_entropy.label_smoothing is {self.label_smoothing}; give a share from 0 up to 1")


class _SmoothedNLL(torch.autograd.Function):
    """(1 - s) * -log p(gold) + s * mean over v of -log p(v), one row at a time.

    With z the log-sum-exp: z - (1 - s) x_gold - s mean(x). Kept for the backward pass are the logits, which
    exist anyway, and z; the gradient softmax(x) - (1 - s) [gold] - s / V is made in one buffer. torch's own
    label smoothing keeps a second copy of the size of the logits and walks it three more times.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, gold: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
        x = logits.to(torch.promote_types(logits.dtype, torch.float32))
        z = x.logsumexp(dim=1)
        right = x.gather(1, gold.unsqueeze(1)).squeeze(1)
        loss = z - (1 - smoothing) * right
        if smoothing:
            loss -= smoothing * x.mean(dim=1)
        ctx.save_for_backward(logits, gold, z)
        ctx.smoothing = smoothing
        return loss.sum(), (z - right).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        logits, gold, z = ctx.saved_tensors
        result = (logits - z.unsqueeze(1)).exp_()
        if ctx.smoothing:
            result -= ctx.smoothing / logits.shape[1]
        result.scatter_add_(1, gold.unsqueeze(1), result.new_full((len(gold), 1), ctx.smoothing - 1))
        result *= grad
        return result.to(logits.dtype), None, None


def smoothed_nll(logits: Tensor, gold: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """Sums, in nats, over tokens: the smoothed loss, which carries the gradient, and the plain negative
    log-likelihood, which does not.

    Args:
        logits: (tokens, vocabulary).
        gold: (tokens,).
    """
    loss, plain = _SmoothedNLL.apply(logits, gold, smoothing)
    return loss, plain.detach()


def forced_nll(model: Seq2Seq, features: Tensor, target: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """`smoothed_nll` of a batch; where the target is padding no logits are made.

    Args:
        model: whose `project` gives the logits.
        features: (batch, target length, features) of `teacher_force`.
        target: (batch, target length).
    """
    flat = target.flatten()
    kept = (flat != model.padding).nonzero().squeeze(1)
    logits = model.project(features.flatten(0, 1).index_select(0, kept))
    return smoothed_nll(logits, flat[kept], smoothing)


class CrossEntropy:
    """Mean smoothed negative log-likelihood a target token (EOS counted)."""

    def __init__(self, config: CrossEntropyConfig) -> None:
        self.config = config

    def __call__(self, model: Seq2Seq, batch: Batch, update: int = 0) -> Loss:
        memory = model.encode(batch.source, batch.source_lengths)
        features = model.teacher_force(shifted(model, batch.target), memory)
        loss, plain = forced_nll(model, features, batch.target, self.config.label_smoothing)
        tokens = batch.target_lengths.sum().to(loss.dtype)
        return Loss(loss / tokens, {"nll": plain / tokens})
