"""Trains small recurrent models with joeynmt and OpenNMT-py, by their own commands, imports them, and compares.

For each model: the largest difference between the peer's log-probability of a reference and ours, and how many lines
both translate alike. See peers.py for the environment of the peers; the log-probabilities are those that their own code
gives (peer_scores.py). What is trained is not trained again.

    python recipes/benchmarks/import_peers.py FOLDER --peers PEERS/bin/python
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from machine import describe
from peers import VARIABLES, Task, call, joeynmt_config, opennmt_config

from nmt.corpus import load_card
from nmt.lines import read_lines, write_lines
from nmt.text.pairs import pairs_from_files
from nmt.text.vocabulary import VocabularyConfig, train_vocabularies

SCORES = Path(__file__).with_name("peer_scores.py")
# Log-probabilities are sums of some twenty float32 terms.
TOLERANCE = 1e-4
ALIKE = 0.99
LONGEST = 200
# Without a length penalty: with one, OpenNMT-py's search ends before it has found the best of its hypotheses.
SEARCH = ["--normalization", "none", "--max_ratio", "0", "--max_extra", str(LONGEST)]


class Peer(NamedTuple):
    """A model of a peer.

    Attributes:
        toolkit: as `nmt import` names it.
        train: the words that train it.
        source: what is imported.
        scores: the words that print the log-probability of each reference.
        translate: the words that translate the test set into a file.
        flags: of our search, so that it is theirs.
    """

    toolkit: str
    train: list[str]
    source: Path
    scores: list[str]
    translate: Callable[[Path], list[str]]
    flags: list[str]


def prepare(task: Task, python: Path, corpus: str, pairs: int, test: int) -> None:
    """Raw texts, a SentencePiece model and BPE codes with the vocabulary of each."""
    folder = task.folder
    if (folder / "codes.vocabulary").exists():
        return
    card = load_card(corpus)
    for split, size in (("train", pairs), ("dev", 100), ("test", test)):
        texts = card.read(split)
        write_lines(folder / f"{split}.source", texts.source[:size])
        write_lines(folder / f"{split}.target", texts.target[:size])
    both = [line for side in ("source", "target") for line in read_lines(folder / f"train.{side}")]
    write_lines(folder / "train.both", both)
    texts = pairs_from_files(folder / "train.source", folder / "train.target")
    joint, _ = train_vocabularies(texts, VocabularyConfig(size=task.vocabulary), 1)
    (folder / "pieces.model").write_bytes(joint.model)
    write_lines(folder / "pieces.vocabulary", joint.pieces(range(4, len(joint))))
    codes, split = folder / "codes", folder / "train.split"
    tool = [str(python.with_name("subword-nmt"))]
    call(
        [*tool, "learn-bpe", "-s", str(task.vocabulary), "-i", str(folder / "train.both"), "-o", str(codes)],
        folder / "log",
    )
    call([*tool, "apply-bpe", "-c", str(codes), "-i", str(folder / "train.both"), "-o", str(split)], folder / "log")
    seen = {token for line in read_lines(split) for token in line.split()}
    write_lines(folder / "codes.vocabulary", sorted(seen))


def joeynmt(task: Task, python: Path, name: str, subwords: dict[str, Any], model: dict[str, Any]) -> Peer:
    """A model of joeynmt; `model` says what its encoder and decoder have of their own."""
    folder = task.folder
    config = joeynmt_config(task)
    config["model_dir"] = str(folder / name)
    config["testing"] |= {"beam_alpha": -1, "max_output_length": LONGEST}
    config["data"] |= {split: str(folder / split) for split in ("train", "dev", "test")}
    for side in ("src", "trg"):
        config["data"][side] |= {"level": "bpe", **subwords}
    for part in ("encoder", "decoder"):
        config["model"][part] |= model[part]
    train, score, translate = (folder / f"{name}.{kind}.yaml" for kind in ("train", "score", "translate"))
    train.write_text(yaml.safe_dump(config))
    del config["data"]["dev"]
    translate.write_text(yaml.safe_dump(config))
    config["testing"] |= {"return_prob": "ref", "beam_size": 1, "batch_size": 1, "batch_type": "sentence"}
    score.write_text(yaml.safe_dump(config))
    return Peer(
        "joeynmt",
        [str(python), "-m", "joeynmt", "train", str(train), "--skip-test"],
        folder / name,
        [str(python), str(SCORES), "joeynmt", str(score)],
        lambda output: [str(python), "-m", "joeynmt", "test", str(translate), "-o", str(output)],
        [*SEARCH, "--min_extra", "2"],  # it ends no hypothesis at once
    )


def opennmt(task: Task, python: Path, name: str, subwords: dict[str, Any], model: dict[str, Any]) -> Peer:
    """A model of OpenNMT-py; `model` says what it has of its own."""
    folder = task.folder
    config = opennmt_config(task)
    (folder / name).mkdir(exist_ok=True)
    config |= {"save_data": str(folder / name), "save_model": str(folder / name / "model"), **model}
    vocabulary = folder / f"{name}.vocabulary"
    write_lines(vocabulary, (f"{piece}\t1" for piece in read_lines(subwords.pop("vocabulary"))))
    config |= {"src_vocab": str(vocabulary), "tgt_vocab": str(vocabulary), **subwords}
    train = folder / f"{name}.train.yaml"
    train.write_text(yaml.safe_dump(config))
    checkpoint = folder / name / f"model_step_{task.updates}.pt"
    common = ["-model", str(checkpoint), "-src", str(folder / "test.source"), "-batch_size", "1", "-transforms",
              *subwords["transforms"], "-src_subword_model", subwords["src_subword_model"],
              "-tgt_subword_model", subwords["tgt_subword_model"]]  # fmt: skip
    search = ["-beam_size", str(task.beam_size), "-max_length", str(LONGEST), "-length_penalty", "none"]
    command = str(python.with_name("onmt_translate"))
    return Peer(
        "opennmt",
        [str(python.with_name("onmt_train")), "-config", str(train)],
        checkpoint,
        [str(python), str(SCORES), "opennmt", *common, "-tgt", str(folder / "test.target"), "-output", "/dev/null"],
        lambda output: [command, *common, *search, "-output", str(output)],
        SEARCH,
    )


def peers(task: Task, python: Path) -> dict[str, Peer]:
    """A GRU with additive attention and a deeper LSTM with input feeding, of each."""
    folder = task.folder
    pieces, codes = str(folder / "pieces.model"), str(folder / "codes")
    layers = {"rnn_type": "lstm", "num_layers": 2}
    return {
        "joeynmt-gru": joeynmt(
            task, python, "joeynmt-gru",
            {"tokenizer_type": "sentencepiece", "tokenizer_cfg": {"model_file": pieces},
             "voc_file": str(folder / "pieces.vocabulary")},
            {"encoder": {}, "decoder": {"attention": "bahdanau", "init_hidden": "bridge"}},
        ),
        "joeynmt-lstm": joeynmt(
            task, python, "joeynmt-lstm",
            {"tokenizer_type": "subword-nmt", "tokenizer_cfg": {"codes": codes},
             "voc_file": str(folder / "codes.vocabulary")},
            {"encoder": layers,
             "decoder": {**layers, "attention": "luong", "init_hidden": "last", "input_feeding": True}},
        ),
        "opennmt-gru": opennmt(
            task, python, "opennmt-gru",
            {"transforms": ["sentencepiece"], "src_subword_model": pieces, "tgt_subword_model": pieces,
             "vocabulary": str(folder / "pieces.vocabulary")},
            {"rnn_type": "GRU", "global_attention": "mlp", "input_feed": 0, "bridge": True},
        ),
        "opennmt-lstm": opennmt(
            task, python, "opennmt-lstm",
            {"transforms": ["bpe"], "src_subword_model": codes, "tgt_subword_model": codes,
             "vocabulary": str(folder / "codes.vocabulary")},
            {"rnn_type": "LSTM", "enc_layers": 2, "dec_layers": 2, "global_attention": "general", "input_feed": 1,
             "bridge": False},
        ),
    }  # fmt: skip


def compare(name: str, peer: Peer, task: Task) -> tuple[float, int, int]:
    """The largest difference of log-probabilities, lines translated alike, and lines."""
    folder, log = task.folder, task.folder / f"{name}.log"
    own, theirs, ours = folder / f"{name}.safetensors", folder / f"{name}.peer", folder / f"{name}.own"
    nmt = [sys.executable, "-m", "nmt"]
    call([*nmt, "import", peer.toolkit, str(peer.source), "-o", str(own)], log)
    source, target = folder / "test.source", folder / "test.target"
    texts = ["--source", str(source), "--target", str(target), "--format", "jsonl"]
    call([*nmt, "score", str(own), *texts, "-o", f"{own}.scores", "--device", "cpu"], log)
    with open(log, "ab") as errors:
        told = subprocess.run(
            peer.scores, stdout=subprocess.PIPE, stderr=errors, check=True, text=True, env={**os.environ, **VARIABLES}
        )
    expected = [float(line.split()[1]) for line in told.stdout.splitlines() if line.startswith("SCORE ")]
    found = [json.loads(line)["log_probability"] for line in read_lines(f"{own}.scores")]
    difference = max(abs(one - other) for one, other in zip(expected, found, strict=True))
    call(peer.translate(theirs), log)
    flags = ["--beam_size", str(task.beam_size), "--threads", "1", "--device", "cpu", *peer.flags]
    call([*nmt, "translate", str(own), str(source), "-o", str(ours), *flags], log)
    output = theirs if theirs.exists() else theirs.with_name(f"{theirs.name}.test")
    pairs = list(zip(read_lines(output), read_lines(ours), strict=True))
    return difference, sum(one == other for one, other in pairs), len(pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="everything lands here")
    parser.add_argument("--peers", type=Path, required=True, help="python of the environment with the peers")
    parser.add_argument("--corpus", default="multi30k_en-fr")
    parser.add_argument("--only", nargs="*", default=None, help="these models alone")
    parser.add_argument("--pairs", type=int, default=8000)
    parser.add_argument("--test", type=int, default=200, help="sentences that are compared")
    parser.add_argument("--vocabulary", type=int, default=1500)
    parser.add_argument("--embedding", type=int, default=64)
    parser.add_argument("--hidden", type=int, default=96)
    parser.add_argument("--updates", type=int, default=250)
    chosen = parser.parse_args()
    folder = chosen.directory.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    print(describe(), flush=True)
    sizes = {name: getattr(chosen, name) for name in ("vocabulary", "embedding", "hidden", "updates")}
    task = Task(folder, lr=2e-3, batch=64, by="sents", **sizes)
    prepare(task, chosen.peers, chosen.corpus, chosen.pairs, chosen.test)
    failed = False
    for name, peer in peers(task, chosen.peers).items():
        if chosen.only is not None and name not in chosen.only:
            continue
        done = folder / f"{name}.done"
        if not done.exists():
            call(peer.train, folder / f"{name}.log")
            done.touch()
        difference, alike, lines = compare(name, peer, task)
        failed |= difference > TOLERANCE or alike < ALIKE * lines
        print(
            f"{name}: log-probabilities differ by {difference:.1e} at most; {alike} of {lines} lines alike", flush=True
        )
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
