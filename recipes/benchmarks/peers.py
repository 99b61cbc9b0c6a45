"""What the benchmarks beside joeynmt and OpenNMT-py share: the same pieces, the same model, each by its own command.

The peers live in an environment of their own: python -m venv PEERS && PEERS/bin/pip install 'torch>=2.6,<2.14' joeynmt
importlib_metadata OpenNMT-py 'sentencepiece<0.2.1' (joeynmt calls what later ones lack).
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from nmt.lines import write_lines
from nmt.text.pairs import Pairs
from nmt.text.vocabulary import Vocabulary

SPECIAL = ("<unk>", "<pad>", "<s>", "</s>")
DROPOUT = 0.2
WARMUP = 200
VARIABLES = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}


@dataclass(frozen=True)
class Task:
    """What all of them train: a bidirectional GRU encoder, additive attention, a GRU decoder.

    Attributes:
        folder: texts as pieces (SPLIT.source, SPLIT.target) and raw (with .raw behind it), and what is trained.
        vocabulary, embedding, hidden, lr: sizes, and the constant learning rate.
        updates: of a training.
        batch, by: the size of an update, in "sents" or in "tokens" of the longer side, padding counted.
        beam_size: of the search.
    """

    folder: Path
    vocabulary: int
    embedding: int
    hidden: int
    lr: float
    updates: int
    batch: int
    by: str
    beam_size: int = 5


class Usage(NamedTuple):
    """CPU seconds and peak resident bytes of a process."""

    seconds: float
    peak: int


def call(words: Sequence[str], log: Path) -> Usage:
    """Runs a process with one thread and says what it used."""
    with open(log, "ab") as output:
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env={**os.environ, **VARIABLES}
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(words[:4])} ... ended with {process.returncode}; see {log}")
    return Usage(usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def write_vocabulary(folder: Path, vocabulary: Vocabulary) -> None:
    """The vocabulary in every toolkit's form."""
    (folder / "vocabulary.model").write_bytes(vocabulary.model)
    names = vocabulary.pieces(range(len(vocabulary)))
    write_lines(folder / "pieces.txt", [*SPECIAL, *(name for name in names if name not in (*SPECIAL, "<pad>"))])
    write_lines(folder / "pieces.onmt.txt", (f"{name}\t1" for name in names if name not in SPECIAL))


def write_texts(folder: Path, split: str, pairs: Pairs, vocabulary: Vocabulary) -> None:
    """A split as pieces and as it is."""
    for side, lines in (("source", pairs.source), ("target", pairs.target)):
        write_lines(folder / f"{split}.{side}", [" ".join(vocabulary.pieces(ids)) for ids in vocabulary.encode(lines)])
        write_lines(folder / f"{split}.{side}.raw", lines)


def own_training(task: Task, batch_tokens: int, **more: Any) -> list[str]:
    """The command that trains ours; `more` are flags with _ for the dot."""
    flags = {
        "run": task.folder / "nmt",
        **{f"data.{split}_{side}": task.folder / f"{split}.{side}.raw" for split in ("train", "dev")
           for side in ("source", "target")},
        "data.vocabulary.size": task.vocabulary, "data.batch_tokens": batch_tokens,
        "model.embedding": task.embedding, "model.hidden": task.hidden, "model.dropout": DROPOUT,
        "optimizer.lr": task.lr, "optimizer.warmup": WARMUP, "optimizer.schedule": "constant",
        "trainer.max_steps": task.updates, "trainer.validate_every": task.updates,
        "trainer.threads": 1, "trainer.device": "cpu", "data.dev_lines": 100, **more,
    }  # fmt: skip
    words = (word for name, value in flags.items() for word in (f"--{name}", str(value)))
    return [sys.executable, "-m", "nmt", "train", *words]


def joeynmt_config(task: Task) -> dict[str, Any]:
    """joeynmt's configuration (2.3.0)."""
    folder = task.folder
    side = {"level": "word", "max_length": 200, "voc_file": str(folder / "pieces.txt"), "lowercase": False}
    return {
        "name": "peer", "joeynmt_version": "2.3.0", "model_dir": str(folder / "joeynmt"), "use_cuda": False,
        "fp16": False, "random_seed": 1,
        "data": {
            "train": str(folder / "joey.train"), "dev": str(folder / "joey.dev"), "dataset_type": "plain",
            "src": {"lang": "source", **side}, "trg": {"lang": "target", **side},
            "special_symbols": {"unk_token": "<unk>", "unk_id": 0, "pad_token": "<pad>", "pad_id": 1,
                                "bos_token": "<s>", "bos_id": 2, "eos_token": "</s>", "eos_id": 3},
        },
        "testing": {"n_best": 1, "beam_size": task.beam_size, "beam_alpha": 1.0, "batch_size": 2048,
                    "batch_type": "token", "max_output_length": 60, "eval_metrics": ["bleu"],
                    "sacrebleu_cfg": {"tokenize": "13a"}},
        "training": {"optimizer": "adam", "learning_rate": task.lr,
                     # A constant rate: its "decaying" is tenfold an epoch, whatever the step size that is set (2.3.0).
                     "scheduling": "exponential", "decrease_factor": 1.0, "patience": 1000,
                     "clip_grad_norm": 1.0, "batch_size": task.batch,
                     "batch_type": {"sents": "sentence", "tokens": "token"}[task.by], "epochs": 1000,
                     "updates": task.updates, "validation_freq": max(1, task.updates // 10) * 10,
                     "logging_freq": max(1, task.updates // 10),
                     "early_stopping_metric": "loss", "overwrite": True, "shuffle": True, "print_valid_sents": [],
                     "normalization": "tokens", "keep_best_ckpts": 1},
        "model": {
            "initializer": "xavier_uniform", "bias_initializer": "zeros", "init_rnn_orthogonal": True,
            # With its default of 0.01 it had not learnt to translate after 1,500 updates; 0.1 is a guess at the cause.
            "embed_initializer": "normal", "embed_init_weight": 0.1,
            "encoder": {"type": "recurrent", "rnn_type": "gru", "num_layers": 1, "bidirectional": True,
                        "dropout": DROPOUT, "hidden_size": task.hidden,
                        "embeddings": {"embedding_dim": task.embedding}},
            "decoder": {"type": "recurrent", "rnn_type": "gru", "num_layers": 1, "attention": "bahdanau",
                        "dropout": DROPOUT, "hidden_dropout": DROPOUT, "init_hidden": "bridge", "input_feeding": False,
                        "hidden_size": task.hidden, "embeddings": {"embedding_dim": task.embedding}},
        },
    }  # fmt: skip


def joeynmt_training(task: Task, python: Path, config: dict[str, Any]) -> list[str]:
    """Writes what joeynmt reads and gives the command that trains it."""
    for split in ("train", "dev"):
        for side in ("source", "target"):
            # It appends the names of the languages to the split's.
            link = task.folder / f"joey.{split}.{side}"
            link.unlink(missing_ok=True)
            link.symlink_to((task.folder / f"{split}.{side}").resolve())
    path = task.folder / "joeynmt.yaml"
    path.write_text(yaml.safe_dump(config))
    return [str(python), "-m", "joeynmt", "train", str(path), "--skip-test"]


def opennmt_config(task: Task) -> dict[str, Any]:
    """OpenNMT-py's configuration (3.0.4)."""
    folder = task.folder
    return {
        "save_data": str(folder / "opennmt"), "save_model": str(folder / "opennmt" / "model"), "overwrite": True,
        "src_vocab": str(folder / "pieces.onmt.txt"), "tgt_vocab": str(folder / "pieces.onmt.txt"),
        "share_vocab": True,
        "data": {"corpus": {"path_src": str(folder / "train.source"), "path_tgt": str(folder / "train.target")}},
        "encoder_type": "brnn", "decoder_type": "rnn", "rnn_type": "GRU", "enc_layers": 1, "dec_layers": 1,
        "enc_hid_size": task.hidden, "dec_hid_size": task.hidden, "hidden_size": task.hidden,
        "word_vec_size": task.embedding, "global_attention": "mlp", "input_feed": 0, "bridge": True,
        "dropout": [DROPOUT], "optim": "adam", "learning_rate": task.lr, "max_grad_norm": 1.0,
        "batch_size": task.batch, "batch_type": task.by, "normalization": "tokens", "bucket_size": 29_000,
        "num_workers": 0, "train_steps": task.updates, "save_checkpoint_steps": task.updates,
        "valid_steps": 10**6, "report_every": 100, "world_size": 1, "gpu_ranks": [], "seed": 1,
    }  # fmt: skip


def opennmt_training(task: Task, python: Path, config: dict[str, Any]) -> list[str]:
    """Writes what OpenNMT-py reads and gives the command that trains it."""
    (task.folder / "opennmt").mkdir(exist_ok=True)
    path = task.folder / "opennmt.yaml"
    path.write_text(yaml.safe_dump(config))
    return [str(python.with_name("onmt_train")), "-config", str(path)]
