"""The gradient of an update: the mean over the tokens (or sentences) of all its batches, in all processes."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nmt.runs.world import World


class UpdateGradient:
    """Makes one update of several batches.

    A batch's loss is a mean over its n tokens or sentences. Means of means would give those of short batches more
    weight, and another weight where the batches are dealt out otherwise. Here a batch's gradient counts n times, and
    the update's is divided by the sum of n, so that it does not matter which process or which turn a batch came in: 4
    batches in one process make the update that one batch in each of 4 makes, but for the order of the sums.

    Where one batch in one process is an update, no gradient is touched.

    Args:
        world: the processes.
        accumulate: batches an update in each process.
        unit: weights are counted in this many tokens or sentences, so that gradients keep their magnitude.
    """

    def __init__(self, world: World, accumulate: int, unit: float = 1.0) -> None:
        self.world = world
        self.accumulate = accumulate
        self.unit = unit
        self._total: Tensor | float = 0.0
        self._wrong: Tensor | float = 0.0

    @property
    def is_plain(self) -> bool:
        """Whether an update is one batch."""
        return self.accumulate * self.world.size == 1

    def weigh(self, value: Tensor, normaliser: Tensor | float, first: bool) -> Tensor:
        """The loss to differentiate instead of a batch's mean.

        Args:
            value: the mean, a scalar.
            normaliser: what it is a mean over, in number.
            first: whether the batch is the first of its update in this process.
        """
        if first:
            self._total = self._wrong = 0.0
        self._wrong = self._wrong + (~torch.isfinite(value.detach())).double()
        if self.is_plain:
            return value
        share = torch.as_tensor(normaliser, dtype=torch.float64, device=value.device) / self.unit
        self._total = self._total + share
        return value * share.to(value.dtype)

    def finish(self, parameters: Sequence[nn.Parameter]) -> Tensor:
        """Makes the mean of the sums that the backward passes of an update have left, the same in all processes.

        Args:
            parameters: whose gradients, in the same order everywhere.

        Returns:
            Whether the losses of all batches were finite, a scalar on their device.
        """
        wrong = torch.as_tensor(self._wrong)
        if self.is_plain:
            return wrong == 0
        total = torch.as_tensor(self._total)
        if self.world.size > 1:
            total, wrong = total.new_tensor(sum_gradients(self.world, parameters, torch.stack([total, wrong])))
        scale = self.accumulate / total
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(scale.to(parameter.grad.dtype))
        return wrong == 0


def sum_gradients(world: World, parameters: Sequence[nn.Parameter], numbers: Tensor) -> list[float]:
    """Sums gradients, and some numbers, up over several processes, in place.

    One flat copy of all gradients travels once an update. The buckets of torch's DDP, which travel while the backward
    pass goes on, expect that a loss goes through `forward` and uses every parameter in every process; an objective
    that searches calls the parts of a model, any number of times. What they would save is the time of one sum, at the
    price of a second copy of the gradients here.

    A parameter that has a gradient in no process keeps none, as in a single process: the optimiser passes it over.

    Args:
        world: the processes.
        parameters: in the same order everywhere.
        numbers: (n,) float64, on the parameters' device.

    Returns:
        The sums of the numbers.
    """
    there = numbers.new_tensor([parameter.grad is not None for parameter in parameters])
    counts = torch.cat([numbers, there])
    world.sum(counts)
    sums: list[float] = counts.tolist()
    anywhere = [p for p, count in zip(parameters, sums[len(numbers) :], strict=True) if count]
    if anywhere:
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in anywhere]
        flat = torch.cat([part.flatten() for part in parts])
        world.sum(flat)
        for parameter, total in zip(anywhere, flat.split([part.numel() for part in parts]), strict=True):
            parameter.grad = total.view_as(parameter)
    return sums[: len(numbers)]
