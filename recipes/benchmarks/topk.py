"""The top-k operators side by side: time against `torch.topk` of the same run, and peak memory.

Rows of scores in float32, one thread. The unit of all ratios is the median time of a forward `torch.topk(k)`, which
takes its turn in every round as all others do. A forward runs without gradients; forward + backward has a random
cotangent for each part of the result. Times are CPU time on the CPU and CUDA events on a GPU, the median over rounds in
which the operators take turns, so that the noise of a shared machine hits all of them. What takes longer than
`--seconds` is called once, what would take longer than `--budget` or more memory than `--limit` is not. Memory is the
peak above the inputs of one forward + backward, in a process of its own on the CPU.

`--reads`, the default on a GPU, tells the time also in reads of the scores: times the bandwidth of a copy of 256 MiB,
over the bytes of the scores. (Scores that fit the cache of the device may be read faster than that.) On a GPU the
kernels have a second line, the replay of a CUDA graph of the call: what the device takes, without the host's calls.

`--temperatures` adds a table over temperatures, of ours against Sinkhorn iterations run until they have converged, and
against two of them, which are enough where the temperature is large.
"""

import argparse
import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from machine import describe
from rich.console import Console
from topk_measure import UNIT, Cell, bandwidth, measure, pilot
from topk_report import draw_speed, faster, markdown, rich_table, split_page, write_page
from topk_rows import Row, make_rows

SWEEP = (UNIT, "sparse_soft_topk", "soft_topk", "sparse_soft_topk_kernels", "soft_topk_kernels", "sinkhorn_converged",
         "sinkhorn_2_iterations")  # fmt: skip


def read_arguments() -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter, allow_abbrev=False)
    add = parser.add_argument
    add("--rows", type=int, default=32, help="rows of scores")
    add("--k", type=int, default=5, help="selected candidates a row")
    add("--temperature", type=float, default=0.25, help="in units of the scores")
    add("--sizes", type=int, nargs="+", default=[1_000, 10_000, 160_000], help="scores a row")
    add("--scores", nargs="+", choices=("beam", "normal"), default=["beam", "normal"], help="their distributions")
    add("--temperatures", type=float, nargs="+", default=[], help="of the tables over temperatures")
    add("--sweep-sizes", type=int, nargs="+", help="scores a row in them (the middle one of --sizes)")
    add("--only", nargs="+", metavar="NAME", help="these operators, beside torch.topk")
    add("--seconds", type=float, default=1.0, help="of timing for an operator, size, and direction")
    add("--rounds", type=int, default=7, help="in which the operators take turns")
    add("--budget", type=float, default=60.0, help="seconds that one call may take")
    add("--limit", type=float, default=4.0, help="GiB that one call may take")
    add("--memory", action=argparse.BooleanOptionalAction, default=True, help="measure it, which calls once more")
    add("--reads", action=argparse.BooleanOptionalAction, help="tell the time in reads of the scores as well")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--output", type=Path, help="JSON lines: the machine and settings, then one an operator and size")
    add("--table", type=Path, help="the tables as Markdown")
    add("--plot", type=Path, help="time against n as PNG")
    add("--page", type=Path, help="a page with <!-- speed --> and <!-- /speed -->, for cuda"
        " <!-- speed cuda --> and <!-- /speed cuda -->; the tables go between them")  # fmt: skip
    chosen = parser.parse_args()
    names = [row.name for row in make_rows(chosen.limit * 2**30, chosen.device)]
    for name in chosen.only or ():
        if name not in names:
            parser.error(f"--only {name} is no operator; there are {', '.join(names)}")
    if chosen.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU")
    if chosen.k > min(chosen.sizes):
        parser.error(f"--k {chosen.k} needs --sizes of at least as many scores, not {min(chosen.sizes)}")
    for name in ("output", "table", "plot", "page"):
        path = getattr(chosen, name)
        if path and not path.parent.is_dir():
            parser.error(f"--{name} {path}: there is no folder {path.parent}")
    if chosen.page:
        split_page(chosen.page, chosen.device)
    if chosen.reads is None:
        chosen.reads = chosen.device == "cuda"
    chosen.sizes.sort()
    chosen.sweep_sizes = sorted(chosen.sweep_sizes or chosen.sizes[len(chosen.sizes) // 2 :][:1])
    return chosen


# A title, and columns of cells below their headers.
Measured = tuple[str, list[tuple[str, list[Cell]]]]


def over_sizes(rows: Sequence[Row], chosen: argparse.Namespace, rate: float) -> Iterator[Measured]:
    T = chosen.temperature
    for scores in chosen.scores:
        forecast = pilot(rows, scores, chosen.sizes[0], T, chosen)
        columns = [
            (f"n = {n:,}", measure(rows, scores, n, T, chosen, forecast, chosen.memory, rate)) for n in chosen.sizes
        ]
        yield f"{scores} scores, {chosen.rows} rows, k = {chosen.k}, T = {T:g}", columns


def over_temperatures(rows: Sequence[Row], chosen: argparse.Namespace, _: float) -> Iterator[Measured]:
    few = [row for row in rows if row.name in SWEEP]
    for scores in chosen.scores if chosen.temperatures else ():
        for n in chosen.sweep_sizes:
            columns = []
            for T in chosen.temperatures:
                forecast = pilot(few, scores, n, T, chosen)
                columns.append((f"T = {T:g}", measure(few, scores, n, T, chosen, forecast, memory=False)))
            yield f"{scores} scores, {chosen.rows} rows, k = {chosen.k}, n = {n:,}", columns


def main() -> None:
    chosen = read_arguments()
    torch.set_num_threads(1)
    machine = describe()
    rate = bandwidth(chosen.device) if chosen.reads else 0.0
    if rate:
        machine += f"\nbandwidth {rate / 1e9:,.0f} GB/s, of a copy of 256 MiB"
    print(machine, flush=True)
    rows = make_rows(chosen.limit * 2**30, chosen.device)
    rows = [row for row in rows if not chosen.only or row.name in (UNIT, *chosen.only)]
    console = Console(width=max(150, Console().width))
    settings = {name: value for name, value in vars(chosen).items() if not isinstance(value, Path)}
    tables: list[str] = []
    every: list[dict] = []
    lines = [json.dumps({"machine": machine.split("\n"), "settings": settings})]
    for kind, tables_of in (("sizes", over_sizes), ("temperatures", over_temperatures)):
        for title, columns in tables_of(rows, chosen, rate):
            records = [
                (header, [{"table": kind, **dataclasses.asdict(cell)} for cell in cells]) for header, cells in columns
            ]
            console.print(rich_table(title, records))
            print(faster(records), flush=True)
            tables.append(markdown(title, records))
            every += [record for _, part in records for record in part]
            if chosen.output:
                # After each table: a run that breaks off keeps what it has.
                chosen.output.write_text("\n".join([*lines, *map(json.dumps, every), ""]))
    if chosen.table:
        chosen.table.write_text(f"{machine}\n\n" + "\n\n".join(tables) + "\n")
    if chosen.plot:
        draw_speed(every, chosen.plot)
    if chosen.page:
        write_page(chosen.page, machine, tables, chosen.plot, chosen.device)


if __name__ == "__main__":
    main()
