"""Sentences a second and BLEU of decoding: nmt beside joeynmt and OpenNMT-py, on models trained alike.

All three read the same SentencePiece pieces (a joint vocabulary) and train the same number of updates on as many
sentences each: bidirectional GRU encoder, additive attention, GRU decoder, the sizes as given. Then each translates the
test set by its own command line, one thread, in turns. A time is the CPU time of the process less that of translating
one line (start-up: imports, loading), the median over rounds; memory is the peak resident size of the process.

Models differ in what they have learnt. So ours translates with theirs, too ("joeynmt imported"), which `nmt import`
makes: the same weights and pieces.

The floor is what the matrix products alone take (a profile of translating the test set, in this process).

The peers live in an environment of their own, see peers.py. Stages that are done are not done again; runs that broke
off are begun anew.
"""

import argparse
import contextlib
import json
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import yaml
from machine import describe
from peers import (
    Task,
    Usage,
    call,
    joeynmt_config,
    joeynmt_training,
    opennmt_config,
    opennmt_training,
    own_training,
    write_texts,
    write_vocabulary,
)

import nmt
from nmt.corpus import load_card
from nmt.evaluation import bleu
from nmt.lines import read_lines, write_lines
from nmt.text.vocabulary import SentencePiece, VocabularyConfig

PRODUCTS = ("aten::addmm", "aten::mm", "aten::bmm", "aten::addmv_", "onednn::qlinear_pointwise")
NMT = [sys.executable, "-m", "nmt"]


class System(NamedTuple):
    """How a toolkit is called: `train` gives the words of its training, `translate` those that translate pieces."""

    train: Callable[[], list[str]]
    translate: Callable[[Path, Path], list[str]]


def prepare(task: Task, corpus: str) -> None:
    """Pieces of all splits, the vocabulary, and files of one line."""
    folder = task.folder
    if (folder / "test.one.source").exists():
        return
    card = load_card(corpus)
    splits = {split: card.read(split) for split in ("train", "dev", "test")}
    lines = (line for pair in splits["train"] for line in pair)
    vocabulary = SentencePiece.train(lines, VocabularyConfig(size=task.vocabulary), 1)
    write_vocabulary(folder, vocabulary)
    for split, pairs in splits.items():
        write_texts(folder, split, pairs, vocabulary)
    for kind in ("source", "source.raw", "target"):
        write_lines(folder / f"test.one.{kind}", read_lines(folder / f"test.{kind}")[:1])


def tokens_of(task: Task) -> int:
    """The budget of our batches, tokens of the longer side, that holds as many sentences as a batch of the peers."""
    sides = (read_lines(task.folder / f"train.{side}") for side in ("source", "target"))
    longest = (max(len(source.split()), len(target.split())) + 1 for source, target in zip(*sides, strict=True))
    return round(task.batch * statistics.fmean(longest))


def systems(task: Task, peers: Path | None) -> dict[str, System]:
    folder = task.folder

    def train_own() -> list[str]:
        return own_training(task, tokens_of(task))

    def translate_own(*flags: str) -> Callable[[Path, Path], list[str]]:
        translate = translate_with(folder / "nmt", *flags)
        return lambda source, output: translate(source.with_name(f"{source.name}.raw"), output)

    def translate_with(model: Path, *flags: str) -> Callable[[Path, Path], list[str]]:
        def words(source: Path, output: Path) -> list[str]:
            common = ["--beam_size", str(task.beam_size), "--threads", "1", "--device", "cpu"]
            return [*NMT, "translate", str(model), str(source), "-o", str(output), *common, *flags]

        return words

    shortlist = str(folder / "shortlist.safetensors")
    known = {
        "nmt": System(train_own, translate_own()),
        "nmt --int8": System(train_own, translate_own("--int8")),
        "nmt --shortlist": System(train_own, translate_own("--shortlist", shortlist)),
        "nmt --int8 --shortlist": System(train_own, translate_own("--int8", "--shortlist", shortlist)),
    }
    if peers is not None:
        for name, system in (("joeynmt", _joeynmt(task, peers)), ("OpenNMT-py", _opennmt(task, peers))):
            known[name] = system
            for flags in ((), ("--int8",)):
                translate = translate_with(imported(folder, name), *flags)
                known[" ".join((name, "imported", *flags))] = System(system.train, translate)
    return known


def imported(folder: Path, name: str) -> Path:
    """Where the model of a peer lies as one of ours."""
    return folder / f"{name}.imported"


def import_model(task: Task, name: str) -> None:
    """Makes one of ours of what a peer has trained, unless it is there."""
    folder = task.folder
    if not (to := imported(folder, name)).exists():
        source = {"joeynmt": folder / "joeynmt", "OpenNMT-py": _opennmt_model(task)}[name]
        toolkit = name.removesuffix("-py").lower()
        call([*NMT, "import", toolkit, str(source), "-o", str(to)], folder / f"{name}.log")


def _joeynmt(task: Task, python: Path) -> System:
    config = joeynmt_config(task)

    def translate(source: Path, output: Path) -> list[str]:
        # Its verb that translates standard input cannot write a file (version 2.3.0); the one that tests can.
        data = {name: value for name, value in config["data"].items() if name not in ("train", "dev")}
        test = source.with_name(f"joeynmt.{source.stem}.yaml")
        test.write_text(yaml.safe_dump({**config, "data": {**data, "test": str(source.with_suffix(""))}}))
        return [str(python), "-m", "joeynmt", "test", str(test), "-o", str(output)]

    return System(lambda: joeynmt_training(task, python, config), translate)


def _opennmt_model(task: Task) -> Path:
    return task.folder / "opennmt" / f"model_step_{task.updates}.pt"


def _opennmt(task: Task, python: Path) -> System:
    def translate(source: Path, output: Path) -> list[str]:
        model = _opennmt_model(task)
        flags = ["-beam_size", str(task.beam_size), "-length_penalty", "avg", "-max_length", "60"]
        flags += ["-batch_size", "2048", "-batch_type", "tokens", "-gpu", "-1"]
        words = [str(python.with_name("onmt_translate")), "-model", str(model), "-src", str(source)]
        return [*words, "-output", str(output), *flags]

    return System(lambda: opennmt_training(task, python, opennmt_config(task)), translate)


def share_of_products(run: Path, lines: Sequence[str], beam_size: int, int8: bool) -> float:
    """Which share of the CPU time of a translation goes into matrix products: the floor, beside the whole."""
    torch.set_num_threads(1)
    translator = nmt.load(run, "cpu", int8=int8)
    translator.translate(lines[:20], beam_size=beam_size)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        translator.translate(lines, beam_size=beam_size)
    times = {event.key: event.self_cpu_time_total for event in profile.key_averages()}
    return sum(times.get(name, 0.0) for name in PRODUCTS) / sum(times.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="everything lands here")
    parser.add_argument("--corpus", default="multi30k_en-fr")
    parser.add_argument(
        "--peers", type=Path, default=None, help="python of the environment with joeynmt and OpenNMT-py"
    )
    parser.add_argument("--only", nargs="*", default=None, help="these systems alone")
    parser.add_argument("--vocabulary", type=int, default=8000)
    parser.add_argument("--embedding", type=int, default=256)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--sentences", type=int, default=64, help="of an update")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--updates", type=int, default=1500)
    parser.add_argument("--beam_size", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    chosen.directory = chosen.directory.resolve()
    chosen.directory.mkdir(parents=True, exist_ok=True)
    print(describe(), flush=True)
    folder = chosen.directory
    sizes = {
        name: getattr(chosen, name) for name in ("vocabulary", "embedding", "hidden", "lr", "updates", "beam_size")
    }
    task = Task(folder, batch=chosen.sentences, by="sents", **sizes)
    prepare(task, chosen.corpus)
    every = systems(task, chosen.peers)
    known = {name: system for name, system in every.items() if chosen.only is None or name in chosen.only}
    for name, system in known.items():
        toolkit = name.split()[0]
        done = folder / f"{toolkit}.trained.json"
        if not done.exists():
            print(f"training {toolkit}, see {folder / toolkit}.log", flush=True)
            used = call(system.train(), folder / f"{toolkit}.log")
            done.write_text(json.dumps({"seconds": used.seconds, "updates": chosen.updates}))
        if "imported" in name:
            import_model(task, toolkit)
    if any("--shortlist" in name for name in known) and not (folder / "shortlist.safetensors").exists():
        texts = ["--source", folder / "train.source.raw", "--target", folder / "train.target.raw"]
        words = [*NMT, "shortlist", folder / "nmt", *texts, "-o", folder / "shortlist.safetensors"]
        call([str(word) for word in words], folder / "nmt.log")
    report(known, folder, chosen.rounds)
    for int8 in (False, True):
        if "nmt" in known:
            share = share_of_products(folder / "nmt", read_lines(folder / "test.source.raw"), chosen.beam_size, int8)
            print(f"of nmt{' --int8' if int8 else ''}, matrix products take {share:.0%}")


def report(known: dict[str, System], folder: Path, rounds: int) -> None:
    """Lets the systems take turns, and prints the table."""
    used: dict[str, list[Usage]] = {name: [] for name in known}
    starting: dict[str, list[float]] = {name: [] for name in known}
    for round_ in range(rounds):
        for name, system in known.items():
            usages = []
            for test in ("test.one", "test"):
                source, output = folder / f"{test}.source", folder / f"{name.replace(' ', '')}.{test}.txt"
                output.unlink(missing_ok=True)
                usages.append(call(system.translate(source, output), folder / f"{name.split()[0]}.log"))
                with contextlib.suppress(FileNotFoundError):
                    # joeynmt adds the name of the split.
                    os.replace(output.with_name(f"{output.name}.test"), output)
            starting[name].append(usages[0].seconds)
            used[name].append(Usage(usages[1].seconds - usages[0].seconds, usages[1].peak))
            print(f"round {round_ + 1}: {name} {used[name][-1].seconds:.1f} s", flush=True)
    reference = read_lines(folder / "test.target.raw")
    first = {name: statistics.median(u.seconds for u in usages) for name, usages in used.items()}
    vocabulary = SentencePiece((folder / "vocabulary.model").read_bytes())
    first_name = next(iter(known))
    titles = (
        "system",
        "sentences a CPU second",
        f"{first_name} to it",
        "one line, s",
        "pieces a line",
        "peak MiB",
        "BLEU",
    )
    print(f"\n| {' | '.join(titles)} |\n{'|---' * len(titles)}|")
    for name, seconds in first.items():
        lines = read_lines(folder / f"{name.replace(' ', '')}.test.txt")
        if not name.startswith("nmt"):
            lines = ["".join(line.split()).replace("▁", " ").strip() for line in lines]
        score = bleu(lines, reference)
        peak = max(usage.peak for usage in used[name]) / 2**20
        pieces = sum(map(len, vocabulary.encode(lines))) / len(lines)
        ratio = seconds / first[first_name]
        speed = f"{len(reference) / seconds:.1f} | {ratio:.2f} | {statistics.median(starting[name]):.1f}"
        print(f"| {name} | {speed} | {pieces:.1f} | {peak:.0f} | {score.value:.2f} |")
    print(score.signature)


if __name__ == "__main__":
    main()
