"""Sentences a second and BLEU of decoding: nmt beside joeynmt and OpenNMT-py, on models trained alike.

All three read the same SentencePiece pieces (a joint vocabulary) and train the same number of updates on as many
sentences each: bidirectional GRU encoder, additive attention, GRU decoder, the sizes as given. Then each translates the
test set by its own command line, one thread, in turns. A time is the CPU time of the process less that of translating
one line (start-up: imports, loading), the median over rounds; memory is the peak resident size of the process.

The floor is what the matrix products alone take (a profile of translating the test set, in this process).

The peers live in an environment of their own: python -m venv PEERS && PEERS/bin/pip install 'torch>=2.6,<2.14' joeynmt
importlib_metadata OpenNMT-py. Stages that are done are not done again; runs that broke off are begun anew.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import yaml
from machine import describe

import nmt
from nmt.corpus import load_card
from nmt.evaluation import bleu
from nmt.lines import read_lines, write_lines
from nmt.vocabulary import Vocabulary, VocabularyConfig

TOKENS = 32
"""Source and target pieces of a pair of Multi30k, on average; nmt counts tokens and the peers sentences."""
SPECIAL = ("<unk>", "<pad>", "<s>", "</s>")


PRODUCTS = ("aten::addmm", "aten::mm", "aten::bmm", "aten::addmv_", "onednn::qlinear_pointwise")


class System(NamedTuple):
    """How a toolkit is called: `train` gives the words of its training, `translate` those that translate pieces."""

    train: Callable[[], list[str]]
    translate: Callable[[Path, Path], list[str]]


class Usage(NamedTuple):
    """CPU seconds and peak resident bytes of a process."""

    seconds: float
    peak: int


def prepare(chosen: argparse.Namespace) -> None:
    """Pieces of all splits, the vocabulary, and files of one line."""
    folder = chosen.directory
    if (folder / "test.one.source").exists():
        return
    card = load_card(chosen.corpus)
    splits = {split: card.read(split) for split in ("train", "dev", "test")}
    vocabulary = Vocabulary.train(
        (line for pair in splits["train"] for line in pair), VocabularyConfig(size=chosen.vocabulary), 1
    )
    (folder / "vocabulary.model").write_bytes(vocabulary.model)
    names = vocabulary.pieces(range(len(vocabulary)))
    write_lines(folder / "pieces.txt", [*SPECIAL, *(name for name in names if name not in (*SPECIAL, "<pad>"))])
    write_lines(folder / "pieces.onmt.txt", (f"{name}\t1" for name in names if name not in SPECIAL))
    for split, pairs in splits.items():
        for side, lines in (("source", pairs.source), ("target", pairs.target)):
            pieces = [" ".join(vocabulary.pieces(ids)) for ids in vocabulary.encode(lines)]
            write_lines(folder / f"{split}.{side}", pieces)
            write_lines(folder / f"{split}.{side}.raw", lines)
    for kind in ("source", "source.raw", "target"):
        write_lines(folder / f"test.one.{kind}", read_lines(folder / f"test.{kind}")[:1])


def systems(chosen: argparse.Namespace) -> dict[str, System]:
    folder, peers = chosen.directory, chosen.peers
    own = [sys.executable, "-m", "nmt"]
    run = folder / "nmt"

    def train_own() -> list[str]:
        flags = {
            "run": run,
            **{f"data.{split}_{side}": folder / f"{split}.{side}.raw" for split in ("train", "dev")
               for side in ("source", "target")},
            "data.vocabulary.size": chosen.vocabulary, "data.batch_tokens": chosen.sentences * TOKENS,
            "model.embedding": chosen.embedding, "model.hidden": chosen.hidden, "model.dropout": 0.2,
            "optimizer.lr": chosen.lr, "optimizer.warmup": 200, "optimizer.schedule": "constant",
            "trainer.max_steps": chosen.updates, "trainer.validate_every": chosen.updates,
            "trainer.threads": 1, "trainer.device": "cpu", "data.dev_lines": 100,
        }  # fmt: skip
        return [*own, "train", *(word for name, value in flags.items() for word in (f"--{name}", str(value)))]

    def translate_own(*flags: str) -> Callable[[Path, Path], list[str]]:
        def words(source: Path, output: Path) -> list[str]:
            raw = source.with_name(f"{source.name}.raw")
            common = ["--beam_size", str(chosen.beam_size), "--threads", "1", "--device", "cpu"]
            return [*own, "translate", str(run), str(raw), "-o", str(output), *common, *flags]

        return words

    shortlist = str(folder / "shortlist.safetensors")
    known = {
        "nmt": System(train_own, translate_own()),
        "nmt --int8": System(train_own, translate_own("--int8")),
        "nmt --shortlist": System(train_own, translate_own("--shortlist", shortlist)),
        "nmt --int8 --shortlist": System(train_own, translate_own("--int8", "--shortlist", shortlist)),
    }
    if peers is not None:
        known["joeynmt"] = _joeynmt(chosen, str(peers))
        known["OpenNMT-py"] = _opennmt(chosen, peers)
    return known


def _joeynmt(chosen: argparse.Namespace, python: str) -> System:
    folder = chosen.directory
    side = {"level": "word", "max_length": 200, "voc_file": str(folder / "pieces.txt"), "lowercase": False}
    config = {
        "name": "decoding", "joeynmt_version": "2.3.0", "model_dir": str(folder / "joeynmt"), "use_cuda": False,
        "fp16": False, "random_seed": 1,
        "data": {
            "train": str(folder / "joey.train"), "dev": str(folder / "joey.dev"), "dataset_type": "plain",
            "src": {"lang": "source", **side}, "trg": {"lang": "target", **side},
            "special_symbols": {"unk_token": "<unk>", "unk_id": 0, "pad_token": "<pad>", "pad_id": 1,
                                "bos_token": "<s>", "bos_id": 2, "eos_token": "</s>", "eos_id": 3},
        },
        "testing": {"n_best": 1, "beam_size": chosen.beam_size, "beam_alpha": 1.0, "batch_size": 2048,
                    "batch_type": "token", "max_output_length": 60, "eval_metrics": ["bleu"],
                    "sacrebleu_cfg": {"tokenize": "13a"}},
        "training": {"optimizer": "adam", "learning_rate": chosen.lr,
                     # A constant rate: its "decaying" is tenfold an epoch, whatever the step size that is set (2.3.0).
                     "scheduling": "exponential", "decrease_factor": 1.0, "patience": 1000,
                     "clip_grad_norm": 1.0, "batch_size": chosen.sentences, "batch_type": "sentence", "epochs": 1000,
                     "updates": chosen.updates, "validation_freq": max(1, chosen.updates // 10) * 10,
                     "logging_freq": max(1, chosen.updates // 10),
                     "early_stopping_metric": "loss", "overwrite": True, "shuffle": True, "print_valid_sents": [],
                     "normalization": "tokens", "keep_best_ckpts": 1},
        "model": {
            "initializer": "xavier_uniform", "bias_initializer": "zeros", "init_rnn_orthogonal": True,
            # With its default of 0.01 it had not learnt to translate after 1,500 updates; 0.1 is a guess at the cause.
            "embed_initializer": "normal", "embed_init_weight": 0.1,
            "encoder": {"type": "recurrent", "rnn_type": "gru", "num_layers": 1, "bidirectional": True, "dropout": 0.2,
                        "hidden_size": chosen.hidden, "embeddings": {"embedding_dim": chosen.embedding}},
            "decoder": {"type": "recurrent", "rnn_type": "gru", "num_layers": 1, "attention": "bahdanau",
                        "dropout": 0.2, "hidden_dropout": 0.2, "init_hidden": "bridge", "input_feeding": False,
                        "hidden_size": chosen.hidden, "embeddings": {"embedding_dim": chosen.embedding}},
        },
    }  # fmt: skip
    path = folder / "joeynmt.yaml"

    def train() -> list[str]:
        for split in ("train", "dev"):
            for side_ in ("source", "target"):
                link = folder / f"joey.{split}.{side_}"
                link.unlink(missing_ok=True)
                link.symlink_to((folder / f"{split}.{side_}").resolve())
        path.write_text(yaml.safe_dump(config))
        return [python, "-m", "joeynmt", "train", str(path), "--skip-test"]

    def translate(source: Path, output: Path) -> list[str]:
        # Its verb that translates standard input cannot write a file (version 2.3.0); the one that tests can.
        data = {name: value for name, value in config["data"].items() if name not in ("train", "dev")}
        test = source.with_name(f"joeynmt.{source.stem}.yaml")
        test.write_text(yaml.safe_dump({**config, "data": {**data, "test": str(source.with_suffix(""))}}))
        return [python, "-m", "joeynmt", "test", str(test), "-o", str(output)]

    return System(train, translate)


def _opennmt(chosen: argparse.Namespace, python: Path) -> System:
    folder = chosen.directory
    path = folder / "opennmt.yaml"
    config = {
        "save_data": str(folder / "opennmt"), "save_model": str(folder / "opennmt" / "model"), "overwrite": True,
        "src_vocab": str(folder / "pieces.onmt.txt"), "tgt_vocab": str(folder / "pieces.onmt.txt"),
        "share_vocab": True,
        "data": {"corpus": {"path_src": str(folder / "train.source"), "path_tgt": str(folder / "train.target")}},
        "encoder_type": "brnn", "decoder_type": "rnn", "rnn_type": "GRU", "enc_layers": 1, "dec_layers": 1,
        "enc_hid_size": chosen.hidden, "dec_hid_size": chosen.hidden, "hidden_size": chosen.hidden,
        "word_vec_size": chosen.embedding, "global_attention": "mlp", "input_feed": 0, "bridge": True,
        "dropout": [0.2], "optim": "adam", "learning_rate": chosen.lr, "max_grad_norm": 1.0,
        "batch_size": chosen.sentences, "batch_type": "sents", "normalization": "tokens", "bucket_size": 29_000,
        "num_workers": 0, "train_steps": chosen.updates, "save_checkpoint_steps": chosen.updates,
        "valid_steps": 10**6, "report_every": 100, "world_size": 1, "gpu_ranks": [], "seed": 1,
    }  # fmt: skip

    def train() -> list[str]:
        (folder / "opennmt").mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(config))
        return [str(python.with_name("onmt_train")), "-config", str(path)]

    def translate(source: Path, output: Path) -> list[str]:
        model = folder / "opennmt" / f"model_step_{chosen.updates}.pt"
        flags = ["-beam_size", str(chosen.beam_size), "-length_penalty", "avg", "-max_length", "60"]
        flags += ["-batch_size", "2048", "-batch_type", "tokens", "-gpu", "-1"]
        words = [str(python.with_name("onmt_translate")), "-model", str(model), "-src", str(source)]
        return [*words, "-output", str(output), *flags]

    return System(train, translate)


def call(words: Sequence[str], log: Path) -> Usage:
    """Runs a process with one thread and says what it used."""
    variables = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}
    with open(log, "ab") as output:
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env={**os.environ, **variables}
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(words[:4])} ... ended with {process.returncode}; see {log}")
    return Usage(usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


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
    prepare(chosen)
    folder = chosen.directory
    known = {name: system for name, system in systems(chosen).items() if chosen.only is None or name in chosen.only}
    for name, system in known.items():
        toolkit = name.split()[0]
        done = folder / f"{toolkit}.trained.json"
        if not done.exists():
            print(f"training {toolkit}, see {folder / toolkit}.log", flush=True)
            used = call(system.train(), folder / f"{toolkit}.log")
            done.write_text(json.dumps({"seconds": used.seconds, "updates": chosen.updates}))
    if any("--shortlist" in name for name in known) and not (folder / "shortlist.safetensors").exists():
        words = ["--source", folder / "train.source.raw", "--target", folder / "train.target.raw"]
        words = [
            sys.executable,
            "-m",
            "nmt",
            "shortlist",
            folder / "nmt",
            *words,
            "-o",
            folder / "shortlist.safetensors",
        ]
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
    vocabulary = Vocabulary((folder / "vocabulary.model").read_bytes())
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
