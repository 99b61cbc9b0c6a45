"""Lines a CPU second of a model as it trains, in the form in which it decodes, and with int8, in turns; one thread.

A time is the median over rounds, after one that is not counted.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from machine import describe

import nmt
from nmt.lines import read_lines
from nmt.models import quantize


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="model file, or the folder of a run")
    parser.add_argument("text", type=Path, help="text of the source language")
    parser.add_argument("--lines", type=int, default=200, help="of the text")
    parser.add_argument("--beam_size", type=int, default=5)
    parser.add_argument("--max_ratio", type=float, default=1.2, help="pieces of a translation to those of its source")
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    print(describe(), flush=True)
    translator = nmt.load(chosen.model, "cpu")
    lines = read_lines(chosen.text)[: chosen.lines]
    forms = {
        "the model": translator.model,
        "its decoding form": translator.decoder,
        "int8 of the model": quantize(translator.model),
        "int8 of the form": quantize(translator.decoder),
    }
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    texts = {}
    for round_ in range(1 + chosen.rounds):
        for name, form in forms.items():
            translator.decoder = form
            began = time.process_time()
            texts[name] = translator.translate(lines, beam_size=chosen.beam_size, max_ratio=chosen.max_ratio)
            if round_:
                seconds[name].append(time.process_time() - began)
    print("\n| | lines a CPU second | to the model | the same lines |\n|---|---|---|---|")
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    for name, time_ in middle.items():
        same = sum(map(str.__eq__, texts[name], texts["the model"]))
        print(f"| {name} | {len(lines) / time_:.1f} | {middle['the model'] / time_:.2f} | {same} of {len(lines)} |")


if __name__ == "__main__":
    main()
