"""What training minimises: a loss over a batch, and what there is to tell about it."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from nmt.models.seq2seq import Seq2Seq
from nmt.text.batching import Batch


class Loss(NamedTuple):
    """What an objective gives.

    Attributes:
        value: a scalar to minimise, in nats a target token unless the objective says otherwise.
        figures: what to log.
        after_backward: figures that are there once the gradient has been computed: their squares are summed up in
            place as it passes, of the value as it is, whatever it was multiplied by; 0 before. Log their square roots.
        normaliser: what the value is a mean over, in number: tokens or sentences of the batch. An update of several
            batches weighs them by it.
    """

    value: Tensor
    figures: dict[str, Tensor]
    after_backward: Mapping[str, Tensor] = MappingProxyType({})
    normaliser: Tensor | float = 1.0


class Objective(Protocol):
    """Maps a model and a batch, and the number of updates so far, to a loss. Its randomness is torch's global generator
    alone, so that a resumed run repeats it. If it has parameters it is a `torch.nn.Module`."""

    def __call__(self, model: Seq2Seq, batch: Batch, update: int = 0) -> Loss: ...


def shares(scores: Tensor, sharpness: float) -> Tensor:
    """The softmax of sharpness * score (..., slots); what holds nothing, -inf, has no share, at sharpness 0 neither."""
    there = scores > -torch.inf
    return (sharpness * scores.masked_fill(~there, 0.0)).masked_fill(~there, -torch.inf).softmax(dim=-1)


def shifted(model: Seq2Seq, target: Tensor) -> Tensor:
    """What the decoder reads to predict `target` (batch, target length): BOS, then the target but its last."""
    return torch.cat([torch.full_like(target[:, :1], model.bos), target[:, :-1]], dim=1)
