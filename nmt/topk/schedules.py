"""Temperatures as functions of the training update."""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn


class Schedule(Protocol):
    """The temperature at an update, counted from 0."""

    def __call__(self, update: int) -> float: ...


def _check(**temperatures: float) -> None:
    for name, value in temperatures.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be finite and > 0, not {value}: give a temperature in units of the scores")


def _check_updates(updates: int) -> None:
    if updates < 1:
        raise ValueError(f"updates must be >= 1, not {updates}: for a fixed temperature use Constant")


@dataclass(frozen=True)
class Constant:
    """The same temperature at every update.

    Attributes:
        temperature: in units of the scores (nats of a beam), > 0.
    """

    temperature: float

    def __post_init__(self) -> None:
        _check(temperature=self.temperature)

    def __call__(self, update: int) -> float:
        return self.temperature


@dataclass(frozen=True)
class _Annealed:
    """From `start` to `end`, and `end` from then on.

    Attributes:
        start: temperature at update 0.
        end: temperature from `updates` on.
        updates: length of the way.
    """

    start: float
    end: float
    updates: int

    def __post_init__(self) -> None:
        _check(start=self.start, end=self.end)
        _check_updates(self.updates)

    def _part(self, update: int) -> float:
        return min(max(update / self.updates, 0.0), 1.0)


class Linear(_Annealed):
    """From `start` to `end` on a line in `updates` updates, `end` from then on."""

    def __call__(self, update: int) -> float:
        part = self._part(update)
        return self.start * (1 - part) + self.end * part


class Exponential(_Annealed):
    """From `start` to `end` by the same factor at each of `updates` updates, `end` from then on."""

    def __call__(self, update: int) -> float:
        part = self._part(update)
        return self.start ** (1 - part) * self.end**part


class Learned(nn.Module):
    """A temperature that is trained by its logarithm, which keeps it positive; called, it gives a 0-d tensor.

    Args:
        initial: where it starts, > 0.
    """

    def __init__(self, initial: float) -> None:
        _check(initial=initial)
        super().__init__()
        self.log_temperature = nn.Parameter(torch.tensor(math.log(initial)))

    def forward(self, update: int = 0) -> Tensor:
        return self.log_temperature.exp()

    def extra_repr(self) -> str:
        return f"temperature={self.log_temperature.detach().exp().item():.4g}"
