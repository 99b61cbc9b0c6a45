"""Tables, the page and the plot of the benchmark of the top-k operators, from the lines of its output."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich import box
from rich.table import Table

# What stands in the table to be compared with, and selects nothing.
YARDSTICKS = ("torch.topk", "copy", "torchsort.soft_rank", "torch.topk_graph")
LEGEND = (
    "Time of a forward, and of a forward and backward, over that of a forward `torch.topk(k)` in the same run. MiB is\n"
    "the peak of a forward and backward above the scores. 'sums off' is how far a row's weights are from summing to k\n"
    "(a ranked column's to 1), at worst. Rows marked * are this package's."
)

READS = "After a comma: the same times in reads of the scores at the bandwidth of a copy."

# A line of the output, and columns: a header with the lines below it, the same operators in each.
Record = dict[str, Any]
Columns = Sequence[tuple[str, list[Record]]]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 99.5 else f"{value:.1f}" if value >= 9.95 else f"{value:.2f}"


def _times(record: Record) -> str:
    """Ratios of a forward and of both, or why there are none."""
    if record["ratio"][0] is None:
        return record["why"][0]
    both = record["why"][1] if record["ratio"][1] is None else _number(record["ratio"][1])
    found = f"{_number(record['ratio'][0])} / {both}"
    if record["reads"][0] is not None:
        found += f", {' / '.join(_number(reads) for reads in record['reads'] if reads is not None)}"
    return found


def _peak(record: Record) -> str:
    return "" if record["peak"] is None else _number(record["peak"] / 2**20)


def _off(records: Sequence[Record]) -> str:
    found = [record["off"] for record in records if record["off"] is not None]
    return f"{max(found):.1g}" if found else ""


def _cells(columns: Columns) -> tuple[list[str], list[list[str]], list[bool]]:
    """Headers, the text of each row, and whether it is ours.

    Over sizes, the memory stands beside each time; over temperatures, what decides there: how far the sums are off.
    """
    over_sizes = columns[0][1][0]["table"] == "sizes"
    headers = ["operator"]
    for header, _ in columns:
        headers += [f"{header}: time", "MiB" if over_sizes else "sums off"]
    rows, ours = [], []
    for records in zip(*(records for _, records in columns), strict=True):
        first = records[0]
        row = [("* " if first["ours"] else "") + first["operator"]]
        for record in records:
            row += [_times(record), _peak(record) if over_sizes else _off([record])]
        notes = list(dict.fromkeys(record["note"] for record in records if record["note"]))
        rows.append([*row, *([_off(records)] if over_sizes else []), "; ".join(notes)])
        ours.append(first["ours"])
    return [*headers, *(["sums off"] if over_sizes else []), "note"], rows, ours


def rich_table(title: str, columns: Columns) -> Table:
    headers, rows, ours = _cells(columns)
    table = Table(title=title, box=box.SIMPLE_HEAD)
    for place, header in enumerate(headers):
        last = place == len(headers) - 1
        table.add_column(header, justify="left" if last or not place else "right", no_wrap=not last)
    for row, own in zip(rows, ours, strict=True):
        table.add_row(*row, style="bold" if own else None)
    return table


def markdown(title: str, columns: Columns) -> str:
    headers, rows, ours = _cells(columns)
    lines = ["| " + " | ".join(headers) + " |", "|---|" + "---:|" * (len(headers) - 2) + "---|"]
    for row, own in zip(rows, ours, strict=True):
        name = f"\\* **{row[0][2:]}**" if own else row[0]
        lines.append("| " + " | ".join([name, *row[1:]]) + " |")
    return f"{title[0].upper()}{title[1:]}:\n\n" + "\n".join(lines) + f"\n\n{faster(columns)}"


def faster(columns: Columns) -> str:
    """Which rivals took less time than ours, of those with one result a candidate and of those with one a rank."""
    said = []
    for own, ranked in (("soft_topk", False), ("sorted_soft_topk", True)):
        parts = []
        for header, records in columns:
            limit = next((record["ratio"][1] for record in records if record["operator"] == own), None)
            if limit is None:
                continue
            found = [
                record["operator"] + (f" (sums off by {record['off']:.1g})" if (record["off"] or 0) > 1e-3 else "")
                for record in records
                if not record["ours"] and record["operator"] not in YARDSTICKS and record["ranked"] == ranked
                if record["ratio"][1] is not None and record["ratio"][1] < limit
            ]
            parts.append(f"{header}: {', '.join(found) or 'none'}")
        if parts:
            said.append(f"Faster than {own}, forward and backward: {'; '.join(parts)}.")
    return "\n".join(said)


def split_page(page: Path, device: str) -> tuple[str, str]:
    """What stands before and after the markers of a page, these included."""
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    kind = "speed" if device == "cpu" else f"speed {device}"
    begin, end = f"<!-- {kind} -->", f"<!-- /{kind} -->"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise SystemExit(f"{page} has no {begin} followed by {end}: add both where the tables are to stand")
    return before + begin, end + after


def write_page(page: Path, machine: str, tables: Sequence[str], plot: Path | None, device: str) -> None:
    """Puts the tables, what they were measured on, and a plot between the markers of a page."""
    before, after = split_page(page, device)
    legend = f"{LEGEND} {READS}" if "\nbandwidth " in machine else LEGEND
    parts = [legend, "\n".join(f"    {line}" for line in machine.splitlines()), *tables]
    if plot:
        path = Path(os.path.relpath(plot, page.parent)).as_posix()
        parts.append(f"![time of the operators against the number of scores]({path})")
    page.write_text(before + "\n" + "\n\n".join(parts) + "\n" + after, encoding="utf-8")


def draw_speed(records: Sequence[Record], path: Path) -> None:
    """Time of forward and backward over that of `torch.topk`, against n: a panel for each distribution of scores."""
    # The tables over temperatures would give a size several points.
    measured = [record for record in records if record["table"] == "sizes" and record["ratio"][1] is not None]
    kinds = list(dict.fromkeys(record["scores"] for record in measured))
    # The legend stands in the order of the right ends of the lines.
    at_end = {r["operator"]: (r["n"], r["ratio"][1]) for r in sorted(measured, key=lambda r: r["n"])}
    names = sorted(at_end, key=lambda name: at_end[name], reverse=True)
    own = {record["operator"] for record in measured if record["ours"]}
    styles = {name: _style(name, place, name in own) for place, name in enumerate(sorted(names))}
    figure = Figure(figsize=(3.6 * len(kinds) + 2.6, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    lines = {}
    for axis, kind in zip(axes, kinds, strict=True):
        for name in names:
            points = sorted((r["n"], r["ratio"][1]) for r in measured if (r["operator"], r["scores"]) == (name, kind))
            if points:
                (lines[name],) = axis.plot(*zip(*points, strict=True), **styles[name])
        axis.set(xscale="log", yscale="log", xlabel="scores a row, n", title=f"{kind} scores")
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("time of forward + backward\n(unit: a forward torch.topk of the same run)")
    shown = [name for name in names if name in lines]
    figure.legend([lines[name] for name in shown], shown, loc="outside right upper", fontsize=7, frameon=False)
    figure.savefig(path, dpi=90)


def _style(name: str, place: int, own: bool) -> dict[str, Any]:
    """Ours thick, with the colours of the other pictures, kernels with points; yardsticks black; the others thin."""
    if own:
        colour = "tab:orange" if "sorted" in name else "tab:blue"
        mark = "o" if "kernels" in name else None
        dash = "--" if "sparse" in name else "-"
        return {"color": colour, "linewidth": 2.6, "linestyle": dash, "marker": mark, "zorder": 3}
    if name in YARDSTICKS:
        return {"color": "black", "linewidth": 1, "linestyle": (":", "-.", "--", (0, (1, 4)))[YARDSTICKS.index(name)]}
    # The first four colours of the map are those of ours.
    colour = colormaps["tab20"](4 + place % 16)
    return {"color": colour, "linewidth": 1, "marker": "sv^<>DPX*dhp"[place % 12], "markersize": 4.5}
