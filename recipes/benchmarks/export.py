"""The runner of an exported model beside `nmt translate`: sentences per CPU-second, and what one sentence costs from
the start of the process.

One untrained model, the same lines, one thread each; the two take turns, and the ratio is that of the medians of one
run. An untrained model hardly ends a hypothesis, so that most run to the longest length allowed.
"""

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import torch
from machine import describe

from nmt.checkpoint import NAME, Checkpoint, save_checkpoint
from nmt.export import export_model
from nmt.models import RNNsearch, RNNsearchConfig
from nmt.runner import load
from nmt.text.vocabulary import SentencePiece, VocabularyConfig
from nmt.translator import Translator


def write_lines_of_words(count: int, longest: int, seed: int) -> list[str]:
    """Lines of made-up words, a third as long as `longest` at least."""
    draw = random.Random(seed)
    syllables = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
    words = ["".join(draw.choices(syllables, k=draw.randint(1, 4))) for _ in range(20_000)]
    return [" ".join(draw.choices(words, k=draw.randint(longest // 3, longest))) for _ in range(count)]


# In a process of its own, which tells what it took. (The system's mark for a child begins with its parent's memory.)
_TELL = """
import runpy, sys, time
module, sys.argv = sys.argv[1], sys.argv[1:]
try:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
except SystemExit as ended:
    assert not ended.code
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(time.process_time(), int(peak) / 1024, file=sys.stderr)
"""


def cost_of_a_process(command: list[str], folder: Path) -> tuple[float, float]:
    """CPU seconds and peak resident MiB of a command that translates one line, the medians of three."""
    costs = []
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", _TELL, *command], cwd=folder, input="bada fegi\n", capture_output=True, text=True,
            check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )  # fmt: skip
        costs.append([float(number) for number in done.stderr.splitlines()[-1].split()])
    seconds, peaks = zip(*costs, strict=True)
    return statistics.median(seconds), statistics.median(peaks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {
        "lines": 64, "longest": 12, "vocabulary": 8000, "embedding": 256, "hidden": 512, "beam_size": 5, "rounds": 5,
    }.items():  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    print(describe())
    print(f"          onnxruntime {version('onnxruntime')}, onnxscript {version('onnxscript')}")
    vocabulary = SentencePiece.train(write_lines_of_words(4000, 12, 0), VocabularyConfig(size=chosen.vocabulary))
    torch.manual_seed(0)
    config = RNNsearchConfig(embedding=chosen.embedding, hidden=chosen.hidden)
    checkpoint = Checkpoint(RNNsearch(config, len(vocabulary), len(vocabulary)).eval(), vocabulary, vocabulary)
    lines = write_lines_of_words(chosen.lines, chosen.longest, 1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_checkpoint(folder / NAME, checkpoint)
        export_model(checkpoint, folder / "exported")
        systems = {"nmt translate": Translator(checkpoint), "nmt.runner": load(folder / "exported", threads=1)}
        seconds: dict[str, list[float]] = {name: [] for name in systems}
        for round_ in range(chosen.rounds + 1):
            for name, system in systems.items():
                began = time.process_time()
                system.translate(lines, beam_size=chosen.beam_size)
                if round_:  # the first warms up
                    seconds[name].append(time.process_time() - began)
        found = [system.search(lines, beam_size=chosen.beam_size) for system in systems.values()]
        best = [(one[0], other[0]) for one, other in zip(*found, strict=True)]
        same = sum(one.text == other.text for one, other in best)
        apart = max(abs(one.score - other.score) for one, other in best)
        commands = {"nmt translate": ["nmt", "translate", NAME], "nmt.runner": ["nmt.runner", "exported"]}
        processes = {
            name: cost_of_a_process([*command, "--threads", "1"], folder) for name, command in commands.items()
        }
    pieces = sum(map(len, vocabulary.encode(lines))) / len(lines)
    print(f"\n{len(lines)} lines of {pieces:.1f} pieces, beam {chosen.beam_size}; {same} translations are the same,")
    print(f"their best scores are at most {apart:.1e} nats apart")
    print(f"{'':<16}{'lines/CPU-s':>12}{'ratio':>7}{'least':>7}{'most':>6}{'one line: CPU-s':>18}{'peak MiB':>10}")
    first = seconds["nmt translate"]
    for name, values in seconds.items():
        ratios = [before / after for before, after in zip(first, values, strict=True)]
        print(
            f"{name:<16}{len(lines) / statistics.median(values):>12.2f}"
            f"{statistics.median(first) / statistics.median(values):>7.2f}{min(ratios):>7.2f}{max(ratios):>6.2f}"
            f"{processes[name][0]:>18.2f}{processes[name][1]:>10.0f}"
        )


if __name__ == "__main__":
    main()
