"""Several processes train what one would: from start to end, after changes of their number, after signals and losses.

Most of them are forked, since to import everything anew would take most of the time; the launcher and torchrun start
theirs as a user's would.
"""

import itertools
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from nmt.config_file import read_config
from nmt.manifest import read_manifest
from nmt.objectives import CrossEntropy
from nmt.runs.journal import read_journal
from nmt.runs.run import RunFolder
from nmt.runs.state import read_state
from nmt.runs.world import PARENT
from tests import ROOT
from tests.processes import Process, free_port, srun_variables, start, torchrun_variables, train_words, wait_for_update
from tests.unit.runs import make_config, train_quietly

pytestmark = pytest.mark.system


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


def run_processes(size, config, folder, *flags, codes=None):
    processes = start([*train_words(config, folder), *flags], size, folder, torchrun_variables(size))
    found = [process.wait() for process in processes]
    told = "\n".join(f"-- {code}\n{process.text}" for code, process in zip(found, processes, strict=True))
    assert found == (codes or [0] * size), told
    assert not any(process.text for process in processes[1:]), told
    return processes[0].text


def assert_same_run(first, second, tolerance=0.0):
    """Weights, optimiser, schedule, place in the stream, early stopping, and every dev score."""
    one, two = (read_state(folder / "last.ckpt") for folder in (first, second))
    vectors = [
        {
            "weights": torch.cat([weight.flatten() for weight in state["state_dict"].values()]),
            **{
                name: torch.cat([moments[name].flatten() for moments in state["optimizer_states"][0]["state"].values()])
                for name in ("exp_avg", "exp_avg_sq", "step")
            },
        }
        for state in (one, two)
    ]
    for name, wanted in vectors[0].items():
        # To the size of the whole: Adam divides gradients that are all but 0 by themselves.
        apart = float((vectors[1][name] - wanted).norm() / wanted.norm())
        assert apart <= tolerance, f"{name}: {apart}"
    for name in ("global_step", "lr_schedulers", "run", "TranslationData"):
        assert one[name] == two[name], name
    stoppers = [next(v for k, v in state["callbacks"].items() if "Stopper" in k) for state in (one, two)]
    assert stoppers[0]["waited"] == stoppers[1]["waited"]
    assert stoppers[0]["best"] == pytest.approx(stoppers[1]["best"], rel=1e-6)
    scores = [
        {r["step"]: (r["dev/bleu"], r["dev/nll"]) for r in read_journal(folder / "metrics.jsonl") if "dev/bleu" in r}
        for folder in (first, second)
    ]
    assert set(scores[0]) == set(scores[1]), scores
    for step, values in scores[0].items():
        assert values == pytest.approx(scores[1][step], rel=1e-6)


def test_two_processes_then_one_are_one(small_corpus, tmp_path, monkeypatch):
    """Cross-entropy, the plateau's schedule and its patience; the stop is amid an epoch. On this processor exact: the
    sum of two has one order."""
    options = {
        "model.dropout": 0.3,
        "trainer.validate_every": 3,
        "optimizer.schedule": "plateau",
        "optimizer.plateau_patience": 0,
        "optimizer.warmup": 2,
    }
    whole = make_config(tmp_path / "whole", small_corpus, {**options, "trainer.accumulate": 2, "trainer.max_steps": 9})
    train_quietly(whole)
    half = make_config(tmp_path / "half", small_corpus, {**options, "trainer.max_steps": 6})
    # An empty cache: one process trains the vocabulary, the other finds it.
    half.data.cache = str(tmp_path / "cache")
    replace = os.replace

    def noted(temporary, final):
        if "RANK" in os.environ:
            with open(tmp_path / "writers", "a") as stream:
                stream.write(f"{os.environ['RANK']} {Path(final).name}\n")
        replace(temporary, final)

    monkeypatch.setattr("os.replace", noted)
    told = run_processes(2, half, tmp_path / "words")
    written = (tmp_path / "writers").read_text().splitlines()
    assert {line.split()[0] for line in written} == {"0"}
    assert {"0 last.ckpt", "0 model.safetensors", "0 manifest.json", "0 config.yaml"} <= set(written)
    assert "training a bpe vocabulary" in told and "2 processes, 2 batches an update" in told
    assert read_state(tmp_path / "half" / "last.ckpt")["TranslationData"] == {"trained_batches": 12}
    assert read_manifest(tmp_path / "half" / "manifest.json")["processes"] == 2
    half.trainer.max_steps = 9
    train_quietly(half, resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "half")
    # The log, too: speed aside, of each update the gradient's norm, and the padding and tokens of all processes.
    norms, padding = (
        [[r[name] for r in read_journal(tmp_path / run / "metrics.jsonl") if name in r] for run in ("whole", "half")]
        for name in ("gradient_norm", "padding")
    )
    assert norms[0] == norms[1] and padding[0] == padding[1] and len(norms[0]) == 9


def test_two_processes_with_compiled_regions_are_one(small_corpus, tmp_path, traced):
    options = {"model.dropout": 0.3, "trainer.compile": True, "trainer.max_steps": 4, "trainer.validate_every": 2}
    both = make_config(tmp_path / "both", small_corpus, options)
    told = run_processes(2, both, tmp_path / "words")
    assert "trainer.compile: " in told
    whole = make_config(tmp_path / "whole", small_corpus, {**options, "trainer.accumulate": 2})
    train_quietly(whole)
    assert_same_run(tmp_path / "whole", tmp_path / "both")


def test_a_loss_that_is_no_number_is_skipped_by_all(small_corpus, tmp_path, monkeypatch):
    """Whichever process has the batch, the update is that of one process: none."""
    original = CrossEntropy.__call__

    def call(self, model, batch, update):
        loss = original(self, model, batch, update)
        return loss._replace(value=loss.value * math.nan) if 7 in batch.indices else loss

    monkeypatch.setattr(CrossEntropy, "__call__", call)
    whole = make_config(tmp_path / "whole", small_corpus, {"trainer.accumulate": 2})
    train_quietly(whole)
    config = make_config(tmp_path / "both", small_corpus)
    told = run_processes(2, config, tmp_path / "words")
    assert_same_run(tmp_path / "whole", tmp_path / "both")
    skips = [
        [report for report in read_journal(tmp_path / run / "metrics.jsonl") if "skipped" in report]
        for run in ("whole", "both")
    ]
    assert skips[0] == skips[1] and skips[0] and told.count("skipped, its loss or gradient") == len(skips[0])
    # With one bad update in a row too many, all end, and one says why.
    config = make_config(tmp_path / "short", small_corpus, {"trainer.bad_steps": 1})
    told = run_processes(2, config, tmp_path / "words", codes=[2, 2])
    assert told.splitlines()[-1].startswith("nmt: update 1: loss or gradient of 1 updates in a row")
    assert "Traceback" not in told


def test_four_processes_then_two_are_one(small_corpus, tmp_path, monkeypatch):
    """Through the soft beam, its temperature falling, its sentences weighed alike."""
    options = {
        "objective": "soft_beam",
        "model.dropout": 0.3,
        "soft_beam.temperature.schedule": "linear",
        "soft_beam.temperature.updates": 4,
        "trainer.validate_every": 2,
    }
    whole = make_config(tmp_path / "whole", small_corpus, {**options, "trainer.accumulate": 4})
    train_quietly(whole)
    half = make_config(tmp_path / "half", small_corpus, {**options, "trainer.max_steps": 2})
    run_processes(4, half, tmp_path / "words")
    # A slow process still reads what the run was when the first has decided what it will be.
    original = RunFolder.same_updates
    monkeypatch.setattr(
        RunFolder,
        "same_updates",
        lambda *given: time.sleep(float(os.environ.get("RANK", "0"))) or original(*given),
    )
    rest = start(
        ["train", "--resume", half.run, "--trainer.max_steps", "4"], 2, tmp_path / "rest", torchrun_variables(2)
    )
    assert [process.wait() for process in rest] == [0, 0], rest[0].text + rest[1].text
    assert "trainer.accumulate is now 2: an update keeps its 4 batches" in rest[0].text
    assert_same_run(tmp_path / "whole", tmp_path / "half", 1e-6)


def test_a_signal_saves_and_a_loss_ends_all(small_corpus, tmp_path):
    options = {"trainer.max_steps": 100_000, "trainer.validate_every": 50_000, "trainer.patience": 0}
    config = make_config(tmp_path / "run", small_corpus, options)
    run = Path(config.run)
    processes = start(train_words(config, tmp_path / "words"), 2, tmp_path / "a", torchrun_variables(2))
    wait_for_update(run, 3, processes)
    # Whichever process is asked.
    processes[1].send(signal.SIGTERM)
    assert [process.wait() for process in processes] == [75, 75], processes[0].text + processes[1].text
    last = read_state(run / "last.ckpt")["global_step"]
    assert processes[0].text.endswith(f"nmt: preempted at update {last}; go on by nmt train --resume {run}\n")
    assert processes[1].text == "" and last >= 3

    shutil.copytree(run, tmp_path / "lost")
    resume = ["train", "--resume", str(tmp_path / "lost")]
    processes = start(resume, 2, tmp_path / "b", srun_variables(2))
    wait_for_update(tmp_path / "lost", last + 2, processes)
    processes[1].send(signal.SIGKILL)
    assert [process.wait() for process in processes] == [1, -9], processes[0].text
    assert "nmt: process 0 of 2 lost the others (" in processes[0].text.splitlines()[-1]
    assert "Traceback" not in processes[0].text
    assert read_state(tmp_path / "lost" / "last.ckpt")["global_step"] == last

    # What both left is the run that nobody disturbed.
    whole = make_config(tmp_path / "whole", small_corpus, {**options, "trainer.max_steps": last + 2})
    whole.trainer.accumulate = 2
    train_quietly(whole)
    for folder in (run, tmp_path / "lost"):
        config.run, config.trainer.max_steps = str(folder), last + 2
        train_quietly(config, resume=True)
        assert_same_run(tmp_path / "whole", folder)


def test_processes_whose_launcher_is_gone_save_and_end(small_corpus, tmp_path):
    """Before the first update, too: what is saved then is a run that begins."""
    config = make_config(tmp_path / "run", small_corpus)
    variables = torchrun_variables(2)
    orphans = start(
        train_words(config, tmp_path / "words"), 2, tmp_path / "logs", lambda rank: {**variables(rank), PARENT: "1"}
    )
    assert [process.wait() for process in orphans] == [75, 75], orphans[0].text
    assert read_state(tmp_path / "run" / "last.ckpt")["global_step"] == 0
    train_quietly(config, resume=True)
    whole = make_config(tmp_path / "whole", small_corpus, {"trainer.accumulate": 2})
    train_quietly(whole)
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_the_time_is_over_for_all_at_once(small_corpus, tmp_path, monkeypatch):
    """The clock of the second process is ten times as fast: ten seconds before the first update, and ten for each."""
    clock = itertools.count()
    monkeypatch.setattr(
        "nmt.runs.stopper.time.monotonic", lambda: next(clock) * (10 if os.environ.get("RANK") == "1" else 1)
    )
    options = {"trainer.max_minutes": 1.0, "trainer.max_steps": 100, "trainer.validate_every": 100}
    config = make_config(tmp_path / "run", small_corpus, options)
    told = run_processes(2, config, tmp_path / "words")
    assert "1 minutes are over" in told
    assert read_state(tmp_path / "run" / "last.ckpt")["global_step"] == 5


def test_one_interrupted_process_ends_all(small_corpus, tmp_path):
    options = {"trainer.max_steps": 100_000, "trainer.validate_every": 50_000}
    config = make_config(tmp_path / "run", small_corpus, options)
    processes = start(train_words(config, tmp_path / "words"), 2, tmp_path / "logs", torchrun_variables(2))
    wait_for_update(tmp_path / "run", 2, processes)
    processes[1].send(signal.SIGINT)
    assert [process.wait() for process in processes] == [1, 130], processes[0].text
    assert processes[1].text.endswith("nmt: interrupted\n")
    assert "lost the others" in processes[0].text and "Traceback" not in processes[0].text + processes[1].text


def test_one_process_saves_on_sigterm_too(small_corpus, tmp_path):
    """With accumulation: what is saved is a whole update."""
    options = {"trainer.max_steps": 100_000, "trainer.validate_every": 50_000, "trainer.accumulate": 3}
    config = make_config(tmp_path / "run", small_corpus, options)
    process = Process(train_words(config, tmp_path), {}, tmp_path / "log")
    wait_for_update(tmp_path / "run", 2, [process])
    process.send(signal.SIGTERM)
    assert process.wait() == 75, process.text
    state = read_state(tmp_path / "run" / "last.ckpt")
    assert state["TranslationData"]["trained_batches"] == 3 * state["global_step"]
    config.trainer.max_steps = whole_steps = state["global_step"] + 2
    train_quietly(config, resume=True)
    whole = make_config(tmp_path / "whole", small_corpus, {**options, "trainer.max_steps": whole_steps})
    train_quietly(whole)
    assert_same_run(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize("least", [150, 0])
def test_batches_fit_into_the_process_with_the_least_memory(small_corpus, tmp_path, monkeypatch, least):
    """The second process has less than the first, or too little for anything."""
    original = CrossEntropy.__call__

    def call(self, model, batch, update):
        if batch.source.numel() > {"0": 300, "1": least}[os.environ["RANK"]]:
            raise torch.OutOfMemoryError
        return original(self, model, batch, update)

    monkeypatch.setattr(CrossEntropy, "__call__", call)
    config = make_config(tmp_path / "run", small_corpus, {"data.batch_tokens": 0, "trainer.devices": 1})
    if not least:
        told = run_processes(2, config, tmp_path / "words", codes=[2, 2])
        assert told.splitlines()[-1].startswith("nmt: memory is full: batches of ") and "Traceback" not in told
        return
    told = run_processes(2, config, tmp_path / "words")
    assert "data.batch_tokens is 128: " in told and "256 takes" in told
    assert read_config(tmp_path / "run" / "config.yaml").data.batch_tokens == 128
    assert read_manifest(tmp_path / "run" / "manifest.json")["config"]["data"]["batch_tokens"] == 128


def test_mistakes_are_told_once(small_corpus, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last.ckpt").write_text("old")
    config = make_config(tmp_path / "run", small_corpus)
    told = run_processes(2, config, tmp_path / "words", codes=[2, 2])
    assert told.endswith("give another --run\n")


def test_the_launcher_starts_passes_on_and_ends(small_corpus, tmp_path):
    options = {"trainer.devices": 2, "trainer.max_steps": 100_000, "trainer.validate_every": 50_000}
    config = make_config(tmp_path / "run", small_corpus, options)
    process = Process(train_words(config, tmp_path), {}, tmp_path / "log")
    wait_for_update(tmp_path / "run", 2, [process])
    process.send(signal.SIGTERM)
    assert process.wait() == 75, process.text
    assert "2 processes, 2 batches an update" in process.text and process.text.count("nmt: preempted") == 1
    assert read_state(tmp_path / "run" / "last.ckpt")["global_step"] >= 2


def test_under_the_launcher_a_killed_process_ends_all_and_the_run_goes_on(small_corpus, tmp_path):
    options = {"trainer.max_steps": 100_000, "trainer.validate_every": 10, "trainer.patience": 0}
    config = make_config(tmp_path / "run", small_corpus, {**options, "trainer.devices": 2})
    process = Process(train_words(config, tmp_path), {}, tmp_path / "log")
    wait_for_update(tmp_path / "run", 15, [process])
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    victim = next(
        int(child)
        for child in children
        if b"RANK=1\0" in Path(f"/proc/{child}/environ").read_bytes().replace(b"LOCAL_RANK", b"")
    )
    os.kill(victim, signal.SIGKILL)
    assert process.wait() == 1, process.text
    assert "nmt: process 1 of 2 was killed (SIGKILL; " in process.text.splitlines()[-1], process.text
    assert "Traceback" not in process.text and not Path(f"/proc/{children[0]}/environ").exists()
    last = read_state(tmp_path / "run" / "last.ckpt")["global_step"]
    assert last >= 10
    config.trainer.devices, config.trainer.max_steps = 1, last + 2
    train_quietly(config, resume=True)
    whole = make_config(tmp_path / "whole", small_corpus, {**options, "trainer.max_steps": last + 2})
    whole.trainer.accumulate = 2
    train_quietly(whole)
    assert_same_run(tmp_path / "whole", tmp_path / "run")


@pytest.fixture
def hosts():
    """How a command runs on each of two hosts, and the variables and the address of the first: network namespaces
    where they can be made, otherwise two addresses of this host."""
    tag = f"nmt{os.getpid() % 100_000}"
    made = [
        f"ip netns add {tag}a",
        f"ip netns add {tag}b",
        f"ip link add {tag}v netns {tag}a type veth peer name {tag}v netns {tag}b",
    ]
    for side, number in (("a", 1), ("b", 2)):
        made += [
            f"ip -n {tag}{side} addr add 10.77.0.{number}/24 dev {tag}v",
            f"ip -n {tag}{side} link set {tag}v up",
            f"ip -n {tag}{side} link set lo up",
        ]
    try:
        for command in made:
            subprocess.run(command.split(), check=True, capture_output=True)
        yield [["ip", "netns", "exec", f"{tag}{side}"] for side in "ab"], {"GLOO_SOCKET_IFNAME": f"{tag}v"}, "10.77.0.1"
    except (OSError, subprocess.CalledProcessError):
        yield [[], []], {"GLOO_SOCKET_IFNAME": "lo"}, "127.0.0.2"
    finally:
        for side in "ab":
            if shutil.which("ip"):
                subprocess.run(["ip", "netns", "del", f"{tag}{side}"], capture_output=True)


def test_two_hosts_are_one(small_corpus, tmp_path, hosts):
    prefixes, variables, address = hosts
    # Pieces drawn anew each time: interpreters that share nothing must draw the same.
    options = {
        "model.dropout": 0.3,
        "data.vocabulary.sampling": 0.2,
        "trainer.max_steps": 4,
        "trainer.validate_every": 2,
    }
    whole = make_config(tmp_path / "whole", small_corpus, {**options, "trainer.accumulate": 2})
    train_quietly(whole)
    words = train_words(make_config(tmp_path / "run", small_corpus, options), tmp_path)
    environment = {**os.environ, **variables, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1"]
    torchrun += [f"--master_addr={address}", f"--master_port={free_port()}"]
    running = [
        subprocess.Popen(
            [*prefix, *torchrun, f"--node_rank={number}", "-m", "nmt", *words],
            env=environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number, prefix in enumerate(prefixes)
    ]
    told = [process.communicate(timeout=200)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], "\n".join(told)
    assert "2 processes, 2 batches an update" in told[0]
    assert_same_run(tmp_path / "whole", tmp_path / "run")
