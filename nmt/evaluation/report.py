"""Scores and comparisons as tables, JSON and lines a sentence."""

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nmt.evaluation.metrics import Score
from nmt.evaluation.significance import Comparison
from nmt.lines import write_lines

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Result:
    """What is reported of one system.

    Attributes:
        system: its name.
        scores: a score a metric, the same metrics for every system of a report.
        comparisons: with the baseline, a metric each; empty without one.
        baseline: the baseline's name, "" without one.
    """

    system: str
    scores: Sequence[Score]
    comparisons: Sequence[Comparison] = ()
    baseline: str = ""


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (n - 1) of at least two values."""
    return statistics.fmean(values), statistics.stdev(values)


def as_json(results: Sequence[Result]) -> str:
    """A list of scores for one system without a baseline, else an object with all systems, means and comparisons."""
    if len(results) == 1 and not results[0].comparisons:
        return json.dumps(_score_rows(results[0].scores), indent=2, ensure_ascii=False)
    content: dict[str, Any] = {"systems": [_system_row(result) for result in results]}
    if len(results) > 1:
        content["mean"] = []
        for number, score in enumerate(results[0].scores):
            mean, deviation = mean_and_deviation([result.scores[number].value for result in results])
            row = {"name": score.name, "mean": mean, "deviation": deviation, "signature": score.signature}
            differences = [c.difference for r in results for c in r.comparisons if c.name == score.name]
            if differences:
                row["difference_mean"], row["difference_deviation"] = mean_and_deviation(differences)
            content["mean"].append(row)
    return json.dumps(content, indent=2, ensure_ascii=False)


def print_report(results: Sequence[Result]) -> None:
    """Prints to standard output: sacreBLEU's lines for one system, a table for several; then the comparisons."""
    if len(results) == 1:
        for score in results[0].scores:
            _print(score.details)
            _print(f"  signature: {score.signature}")
    else:
        _print_table(_score_table(results))
        for score in results[0].scores:
            _print(f"{score.name}  signature: {score.signature}")
    if any(result.comparisons for result in results):
        _print("")
        _print_table(_comparison_table(results))
        for test, signatures in _signatures(results).items():
            for name, signature in signatures.items():
                _print(f"{name}, {test}  signature: {signature}")
        if {"bootstrap", "randomization"} <= set(_signatures(results)):
            _print("(two-sided; sacreBLEU's bootstrap is the laxer test, its p about half of the randomization's)")


def write_sentence_scores(path: str, results: Sequence[Result]) -> None:
    """Writes a row a line and system: number of the line from 1, system when there are several, scores.

    Args:
        path: tab-separated with a header, or JSON lines when it ends in `.jsonl` or `.jsonl.gz`.
        results: of scores with `sentences`.

    Raises:
        UserError: the file cannot be written.
    """
    rows: list[dict[str, Any]] = []
    for result in results:
        columns = {score.name: score.sentences or () for score in result.scores}
        for number, values in enumerate(zip(*columns.values(), strict=True), start=1):
            system = {"system": result.system} if len(results) > 1 else {}
            rows.append({"line": number, **system, **dict(zip(columns, values, strict=True))})
    if path.endswith((".jsonl", ".jsonl.gz")):
        write_lines(path, (json.dumps(row, ensure_ascii=False) for row in rows))
    else:
        cells = [[f"{cell:.4f}" if isinstance(cell, float) else str(cell) for cell in row.values()] for row in rows]
        header = list(rows[0])
        write_lines(path, ("\t".join(" ".join(cell.split("\t")) for cell in row) for row in [header, *cells]))


def _score_rows(scores: Sequence[Score]) -> list[dict[str, Any]]:
    return [{"name": s.name, "score": s.value, "signature": s.signature} for s in scores]


def _system_row(result: Result) -> dict[str, Any]:
    row: dict[str, Any] = {"system": result.system, "scores": _score_rows(result.scores)}
    if result.comparisons:
        row["baseline"] = result.baseline
        row["comparisons"] = [
            {
                "name": c.name,
                "score": c.value,
                "baseline_score": c.baseline,
                "difference": c.difference,
                "p": dict(c.p),
                "score_interval": list(c.interval) if c.interval else None,
                "signatures": dict(c.signatures),
            }
            for c in result.comparisons
        ]
    return row


def _score_table(results: Sequence[Result]) -> "Table":
    table = _table("System", *(score.name for score in results[0].scores))
    for result in results:
        table.add_row(result.system, *(f"{score.value:.{score.digits}f}" for score in result.scores))
    table.add_section()
    cells = []
    for number, score in enumerate(results[0].scores):
        cells.append(_spread([result.scores[number].value for result in results], f".{score.digits}f"))
    table.add_row(f"mean {_plus_minus()} deviation", *cells)
    return table


def _comparison_table(results: Sequence[Result]) -> "Table":
    """A row a metric and system, the systems of a metric together; then the mean of the differences."""
    tests = list(results[0].comparisons[0].p)
    bootstrap = ["95% of\nthe score"] if "bootstrap" in tests else []
    table = _table("System", "Baseline", "Metric", "Score", "Baseline's", "Difference",
                   *(f"p\n{test}" for test in tests), *bootstrap, texts=3)  # fmt: skip
    for number, first in enumerate(results[0].comparisons):
        for result in results:
            c = result.comparisons[number]
            interval = [f"{c.interval[0]:.2f} to {c.interval[1]:.2f}"] if c.interval else []
            table.add_row(result.system, result.baseline, c.name, f"{c.value:.2f}", f"{c.baseline:.2f}",
                          f"{c.difference:+.2f}", *(f"{c.p[test]:.4f}" for test in tests), *interval)  # fmt: skip
        if len(results) > 1:
            spread = _spread([result.comparisons[number].difference for result in results], "+.2f")
            table.add_row(f"mean {_plus_minus()} deviation", "", first.name, "", "", spread)
        table.add_section()
    return table


def _signatures(results: Sequence[Result]) -> Mapping[str, Mapping[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for comparison in results[0].comparisons:
        for test, signature in comparison.signatures.items():
            found.setdefault(test, {})[comparison.name] = signature
    return found


def _spread(values: Sequence[float], form: str) -> str:
    mean, deviation = mean_and_deviation(values)
    return f"{mean:{form}} {_plus_minus()} {deviation:{form.lstrip('+')}}"


def _plus_minus() -> str:
    return "±" if (sys.stdout.encoding or "").lower().startswith("utf") else "+/-"


def _table(*headings: str, texts: int = 1) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="left" if number < texts else "right", no_wrap=True)
    return table


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")


def _print_table(table: "Table") -> None:
    from rich.console import Console

    # Numbers are never cut off, whatever COLUMNS says: a narrow terminal wraps lines. Markup would eat names' brackets.
    Console(file=sys.stdout, width=10_000, markup=False, highlight=False).print(table)
