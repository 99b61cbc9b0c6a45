"""Generated corpora and configurations through `nmt train`: a run, or one line that says what is wrong.

python -m tests.fuzz --cases 10000 --seed 1 tells what ended otherwise, and keeps its files. Case i of a seed is always
the same.
"""

import argparse
import collections
import dataclasses
import gzip
import json
import logging
import random
import resource
import shutil
import signal
import sys
import tempfile
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml

from nmt import config_file
from nmt.config import TrainConfig
from nmt.config_file import keys_of, read_config, write_config
from tests.processes import Process
from tests.unit.runs import TINY, make_config, train_quietly
from tests.unit.runs import write_corpus as write_reverse

ALPHABETS = [
    "abc",
    "abcdefghij .,!",
    "éàüßñ",
    "жзий",
    "漢字仮名交",
    "אבגד",
    "🙂🚀👩‍👩‍👧",
    "e\u0301a\u0308",
    "\t\r\x0b\u2028\u00a0\u200b\x00",
    "▁<>|&",
]
SPECIAL = ["", "", " ", "<s> </s> <unk> <pad>", "▁", "\ufeff", "\u0085", "a" * 3000, "word " * 400, "1 2 3 || ||| 4"]
VALUES: dict[Any, list[Any]] = {
    int: [-1, 0, 1, 2, 3, 5, 8, 40, 10**6, 10**12, 2**63, 1.5, "x", None],
    float: [-1, 0, 1e-9, 0.1, 0.5, 1, 1.5, 1e30, "nan", "inf", "-inf", "x", None],
    bool: [True, False, "yes", 2, "x"],
    str: ["", "x", "é\n", "null", "[1, 2]", "{a: 1}", -3, True, None],
}
OFTEN = {
    "data.batch_tokens": [0, 1, 2, 10, 60, 400, 4096],
    "data.buffer": [1, 7, 100],
    "data.max_length": [1, 2, 5, 20, 100],
    "data.vocabulary.size": [8, 20, 40, 80, 200, 5000],
    "data.max_unknown": [0, 0.5, 1],
    "trainer.accumulate": [1, 2],
}
"""Where what is possible depends on the text."""
HARMLESS = {
    # What takes as long, or as many processes, as was asked for.
    "max_steps": [-1, 0, 1, 2, "x"],
    "max_epochs": [-1, 0, 1, 2, "x"],
    "encoder_layers": [-1, 0, 1, 2, "x"],
    "decoder_layers": [-1, 0, 1, 2, "x"],
    "accumulate": [-1, 0, 1, 2, "x"],
    "devices": [-1, 0, 1, "x"],
    "overrun": [-1, 0, 3, "x"],
    "max_extra": [-1, 0, 3, "x"],
    "min_extra": [-1, 0, 3, "x"],
    "max_ratio": [-1, 0, 0.5, 1.5, "nan", "x"],
    "min_ratio": [-1, 0, 0.5, 1.5, "nan", "x"],
}
ELSEWHERE = {"run", "data.cache", "data.corpus", "data.corpus_dir"}
LIMIT = 16 << 30
"""Bytes of address space of a run, so that one that wants all does not get it."""


def text(chance: random.Random, lines: int) -> bytes:
    alphabet = "".join(chance.sample(ALPHABETS, chance.choice([1, 1, 2, 4])))
    strange = chance.random() < 0.3

    def line() -> str:
        if strange and chance.random() < 0.2:
            return chance.choice(SPECIAL)
        words = ("".join(chance.choices(alphabet, k=chance.randint(1, 6))) for _ in range(chance.randint(1, 8)))
        return " ".join(words).replace("\n", "")

    end = chance.choice(["\n"] * 8 + ["\r\n"])
    return (end.join(line() for _ in range(lines)) + chance.choice(["", end, end])).encode()


def damaged(chance: random.Random, content: bytes) -> bytes:
    return chance.choice(
        [
            lambda: b"",
            lambda: b"\n" * content.count(b"\n"),
            lambda: content + b"one more\n",
            lambda: content[: len(content) // 2],
            lambda: content[: len(content) // 2] + b"\xff\xfe" + content[len(content) // 2 :],
            lambda: b"\xef\xbb\xbf" + content,
            lambda: content.decode().encode("utf-16"),
            lambda: gzip.compress(content),
            lambda: bytes(chance.randrange(256) for _ in range(200)),
        ]
    )()


def write_corpus(chance: random.Random, folder: Path) -> dict[str, str]:
    files = {}
    train = chance.choice([1, 2, 5, 20, 60, 60, 200])
    for split, lines in (("train", train), ("dev", chance.choice([1, 2, 5]))):
        for side in ("source", "target"):
            content = text(chance, lines)
            path = folder / f"{split}.{side}"
            if chance.random() < 0.03:
                content = damaged(chance, content)
            if chance.random() < 0.1:
                path = path.with_name(path.name + ".gz")
                content = chance.choice([gzip.compress, gzip.compress, lambda raw: gzip.compress(raw)[:-9], bytes])(
                    content
                )
            if chance.random() < 0.005:
                path.mkdir()
            elif chance.random() > 0.005:
                path.write_bytes(content)
            files[f"data.{split}_{side}"] = str(path)
    if chance.random() < 0.01:
        files.pop(chance.choice(list(files)))
    if chance.random() < 0.01:
        files["data.train_target"] = files.get("data.train_source", "-")
    return files


def change(chance: random.Random) -> tuple[str, Any]:
    """A key and a value, which may be possible or not."""
    if chance.random() < 0.4:
        key = chance.choice(list(OFTEN))
        return key, chance.choice(OFTEN[key])
    keys = [(key, kind) for key, kind in keys_of(TrainConfig) if key not in ELSEWHERE]
    # A section seldom.
    leaves = [(key, kind) for key, kind in keys if not dataclasses.is_dataclass(kind)]
    key, kind = chance.choice(leaves if chance.random() < 0.97 else keys)
    if (name := key.rpartition(".")[2]) in HARMLESS:
        return key, chance.choice(HARMLESS[name])
    kinds = [part for part in (kind, *typing.get_args(kind)) if part in VALUES] or [str]
    choices = [word for word in typing.get_args(kind) if isinstance(word, str)]
    known = choices if choices and chance.random() < 0.8 else VALUES[chance.choice(kinds)]
    return key, chance.choice(known)


def nested(options: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in options.items():
        *path, last = key.split(".")
        place = tree
        for part in path:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                return tree
        place[last] = value
    return tree


def command(seed: int, number: int, folder: Path) -> list[str]:
    """Writes the files of a case; returns the words behind `nmt`."""
    chance = random.Random(f"{seed} {number}")
    options: dict[str, Any] = {**TINY, "data.vocabulary.size": chance.choice([20, 40, 80]), "trainer.max_steps": 1}
    options |= {"run": str(folder / "run"), "data.cache": str(folder / "cache"), "data.max_unknown": 1.0}
    options["objective"] = chance.choice(["cross_entropy"] * 4 + ["min_risk", "bso", "soft_beam", "scheduled_sampling"])
    options |= write_corpus(chance, folder)
    changes = dict(change(chance) for _ in range(chance.choice([0, 1, 1, 2, 4])))
    words = ["train", "--config", str(folder / "c.yaml")]
    if chance.random() < 0.5:
        options |= changes
    else:
        words += [f"--{key}={value}" for key, value in changes.items()]
    written = yaml.safe_dump(nested(options), sort_keys=False)
    if chance.random() < 0.03:
        place = chance.randrange(len(written))
        written = (
            written[:place]
            + chance.choice(["", ":", "\t", "- ", "}", "é", "\x00", "&a *a", "!!x "])
            + written[place + 1 :]
        )
    (folder / "c.yaml").write_text(written)
    if chance.random() < 0.03:
        words.append(chance.choice(["--sead=1", "--from=nowhere", "--resume", "extra", "--config=none", "--model=3"]))
    return words


def fault_of(code: int, told: str) -> str | None:
    """What is wrong with how a run ended; None where it trained, or told a mistake in one line."""
    if "Traceback" in told:
        return told.strip().splitlines()[-1][:200]
    if code == 0:
        return None
    lines = told.strip().splitlines()
    if code != 2:
        return f"exit code {code}: {lines[-1][:200] if lines else ''}"
    mistakes = [line for line in lines if line.startswith("nmt: ")]
    if len(mistakes) != 1 or lines[-1] != mistakes[0]:
        return f"no single line: {told[-200:]!r}"
    return None if 25 < len(lines[-1]) < 1500 else f"a message of {len(lines[-1])} characters"


def run_case(seed: int, number: int, folder: Path, seconds: float = 60) -> tuple[int, str, str | None]:
    """Exit code, what was told, and what is wrong with it."""
    folder.mkdir(parents=True)
    process = Process(command(seed, number, folder), {}, folder / "log")
    try:
        code = process.wait(seconds)
    except AssertionError:
        return -signal.SIGKILL, process.text, f"still there after {seconds} s"
    return code, process.text, fault_of(code, process.text)


def run_cases(seed: int, numbers: range, keep: Path, seconds: float = 60) -> Iterator[tuple[int, int, str, str | None]]:
    for number in numbers:
        folder = keep / f"{seed}-{number}"
        code, told, fault = run_case(seed, number, folder, seconds)
        if fault is None:
            shutil.rmtree(folder)
        yield number, code, told, fault


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "fuzz", help="folder of the faults")
    parser.add_argument("--seconds", type=float, default=60, help="for a case; more on a busy machine")
    options = parser.parse_args()
    prepare()
    codes: collections.Counter[int] = collections.Counter()
    faults: dict[str, list[int]] = {}
    for number, code, _, fault in run_cases(
        options.seed, range(options.first, options.first + options.cases), options.keep, options.seconds
    ):
        codes[code] += 1
        if fault is not None:
            faults.setdefault(fault, []).append(number)
            print(f"case {number}: {fault}", flush=True)
        if (number + 1) % 500 == 0:
            print(f"{number + 1} cases, by exit code {dict(codes)}", flush=True)
    print(json.dumps({"codes": codes, "faults": faults}, indent=1))
    return 1 if faults else 0


def prepare() -> None:
    """Limits memory, and imports and makes here what every fork would anew."""
    torch.set_num_threads(1)
    logging.getLogger().setLevel(logging.WARNING)
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT, resource.getrlimit(resource.RLIMIT_AS)[1]))
    with tempfile.TemporaryDirectory() as folder:
        config = make_config(Path(folder) / "run", write_reverse(Path(folder)), {"objective": "soft_beam"})
        write_config(Path(folder) / "c.yaml", config)
        # A parser takes half of the time of a case that ends in a mistake.
        parser = config_file._train_parser()
        config_file._train_parser = lambda: parser
        train_quietly(read_config(Path(folder) / "c.yaml"))


if __name__ == "__main__":
    sys.exit(main())
