"""Scores of translations, whether two differ by more than chance, and the test sets."""

from nmt.evaluation.metrics import (
    METRICS,
    Score,
    bleu,
    check_lengths,
    check_metrics,
    evaluate,
    evaluate_all,
    make_metrics,
)

__all__ = ["METRICS", "Score", "bleu", "check_lengths", "check_metrics", "evaluate", "evaluate_all", "make_metrics"]
