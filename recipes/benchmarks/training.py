"""Target tokens a second of training: nmt beside joeynmt and OpenNMT-py, the same text and pieces.

Their models are not RNNsearch, and have fewer products: so ours is trained in the shape of each, too. By --only each
comes compiled (trainer.compile), in bfloat16 (trainer.precision), and both: "nmt, as joeynmt, bf16, compiled".

Each trains by its own command, one thread, in batches of as many tokens, by sentences of mixed lengths, once over the
text, and once over an eighth of it. Tokens and CPU time are the differences of the two, so that start-up, reading and
saving count for nobody; memory is the peak resident size of the longer run. The loss is that of training (nats a
target token, with dropout, without label smoothing), the mean over the last tenth of the updates.

The floor is what the matrix products of our own step take alone, on operands of the same shapes.

Loading is what our own batches take when nobody trains on them.

The peers live in an environment of their own, see peers.py. Runs that are done are not done again.
"""

import argparse
import json
import re
import shutil
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe
from peers import (
    DROPOUT,
    Task,
    call,
    joeynmt_config,
    joeynmt_training,
    opennmt_config,
    opennmt_training,
    own_training,
    write_texts,
    write_vocabulary,
)

from nmt.corpus import load_card
from nmt.lines import read_lines, write_lines
from nmt.models import RNNsearchConfig, make_recurrent
from nmt.objectives import CrossEntropy, CrossEntropyConfig
from nmt.text.batching import Batch, TrainingStream
from nmt.text.encoding import encode_pairs
from nmt.text.pairs import Pairs
from nmt.text.vocabulary import SentencePiece, VocabularyConfig

PRODUCTS = ("aten::addmm", "aten::mm", "aten::bmm", "aten::baddbmm", "aten::addmm_", "aten::mv", "aten::addmv_")
PARTS = (8, 1)
AS_JOEYNMT, AS_OPENNMT = "nmt, as joeynmt", "nmt, as OpenNMT-py"
SHAPES = ("nmt", AS_JOEYNMT, AS_OPENNMT)
WAYS: dict[str, dict[str, Any]] = {
    "": {},
    ", compiled": {"trainer.compile": True},
    ", bf16": {"trainer.precision": "bf16"},
    ", bf16, compiled": {"trainer.compile": True, "trainer.precision": "bf16"},
}
# Updates, as with the peers.
WARMUP = 0


@dataclass(frozen=True)
class Training:
    """A finished run: CPU seconds, peak resident bytes, target tokens with EOS, updates, and the loss at its end."""

    seconds: float
    peak: int
    tokens: int
    updates: int
    loss: float


def prepare(task: Task, corpora: Sequence[str], pairs: int) -> None:
    """The text, drawn from the corpora, and its vocabulary."""
    folder = task.folder
    if (folder / "dev.target.raw").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    read = [pair for corpus in corpora for pair in load_card(corpus).read("train") if all(map(str.strip, pair))]
    drawn = [read[place] for place in np.random.default_rng(1).permutation(len(read))[:pairs]]
    lines = (line for pair in drawn for line in pair)
    vocabulary = SentencePiece.train(lines, VocabularyConfig(size=task.vocabulary), 1)
    write_vocabulary(folder, vocabulary)
    for split, some in (("train", drawn), ("dev", drawn[:10])):
        source, target = map(list, zip(*some, strict=True))
        write_texts(folder, split, Pairs(source, target, split), vocabulary)


def stream_of(task: Task) -> TrainingStream:
    """Our batches of the task's text."""
    vocabulary = SentencePiece((task.folder / "vocabulary.model").read_bytes())
    source, target = (read_lines(task.folder / f"train.{side}.raw") for side in ("source", "target"))
    corpus = encode_pairs(Pairs(source, target, "train"), vocabulary, vocabulary, task.folder / "cache")
    return TrainingStream(corpus, task.batch, 1)


def tokens_of(task: Task) -> int:
    """Target tokens of the text, EOS counted."""
    return sum(len(line.split()) + 1 for line in read_lines(task.folder / "train.target"))


def end_of(losses: Sequence[float]) -> float:
    return statistics.fmean(losses[-max(1, len(losses) // 10) :])


def shape(name: str, task: Task) -> dict[str, Any]:
    """The flags with which our model has the shape of a peer's."""
    luong = {"model.decoder": "luong"}
    # OpenNMT-py's two directions share the size, its first states pass a layer, and its additive attention has no tanh
    # behind it.
    halves = {"model.readout": "linear", "model.encoder_hidden": task.hidden // 2, "model.bridge": "relu"}
    return {"nmt": {}, AS_JOEYNMT: luong | {"model.readout": "tanh"}, AS_OPENNMT: luong | halves}[name]


def train_own(name: str, way: str, task: Task, _: Path | None, part: int) -> Training:
    """Ours in one of the shapes and one of the ways, for a part of an epoch."""
    run = task.folder / f"{name}{way}.{part}"
    shutil.rmtree(run, ignore_errors=True)
    stream = stream_of(task)
    updates = stream.batches_in_epoch(0) // part
    flags = {"run": run, "trainer.log_every": 1, "cross_entropy.label_smoothing": 0.0, "data.dev_lines": 10}
    flags |= {"data.cache": task.folder / "cache", "optimizer.warmup": WARMUP}
    flags |= shape(name, task) | WAYS[way]
    words, log = own_training(replace(task, updates=updates), task.batch, **flags), task.folder / "nmt.log"
    if "trainer.compile" in flags:
        # Both runs of a difference find what this one compiles.
        words = ["env", f"TORCHINDUCTOR_CACHE_DIR={task.folder / 'compiled'}", *words]
        if not (done := task.folder / f"{name}{way}.compiled").exists():
            call(words, log)
            done.touch()
            shutil.rmtree(run)
    usage = call(words, log)
    reports = [json.loads(line) for line in read_lines(run / "metrics.jsonl")]
    losses = [report["nll"] for report in reports if "nll" in report]
    tokens = sum(batch.target_tokens for batch in islice(stream, updates))
    return Training(*usage, tokens, updates, end_of(losses))


def train_joeynmt(task: Task, python: Path | None, part: int) -> Training:
    """joeynmt, for an epoch of a text that is a part of the whole; it validates nothing."""
    assert python is not None
    task = replace(task, folder=part_of(task, part))
    config = joeynmt_config(task)
    config["training"] |= {"epochs": 1, "updates": 10**6, "validation_freq": 10**6, "logging_freq": 1}
    log = task.folder / "joeynmt.log"
    log.unlink(missing_ok=True)
    usage = call(joeynmt_training(task, python, config), log)
    losses = [float(found) for found in re.findall(r"Batch Loss: +([\d.]+)", log.read_text())]
    return Training(*usage, tokens_of(task), len(losses), end_of(losses))


def part_of(task: Task, part: int) -> Path:
    """A folder with the first lines of the task's text and its vocabulary."""
    if part == 1:
        return task.folder
    folder = task.folder / f"part.{part}"
    folder.mkdir(exist_ok=True)
    shutil.copy(task.folder / "pieces.txt", folder)
    for split in ("train", "dev"):
        for side in ("source", "target"):
            lines = read_lines(task.folder / f"{split}.{side}")
            write_lines(folder / f"{split}.{side}", lines[: len(lines) // part] if split == "train" else lines)
    return folder


def train_opennmt(task: Task, python: Path | None, part: int) -> Training:
    """OpenNMT-py, which knows no epochs: as many updates as ours; its own log counts the tokens."""
    assert python is not None
    updates = stream_of(task).batches_in_epoch(0) // part
    config = opennmt_config(replace(task, updates=updates)) | {"report_every": 1}
    log = task.folder / "opennmt.log"
    log.unlink(missing_ok=True)
    usage = call(opennmt_training(task, python, config), log)
    found = re.findall(r"xent: +([\d.]+);.*bsz: *\d+/ *(\d+)/", log.read_text())
    losses, tokens = [float(loss) for loss, _ in found], sum(int(count) for _, count in found)
    return Training(*usage, tokens, len(losses), end_of(losses))


SYSTEMS: dict[str, Callable[[Task, Path | None, int], Training]] = {
    **{name + way: partial(train_own, name, way) for name in SHAPES for way in WAYS},
    "joeynmt": train_joeynmt,
    "OpenNMT-py": train_opennmt,
}


def trained(name: str, task: Task, python: Path | None, part: int, round_: int) -> Training:
    """The result of a run, which is made where there is none."""
    path = task.folder / f"{name}.{part}.{round_}.json"
    if not path.exists():
        found = SYSTEMS[name](task, python, part)
        path.write_text(json.dumps(asdict(found)))
        print(f"1/{part} of the text, round {round_ + 1}: {name} {found.seconds:.0f} s", flush=True)
    return Training(**json.loads(path.read_text()))


def share_of_products(name: str, task: Task, updates: int) -> tuple[float, int]:
    """Which share of the CPU time of our updates the same matrix products take when they are all that is done; and the
    parameters of the model."""
    torch.set_num_threads(1)
    torch.manual_seed(1)
    flags = {flag.removeprefix("model."): value for flag, value in shape(name, task).items()}
    config = RNNsearchConfig(embedding=task.embedding, hidden=task.hidden, dropout=DROPOUT, **flags)
    model = make_recurrent(config, task.vocabulary, task.vocabulary)
    objective = CrossEntropy(CrossEntropyConfig(label_smoothing=0.0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=task.lr, fused=True)

    def update(batch: Batch) -> None:
        optimizer.zero_grad()
        objective(model, batch).value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    first, *batches = islice(stream_of(task), updates + 1)
    update(first)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
        for batch in batches:
            update(batch)
    events = [event for event in profile.events() if event.name in PRODUCTS]
    done = Counter((event.name, *map(tuple, event.input_shapes[:3])) for event in events)
    whole = sum(cpu_seconds(partial(update, batch)) for batch in batches)
    alone = sum(count * cpu_seconds(product(*what)) for what, count in done.items())
    return alone / whole, sum(map(torch.numel, model.parameters()))


def product(name: str, *shapes: tuple[int, ...]) -> Callable[[], Any]:
    """An operation of PRODUCTS on operands of some shapes."""
    kind = name.removeprefix("aten::")
    operands = [torch.randn(shape) for shape in shapes[: 3 if "add" in kind else 2]]
    if kind.endswith("_"):
        return partial(getattr(operands[0], kind), *operands[1:])
    return partial(getattr(torch, kind), *operands)


def cpu_seconds(function: Callable[[], Any], rounds: int = 3) -> float:
    """The median over some rounds."""
    spent = []
    for _ in range(rounds):
        began = time.process_time()
        function()
        spent.append(time.process_time() - began)
    return statistics.median(spent)


def loading_speed(task: Task) -> float:
    """Target tokens that our batches bring in a CPU second."""
    stream = stream_of(task)
    began, tokens = time.process_time(), 0
    while time.process_time() - began < 2:
        tokens += sum(batch.target_tokens for batch in islice(stream, stream.batches_in_epoch(0)))
    return tokens / (time.process_time() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="everything lands here")
    parser.add_argument("--corpora", nargs="+", default=["multi30k_en-fr", "tatoeba_en-fr"])
    parser.add_argument(
        "--peers", type=Path, default=None, help="python of the environment with joeynmt and OpenNMT-py"
    )
    parser.add_argument("--only", nargs="*", default=None, help="these systems alone")
    parser.add_argument("--pairs", type=int, default=16_000, help="drawn from the corpora")
    parser.add_argument("--vocabulary", type=int, default=8000)
    parser.add_argument("--embedding", type=int, default=256)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=4096, help="of a batch")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--rounds", type=int, default=1)
    chosen = parser.parse_args()
    chosen.directory = chosen.directory.resolve()
    print(describe(), flush=True)
    sizes = {name: getattr(chosen, name) for name in ("vocabulary", "embedding", "hidden", "lr")}
    task = Task(chosen.directory, updates=0, batch=chosen.tokens, by="tokens", **sizes)
    prepare(task, chosen.corpora, chosen.pairs)
    names = [
        name
        for name in SYSTEMS
        if (chosen.peers or name.startswith("nmt")) and name in (chosen.only or (*SHAPES, "joeynmt", "OpenNMT-py"))
    ]
    runs: dict[str, list[tuple[Training, Training]]] = {name: [] for name in names}
    for round_ in range(chosen.rounds):
        for name in names:
            few, all_ = (trained(name, task, chosen.peers, part, round_) for part in PARTS)
            runs[name].append((few, all_))
    speeds = {
        name: statistics.median((b.tokens - a.tokens) / (b.seconds - a.seconds) for a, b in found)
        for name, found in runs.items()
    }
    titles = ("system", "target tokens a CPU second", "updates", "loss at the end", "peak MiB")
    print(f"\n| {' | '.join(titles)} |\n{'|---' * len(titles)}|")
    for name, speed in speeds.items():
        last = runs[name][-1][1]
        peak = max(run.peak for _, run in runs[name]) / 2**20
        print(f"| {name} | {speed:.0f} | {last.updates} | {last.loss:.2f} | {peak:.0f} |")
    for name, speed in speeds.items():
        for way in WAYS:
            if (ours := f"nmt, as {name}{way}") in speeds:
                print(f"{ours}: {speeds[ours] / speed:.2f} times {name}")
    for name in (name for name in SHAPES if name in names):
        share, parameters = share_of_products(name, task, 2)
        print(f"{name}: its matrix products alone take {share:.0%} of a step; {parameters:,} parameters", flush=True)
    loading = loading_speed(task)
    print(f"loading: {loading:,.0f} target tokens a CPU second", end="")
    print(f", {loading / speeds['nmt']:.0f} times training's" if "nmt" in speeds else "")


if __name__ == "__main__":
    main()
