"""The price of training through the soft beam: one step of each objective on the same batches, side by side.

Forward and backward, no optimiser. Time is CPU time on the CPU and wall time on a GPU, the median over rounds in which
the objectives take turns; memory is the peak above what the model and the batch take. Each objective's ratio is to
the first one of the same run, which is cross-entropy unless others are asked for.

With --compile each step is done as it is and with compiled regions (trainer.compile), in turns, and memory is left out.
"""

import argparse
import statistics
import subprocess
import sys
import time

import torch
from machine import describe, peak_resident, reset_peak_resident

from nmt.compilation import compile_seconds, compiled_regions
from nmt.models import RNNsearch, RNNsearchConfig
from nmt.objectives import (
    BSO,
    BSOConfig,
    CrossEntropy,
    CrossEntropyConfig,
    MinRisk,
    MinRiskConfig,
    SoftBeam,
    SoftBeamConfig,
)
from nmt.search import SoftSearchConfig
from nmt.text.batching import Batch

UNROLLED = ("bso", "token", "gold_in_beam", "expected_bleu")
AGAIN = " recompute"
OBJECTIVES = ("cross_entropy", "min_risk", "reachable_bleu", *UNROLLED, *(name + AGAIN for name in UNROLLED))


def make(name: str, chosen: argparse.Namespace):
    if name == "cross_entropy":
        return CrossEntropy(CrossEntropyConfig())
    if name == "min_risk":
        return MinRisk(MinRiskConfig(beam_size=chosen.beam_size))
    recompute, name = name.endswith(AGAIN), name.removesuffix(AGAIN)
    if name == "bso":
        return BSO(BSOConfig(beam_size=chosen.beam_size, recompute=recompute))
    search = SoftSearchConfig(beam_size=chosen.beam_size, candidates=chosen.candidates)
    return SoftBeam(SoftBeamConfig(loss=name, search=search, recompute=recompute))


def batch_of(chosen: argparse.Namespace, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)

    def side() -> tuple[torch.Tensor, torch.Tensor]:
        ids = torch.randint(4, chosen.vocabulary, (chosen.rows, chosen.length), generator=generator)
        lengths = torch.randint(chosen.length * 3 // 4, chosen.length + 1, (chosen.rows,), generator=generator)
        lengths[0] = chosen.length
        for row, length in enumerate(lengths.tolist()):
            ids[row, length - 1], ids[row, length:] = 3, 0
        return ids, lengths

    return Batch(*side(), *side(), indices=list(range(chosen.rows)), epoch=0)


def step(objective, model, batch, bf16: bool) -> None:
    model.zero_grad()
    with torch.autocast(batch.source.device.type, torch.bfloat16, enabled=bf16):
        loss = objective(model, batch).value
    loss.backward()
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak(name: str, words: list[str]) -> float:
    """Peak memory of some steps of one objective in a process of its own, in MiB above its start."""
    command = [sys.executable, __file__, *words, "--only", name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {
        "rows": 64, "length": 25, "vocabulary": 8000, "embedding": 256, "hidden": 256, "beam_size": 5,
        "candidates": 20, "rounds": 5, "threads": 1,
    }.items():  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--bf16", action="store_true", help="products in bfloat16")
    parser.add_argument("--compile", action="store_true", help="with compiled regions, too")
    parser.add_argument("--objectives", nargs="+", default=OBJECTIVES, choices=OBJECTIVES)
    parser.add_argument("--only", default=None, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    config = RNNsearchConfig(embedding=chosen.embedding, hidden=chosen.hidden)
    model = RNNsearch(config, chosen.vocabulary, chosen.vocabulary).to(device)
    batches = [batch_of(chosen, seed).to(device) for seed in range(3)]
    if chosen.only:
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            step(make(chosen.only, chosen), model, batches[0], chosen.bf16)
            print((torch.cuda.max_memory_allocated() - before) / 2**20)
        else:
            before = reset_peak_resident()
            step(make(chosen.only, chosen), model, batches[0], chosen.bf16)
            print((peak_resident() - before) / 2**20)
        return
    print(describe())
    clock = time.perf_counter if device == "cuda" else time.process_time
    names, ways = chosen.objectives, (False, True) if chosen.compile else (False,)
    seconds: dict[tuple[str, bool], list[float]] = {(name, on): [] for name in names for on in ways}
    for round_ in range(chosen.rounds + 1):
        for name, on in seconds:
            with compiled_regions(on):
                began = clock()
                step(make(name, chosen), model, batches[round_ % len(batches)], chosen.bf16)
                if round_:  # the first warms up
                    seconds[name, on].append(clock() - began)
    if chosen.compile:
        print(
            f"compiling took {compile_seconds():.0f} s\n\n{'objective':<24}{'seconds':>9}{'compiled':>10}{'ratio':>7}"
        )
        for name in names:
            plain, compiled = (statistics.median(seconds[name, on]) for on in ways)
            ratio = statistics.median(a / b for a, b in zip(seconds[name, False], seconds[name, True], strict=True))
            print(f"{name:<24}{plain:>9.3f}{compiled:>10.3f}{ratio:>7.2f}")
        return
    print(f"\n{'objective':<24}{'seconds':>9}{'ratio':>7}{'peak MiB':>10}{'ratio':>7}")
    first_time = statistics.median(seconds[names[0], False])
    first_peak = 0.0
    for name in names:
        median, memory = statistics.median(seconds[name, False]), peak(name, sys.argv[1:])
        first_peak = first_peak or memory
        print(f"{name:<24}{median:>9.3f}{median / first_time:>7.2f}{memory:>10.0f}{memory / first_peak:>7.2f}")


if __name__ == "__main__":
    main()
