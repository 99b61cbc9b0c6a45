"""Minimum Bayes risk: of several hypotheses, the one that is worth most if any of them may be right.

Kumar and Byrne, HLT-NAACL 2004 (n-best lists); Eikema and Aziz, COLING 2020 (samples).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from nmt.errors import UserError
from nmt.nbest.ngrams import Floats, pairwise_utility

if TYPE_CHECKING:
    from nmt.translation import Translation

_TIE = 1e-9
"""Utilities (0 to 100) nearer to each other than this are equal: sums of the same numbers in another order."""


def choose(
    hypotheses: Sequence[str],
    utility: str = "chrf",
    weights: Sequence[float] | None = None,
    *,
    tokenize: str = "13a",
) -> int:
    """The place of the hypothesis of the highest expected utility; of equal ones the first, so give the model's best
    first.

    Args: see `expected_utilities`.

    Raises:
        UserError: no hypothesis, or as `expected_utilities`.
    """
    if not hypotheses:
        raise UserError("There are 0 hypotheses to choose from; give at least one.")
    values = expected_utilities(hypotheses, utility, weights, tokenize=tokenize)
    return int(np.flatnonzero(values >= values.max() - _TIE)[0])


def expected_utilities(
    hypotheses: Sequence[str],
    utility: str = "chrf",
    weights: Sequence[float] | None = None,
    *,
    tokenize: str = "13a",
) -> Floats:
    """sum over j of p_j u(h_i, h_j), for each hypothesis i, itself among the j as in both papers.

    A text that stands there several times has the weight of all its places: as a sample that was drawn so often, or as
    the derivations of one translation. Its utility is computed once.

    Args:
        hypotheses: samples of a model, or an n-best list.
        utility: "chrf" (chrF2) or "bleu": sacreBLEU's sentence scores, 0 to 100.
        weights: of each, not negative; they are divided by their sum. None: all the same, as for samples. For an
            n-best list see `posterior`.
        tokenize: sacreBLEU's tokeniser for BLEU.

    Returns:
        (hypotheses,).

    Raises:
        UserError: an unknown utility, or weights that are negative, not numbers, all 0, or not as many.
    """
    share = _shares(weights, len(hypotheses))
    distinct: dict[str, int] = {}
    places = np.array([distinct.setdefault(text, len(distinct)) for text in hypotheses], dtype=np.int64)
    mass = np.bincount(places, weights=share, minlength=len(distinct))
    return (pairwise_utility(list(distinct), utility, tokenize) @ mass)[places]


def posterior(scores: Sequence[float], scale: float = 1.0) -> Floats:
    """exp(scale * score) / sum of these: an n-best list's distribution (Kumar and Byrne 2004, equation 2).

    Args:
        scores: log-probabilities, in nats, or what stands for them.
        scale: below 1 flatter, above 1 sharper; 0: all the same.

    Raises:
        UserError: a score that is no number, or a negative scale.
    """
    values = np.asarray(scores, dtype=np.float64)
    if not 0 <= scale < np.inf:
        raise UserError(f"The scale of the scores is {scale}; give 0 or more.")
    if not np.isfinite(values).all():
        raise UserError("A score of the list is not a number; give finite scores, or choose with equal weights.")
    powers = np.exp(scale * (values - values.max(initial=-np.inf)))
    return powers / powers.sum()


def choose_translation(
    translations: Sequence["Translation"], utility: str = "chrf", *, samples: bool = False, scale: float = 1.0
) -> "Translation":
    """The translation of minimum Bayes risk among those of one line, as `Translator.search` gives them.

    Args:
        translations: `search(lines, strategy="sample", n_best=100)`, or an n-best list.
        utility: "chrf" or "bleu".
        samples: whether they were drawn from the model: then all weigh the same, and otherwise as their
            log-probabilities say.
        scale: see `posterior`.

    Raises:
        UserError: no translation, or an unknown utility.
    """
    weights = None if samples else posterior([one.log_probability for one in translations], scale).tolist()
    return translations[choose([one.text for one in translations], utility, weights)]


def _shares(weights: Sequence[float] | None, count: int) -> Floats:
    if weights is None:
        return np.full(count, 1.0 / max(count, 1))
    values = np.asarray(weights, dtype=np.float64)
    if len(values) != count:
        raise UserError(f"{len(values):,} weights for {count:,} hypotheses; give one for each.")
    if not (np.isfinite(values).all() and (values >= 0).all() and values.sum() > 0):
        raise UserError("Weights of hypotheses must be numbers of 0 or more, and not all 0.")
    return values / values.sum()
