"""Translates the quickstart's test set with both models; prints BLEU before and after and ten translations."""

import argparse
import time
from pathlib import Path

import torch

import nmt
from nmt.corpus import load_card
from nmt.evaluation import evaluate
from nmt.lines import write_lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    test = load_card(chosen.corpus).read("test")
    report, translations = [], {}
    for name, run in (("cross-entropy", "cross_entropy"), ("then soft beam", "soft_beam")):
        began = time.perf_counter()
        translations[name] = nmt.load(chosen.directory / run).translate(test.source, beam_size=5)
        seconds = time.perf_counter() - began
        write_lines(chosen.directory / f"test.{run}.txt", translations[name])
        scores = evaluate(translations[name], [test.target])
        exact = sum(h == r for h, r in zip(translations[name], test.target, strict=True)) / len(test)
        report.append(f"{name:<15} {scores[0]}")
        report.append(f"{'':<15} {scores[1]}")
        report.append(f"{'':<15} {exact:.1%} of {len(test)} lines equal their reference; {seconds:.0f} s, beam 5")
    report.append("")
    # Ten lines of ordinary length, spread over the test set, whatever their quality.
    ordinary = [i for i in range(len(test)) if 6 <= len(test.source[i].split()) <= 16] or list(range(len(test)))
    for i in ordinary[:: max(1, len(ordinary) // 10)][:10]:
        report.append(f"source      {test.source[i]}")
        report.append(f"translation {translations['then soft beam'][i]}")
        report.append(f"reference   {test.target[i]}\n")
    write_lines(chosen.directory / "result.txt", "\n".join(report).split("\n"))
    write_lines(chosen.directory / "example.txt", [test.source[ordinary[0]]])


if __name__ == "__main__":
    main()
