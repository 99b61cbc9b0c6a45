"""Ray on two nodes of this machine: the bytes of one process, whatever is killed on the way."""

import gzip
import os
import random
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from nmt import cli
from nmt.config_file import write_config
from nmt.errors import UserError
from nmt.files.part import Part
from tests import ROOT
from tests.system.parts import die_at_three, odd
from tests.unit.runs import make_config

# Before it is imported; what it would print is not to be told apart from what nmt prints.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
pytest.importorskip("ray")
pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def address():
    """Of a cluster of two nodes with one CPU each."""
    from ray.cluster_utils import Cluster as Nodes

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")
        patch.setenv("PYTHONPATH", str(ROOT))
        nodes = Nodes()
        for _ in range(2):
            nodes.add_node(num_cpus=1, object_store_memory=80 * 2**20, include_dashboard=False)
        yield nodes.address
        nodes.shutdown()


@pytest.fixture
def text(small_corpus, tmp_path):
    """41 lines; the last block is a short one."""
    lines = (small_corpus / "train.source").read_text().splitlines(keepends=True)[:40]
    (tmp_path / "text").write_text("".join([*lines, "\n"]))
    (tmp_path / "prefix").write_text("\n" * 40 + "a\n")
    return tmp_path / "text"


def run(*words, code=0):
    with pytest.raises(SystemExit) as ended:
        cli.main([str(word) for word in words])
    assert (ended.value.code or 0) == code


def actors() -> set[int]:
    """The processes of actors that compute."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "cmdline").read_bytes().startswith(b"ray::MapWorker"):
                found.add(int(folder.name))
        except OSError:
            continue
    return found


def test_translations_are_those_of_one_process(finished_run, text, address, tmp_path, monkeypatch, capfd):
    """Both actors are killed when a block is written, so that the rest needs others."""
    words = ["translate", finished_run, text, "--prefix", tmp_path / "prefix", "--buffer", 3, "--format", "jsonl",
             "--n_best", 2, "--alignment", "--max_pieces", 6, "--device", "cpu"]  # fmt: skip
    run(*words, "-o", tmp_path / "one")
    capfd.readouterr()
    write, killed = Part.write, set()

    def kill(part, content, lines, digest):
        write(part, content, lines, digest)
        if not killed:
            killed.update(actors())
            for process in killed:
                os.kill(process, signal.SIGKILL)

    monkeypatch.setattr(Part, "write", kill)
    run(*words, "-o", tmp_path / "two", "--engine", "ray", "--address", address)
    assert len(killed) == 2
    assert (tmp_path / "two").read_bytes() == (tmp_path / "one").read_bytes()
    assert not list(tmp_path.glob("*.part*"))
    output, errors = capfd.readouterr()
    assert not output and len(errors.splitlines()) < 3, "Ray is quiet"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_driver_that_is_stopped_leaves_a_part(finished_run, text, address, tmp_path, number):
    words = ["translate", finished_run, text, "--buffer", 1, "--device", "cpu"]
    run(*words, "-o", tmp_path / "one")
    found = tmp_path / "two"
    words += ["-o", found, "--engine", "ray", "--address", address]
    # It stops itself when ten lines are written.
    program = (
        "import os, signal, sys; from nmt import cli; from nmt.files.part import Part; write = Part.write\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"def die(*args):\n    write(*args)\n    args[2] == 10 and os.kill(os.getpid(), {int(number)})\n"
        "Part.write = die; cli.main(sys.argv[1:])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-c", program, *map(str, words)], env=environment, capture_output=True)
    assert ended.returncode == (130 if number == signal.SIGINT else -number), ended.stderr
    if number == signal.SIGINT:
        assert ended.stderr.decode().splitlines()[-1] == "nmt: interrupted" and b"Traceback" not in ended.stderr
    assert not found.exists() and (tmp_path / "two.part").read_bytes().count(b"\n") == 10
    run(*words, "--resume")
    assert found.read_bytes() == (tmp_path / "one").read_bytes()


def test_odd_texts_end_as_in_one_process(finished_run, address, tmp_path, monkeypatch, capsys, recwarn):
    """The same files, the same code, the same last words: also of a text that breaks off."""
    texts = {
        "empty": b"",
        "line": b"a b",
        "packed.gz": gzip.compress(b"a b\nb a\n\n"),
        "latin": b"a b\n" * 5 + b"\xe9\n" + b"a b\n",
        "cut.gz": gzip.compress(random.Random(1).randbytes(2000).hex().encode() + b"\n" * 3)[:-900],
    }
    found = []
    for engine, words in {"local": [], "ray": ["--engine", "ray", "--address", address]}.items():
        (tmp_path / engine).mkdir()
        monkeypatch.chdir(tmp_path / engine)
        told = {}
        for name, content in texts.items():
            (tmp_path / name).write_bytes(content)
            with pytest.raises(SystemExit) as ended:
                cli.main(["translate", str(finished_run), str(tmp_path / name), "-o", f"{name}.out", "--buffer", "2",
                          "--device", "cpu", *words])  # fmt: skip
            told[name] = (
                ended.value.code or 0,
                [line for line in capsys.readouterr().err.splitlines() if "nmt:" in line],
            )
        found.append((told, {path.name: path.read_bytes() for path in (tmp_path / engine).iterdir()}))
    assert found[0] == found[1]
    assert not [warning for warning in recwarn if "concurrent actors" in str(warning.message)], "Ray is quiet"
    assert {name: code for name, (code, _) in found[1][0].items() if code} == {"latin": 2, "cut.gz": 2}
    assert "5 lines are kept in latin.out.part" in found[1][0]["latin"][1][0]


def test_a_prepared_corpus_is_that_of_one_process(small_corpus, tmp_path, address, monkeypatch):
    monkeypatch.setattr("nmt.text.encoding._CHUNK", 7)
    caches = []
    for name, words in {"one": [], "two": ["--engine", "ray", "--address", address]}.items():
        config = make_config(tmp_path / "run", small_corpus, {"data.cache": str(tmp_path / name)})
        write_config(tmp_path / "config.yaml", config)
        run("corpus", "prepare", "--config", tmp_path / "config.yaml", *words)
        caches.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert len(caches[0]) == 3 and caches[0] == caches[1]


def test_a_part_at_which_each_actor_dies_ends_the_command(address, tmp_path):
    from nmt.cluster import Cluster

    found = []
    with Cluster(address) as cluster:
        with pytest.raises(UserError, match=r"an actor died 4 times in a row, .*give fewer --processes"):
            for number in cluster.map_in_order(partial(die_at_three, str(tmp_path / "deaths")), range(6)):
                found.append(number)
        assert found == [0, 1, 2] and (tmp_path / "deaths").read_bytes() == b"...."
        assert list(cluster.map_in_order(odd, range(3))) == [0, 1, 4], "the cluster is of use to others"


def test_order_warnings_and_errors(address, caplog):
    from nmt.cluster import Cluster

    with Cluster(address) as cluster:
        assert list(cluster.map_in_order(odd, [])) == []
        found = []
        with pytest.raises(UserError, match="seven is odd"):
            for square in cluster.map_in_order(odd, range(9)):
                found.append(square)
        assert found == [number**2 for number in range(7)]
        assert [r.getMessage() for r in caplog.records if r.name == "nmt.cluster" and "part" in r.getMessage()] == [
            f"part {number}" for number in range(8)
        ]
    with pytest.raises(UserError, match="no machine of the Ray cluster has 2 CPUs"):
        Cluster(address, threads=2).__enter__()
