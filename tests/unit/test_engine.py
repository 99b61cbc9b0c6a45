"""What `--engine` refuses and how it says so, without Ray; with it see tests/system/test_cluster.py."""

import socket
import sys
from types import ModuleType

import pytest

from nmt import cli
from nmt.cluster import Cluster
from nmt.errors import UserError


def refusal(capsys, *words) -> str:
    """The one line of a command that ends with 2."""
    with pytest.raises(SystemExit) as ended:
        cli.main([str(word) for word in words])
    assert ended.value.code == 2
    output, errors = capsys.readouterr()
    assert not output
    (line,) = [line for line in errors.splitlines() if line.startswith("nmt: ")]
    return line


@pytest.fixture
def text(tmp_path):
    (tmp_path / "text").write_text("a\n")
    return tmp_path / "text"


@pytest.fixture
def fake_ray(monkeypatch):
    """In the place of ray; without anything that could be called."""
    ray = ModuleType("ray")
    ray.data = ModuleType("ray.data")
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setitem(sys.modules, "ray.data", ray.data)
    return ray


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--engine", "rya"], "engine is 'rya'; choose local or ray. Did you mean 'ray'?"),
        (["--address", "auto"], "address is auto, but engine is local; give --engine ray"),
        (["--engine", "ray", "--processes", 0], "processes is 0; give at least 1"),
        (["--engine", "ray", "--address", "ray://a:1"], "call this there, with --address auto"),
        (["--engine", "ray", "--device", "cuda:1"], "Ray gives each actor its GPU; give --device cuda"),
    ],
)
def test_wrong_words_are_told_before_anything_starts(finished_run, text, tmp_path, capsys, words, said):
    assert said in refusal(capsys, "translate", finished_run, text, "-o", tmp_path / "out", *words)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text"]


def test_standard_input_is_for_the_local_engine(finished_run, capsys):
    assert "engine ray reads files, and standard input is none" in refusal(
        capsys, "translate", finished_run, "--engine", "ray"
    )


@pytest.mark.parametrize("verb", ["translate", "prepare"])
def test_without_ray_the_extra_is_named(finished_run, small_corpus, text, tmp_path, capsys, monkeypatch, verb):
    monkeypatch.setitem(sys.modules, "ray", None)
    files = [w for s in ("train", "dev") for t in ("source", "target")
             for w in (f"--data.{s}_{t}", small_corpus / f"{s}.{t}")]  # fmt: skip
    words = {
        "translate": ["translate", finished_run, text, "-o", tmp_path / "out"],
        "prepare": ["corpus", "prepare", *files, "--data.cache", tmp_path / "out"],
    }[verb]
    assert "engine ray is not installed; pip install 'nmt[cluster]'" in refusal(capsys, *words, "--engine", "ray")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text"]


@pytest.mark.parametrize(
    ("address", "error", "said"),
    [
        (None, Exception("The current node timed out.\nMore."),
         "Ray cannot start here (The current node timed out); give --engine local"),
        (None, OSError(), "Ray cannot start here (OSError); give --engine local"),
        ("auto", ConnectionError("None is there."), "no Ray cluster was found (None is there); start one by ray start"),
        ("here", RuntimeError("Version mismatch:"), "no Ray cluster answers at HERE (Version mismatch); start one by"),
    ],
)  # fmt: skip
def test_whatever_keeps_ray_from_starting_is_one_line(fake_ray, address, error, said):
    """Ray's kinds of error are many; a daemon that is late is a bare Exception."""

    def init(*args, **options):
        raise error

    fake_ray.init = init
    with socket.create_server(("127.0.0.1", 0)) as listening:
        here = f"127.0.0.1:{listening.getsockname()[1]}"
        with pytest.raises(UserError) as told:
            Cluster(here if address == "here" else address).__enter__()
    assert str(told.value).startswith(said.replace("HERE", here))


def test_an_address_where_nothing_listens_is_not_tried_for_minutes(fake_ray):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
    with pytest.raises(UserError, match=rf"no Ray cluster answers at {address} \(Connection refused\); start one by"):
        Cluster(address).__enter__()
    with pytest.raises(UserError, match="no Ray cluster answers at 127.0.0.1:70000"):
        Cluster("127.0.0.1:70000").__enter__()


@pytest.mark.parametrize("address", ["head", "head:", ":6379", "head:port"])
def test_what_is_no_address_is_refused(fake_ray, address):
    with pytest.raises(UserError, match=f"address is {address}; give HOST:PORT of the head of a Ray cluster, or auto"):
        Cluster(address).__enter__()
