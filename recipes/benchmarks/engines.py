"""What the engines cost: `nmt translate` and `nmt corpus prepare` in one process, in several, and on a Ray cluster that
the command starts for itself with as many actors (extra `cluster`).

A small model is trained for a moment on a card; DIR keeps it. The systems take turns; a figure is the median over the
rounds. Wall seconds are those of the command, start and end counted. CPU seconds are those of all its processes, Ray's
daemons too: they are what is left of the wall seconds where other work shares the cores. What the systems write has to
be the same to the byte.
"""

import argparse
import ctypes
import os
import shutil
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from machine import describe

from nmt.corpus import load_card
from nmt.lines import write_lines

_PR_SET_CHILD_SUBREAPER = 36


class Cost(NamedTuple):
    """Wall and CPU seconds of a command."""

    wall: float
    cpu: float


def call(words: list[str], log: Path) -> Cost:
    """Runs `nmt` and waits for all that it leaves behind.

    Raises:
        SystemExit: it failed.
    """
    began, before = time.perf_counter(), os.times()
    variables = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with open(log, "ab") as output:
        done = subprocess.run(
            [sys.executable, "-m", "nmt", *words],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, env={**os.environ, **variables},
        )  # fmt: skip
    wall = time.perf_counter() - began
    # Daemons that it did not wait for are ours now; what a process used is known when it is waited for.
    while True:
        try:
            os.wait()
        except ChildProcessError:
            break
    if done.returncode:
        raise SystemExit(f"nmt {' '.join(words[:2])} ... ended with {done.returncode}; see {log}")
    now = os.times()
    used = now.children_user + now.children_system - before.children_user - before.children_system
    return Cost(wall, used)


def measure(task: str, commands: dict[str, tuple[list[str], Path]], rounds: int, log: Path) -> None:
    """Prints a table.

    Args:
        task: what is done.
        commands: words, and the file or folder that is written, by the system's name; the first is what the others are
            held beside.
        rounds: in turns.
        log: what the commands print.

    Raises:
        SystemExit: one failed, or wrote something else than the first.
    """
    costs: dict[str, list[Cost]] = {name: [] for name in commands}
    for _ in range(rounds):
        expected = None
        for name, (words, written) in commands.items():
            # Also what a call that was stopped has left.
            for old in written.parent.glob(f"{written.name}*"):
                shutil.rmtree(old) if old.is_dir() else old.unlink()
            costs[name].append(call(words, log))
            files = sorted(written.iterdir()) if written.is_dir() else [written]
            found = [file.read_bytes() for file in files]
            expected = found if expected is None else expected
            if found != expected:
                raise SystemExit(f"{task}: {name} wrote other bytes than {next(iter(commands))}")
    medians = {name: Cost(*map(statistics.median, zip(*values, strict=True))) for name, values in costs.items()}
    base = next(iter(medians.values()))
    print(f"\n{task + ', seconds':<42}{'wall':>8}{'ratio':>8}{'CPU':>9}{'ratio':>8}")
    for name, cost in medians.items():
        print(f"  {name:<40}{cost.wall:>8.1f}{cost.wall / base.wall:>8.2f}{cost.cpu:>9.1f}{cost.cpu / base.cpu:>8.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR", help="for the model and what is written")
    parser.add_argument("--card", default="multi30k_en-fr")
    parser.add_argument("--updates", type=int, default=60)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--copies", type=int, default=2, help="of dev and test, which are translated")
    parser.add_argument("--train_copies", type=int, default=20, help="of train, which is encoded")
    parser.add_argument("--beam_size", type=int, default=5)
    parser.add_argument("--buffer", type=int, default=256, help="lines of a block")
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    folder, log = chosen.folder.resolve(), chosen.folder.resolve() / "log"
    folder.mkdir(parents=True, exist_ok=True)
    model = folder / "model"
    if not (model / "model.safetensors").exists():
        shutil.rmtree(model, ignore_errors=True)
        config = Path(__file__).parents[1] / "configs" / "quickstart.yaml"
        flags = {"run": model, "data.corpus": chosen.card, "data.cache": folder / "model_cache",
                 "trainer.max_steps": chosen.updates, "trainer.validate_every": chosen.updates,
                 "trainer.threads": 1, "trainer.device": "cpu", "data.dev_lines": 20}  # fmt: skip
        call(["train", "--config", str(config), *(str(w) for n, v in flags.items() for w in (f"--{n}", v))], log)
    train, dev, test = (load_card(chosen.card).read(name) for name in ("train", "dev", "test"))
    lines = [*dev.source, *test.source] * chosen.copies
    write_lines(folder / "lines", lines)
    write_lines(folder / "line", lines[:1])
    for side in ("source", "target"):
        write_lines(folder / f"train.{side}", getattr(train, side) * chosen.train_copies)
        write_lines(folder / f"dev.{side}", getattr(dev, side))
    several = ["--processes", str(chosen.processes)]
    systems = {
        "one process": [],
        f"--processes {chosen.processes}": several,
        f"--engine ray --processes {chosen.processes}": ["--engine", "ray", *several],
    }
    print(describe())
    print(f"          ray {version('ray')}, {len(os.sched_getaffinity(0))} core(s); {len(lines):,} lines in blocks of "
          f"{chosen.buffer}, beam {chosen.beam_size}; "
          f"{len(train) * chosen.train_copies:,} pairs; {chosen.rounds} round(s)")  # fmt: skip
    for task, text in {"translate": "lines", "translate one line": "line"}.items():
        commands = {}
        for number, (name, words) in enumerate(systems.items()):
            output = folder / f"translated_{number}"
            fixed = ["translate", str(model), str(folder / text), "-o", str(output), "--device", "cpu"]
            search = ["--buffer", str(chosen.buffer), "--beam_size", str(chosen.beam_size)]
            commands[name] = [*fixed, *search, *words], output
        measure(task, commands, chosen.rounds, log)
    commands = {}
    for number, (name, words) in enumerate(systems.items()):
        cache = folder / f"cache_{number}"
        texts = [w for s in ("train", "dev") for t in ("source", "target")
                 for w in (f"--data.{s}_{t}", str(folder / f"{s}.{t}"))]  # fmt: skip
        fixed = ["corpus", "prepare", "--from", str(model), "--data.cache", str(cache)]
        commands[name] = [*fixed, *texts, *words], cache
    measure("corpus prepare", commands, chosen.rounds, log)


if __name__ == "__main__":
    main()
