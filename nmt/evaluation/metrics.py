"""BLEU, chrF and TER by sacreBLEU, and COMET, on detokenised text against the references as they are."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nmt.errors import UserError, did_you_mean
from nmt.evaluation.comet import CometConfig, comet_scores

if TYPE_CHECKING:
    from sacrebleu.metrics.base import Metric

logger = logging.getLogger(__name__)

METRICS = ("bleu", "chrf", "chrf++", "ter", "comet")
"""The names of the metrics; all but "comet" are sacreBLEU's."""


@dataclass(frozen=True)
class Score:
    """A corpus score and how it was computed.

    Attributes:
        name: "BLEU", "chrF2", "chrF2++", "TER" or "COMET".
        value: BLEU and chrF from 0 to 100; TER from 0 (best), in edits for 100 words of the reference; COMET as its
            model gives it, mostly from 0 to 1.
        signature: sacreBLEU's, or COMET's model, to stand beside the number wherever it is reported.
        details: one line to print (for BLEU with precisions, brevity penalty and lengths).
        sentences: a score a line where they were asked for (always for COMET), else None.
    """

    name: str
    value: float
    signature: str
    details: str
    sentences: tuple[float, ...] | None = field(default=None, repr=False)

    @property
    def digits(self) -> int:
        """Decimal places that are usual for the metric."""
        return 4 if self.name == "COMET" else 2

    def __str__(self) -> str:
        return f"{self.name} = {self.value:.{self.digits}f}  {self.signature}"


def evaluate(
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    metrics: Sequence[str] = ("bleu", "chrf"),
    lowercase: bool = False,
    tokenize: str = "13a",
    sentences: bool = False,
    source: Sequence[str] | None = None,
    comet: CometConfig | None = None,
) -> list[Score]:
    """Scores a corpus.

    Args:
        hypotheses: one line a sentence, detokenised.
        references: one or more sets of as many lines; COMET takes the first alone.
        metrics: any of "bleu", "chrf", "chrf++" (chrF with words and pairs of words), "ter", "comet".
        lowercase: whether BLEU ignores case (TER does in any case, chrF never).
        tokenize: sacreBLEU's tokeniser for BLEU.
        sentences: whether each line is scored, too; its BLEU stops at the longest n-grams that it has (sacreBLEU's
            effective order), without which short sentences would have none.
        source: what was translated, as many lines; "comet" needs it.
        comet: command and model of "comet".

    Returns:
        A score a metric, in the order of `metrics`.

    Raises:
        UserError: nothing to score, sets of unequal length, an unknown metric or tokeniser, COMET without source.
    """
    return evaluate_all([hypotheses], references, metrics=metrics, lowercase=lowercase, tokenize=tokenize,
                        sentences=sentences, source=source, comet=comet)[0]  # fmt: skip


def evaluate_all(
    systems: Sequence[Sequence[str]],
    references: Sequence[Sequence[str]],
    *,
    metrics: Sequence[str] = ("bleu", "chrf"),
    lowercase: bool = False,
    tokenize: str = "13a",
    sentences: bool = False,
    source: Sequence[str] | None = None,
    comet: CometConfig | None = None,
) -> list[list[Score]]:
    """Scores several translations of the same source; the references are read, and COMET is started, once.

    Args: see `evaluate`; `systems` holds a list of lines a system.

    Returns:
        For each system its scores.
    """
    for hypotheses in systems:
        check_lengths(hypotheses, references)
    metrics = check_metrics(metrics)
    if "comet" in metrics:
        if source is None:
            raise UserError("COMET reads the source text, too; give it (--source), or leave out the metric 'comet'.")
        if len(source) != len(references[0]):
            raise UserError(f"The source has {len(source):,} lines and the references have {len(references[0]):,}.")
    made = make_metrics(metrics, references, lowercase=lowercase, tokenize=tokenize)
    by_line = make_metrics(metrics, [], lowercase=lowercase, tokenize=tokenize, effective_order=True)
    rows = []
    for hypotheses in systems:
        rows.append(
            [_score(metric, by_line[name] if sentences else None, list(hypotheses), references)
             for name, metric in made.items()]
        )  # fmt: skip
    if "comet" in metrics:
        assert source is not None
        config = comet or CometConfig()
        if len(references) > 1:
            logger.info("COMET compares with one reference: the first of %d", len(references))
        for row, values in zip(rows, comet_scores(systems, source, references[0], config), strict=True):
            value = sum(values) / len(values)
            score = Score("COMET", value, config.signature, f"COMET = {value:.4f}", tuple(values))
            row.insert(list(metrics).index("comet"), score)
    return rows


def bleu(hypotheses: Sequence[str], reference: Sequence[str]) -> Score:
    """Corpus BLEU against one reference, sacreBLEU's defaults."""
    return evaluate(hypotheses, [reference], metrics=["bleu"])[0]


def check_lengths(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    """Refuses what cannot be scored.

    Raises:
        UserError: no line, no reference, or sets of unequal length.
    """
    if not hypotheses:
        raise UserError("There are 0 hypotheses; give at least one line.")
    if not references:
        raise UserError("There is no reference; give at least one set of lines.")
    for number, lines in enumerate(references, start=1):
        if len(lines) != len(hypotheses):
            raise UserError(
                f"Reference {number} has {len(lines):,} lines and the hypotheses have {len(hypotheses):,}; "
                "line i of each must belong to sentence i."
            )


def check_metrics(metrics: Sequence[str]) -> list[str]:
    """The names without repetitions.

    Raises:
        UserError: an unknown name, or none.
    """
    if not metrics:
        raise UserError(f"No metric is named; choose from {', '.join(METRICS)}.")
    for name in metrics:
        if name not in METRICS:
            raise UserError(
                f"Unknown metric '{name}'; choose from {', '.join(METRICS)}.{did_you_mean(name.lower(), METRICS)}"
            )
    return list(dict.fromkeys(metrics))


def make_metrics(
    metrics: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    lowercase: bool = False,
    tokenize: str = "13a",
    effective_order: bool = False,
) -> "dict[str, Metric]":
    """sacreBLEU's metrics by our names; they keep what they need of the references. "comet" is passed over.

    Raises:
        UserError: an unknown tokeniser, or one whose dictionary or model is not at hand.
    """
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF
    from sacrebleu.metrics.ter import TER

    if tokenize not in BLEU.TOKENIZERS:
        raise UserError(
            f"Unknown tokeniser '{tokenize}'; choose one of {', '.join(sorted(BLEU.TOKENIZERS))}."
            + did_you_mean(tokenize, BLEU.TOKENIZERS)
        )
    lines = [list(reference) for reference in references]
    made: dict[str, Metric] = {}
    for name in metrics:
        if name == "bleu":
            try:
                made[name] = BLEU(
                    lowercase=lowercase, tokenize=tokenize, effective_order=effective_order, references=lines
                )
            except (ImportError, RuntimeError, OSError) as error:
                cause = " ".join(str(error).split())
                raise UserError(
                    f"The tokeniser '{tokenize}' cannot be used: {cause}; install it or take 13a."
                ) from None
        elif name == "chrf":
            made[name] = CHRF(references=lines)
        elif name == "chrf++":
            made[name] = CHRF(word_order=2, references=lines)
        elif name == "ter":
            made[name] = TER(references=lines)
    return made


def _score(
    metric: "Metric", by_line: "Metric | None", hypotheses: list[str], references: Sequence[Sequence[str]]
) -> Score:
    result = metric.corpus_score(hypotheses, None)
    values = None
    if by_line is not None:
        values = tuple(
            by_line.sentence_score(line, list(of_line)).score
            for line, *of_line in zip(hypotheses, *references, strict=True)
        )
    return Score(result.name, result.score, str(metric.get_signature()), str(result), values)
