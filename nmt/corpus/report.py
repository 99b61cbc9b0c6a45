"""Inspections as a table and as JSON."""

import dataclasses
import json
from collections.abc import Sequence

from nmt.corpus.inspection import Inspection


def as_json(inspections: Sequence[Inspection]) -> str:
    """A list, an object a split."""
    return json.dumps([dataclasses.asdict(one) for one in inspections], indent=2, ensure_ascii=False)


def print_report(inspections: Sequence[Inspection]) -> None:
    """Prints a table, a column a split: what is there, then what is wrong, with its share and its first line."""
    from rich.console import Console
    from rich.table import Table

    table = Table()
    table.add_column("")
    for one in inspections:
        table.add_column(one.name.rpartition("/")[2], justify="right")
    table.add_row("pairs", *(f"{one.pairs:,}" for one in inspections))
    for side, name in enumerate(("source", "target")):
        table.add_row(f"words, {name}", *(f"{one.words[side]:,}" for one in inspections))
        table.add_row(f"words a line, {name}", *(_mean(one.words[side], one.pairs) for one in inspections))
        table.add_row(f"longest line, {name}", *(f"{one.longest[side]:,}" for one in inspections))
        if any(one.pieces for one in inspections):
            table.add_row(f"pieces a word, {name}", *(_mean((one.pieces or (0, 0))[side], one.words[side])
                                                     for one in inspections))  # fmt: skip
    table.add_row("target words a source word", *(_mean(one.words[1], one.words[0], 3) for one in inspections))
    table.add_section()
    for kind in dict.fromkeys(kind for one in inspections for kind in one.findings):
        table.add_row(kind, *(_cell(one, kind) for one in inspections))
    Console(width=max(80, 40 + 30 * len(inspections))).print(table)


def _mean(total: int, count: int, digits: int = 1) -> str:
    return f"{total / count:.{digits}f}" if count else "-"


def _cell(one: Inspection, kind: str) -> str:
    finding = one.findings.get(kind)
    if finding is None:
        return ""
    if not finding.count:
        return "0"
    return f"{finding.count:,} ({finding.count / one.pairs:.2%}), line {finding.first:,}"
