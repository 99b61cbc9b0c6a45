"""The soft-beam study: the same cross-entropy model, the same wall time, one objective an arm. Every seed has a
cross-entropy model of its own, trained in two phases, the second with locked dropout, which all its arms begin with
(with --convergence 0 there is no second phase). What these models and the arms are stands in soft_beam_study.yaml.

    python recipes/soft_beam_study.py start DIR ...    the cross-entropy models, --jobs at a time
    python recipes/soft_beam_study.py plan DIR ...     seconds an update of each arm -> updates that fill --minutes
    python recipes/soft_beam_study.py train DIR ...    every run that is not finished, --jobs at a time
    python recipes/soft_beam_study.py test DIR ...     translations of the test set and their scores, once a run
    python recipes/soft_beam_study.py table DIR ...    mean and deviation over the seeds, p against `continued`

Called by recipes/soft_beam_study.sh. What it finds out stands in DIR: plan.json, results.jsonl, and one folder a run.
"""

import argparse
import json
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

CONFIGS = Path(__file__).parent / "configs"
SETTINGS = Path(__file__).with_suffix(".yaml")
BEAMS = (1, 5, 10)
START = "cross_entropy"
CONVERGED = "converged"
CONTROL = "continued"
# Of a fine-tuning run, whatever its speed: the best of more is better by chance.
VALIDATIONS = 4
# Updates of the second phase of cross-entropy, on a corpus of which nothing else is said.
UPDATES = 1400
# What that phase changes in fine-tuning's configuration. An arm must not gain what cross-entropy had still to gain.
CONVERGENCE = {"objective": "cross_entropy", "model.locked": True}


@dataclass(frozen=True)
class Run:
    """One run of one arm.

    Attributes:
        corpus, arm, seed: which.
        folder: where it lies.
        flags: what the arm changes in the configuration.
    """

    corpus: str
    arm: str
    seed: int
    folder: Path
    flags: dict[str, Any]

    @property
    def words(self) -> list[str]:
        return as_words(self.flags)


@dataclass(frozen=True)
class Start:
    """The model that the arms on a corpus begin with.

    Attributes:
        flags: what its first phase changes in the configuration.
        dropout: of every training that says nothing of it; None for that of the configurations.
        convergence: updates of its second phase; 0 for none.
    """

    flags: dict[str, Any]
    dropout: float | None = None
    convergence: int = UPDATES


def as_words(flags: dict[str, Any]) -> list[str]:
    return [word for key, value in flags.items() for word in (f"--{key}", str(value))]


def start_on(chosen: argparse.Namespace, corpus: str) -> Start:
    """That of the settings, but for what the command says."""
    known = yaml.safe_load(SETTINGS.read_text())["starts"].get(corpus, {})
    said = {"dropout": chosen.dropout, "convergence": chosen.convergence}
    return Start(**{"flags": {}} | known | {key: value for key, value in said.items() if value is not None})


def home(chosen: argparse.Namespace, corpus: str) -> Path:
    """Where the runs on a corpus lie; it may be the path of a card."""
    return chosen.directory / Path(corpus).stem


def starts(chosen: argparse.Namespace) -> Iterator[Run]:
    """The two phases of what the arms begin with, for each seed and corpus."""
    for seed in chosen.seeds:
        for corpus in chosen.corpora:
            for name, flags in ((START, {}), (CONVERGED, CONVERGENCE)):
                if name == START or start_on(chosen, corpus).convergence:
                    yield Run(corpus, name, seed, home(chosen, corpus) / f"{name}.{seed}", flags)


def runs(chosen: argparse.Namespace) -> Iterator[Run]:
    """All runs of the study, the control of a seed first."""
    arms = yaml.safe_load(SETTINGS.read_text())["arms"]
    for seed in chosen.seeds:
        for corpus in chosen.corpora:
            for arm, settings in arms.items():
                flags = dict(settings)
                only, seeds = flags.pop("only", corpus), flags.pop("seeds", seed)
                if only == corpus and seed <= seeds and (not chosen.arms or arm in chosen.arms):
                    yield Run(corpus, arm, seed, home(chosen, corpus) / f"{arm}.{seed}", flags)


def fine_tuning(run: Run, chosen: argparse.Namespace, folder: Path, updates: int) -> list[str]:
    """The command of a run of so many updates."""
    start = start_on(chosen, run.corpus)
    begin = START if run.arm == CONVERGED or not start.convergence else CONVERGED
    return [
        *("nmt", "train", "--config", str(CONFIGS / "study_fine_tuning.yaml"), "--run", str(folder)),
        *("--from", str(home(chosen, run.corpus) / f"{begin}.{run.seed}"), "--data.corpus", run.corpus),
        *("--seed", str(run.seed), "--trainer.max_steps", str(updates), "--trainer.threads", str(chosen.threads)),
        *("--trainer.validate_every", str(max(1, updates // VALIDATIONS))),
        # An arm that says its own overrides it.
        *dropout(start),
        *run.words,
        *shlex.split(chosen.flags),
    ]


def dropout(start: Start) -> list[str]:
    return [] if start.dropout is None else ["--model.dropout", str(start.dropout)]


def plan(chosen: argparse.Namespace) -> None:
    """Measures the seconds of an update of each arm, one run at a time, and keeps the updates that fill the minutes."""
    path = chosen.directory / "plan.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    first = {(run.corpus, run.arm): run for run in runs(chosen) if run.seed == chosen.seeds[0]}
    for (corpus, arm), run in first.items():
        if arm in found.get(corpus, {}):
            continue
        folder = chosen.directory / "plan" / f"{Path(corpus).stem}.{arm}"
        shutil.rmtree(folder, ignore_errors=True)
        # Two lines of the journal: what comes before the first is start-up.
        words = fine_tuning(run, chosen, folder, 40)
        words += shlex.split("--trainer.validate_every 1000 --trainer.log_every 10 --data.dev_lines 10")
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        reports = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        speeds = [report["target_tokens_per_second"] for report in reports if "target_tokens_per_second" in report]
        tokens = _tokens_an_update(run, chosen)
        seconds = tokens / statistics.median(speeds[1:])
        # So that the last update is validated, too.
        updates = VALIDATIONS * max(1, round(60 * chosen.minutes / seconds / VALIDATIONS))
        found.setdefault(corpus, {})[arm] = {"seconds_an_update": seconds, "updates": updates}
        path.write_text(json.dumps(found, indent=2))
        print(f"{corpus} {arm}: {seconds:.2f} s an update, {updates} updates in {chosen.minutes:g} minutes", flush=True)


def _tokens_an_update(run: Run, chosen: argparse.Namespace) -> float:
    """Target tokens of a batch, EOS counted, on average."""
    from nmt.checkpoint import load_checkpoint
    from nmt.config_file import read_config
    from nmt.runs.data_module import TranslationData

    start = load_checkpoint(home(chosen, run.corpus) / f"{START}.{run.seed}")
    config = read_config(CONFIGS / "study_fine_tuning.yaml", {"data.corpus": run.corpus, **run.flags})
    data = TranslationData(config.data, run.seed, (start.source_vocabulary, start.target_vocabulary))
    lengths = data.stream.corpus.target_lengths[data.stream.rows]
    return float((lengths + 1).sum()) / data.stream.batches_in_epoch(0)


def start(chosen: argparse.Namespace) -> None:
    """Trains the cross-entropy models that are not finished."""

    def command(run: Run) -> list[str]:
        begin = start_on(chosen, run.corpus)
        if run.arm == CONVERGED:
            return fine_tuning(run, chosen, run.folder, begin.convergence)
        return [
            *("nmt", "train", "--config", str(CONFIGS / "study_cross_entropy.yaml"), "--run", str(run.folder)),
            *("--data.corpus", run.corpus, "--seed", str(run.seed), "--trainer.threads", str(chosen.threads)),
            *dropout(begin),
            *as_words(begin.flags),
            *shlex.split(chosen.start_flags),
            *shlex.split(chosen.flags),
        ]

    for phase in (START, CONVERGED):
        finish([run for run in starts(chosen) if run.arm == phase], command, chosen.jobs)


def train(chosen: argparse.Namespace) -> None:
    """Trains the arms that are not finished."""
    planned = json.loads((chosen.directory / "plan.json").read_text())

    def command(run: Run) -> list[str]:
        return fine_tuning(run, chosen, run.folder, planned[run.corpus][run.arm]["updates"])

    finish(list(runs(chosen)), command, chosen.jobs)


def finish(wanted: list[Run], command: Callable[[Run], list[str]], jobs: int) -> None:
    """Trains what is not finished; a run that broke off goes on where it was."""

    def one(run: Run) -> None:
        done = run.folder / "done.json"
        if done.exists():
            return
        words = command(run)
        if (run.folder / "last.ckpt").exists():
            words = ["nmt", "train", "--resume", str(run.folder)]
        else:
            shutil.rmtree(run.folder, ignore_errors=True)
        run.folder.parent.mkdir(parents=True, exist_ok=True)
        print(f"{run.corpus} {run.arm} seed {run.seed}: training, see {run.folder}.log", flush=True)
        began = time.perf_counter()
        with open(f"{run.folder}.log", "a", encoding="utf-8") as log:
            subprocess.run(words, check=True, stdout=log, stderr=log)
        done.write_text(json.dumps({"seconds": time.perf_counter() - began, "resumed": "--resume" in words}))
        print(f"{run.corpus} {run.arm} seed {run.seed}: {_best(run):.2f} dev BLEU", flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, wanted))


def _best(run: Run) -> float:
    return json.loads((run.folder / "manifest.json").read_text())["best"]["bleu"]


def test(chosen: argparse.Namespace) -> None:
    """Translates the test set by each finished run, once."""
    import torch

    import nmt
    from nmt.corpus import load_card
    from nmt.evaluation import evaluate
    from nmt.lines import write_lines

    torch.set_num_threads(chosen.threads * chosen.jobs)
    results = chosen.directory / "results.jsonl"
    seen = {(r["corpus"], r["arm"], r["seed"]) for r in read_results(results)}
    for run in [*starts(chosen), *runs(chosen)]:
        if not (run.folder / "done.json").exists() or (run.corpus, run.arm, run.seed) in seen:
            continue
        pairs = load_card(run.corpus).read("test")
        translator = nmt.load(run.folder)
        record: dict[str, Any] = {"corpus": run.corpus, "arm": run.arm, "seed": run.seed, "dev_bleu": _best(run)}
        record |= {"flags": run.flags, **json.loads((run.folder / "done.json").read_text())}
        record["updates"] = json.loads((run.folder / "manifest.json").read_text())["updates"]
        for beam in BEAMS:
            lines = translator.translate(pairs.source, beam_size=beam)
            write_lines(run.folder / f"test.beam{beam}.txt", lines)
            scores = evaluate(lines, [pairs.target])
            record |= {f"bleu_{beam}": scores[0].value, f"chrf_{beam}": scores[1].value}
            record["signature"] = scores[0].signature
        with results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        print(f"{run.corpus} {run.arm} seed {run.seed}: BLEU {record['bleu_5']:.2f}", flush=True)


def read_results(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def p_values(chosen: argparse.Namespace, corpus: str, arm: str, baseline: str, seeds: list[int]) -> float:
    """Paired bootstrap resampling (Koehn, EMNLP 2004) of the difference of mean BLEU, beam 5: the same resampled lines
    for all seeds of both, sacreBLEU's statistics, and its p: the share of centred differences at least as large."""
    from sacrebleu.metrics.bleu import BLEU

    from nmt.corpus import load_card
    from nmt.lines import read_lines

    metric = BLEU()
    reference = load_card(corpus).read("test").target

    def statistics_of(name: str) -> list[np.ndarray]:
        folders = [home(chosen, corpus) / f"{name}.{seed}" for seed in seeds]
        lines = [read_lines(folder / "test.beam5.txt") for folder in folders]
        return [np.array(metric._extract_corpus_statistics(part, [reference])) for part in lines]

    def mean_bleu(parts: list[np.ndarray], rows: np.ndarray) -> float:
        return statistics.fmean(
            metric._compute_score_from_stats(part[rows].sum(axis=0).tolist()).score for part in parts
        )

    ours, theirs = statistics_of(arm), statistics_of(baseline)
    every = np.arange(len(reference))
    observed = abs(mean_bleu(ours, every) - mean_bleu(theirs, every))
    generator = np.random.default_rng(12345)
    samples = [generator.integers(len(reference), size=len(reference)) for _ in range(chosen.samples)]
    differences = np.array([mean_bleu(ours, rows) - mean_bleu(theirs, rows) for rows in samples])
    centred = np.abs(differences - differences.mean())
    return float((np.sum(centred >= observed) + 1) / (len(samples) + 1))


def table(chosen: argparse.Namespace) -> None:
    """Prints the table of the README."""
    results = read_results(chosen.directory / "results.jsonl")
    for corpus in chosen.corpora:
        mine = [r for r in results if r["corpus"] == corpus]
        if not mine:
            continue
        print(f"\n{corpus}: {mine[0]['signature']}\n")
        print("| arm | seeds | updates | seconds | dev beam 5 | greedy | beam 5 | beam 10 | p against continued |")
        print("|---|---|---|---|---|---|---|---|---|")
        for arm in dict.fromkeys(r["arm"] for r in mine):
            rows = [r for r in mine if r["arm"] == arm]
            cells = [arm, str(len(rows))]
            for key in ("updates", "seconds"):
                cells.append("/".join(dict.fromkeys(f"{r[key]:.0f}" for r in rows)))
            for key in ("dev_bleu", "bleu_1", "bleu_5", "bleu_10"):
                values = [r[key] for r in rows]
                spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
                cells.append(f"{statistics.fmean(values):.2f}{spread}")
            control = {r["seed"] for r in mine if r["arm"] == CONTROL}
            seeds = sorted({r["seed"] for r in rows} & control)
            tested = arm not in (CONTROL, START, CONVERGED) and seeds
            cells.append(f"{p_values(chosen, corpus, arm, CONTROL, seeds):.3f}" if tested else "")
            print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = {"start": start, "plan": plan, "train": train, "test": test, "table": table}
    parser.add_argument("verb", choices=verbs)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--corpora", nargs="+", default=["multi30k_en-fr", "multi30k_en-de"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--arms", nargs="*", default=[], help="these alone")
    parser.add_argument("--minutes", type=float, default=15.0, help="wall time of a run, validations not counted")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--threads", type=int, default=1, help="threads of a run")
    parser.add_argument("--convergence", type=int, default=None, help="updates of the second phase; 0: there is none")
    parser.add_argument("--dropout", type=float, default=None, help="of every training that says nothing of it")
    parser.add_argument("--start-flags", default="", help="more flags for the first phase, such as sizes, in one word")
    parser.add_argument("--flags", default="", help="more flags for every training, in one word")
    parser.add_argument("--samples", type=int, default=1000, help="of the bootstrap")
    chosen = parser.parse_args()
    try:
        verbs[chosen.verb](chosen)
    except subprocess.CalledProcessError as error:
        sys.exit(f"a run failed ({error.returncode}): {' '.join(error.cmd)}")


if __name__ == "__main__":
    main()
