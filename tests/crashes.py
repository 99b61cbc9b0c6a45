"""Runs that are killed (`kill -9`) at random moments, then resumed, beside one that nobody disturbs.

python -m tests.crashes --moments 50 --seed 1 tells how many were killed where, and whether all ended in the same bytes.
"""

import argparse
import collections
import contextlib
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from nmt.runs.journal import read_journal
from nmt.runs.run import RunFolder
from nmt.runs.state import PREVIOUS
from tests.processes import Process, train_words
from tests.unit.runs import make_config, train_quietly, write_corpus
from tests.unit.test_resume import assert_equal, state_after

OPTIONS = {
    "model.dropout": 0.3,
    "data.vocabulary.sampling": 0.2,
    "trainer.max_steps": 12,
    "trainer.validate_every": 2,
    "trainer.keep": 2,
    "optimizer.schedule": "plateau",
    "optimizer.plateau_patience": 0,
}
WRITES = ("replace", "link", "fsync")


@contextlib.contextmanager
def at_write(reached: Callable[[str], bool]) -> Iterator[None]:
    """Asks before each step of writing a file whether the process ends there; a state is then half-written."""

    def end() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def asked(name: str, function: Any) -> Any:
        def call(*given: Any, **options: Any) -> Any:
            if reached(name):
                end()
            return function(*given, **options)

        return call

    def save(state: Any, path: Path) -> None:
        if reached("save"):
            content = io.BytesIO()
            originals["save"](state, content)
            path.write_bytes(content.getvalue()[: len(content.getvalue()) // 2])
            end()
        originals["save"](state, path)

    originals = {name: getattr(os, name) for name in WRITES} | {"save": torch.save}
    for name in WRITES:
        setattr(os, name, asked(name, originals[name]))
    torch.save = save
    try:
        yield
    finally:
        for name in WRITES:
            setattr(os, name, originals[name])
        torch.save = originals["save"]


class Reference:
    """The run that nobody disturbs."""

    def __init__(self, folder: Path) -> None:
        self.corpus = write_corpus(folder / "corpus")
        self.writes: collections.Counter[str] = collections.Counter()

        def count(kind: str) -> bool:
            self.writes[kind] += 1
            return False

        with at_write(count):
            train_quietly(make_config(folder / "whole", self.corpus, OPTIONS))
        self.state, self.journal = state_after(folder / "whole"), told(folder / "whole")
        self.kept = kept(folder / "whole")
        shutil.rmtree(self.corpus / "cache")
        began = time.monotonic()
        config = make_config(folder / "timed", self.corpus, OPTIONS | {"data.cache": str(folder / "timed.cache")})
        assert Process(train_words(config, folder / "timed.words"), {}, folder / "timed.log").wait() == 0
        self.seconds = time.monotonic() - began


def told(run: Path) -> list[dict[str, Any]]:
    """The journal, without what depends on the clock."""
    return [
        {name: value for name, value in report.items() if "second" not in name}
        for report in read_journal(run / "metrics.jsonl")
    ]


def kept(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.glob("model.*.safetensors")}


def start_killed(chance: random.Random, reference: Reference, words: list[str], log: Path) -> tuple[str, int]:
    """Starts a run that is killed at a moment, if it lasts until then; returns the kind of moment and the exit code."""
    if chance.random() < 0.5:
        delay = chance.uniform(0, reference.seconds)
        process = Process(words, {}, log)
        time.sleep(delay)
        with contextlib.suppress(ProcessLookupError):
            process.send(signal.SIGKILL)
        return "any", process.wait()
    kind = chance.choice(["save", *WRITES])
    left = chance.randrange(reference.writes[kind])

    def reached(name: str) -> bool:
        nonlocal left
        left -= name == kind
        return left < 0

    with at_write(reached):
        process = Process(words, {}, log)
    return f"before or amid {kind}", process.wait()


def run_trial(seed: int, number: int, reference: Reference, folder: Path) -> list[str]:
    """Kills a run once, or several times, and goes on until it has ended.

    Returns:
        Where it was killed.

    Raises:
        AssertionError: it did not end, or not as the reference.
    """
    chance = random.Random(f"{seed} {number}")
    options = OPTIONS | {"data.cache": str(folder / "cache")}
    config = make_config(folder / "run", reference.corpus, options)
    anew, run = train_words(config, folder / "words"), RunFolder(config.run)
    killed: list[str] = []
    for attempt in range(20):
        begun = run.last.exists() or (run.path / PREVIOUS).exists()
        words = ["train", "--resume", config.run] if begun else anew
        log = folder / f"log.{attempt}"
        # At least once, then half of the times.
        if not killed or chance.random() < 0.5:
            kind, code = start_killed(chance, reference, words, log)
        else:
            kind, code = "", Process(words, {}, log).wait()
        assert code in (0, -signal.SIGKILL), f"exit code {code}\n{log.read_text()}"
        assert "Traceback" not in log.read_text(), log.read_text()
        if code:
            killed.append(f"{kind}{'' if run.last.exists() else ', before the first state'}")
        elif killed:
            break
        else:
            shutil.rmtree(run.path)
    else:
        raise AssertionError("it did not end")
    assert_equal(reference.state, state_after(run.path))
    assert reference.journal == told(run.path)
    assert reference.kept == kept(run.path)
    assert not list(run.path.glob(".*")), "something temporary is left"
    return killed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moments", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    where: collections.Counter[str] = collections.Counter()
    runs = 0
    with tempfile.TemporaryDirectory() as name:
        reference = Reference(Path(name))
        while where.total() < options.moments:
            folder = Path(name) / str(runs)
            where.update(run_trial(options.seed, runs, reference, folder))
            shutil.rmtree(folder)
            runs += 1
    found = {"killed": where.total(), "runs, all of which ended as the undisturbed one": runs, "where": where}
    print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
