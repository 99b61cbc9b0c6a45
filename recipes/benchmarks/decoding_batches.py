"""Sentences a second of decoding against the size of a batch, on a CPU or a GPU.

One model translates one text with several budgets of source tokens a batch, in turns; a time is the median over rounds
(CPU time on a CPU, wall time on a GPU), after one round that is not counted.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from machine import describe

import nmt
from nmt.lines import read_lines
from nmt.text.batching import evaluation_batches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="model file, or the folder of a run")
    parser.add_argument("text", type=Path, help="text of the source language")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="float32", help="float32 or bfloat16")
    parser.add_argument("--int8", action="store_true")
    parser.add_argument("--beam_size", type=int, default=5)
    parser.add_argument("--batch_tokens", type=int, nargs="+", default=[32, 128, 512, 1024, 2048, 4096, 16_384])
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    print(describe(), flush=True)
    translator = nmt.load(chosen.model, chosen.device, dtype=chosen.dtype, int8=chosen.int8)
    lines = [line for line in read_lines(chosen.text) if line.strip()]
    on_gpu = chosen.device.startswith("cuda")
    seconds: dict[int, list[float]] = {budget: [] for budget in chosen.batch_tokens}
    peaks: dict[int, float] = {}
    for round_ in range(1 + chosen.rounds):
        for budget in chosen.batch_tokens:
            if on_gpu:
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
            began = time.perf_counter() if on_gpu else time.process_time()
            translator.translate(lines, beam_size=chosen.beam_size, batch_tokens=budget)
            if on_gpu:
                torch.cuda.synchronize()
                peaks[budget] = torch.cuda.max_memory_allocated() / 2**20
            if round_:
                seconds[budget].append((time.perf_counter() if on_gpu else time.process_time()) - began)
    lengths = [len(ids) for ids in translator.source_vocabulary.encode(lines)]
    print(f"\n| tokens a batch | sentences a batch | sentences a second |{' peak MiB |' if on_gpu else ''}")
    print(f"|---|---|---|{'---|' if on_gpu else ''}")
    for budget, times in seconds.items():
        batches = len(evaluation_batches(lengths, budget))
        speed = len(lines) / statistics.median(times)
        memory = f" {peaks[budget]:.0f} |" if on_gpu else ""
        print(f"| {budget:,} | {len(lines) / batches:.1f} | {speed:.1f} |{memory}")


if __name__ == "__main__":
    main()
