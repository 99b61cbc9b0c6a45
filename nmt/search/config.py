"""What a search looks for: its width, its score, its lengths, and whether it draws."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nmt.errors import UserError


@dataclass
class SearchConfig:
    """How a file is decoded."""

    beam_size: int = 5
    """Slots of the beam; 1 is greedy search."""
    normalization: Literal["none", "length", "gnmt"] = "length"
    """Final score: none: log p; length: log p / |y|^alpha; gnmt: log p / ((5 + |y|) / 6)^alpha. |y| counts
    the end of the sentence, and what an imported model forces to be first."""
    alpha: float = 1.0
    """Exponent of the length normalisation, 0 or more."""
    refill: bool = False
    """A hypothesis that ends leaves its slot to the best candidate that goes on, as in fairseq and transformers;
    otherwise the slot stays empty for a step."""
    stop: Literal["exact", "present", "full"] = "exact"
    """A sentence is done when no open hypothesis can still be among the n best (exact); when none could, ended at its
    present length, be among the beam_size best (present: early_stopping False in transformers); as soon as beam_size
    hypotheses have ended (full: early_stopping True)."""
    max_ratio: float = 1.5
    """A hypothesis holds at most max_ratio * source length + max_extra tokens."""
    max_extra: int = 10
    """See max_ratio."""
    n_best: int = 1
    """Hypotheses returned for each sentence, at most beam_size."""
    min_ratio: float = 0.0
    """A hypothesis holds at least min_ratio * source length + min_extra tokens, its end counted."""
    min_extra: int = 0
    """See min_ratio."""
    coverage: float = 0.0
    """Weight of the coverage penalty: sum over source tokens of log min(attention they have had, 1) is added to the
    final score (Wu et al. 2016, equation 14)."""
    groups: int = 1
    """Diverse beam search: the beam is split into so many groups of equal size, searched one after the other
    (Vijayakumar et al. 2018)."""
    diversity: float = 0.5
    """Diverse beam search: what a token costs, in nats, for each time that an earlier group took it at this step."""
    strategy: Literal["beam", "sample"] = "beam"
    """sample: n_best hypotheses are drawn from the model, token by token, instead of searched for."""
    temperature: float = 1.0
    """Sampling: logits are divided by it before a token is drawn; scores remain the model's own."""
    top_k: int = 0
    """Sampling: from the k most probable tokens alone; 0: from all."""
    top_p: float = 1.0
    """Sampling: from the fewest tokens that hold this share of the probability (nucleus; Holtzman et al. 2020)."""
    seed: int = 1
    """Sampling: a line's draws depend on this and on the number of the line alone."""

    def __post_init__(self) -> None:
        for name in ("beam_size", "n_best", "groups"):
            if getattr(self, name) < 1:
                raise UserError(f"search.{name} is {getattr(self, name)}; give at least 1")
        if self.normalization not in ("none", "length", "gnmt"):
            raise UserError(f"search.normalization is '{self.normalization}'; choose none, length or gnmt")
        for name in ("alpha", "coverage", "diversity", "min_ratio", "min_extra"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"search.{name} is {getattr(self, name)}; give 0 or more")
        if not (0 <= self.max_ratio < math.inf and self.max_extra >= 0 and self.max_ratio + self.max_extra > 0):
            raise UserError(
                f"search.max_ratio {self.max_ratio} and search.max_extra {self.max_extra} allow no token; "
                "neither may be negative and one must be positive"
            )
        if self.stop not in ("exact", "present", "full"):
            raise UserError(f"search.stop is '{self.stop}'; choose exact, present or full")
        if self.strategy not in ("beam", "sample"):
            raise UserError(f"search.strategy is '{self.strategy}'; choose beam or sample")
        if self.strategy == "sample":
            self._check_sampling()
        else:
            self._check_beam()

    def _check_beam(self) -> None:
        if self.n_best > self.beam_size:
            raise UserError(
                f"search.n_best is {self.n_best}, more than search.beam_size {self.beam_size}; raise beam_size"
            )
        if self.beam_size % self.groups:
            raise UserError(
                f"search.beam_size {self.beam_size} cannot be split into search.groups {self.groups} of equal size; "
                "give a multiple"
            )
        if self.refill and self.groups > 1:
            raise UserError(
                f"search.refill is for a beam in one group, and search.groups is {self.groups}; leave out one of them"
            )
        for name, off in (("temperature", 1.0), ("top_k", 0), ("top_p", 1.0)):
            if getattr(self, name) != off:
                raise UserError(
                    f"search.{name} is {getattr(self, name)}, which is for sampling; set search.strategy to sample"
                )

    def _check_sampling(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise UserError(f"search.temperature is {self.temperature}; give a positive number, 1 for the model's own")
        if self.top_k < 0:
            raise UserError(f"search.top_k is {self.top_k}; give 0 (all tokens) or more")
        if not 0 < self.top_p <= 1:
            raise UserError(f"search.top_p is {self.top_p}; give a share above 0, at most 1")
        for name, off in (("groups", 1), ("refill", False), ("stop", "exact")):
            if getattr(self, name) != off:
                raise UserError(
                    f"search.{name} is {getattr(self, name)}, which is for a beam; set search.strategy to beam"
                )

    @property
    def slots(self) -> int:
        """Hypotheses that are open at once."""
        return self.n_best if self.strategy == "sample" else self.beam_size

    @property
    def formula(self) -> str:
        """The final score, spelled out."""
        score = {
            "none": "log p",
            "length": f"log p / |y|^{self.alpha:g}",
            "gnmt": f"log p / ((5 + |y|) / 6)^{self.alpha:g}",
        }[self.normalization]
        return score if not self.coverage else f"{score} + {self.coverage:g} * sum_i log min(coverage_i, 1)"

    @property
    def summary(self) -> str:
        """The search and its score in one line."""
        if self.strategy == "sample":
            limits = [f"top_k {self.top_k}"] if self.top_k else []
            limits += [f"top_p {self.top_p:g}"] if self.top_p < 1 else []
            drawn = ", ".join([f"temperature {self.temperature:g}", *limits, f"seed {self.seed}"])
            return f"sampling, {drawn}, score {self.formula}"
        groups = f" in {self.groups} groups, diversity {self.diversity:g}" if self.groups > 1 else ""
        return f"beam {self.beam_size}{groups}, score {self.formula}"

    def divisor(self, length: Tensor) -> Tensor:
        """What a log-probability is divided by; `length` counts the end of the sentence."""
        if self.normalization == "none":
            return torch.ones_like(length)
        base = length if self.normalization == "length" else (5 + length) / 6
        return base**self.alpha

    def max_length(self, source_length: int) -> int:
        """The most tokens of a hypothesis, its end counted, for a source of so many tokens."""
        return max(1, math.floor(self.max_ratio * source_length + self.max_extra))

    def min_length(self, source_length: int) -> int:
        """The fewest tokens of a hypothesis, its end counted; never more than the most."""
        return min(self.max_length(source_length), math.floor(self.min_ratio * source_length + self.min_extra))
