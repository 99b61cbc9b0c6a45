"""BLEU and chrF by sacreBLEU, on detokenised text against the references as they are."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nmt.errors import UserError


@dataclass(frozen=True)
class Score:
    """A corpus score and how it was computed.

    Attributes:
        name: "BLEU" or "chrF2".
        value: from 0 to 100.
        signature: sacreBLEU's, to stand beside the number wherever it is reported.
        details: sacreBLEU's own line (precisions, brevity penalty and lengths for BLEU).
    """

    name: str
    value: float
    signature: str
    details: str

    def __str__(self) -> str:
        return f"{self.name} = {self.value:.2f}  {self.signature}"


def evaluate(
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    metrics: Sequence[str] = ("bleu", "chrf"),
    lowercase: bool = False,
    tokenize: str = "13a",
) -> list[Score]:
    """Scores a corpus.

    Args:
        hypotheses: one line a sentence, detokenised.
        references: one or more sets of as many lines.
        metrics: any of "bleu", "chrf".
        lowercase: whether BLEU ignores case.
        tokenize: sacreBLEU's tokeniser for BLEU.

    Raises:
        UserError: nothing to score, sets of unequal length, an unknown metric or tokeniser.
    """
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

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
    if tokenize not in BLEU.TOKENIZERS:
        raise UserError(f"Unknown tokeniser '{tokenize}'; choose one of {', '.join(sorted(BLEU.TOKENIZERS))}.")
    makers: dict[str, Callable[[], BLEU | CHRF]] = {
        "bleu": lambda: BLEU(lowercase=lowercase, tokenize=tokenize),
        "chrf": CHRF,
    }
    scores = []
    for name in metrics:
        if name not in makers:
            raise UserError(f"Unknown metric '{name}'; choose from {', '.join(makers)}.")
        metric = makers[name]()
        result = metric.corpus_score(list(hypotheses), [list(lines) for lines in references])
        scores.append(Score(result.name, result.score, str(metric.get_signature()), str(result)))
    return scores


def bleu(hypotheses: Sequence[str], reference: Sequence[str]) -> Score:
    """Corpus BLEU against one reference, sacreBLEU's defaults."""
    return evaluate(hypotheses, [reference], metrics=["bleu"])[0]
