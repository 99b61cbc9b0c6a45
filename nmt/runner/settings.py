"""How an exported model translates: those of `nmt translate`'s flags that the runner knows, with the same meaning."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nmt.errors import UserError


@dataclass(frozen=True)
class Settings:
    """How lines are translated.

    Attributes:
        beam_size: slots of the beam; 1 is greedy search.
        normalization: final score: none: log p; length: log p / |y|^alpha; gnmt: log p / ((5 + |y|) / 6)^alpha.
        alpha: exponent of the length normalisation, 0 or more.
        max_ratio: a hypothesis holds at most max_ratio * source length + max_extra tokens, its end counted.
        max_extra: see max_ratio.
        min_ratio: a hypothesis holds at least min_ratio * source length + min_extra tokens, its end counted.
        min_extra: see min_ratio.
        n_best: hypotheses returned for each line, at most beam_size.
        max_pieces: the most SentencePiece pieces of a source line.
        too_long: truncate: translate the first max_pieces pieces; empty: leave the output line empty.
        batch_tokens: most source tokens of a batch, padding counted.
    """

    beam_size: int = 5
    normalization: Literal["none", "length", "gnmt"] = "length"
    alpha: float = 1.0
    max_ratio: float = 1.5
    max_extra: int = 10
    min_ratio: float = 0.0
    min_extra: int = 0
    n_best: int = 1
    max_pieces: int = 256
    too_long: Literal["truncate", "empty"] = "truncate"
    batch_tokens: int = 4096

    def __post_init__(self) -> None:
        for name in ("beam_size", "n_best", "max_pieces", "batch_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; give at least 1")
        if self.normalization not in ("none", "length", "gnmt"):
            raise UserError(f"normalization is '{self.normalization}'; choose none, length or gnmt")
        if self.too_long not in ("truncate", "empty"):
            raise UserError(f"too_long is '{self.too_long}'; choose truncate or empty")
        for name in ("alpha", "min_ratio", "min_extra"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"{name} is {getattr(self, name)}; give 0 or more")
        if not (0 <= self.max_ratio < math.inf and self.max_extra >= 0 and self.max_ratio + self.max_extra > 0):
            raise UserError(
                f"max_ratio {self.max_ratio} and max_extra {self.max_extra} allow no token; "
                "neither may be negative and one must be positive"
            )
        if self.n_best > self.beam_size:
            raise UserError(f"n_best is {self.n_best}, more than beam_size {self.beam_size}; raise beam_size")

    def divisor(self, length: NDArray[np.int64]) -> NDArray[np.float32]:
        """What log-probabilities are divided by; lengths count the end of the sentence."""
        if self.normalization == "none":
            return np.ones(length.shape, dtype=np.float32)
        base = length.astype(np.float32)
        base = base if self.normalization == "length" else (5 + base) / np.float32(6)
        return np.power(base, np.float32(self.alpha), dtype=np.float32)

    def max_length(self, source_length: int) -> int:
        """The most tokens of a hypothesis, its end counted, for a source of so many tokens."""
        return max(1, math.floor(self.max_ratio * source_length + self.max_extra))

    def min_length(self, source_length: int) -> int:
        """The fewest tokens of a hypothesis, its end counted; never more than the most."""
        return min(self.max_length(source_length), math.floor(self.min_ratio * source_length + self.min_extra))
