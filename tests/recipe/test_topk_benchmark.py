"""The benchmark of the top-k operators and their pictures run, with settings that take no time."""

import json
import os
import re
import subprocess
import sys

import pytest

from nmt.topk.rivals import OPERATORS
from tests import ROOT

pytestmark = pytest.mark.recipe
OURS = {"soft_topk", "sparse_soft_topk", "sorted_soft_topk", "sparse_sorted_soft_topk"}


def call(*words) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True)


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    folder = tmp_path_factory.mktemp("topk")
    (folder / "page.md").write_text("before\n<!-- speed -->\nnot measured\n<!-- /speed -->\nafter\n")
    words = ["--rows", 2, "--sizes", 64, 200, "--scores", "beam", "--temperatures", 0.25, 100]
    words += ["--seconds", 0.01, "--budget", 1, "--rounds", 2]
    outputs = [f"--{flag}={folder / name}" for flag, name in (("output", "topk.jsonl"), ("table", "table.md"))]
    outputs += [f"--plot={folder / 'topk_speed.png'}", f"--page={folder / 'page.md'}"]
    done = call("recipes/benchmarks/topk.py", *words, *outputs)
    assert done.returncode == 0, done.stderr
    first, *lines = map(json.loads, (folder / "topk.jsonl").read_text().splitlines())
    return folder, done.stdout, first, lines


def test_every_operator_has_a_line(benchmark):
    _, printed, first, lines = benchmark
    assert printed.startswith("command   python recipes/benchmarks/topk.py") and "versions" in first["machine"][2]
    by_size = [line for line in lines if line["table"] == "sizes"]
    wanted = {
        "torch.topk",
        "copy",
        "bisection",
        "sinkhorn_exp_domain",
        "torchsort.soft_rank",
        *OURS,
        *OPERATORS,
        "soft_topk_kernels",
    }
    for n in (64, 200):
        names = [line["operator"] for line in by_size if line["n"] == n]
        assert wanted <= set(names) and len(names) == len(set(names))
    for line in by_size:
        assert re.search(rf"^ *(\* )?{re.escape(line['operator'])} ", printed, re.MULTILINE), "it is printed as well"
        for backward in (0, 1):
            # Measured, or a reason.
            assert (line["ratio"][backward] is None) == bool(line["why"][backward])
            assert line["calls"][backward] >= (not line["why"][backward])
        assert line["ours"] == (line["operator"].removesuffix("_kernels") in OURS)
        if line["operator"] in OURS | {"bisection", "sinkhorn_topk_kkt", "sinkhorn_exp_domain"}:
            assert line["why"] == ["", ""] and line["off"] < 1e-4 and line["peak"] >= 0
    assert {line["ratio"][0] for line in lines if line["operator"] == "torch.topk"} == {1.0}


def test_sweep_says_where_two_iterations_are_enough(benchmark):
    *_, lines = benchmark
    off = {
        line["temperature"]: line["off"]
        for line in lines
        if line["table"] == "temperatures" and line["operator"] == "sinkhorn_2_iterations"
    }
    assert off[0.25] > 0.01 > 1e-4 > off[100]


def test_page_and_table_hold_what_was_measured(benchmark):
    folder, _, first, _ = benchmark
    page, table = (folder / "page.md").read_text(), (folder / "table.md").read_text()
    assert page.startswith("before\n<!-- speed -->\n") and page.endswith("\n<!-- /speed -->\nafter\n")
    assert (
        "not measured" not in page and "![time of the operators against the number of scores](topk_speed.png)" in page
    )
    for text in (page, table):
        assert all(part in text for part in first["machine"])
        assert text.count("\n| \\* **soft_topk** |") == 2, "over sizes, and over temperatures"
        assert "\nFaster than soft_topk, forward and backward: n = 64: " in text
    # Once more: the markers stay.
    words = ["--only=copy", "--sizes=8", "--seconds=0.001", "--reads", f"--page={folder / 'page.md'}"]
    done = call("recipes/benchmarks/topk.py", *words)
    assert done.returncode == 0, done.stderr
    found = (folder / "page.md").read_text().split("<!-- /speed -->")[0]
    assert "soft_topk" not in found and "in reads of the scores" in found
    assert re.search(r"\n    bandwidth \d+ GB/s, of a copy", found)
    assert re.search(r"\n\| copy \| [\d.,/ ]+, [\d.,/ ]+ \|", found)


def test_pictures(benchmark, tmp_path):
    folder, *_ = benchmark
    done = call("recipes/topk_pictures.py", "--output", tmp_path / "made", "--speed", folder / "topk.jsonl")
    assert done.returncode == 0, done.stderr
    for name in ("temperature", "gradients", "bound", "speed"):
        path = tmp_path / "made" / f"topk_{name}.png"
        assert path.read_bytes().startswith(b"\x89PNG") and 5_000 < path.stat().st_size < 120_000
    done = call("recipes/topk_pictures.py", "--output", tmp_path / "made", "--speed", tmp_path / "missing.jsonl")
    assert done.returncode == 0 and "no topk_speed.png" in done.stdout


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--only", "soft_topkk"], "--only soft_topkk is no operator; there are torch.topk"),
        (["--k", "80", "--sizes", "64"], "--k 80 needs --sizes of at least as many scores"),
        (["--page", "recipes/configs/quickstart.yaml"], "add both where the tables are to stand"),
        (["--table", "missing/table.md"], "there is no folder missing"),
    ],
)
def test_a_wrong_flag_is_explained_before_anything_is_measured(flags, words):
    done = call("recipes/benchmarks/topk.py", *flags)
    assert done.returncode != 0 and words in done.stderr and not done.stdout
