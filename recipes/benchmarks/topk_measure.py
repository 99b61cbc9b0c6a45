"""Times and memory of the top-k operators on one set of scores."""

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from topk_memory import peaks, step
from topk_rows import Row, make_scores
from torch import Tensor

UNIT = "torch.topk"


@dataclasses.dataclass
class Cell:
    """One operator on one set of scores, as a line of the output file has it.

    Attributes:
        seconds, ratio: of a forward, and of forward and backward; None where not measured.
        calls: how many were timed for each.
        why: why not.
        peak: bytes of forward and backward.
        reads: the seconds over those of one read of the scores at the measured bandwidth; None unless asked for.
        off: how far a sum of weights is from where it should be, at worst.
    """

    operator: str
    ours: bool
    ranked: bool
    scores: str
    rows: int
    n: int
    k: int
    temperature: float
    device: str
    note: str = ""
    seconds: list[float | None] = dataclasses.field(default_factory=lambda: [None, None])
    ratio: list[float | None] = dataclasses.field(default_factory=lambda: [None, None])
    calls: list[int] = dataclasses.field(default_factory=lambda: [0, 0])
    why: list[str] = dataclasses.field(default_factory=lambda: ["", ""])
    peak: float | None = None
    reads: list[float | None] = dataclasses.field(default_factory=lambda: [None, None])
    off: float | None = None


def bandwidth(device: str, size: int = 1 << 26, calls: int = 10) -> float:
    """Bytes a second of a copy of float32 numbers, each of which is read once and written once."""
    x = torch.zeros(size, device=device)
    out = torch.empty_like(x)
    clock = Clock(x, 0, 1.0)
    row = Row("copy", lambda x, k, T: (out.copy_(x),), sums=False)
    clock(row, None)
    return 2 * 4 * size / min(clock(row, None) for _ in range(calls))


class Clock:
    """Seconds of some calls of an operator on one set of scores."""

    def __init__(self, scores: Tensor, k: int, temperature: float) -> None:
        self.scores, self.k, self.temperature = scores, k, temperature
        self.cuda = scores.is_cuda
        self.graphs: dict[tuple[str, bool], tuple[torch.cuda.CUDAGraph, Any]] = {}

    def result(self, row: Row, backward: bool = False) -> tuple[Tensor, ...]:
        assert row.call is not None
        with torch.set_grad_enabled(backward):
            return row.call(self.scores.requires_grad_(backward), self.k, self.temperature)

    def first(self, row: Row) -> tuple[float, list[Tensor], float | None]:
        """Seconds of a first forward, cotangents of its result, and how far its sums are off."""
        kept: list[tuple[Tensor, ...]] = []
        seconds = self(row, None, keep=kept)
        generator = torch.Generator(self.scores.device).manual_seed(0)
        cotangents = [
            torch.randn(part.shape, generator=generator, dtype=part.dtype, device=part.device) for part in kept[0]
        ]
        return seconds, cotangents, row.off(kept[0], self.k)

    def __call__(self, row: Row, cotangents: list[Tensor] | None, calls: int = 1, keep: list | None = None) -> float:
        """Mean seconds of a forward, or with cotangents of a forward and backward; results go to `keep`."""
        graph = self._graph(row, cotangents) if row.graph else None
        if self.cuda:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
        else:
            began = time.process_time()
        for _ in range(calls):
            parts = graph() if graph else self._step(row, cotangents)
            if keep is not None:
                keep.append(parts)
            del parts
        if self.cuda:
            end.record()
            end.synchronize()
            return begin.elapsed_time(end) / 1e3 / calls
        return (time.process_time() - began) / calls

    def _step(self, row: Row, cotangents: list[Tensor] | None) -> tuple[Tensor, ...]:
        parts = self.result(row, cotangents is not None)
        if cotangents is not None:
            torch.autograd.grad(parts, self.scores, cotangents)
        return parts

    def _graph(self, row: Row, cotangents: list[Tensor] | None) -> Callable[[], tuple[Tensor, ...]]:
        """Replays a graph of the call, captured once; its results are always the same tensors."""
        key = row.name, cotangents is not None
        if key not in self.graphs:
            # What is compiled or loaded at a first call cannot be captured.
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(2):
                    self._step(row, cotangents)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                kept = self._step(row, cotangents)
            self.graphs[key] = graph, kept
        graph, kept = self.graphs[key]

        def replay() -> tuple[Tensor, ...]:
            graph.replay()
            return kept

        return replay


class Forecast:
    """Refuses what would take too long or too much, by what the operator took at a smaller size."""

    def __init__(self, chosen: argparse.Namespace) -> None:
        self.chosen = chosen
        self.seen: dict[tuple[str, bool], tuple[int, float]] = {}

    def refuse(self, row: Row, n: int, backward: bool) -> str:
        rows = self.chosen.rows
        if row.call is None:
            return "not installed"
        needed = row.bytes(rows, n, self.chosen.k, backward) / 2**30
        if needed > self.chosen.limit:
            return f"too large: est. {needed:,.0f} GiB"
        if (row.name, backward) in self.seen:
            before, seconds = self.seen[row.name, backward]
            seconds *= row.work(rows, n) / row.work(rows, before)
            if seconds > self.chosen.budget:
                return f"skipped: est. {seconds:,.0f} s"
        return ""

    def learn(self, row: Row, n: int, backward: bool, seconds: float) -> None:
        self.seen[row.name, backward] = n, seconds


def measure(
    rows: Sequence[Row],
    scores: str,
    n: int,
    T: float,
    chosen: argparse.Namespace,
    forecast: Forecast,
    memory: bool,
    rate: float = 0.0,
) -> list[Cell]:
    """The cells of all operators on one set of scores; `rate` in bytes a second is what one read of them is told by."""
    print(f"{scores} scores, n = {n:,}, T = {T:g} ...", file=sys.stderr, flush=True)
    x = make_scores(scores, chosen.rows, n).to(chosen.device)
    clock = Clock(x, chosen.k, T)
    cells = [Cell(row.name, row.ours, row.ranked, scores, chosen.rows, n, chosen.k, T, chosen.device) for row in rows]
    times: dict[tuple[str, bool], list[float]] = {}
    cotangents: dict[str, list[Tensor]] = {}
    for row, cell in zip(rows, cells, strict=True):
        cell.note = row.note(chosen.rows, n) if row.call else ""
        for backward in (False, True):
            cell.why[backward] = forecast.refuse(row, n, backward)
            if cell.why[backward]:
                cell.why[1] = cell.why[backward]
                break
            if clock.cuda:
                # A size may be compiled anew at its first call.
                clock(row, cotangents[row.name] if backward else None)
            if backward:
                once = clock(row, cotangents[row.name])
            else:
                once, cotangents[row.name], cell.off = clock.first(row)
            forecast.learn(row, n, backward, once)
            times[row.name, backward] = [once]
            if backward and memory and clock.cuda and not row.graph:
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
                step(row, x.requires_grad_(), chosen.k, T)
                cell.peak = float(torch.cuda.max_memory_allocated() - before)
    once = {key: first for key, (first,) in times.items()}
    for round_ in range(chosen.rounds):
        for row in rows:
            for backward in (False, True):
                key = row.name, backward
                # What is slow takes part in fewer rounds; a call over the time of the cell stands as it is.
                if key not in once or once[key] > chosen.seconds or round_ * once[key] > chosen.seconds:
                    continue
                calls = max(1, int(chosen.seconds / chosen.rounds / max(once[key], 1e-7)))
                if round_ == 0:
                    times[key] = []  # the first call warmed up
                times[key].append(clock(row, cotangents[row.name] if backward else None, calls))
                cells[rows.index(row)].calls[backward] += calls
    unit = statistics.median(times[UNIT, False])
    for cell in cells:
        for backward in (False, True):
            if found := times.get((cell.operator, backward)):
                cell.seconds[backward] = statistics.median(found)
                cell.ratio[backward] = statistics.median(found) / unit
                cell.calls[backward] = cell.calls[backward] or 1
                if rate:
                    cell.reads[backward] = statistics.median(found) * rate / (x.numel() * x.element_size())
    if memory and not clock.cuda:
        whole = [cell for cell in cells if cell.seconds[1] is not None]
        limit = chosen.limit * 2**30
        shared = {"scores": scores, "rows": chosen.rows, "n": n, "k": chosen.k, "temperature": T, "limit": limit}
        for cell, peak in zip(whole, peaks([{"name": cell.operator, **shared} for cell in whole]), strict=True):
            cell.peak = peak
    return cells


def pilot(rows: Sequence[Row], scores: str, n: int, T: float, chosen: argparse.Namespace) -> Forecast:
    """Two calls of each at an eighth of a size, the second of which foretells that size."""
    n = max(2 * chosen.k, n // 8)
    forecast = Forecast(chosen)
    clock = Clock(make_scores(scores, chosen.rows, n).to(chosen.device), chosen.k, T)
    for row in rows:
        for backward in (False, True):
            if not forecast.refuse(row, n, backward):
                cotangents = clock.first(row)[1]
                if backward:
                    clock(row, cotangents)
                forecast.learn(row, n, backward, clock(row, cotangents if backward else None))
    return forecast
