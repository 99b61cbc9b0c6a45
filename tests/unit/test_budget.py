"""The budget that memory allows: found in steps, without a trace in the run, and kept for all that go on with it."""

import logging
import mmap
import os
import resource

import numpy as np
import pytest
import torch

from nmt.config_file import read_config
from nmt.errors import UserError
from nmt.manifest import read_manifest
from nmt.objectives import CrossEntropy
from nmt.runs import budget
from nmt.runs.budget import Probe, Trial, best_of, budgets, find_budget, settle_budget
from nmt.runs.data_module import TranslationData
from nmt.runs.headroom import free_memory, peak_memory, reset_peak
from nmt.runs.module import TranslationModule
from nmt.runs.training import build_checkpoint
from nmt.runs.world import World
from tests.unit.runs import make_config, train_quietly
from tests.unit.test_resume import assert_equal, state_after

CPU = torch.device("cpu")


def test_budgets_grow_by_a_third_or_a_half():
    assert list(budgets(100, 1100)) == [128, 192, 256, 384, 512, 768, 1024]
    assert list(budgets(97, 96)) == []
    for longest in range(2, 300):
        assert next(budgets(longest, 2 * longest)) >= longest


@pytest.mark.parametrize("cautious", [False, True])
@pytest.mark.parametrize("limit", [0, 99, 100, 767, 768, 5000, 10**6])
def test_the_last_one_that_fits(limit, cautious):
    tried = []

    def peak_of(budget):
        tried.append(budget)
        if budget > limit and not cautious:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return budget

    trials = find_budget(peak_of, 60, 4096, limit, cautious)
    fitting = [b for b in budgets(60, 4096) if b <= limit]
    assert best_of(trials) == max(fitting, default=0)
    assert [trial.budget for trial in trials] == tried
    if cautious:  # nothing but the very first is tried that does not fit
        assert tried == (fitting or [64])
    else:
        assert tried == list(budgets(60, 4096))[: len(fitting) + 1]
    assert all(trial == Trial(trial.budget, trial.budget if trial.budget <= limit else None) for trial in trials)


def test_what_takes_more_than_the_limit_does_not_fit_though_nothing_fails():
    trials = find_budget(lambda b: 10 * b, 64, 4096, 1000, cautious=False)
    assert [t.peak for t in trials] == [640, 960, None]
    assert best_of(trials) == 96


def test_other_errors_are_not_lack_of_memory():
    def peak_of(budget):
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        find_budget(peak_of, 60, 4096, 10**6, cautious=False)


@pytest.fixture
def module(small_corpus, tmp_path):
    """A module that is made for a run whose budget is not known."""
    config = make_config(tmp_path / "run", small_corpus, {"data.batch_tokens": 0, "model.dropout": 0.3})
    data = TranslationData(config.data, config.seed)
    return TranslationModule(config, build_checkpoint(config, data), data)


@pytest.mark.parametrize("tokens", [30, 100, 333, 10**6])
def test_the_batches_that_are_tried_are_the_largest(module, tokens):
    stream = module.data.stream
    source, target = stream.corpus.source_lengths, stream.corpus.target_lengths
    lengths = np.sort(np.maximum(source, target)[stream.rows]) + 1
    long, short = stream.extreme_batches(tokens)
    for batch, ordered in ((long, lengths[::-1]), (short, lengths)):
        found = torch.maximum(batch.source_lengths, batch.target_lengths)
        assert sorted(found.tolist()) == sorted(ordered[: len(batch)].tolist())
        assert len(batch) * int(found.max()) <= tokens
        if len(batch) < len(ordered):
            more = ordered[: len(batch) + 1]
            assert len(more) * more.max() > tokens
    assert stream.longest == lengths[-1]


def test_a_probe_leaves_no_trace(module):
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    probe = Probe(module, CPU)
    torch.manual_seed(4)
    state = torch.get_rng_state()
    few = probe(64)
    assert few >= 2 * 4 * sum(parameter.numel() for parameter in module.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in module.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


def test_the_peak_of_a_process_is_seen():
    before = reset_peak(CPU)
    # Of its own: a tensor may get memory that this process has already.
    with mmap.mmap(-1, 40 * 2**20) as block:
        block[:: mmap.PAGESIZE] = bytes(len(block) // mmap.PAGESIZE)
    assert 38 * 2**20 < peak_memory(CPU) - before < 80 * 2**20
    assert reset_peak(CPU) - before < 20 * 2**20


def limited(monkeypatch, most):
    """Memory for batches of so many tokens in source and target, the padding counted."""
    original = CrossEntropy.__call__

    def call(self, model, batch, update=0):
        if batch.source.numel() > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return original(self, model, batch, update)

    monkeypatch.setattr(CrossEntropy, "__call__", call)


def test_a_run_finds_its_batches_and_keeps_them(small_corpus, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    options = {"model.dropout": 0.3, "data.batch_tokens": 0, "trainer.max_steps": 4}
    limited(monkeypatch, 300)
    found = make_config(tmp_path / "found", small_corpus, options)
    train_quietly(found)
    kept = read_config(tmp_path / "found" / "config.yaml")
    assert kept.data.batch_tokens == 256
    manifest = read_manifest(tmp_path / "found" / "manifest.json")
    assert manifest["config"]["data"]["batch_tokens"] == 256
    assert manifest["batch_tokens_tried"][-1] == {"budget": 384, "peak": None}
    assert "data.batch_tokens is 256: " in caplog.text and "384 does not fit" in caplog.text
    # The very run that the number itself would have made; it goes on with it where there is more memory.
    train_quietly(make_config(tmp_path / "given", small_corpus, {**options, "data.batch_tokens": 256}))
    assert_equal(state_after(tmp_path / "given"), state_after(tmp_path / "found"))
    limited(monkeypatch, 10**6)
    kept.trainer.max_steps = 6
    train_quietly(kept, resume=True)
    assert read_config(tmp_path / "found" / "config.yaml").data.batch_tokens == 256


@pytest.mark.parametrize("objective", ["min_risk", "bso", "scheduled_sampling", "soft_beam"])
def test_every_objective_is_tried(small_corpus, tmp_path, objective, monkeypatch):
    monkeypatch.setitem(budget.MOST, "cpu", 200)
    options = {"data.batch_tokens": 0, "objective": objective, "trainer.max_steps": 1, "data.vocabulary.sampling": 0.2}
    train_quietly(make_config(tmp_path, small_corpus, {**options, "trainer.precision": "bf16"}))
    assert read_config(tmp_path / "config.yaml").data.batch_tokens == 192


def test_little_memory_is_told_or_heeded(module, monkeypatch):
    monkeypatch.setattr(budget, "free_memory", lambda device: 1000)
    with pytest.raises(UserError, match="memory is full: batches of .* do not fit into 0 MiB .*lower data.max_length"):
        settle_budget(module.config, module, CPU, World())
    took = {b: 10_000 * b for b in budgets(1, 10**5)}
    monkeypatch.setattr(Probe, "__call__", lambda self, tokens: took[tokens])
    monkeypatch.setattr(budget, "free_memory", lambda device: 5_000_000)
    config, settled, trials = settle_budget(module.config, module, CPU, World())
    # 4 million bytes may be taken.
    assert config.data.batch_tokens == settled.config.data.batch_tokens == settled.data.stream.budget == 384
    assert settled.gradient.unit == 384 and [trial.peak for trial in trials][-1] == 3_840_000
    assert module.config.data.batch_tokens == 0


def write(root, files):
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, 2**32),
        ({"proc/meminfo": "MemTotal: 9 kB\nMemAvailable:  5000 kB\n"}, 5_120_000),
        (
            {
                "proc/meminfo": "MemAvailable: 9000 kB\n",
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/memory.max": "3000000\n",
                "sys/fs/cgroup/a/memory.current": "2500000\n",
                "sys/fs/cgroup/a/memory.stat": "anon 1\ninactive_file 500000\n",
                "sys/fs/cgroup/a/b/memory.max": "max\n",
                "sys/fs/cgroup/a/b/memory.current": "7\n",
            },
            1_000_000,
        ),
        (
            {
                "proc/meminfo": "MemAvailable: 9000 kB\n",
                "proc/self/cgroup": "3:cpu:/\n2:memory:/job\n",
                "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "1000\n",
                "sys/fs/cgroup/memory/job/memory.usage_in_bytes": "4000\n",
            },
            0,
        ),
    ],
)
def test_free_memory_is_the_least_that_any_limit_leaves(tmp_path, files, free):
    write(tmp_path, files)
    assert free_memory(CPU, tmp_path) == free


def test_a_limit_of_the_address_space_counts(tmp_path, monkeypatch):
    write(tmp_path, {"proc/meminfo": "MemAvailable: 9000 kB\n", "proc/self/status": "Name: x\nVmSize:\t 3000 kB\n"})
    monkeypatch.setattr(resource, "getrlimit", lambda _: (4_000 * 1024, resource.RLIM_INFINITY))
    assert free_memory(CPU, tmp_path) == 1000 * 1024


@pytest.mark.skipif(not os.path.exists("/proc/meminfo"), reason="needs Linux")
def test_free_memory_here():
    assert 2**20 < free_memory(CPU) < 2**50
