"""Minimum risk training: expected sentence BLEU over the hypotheses of the hard beam search."""

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from nmt.errors import UserError
from nmt.models.seq2seq import Seq2Seq
from nmt.objectives.objective import Loss
from nmt.objectives.traced import Figures, check_bleu, pool_risk, traced_loss
from nmt.objectives.words import Unit, Words, check_units
from nmt.search.trace import Trace
from nmt.text.batching import Batch


@dataclass
class MinRiskConfig:
    """Minimum risk (Shen et al., ACL 2016) over what beam search finds (Edunov et al., NAACL 2018)."""

    beam_size: int = 5
    """Beam size of the search, which the model makes as it is then, without dropout."""
    n_best: int = 1
    """The search ends when no open hypothesis can become one of its n best; all that ended until then count."""
    alpha: float = 1.0
    """Hypotheses are ranked and weighed by score = log p / |y|^alpha."""
    sharpness: float = 10.0
    """The weight of a hypothesis is the softmax of sharpness * score."""
    word_share: float = 0.0
    """share of BLEU of words in what a prefix is worth, from 0 to 1; the rest is BLEU of pieces. Languages
    without spaces want 0."""
    brevity: Unit = "pieces"
    """What the brevity penalty of BLEU of pieces counts: pieces, or words, for translations that have fewer pieces than
    their references and as many words."""
    bleu: Literal["sentence", "batch"] = "sentence"
    """BLEU of the sentence, or of the whole batch, with the other sentences' best hypotheses; the difference that a
    hypothesis makes there is multiplied by the number of sentences."""
    overrun: int = 5
    """Tokens by which a hypothesis may be longer than its reference."""
    tolerance: float = 0.05
    """Prefixes whose log-probabilities all weigh less than this share of the batch's largest weight are not decoded
    again."""
    cross_entropy: float = 0.1
    """Weight of the cross-entropy that is added."""
    label_smoothing: float = 0.1
    """Label smoothing of that cross-entropy."""

    def __post_init__(self) -> None:
        if self.beam_size < 2:
            raise UserError(f"min_risk.beam_size is {self.beam_size}; give at least 2: a risk needs a choice")
        if self.n_best < 1:
            raise UserError(f"min_risk.n_best is {self.n_best}; give at least 1")
        check_units("min_risk", self.word_share, self.brevity)
        check_bleu("min_risk", self.bleu)
        for name in ("sharpness", "alpha", "overrun", "cross_entropy"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"min_risk.{name} is {getattr(self, name)}; give 0 or more")
        if not 0 <= self.tolerance < 1:
            raise UserError(f"min_risk.tolerance is {self.tolerance}; give a share from 0 up to 1 (0.05)")
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"min_risk.label_smoothing is {self.label_smoothing}; give a share from 0 up to 1")


class MinRisk(nn.Module):
    """1 - sum over the finished hypotheses of softmax(sharpness * score) * BLEU, a mean over the sentences.

    Args:
        config: its settings.
        words: of the target vocabulary, for the share of BLEU of words.
    """

    def __init__(self, config: MinRiskConfig, words: Words | None = None) -> None:
        super().__init__()
        self.config = config
        self.words = words

    def forward(self, model: Seq2Seq, batch: Batch, update: int = 0) -> Loss:
        config = self.config

        def risk(trace: Trace, scores: list[Tensor], values: list[Tensor]) -> tuple[Figures, Figures]:
            found, figures = pool_risk(trace, scores, values, config.sharpness)
            return {"risk": found}, figures

        return traced_loss(
            model,
            batch,
            risk,
            beam_size=config.beam_size,
            candidates=config.beam_size,
            alpha=config.alpha,
            n_best=config.n_best,
            overrun=config.overrun,
            tolerance=config.tolerance,
            cross_entropy=config.cross_entropy,
            label_smoothing=config.label_smoothing,
            words=self.words,
            together=config.bleu == "batch",
        )
