"""Resident memory of what training loads, and how fast: a generated text of any size, whole or through a buffer.

The text is never written. Whole, it is encoded into an Arrow file (in a temporary folder, removed in the end), an epoch
is planned, and every tenth batch is made, as process 0 of 10 would. With --buffer it is read, encoded and packed on
the way, once, and as many batches are made.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from machine import describe

from nmt.text.batching import TrainingStream
from nmt.text.buffering import BufferedStream
from nmt.text.encoding import encode_pairs
from nmt.text.pairs import Bitext
from nmt.text.vocabulary import SentencePiece, VocabularyConfig

PROCESSES = 10
_PARTS = 4096


def generate(pairs: int) -> Bitext:
    """Sentences of 4 to 16 words, no two alike: each is one of 4,096 beginnings and one of as many ends."""
    generator = np.random.default_rng(1)
    letters = list("abcdefghijklmnopqrstuvwxyz")
    words = ["".join(generator.choice(letters, count)) for count in generator.integers(1, 9, 2_000)]
    halves = [
        [" ".join(generator.choice(words, count)) for count in generator.integers(2, 9, _PARTS)] for _ in range(4)
    ]

    def read(_: object) -> Iterator[tuple[str, str]]:
        for number in range(pairs):
            first, second = number % _PARTS, number // _PARTS
            yield f"{halves[0][first]} {halves[1][second]}", f"{halves[2][first]} {halves[3][second]}"

    return Bitext(read, "generated")


def memory() -> dict[str, int]:
    """MiB of this process: its own (and that at most so far), and pages of files, which the kernel takes back."""
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    kinds = {"own": "RssAnon", "files": "RssFile", "peak with files": "VmHWM"}
    return {name: int(lines[kind].split()[0]) // 1024 for name, kind in kinds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=10_000_000, help="at most 16,777,216")
    parser.add_argument("--buffer", type=int, default=0, help="0: the whole text")
    parser.add_argument("--batch_tokens", type=int, default=4096)
    chosen = parser.parse_args()
    text = generate(chosen.pairs)
    vocabulary = SentencePiece.train((line for pair in text.head(20_000) for line in pair), VocabularyConfig(size=500))
    both = vocabulary, vocabulary
    seen = {"begun": memory()}
    tokens, places = 0, {(chosen.pairs * part) // 4 for part in range(1, 5)}
    with tempfile.TemporaryDirectory() as folder:
        stream: TrainingStream | BufferedStream
        began = time.process_time()
        if chosen.buffer:
            stream = BufferedStream(text, both, chosen.buffer, chosen.batch_tokens, 1, 100, world=PROCESSES)
        else:
            corpus = encode_pairs(text, *both, folder)
            seen["encoded"] = memory()
            stream = TrainingStream(corpus, chosen.batch_tokens, 1, max_length=100, world=PROCESSES)
            seen["planned"] = memory()
        prepared, began = time.process_time() - began, time.process_time()
        rows = 0
        for batch in stream:
            if batch.epoch:
                break
            rows += len(batch) * PROCESSES
            tokens += batch.target_tokens * PROCESSES
            for place in [place for place in places if place <= rows * 1.02]:
                seen[f"about {place:,} pairs trained on"] = memory()
                places.discard(place)
        seconds = time.process_time() - began
    print(describe())
    print(f"MiB, {tokens:,} target tokens, {prepared:.1f} CPU seconds before the first batch, then "
          f"{tokens / seconds:,.0f} tokens a CPU second")  # fmt: skip
    for when, sizes in seen.items():
        print(f"  {when:<40} {', '.join(f'{size:,} {name}' for name, size in sizes.items())}")


if __name__ == "__main__":
    main()
