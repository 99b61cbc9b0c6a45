"""`nmt translate` around the search: files, pipes, interruptions and processes."""

import contextlib
import gzip
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

import nmt
from nmt import cli
from nmt.checkpoint import save_checkpoint
from nmt.files.blocks import SourceText
from nmt.files.job import Job
from nmt.files.workers import Workers
from nmt.lines import read_lines
from nmt.wishes import Wish
from tests import ROOT

LINES = [
    " ".join(words)
    for words in zip(
        *[["the", "cat", "", "two", "red"] * 40, ["one", "my", "blue"] * 70, ["a", ""] * 100], strict=False
    )
]


@pytest.fixture(scope="module")
def models(tiny_checkpoint, tmp_path_factory):
    """A folder with a.safetensors, b.safetensors of the same vocabulary, and c.safetensors of another."""
    folder = tmp_path_factory.mktemp("models")
    for name, options in {"a": {}, "b": {"seed": 1, "hidden": 14}, "c": {"joint": False}}.items():
        save_checkpoint(folder / f"{name}.safetensors", tiny_checkpoint(**options))
    return folder


@pytest.fixture
def folder(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in models.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "source").write_text("".join(line + "\n" for line in LINES))
    return tmp_path


def translate(*words, code=0):
    """Runs `nmt translate a.safetensors WORDS` in this process."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["translate", "a.safetensors", *map(str, words), "--device", "cpu", "--max_ratio", "0"])
    assert (ended.value.code or 0) == code


def command(*words):
    return [sys.executable, "-m", "nmt", "translate", "a.safetensors", *words, "--device", "cpu", "--max_ratio", "0"]


def start(*words, **options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": environment}
    return subprocess.Popen(command(*words), **{**pipes, **options})


def parts(folder):
    # A kill amid the write of a file leaves a hidden one, under no name of its own.
    return sorted(path.name for path in folder.glob("*.part*") if not path.name.startswith("."))


def files(folder):
    return sorted(path.name for path in folder.iterdir() if path.is_file() and not path.is_symlink())


# Formats, wishes, ensembles, precisions


def test_formats_tell_the_same(folder):
    translator = nmt.load("a.safetensors", "cpu")
    expected = translator.search(LINES, n_best=2, attention=True, max_ratio=0)
    words = ("source", "--n_best", "2", "--alignment", "--buffer", "64", "-o")
    translate(*words, "found.jsonl", "--format", "jsonl", "--attention")
    rows = [json.loads(line) for line in read_lines("found.jsonl")]
    assert [row["line"] for row in rows] == list(range(1, len(LINES) + 1))
    assert [row["source"] for row in rows] == LINES
    assert [[one["text"] for one in row["translations"]] for row in rows] == [[t.text for t in ts] for ts in expected]
    for row, found in zip(rows, expected, strict=True):
        for one, translation in zip(row["translations"], found, strict=True):
            assert one["score"] == pytest.approx(translation.score, abs=1e-4)
            assert one["pieces"] == translation.pieces
            assert len(one["attention"]) == len(translation.pieces)
            assert len(one["alignment"].split()) == len(translation.alignment if translation.pieces else [])
    translate(*words, "found.tsv", "--format", "tsv")
    header, *table = [line.split("\t") for line in read_lines("found.tsv")]
    assert header == ["line", "n", "score", "log_probability", "text", "alignment"]
    hypotheses = [(row["line"], n, one) for row in rows for n, one in enumerate(row["translations"], start=1)]
    assert [(int(row[0]), int(row[1]), row[4], row[5]) for row in table] == [
        (line, n, one["text"], one["alignment"]) for line, n, one in hypotheses
    ]
    translate(*words, "found.moses", "--format", "moses")
    moses = [line.split(" ||| ") for line in read_lines("found.moses")]
    assert [(int(row[0]) + 1, row[1], row[4]) for row in moses] == [
        (line, one["text"], one["alignment"]) for line, _, one in hypotheses
    ]
    translate("source", "-o", "found.txt")
    assert read_lines("found.txt") == [row["translations"][0]["text"] for row in rows]
    assert files(folder) == sorted(["source", "found.jsonl", "found.tsv", "found.moses", "found.txt"])


def test_wishes_come_from_files(folder):
    lines = LINES[:6]
    (folder / "short").write_text("".join(line + "\n" for line in lines))
    (folder / "prefix").write_text("red two\n\n\n\n\n\n")
    (folder / "include").write_text("\nblue\tgreen two\n\n\n\n\n")
    (folder / "exclude").write_text("\n\n\n\ny\n\n")
    translate("short", "-o", "out", "--prefix", "prefix", "--include", "include", "--exclude", "exclude",
              "--buffer", "4")  # fmt: skip
    wishes = [Wish("red two"), Wish(include=("blue", "green two")), Wish(), Wish(), Wish(exclude=("y",)), Wish()]
    translator = nmt.load("a.safetensors", "cpu")
    found = read_lines("out")
    assert found == translator.translate(lines, wishes=wishes, max_ratio=0)
    plain = translator.translate(lines, max_ratio=0)
    assert found[0].startswith("red two") and "blue" in found[1] and "green two" in found[1]
    assert found[0] != plain[0] and found[2:4] == plain[2:4]
    # In Python, a stream takes them, too.
    streamed = list(translator.stream_search(iter(lines), wishes=iter(wishes), chunk=4, max_ratio=0))
    assert [one[0].text for one in streamed] == found


def test_unknown_words_are_replaced(folder, capfd):
    (folder / "odd").write_text("the ☃☃☃ cat\n")
    with contextlib.suppress(SystemExit):
        cli.main(["translate", "a.safetensors", "odd", "-o", "plain"])
    translator = nmt.load("a.safetensors", "cpu")
    for replace in (False, True):
        translate("odd", "-o", "out", *["--replace_unknown"] * replace)
        assert read_lines("out") == translator.translate(["the ☃☃☃ cat"], max_ratio=0, replace_unknown=replace)


def test_an_ensemble_is_the_mean(folder, capfd):
    translate("source", "-o", "both", "--ensemble", "b.safetensors")
    translate("source", "-o", "one")
    both = nmt.load("a.safetensors", "cpu", ensemble=["b.safetensors"])
    assert read_lines("both") == both.translate(LINES, max_ratio=0) != read_lines("one")
    # A model with itself is itself.
    twice = nmt.load("a.safetensors", "cpu", ensemble=["a.safetensors", "a.safetensors"])
    assert twice.translate(LINES[:40], max_ratio=0) == read_lines("one")[:40]
    capfd.readouterr()
    translate("source", "-o", "new", "--ensemble", "c.safetensors", code=2)
    message = capfd.readouterr().err
    assert "a.safetensors and c.safetensors have different source vocabularies" in message
    assert message.count("\n") == 1 and "new" not in files(folder)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_precisions_translate_nearly_alike(tiny_checkpoint, tmp_path, cell, recwarn):
    """The random model has near ties, so the scores of one hypothesis are compared: those of a forced prefix."""
    path = tmp_path / "m.safetensors"
    save_checkpoint(path, tiny_checkpoint(cell=cell, encoder_layers=2, decoder_layers=2))
    lines, wishes = LINES[:20], [Wish("the red two my old")] * 20
    options = {"wishes": wishes, "max_ratio": 0, "max_extra": 1}
    exact = nmt.load(path, "cpu").search(lines, **options)
    for precision in ({"int8": True}, {"dtype": "bfloat16"}):
        recwarn.clear()
        translator = nmt.load(path, "cpu", **precision)
        found = translator.search(lines, attention=True, **options)
        assert not recwarn.list
        pairs = [(a[0], b[0]) for a, b in zip(found, exact, strict=True) if b[0].pieces]
        assert all(a.pieces == b.pieces for a, b in pairs) and len(pairs) > 15
        differences = [abs(a.log_probability - b.log_probability) for a, b in pairs]
        assert 0 < max(differences) < 0.5, "another precision, and the same model"
        assert all(float(a.attention.sum(dim=1).sub(1).abs().max()) < 0.05 for a, _ in pairs)
    int8 = nmt.load(path, "cpu", int8=True).decoder
    assert not any(isinstance(part, (torch.nn.Linear, torch.nn.GRU, torch.nn.LSTM)) for part in int8.children())
    assert {p.dtype for p in nmt.load(path, "cpu", dtype="bfloat16").model.parameters()} == {torch.bfloat16}


def test_the_log_says_which_precision_runs(folder, caplog):
    caplog.set_level("INFO")
    for words, name in (([], "float32"), (["--int8"], "int8"), (["--dtype", "bfloat16"], "bfloat16")):
        caplog.clear()
        translate("source", "-o", "out", *words)
        assert f"log p / |y|^1, {name}" in caplog.text and len(read_lines("out")) == len(LINES)
    translate("source", "-o", "out", "--strategy", "sample")
    assert "sampling, temperature 1" in caplog.text


@pytest.mark.parametrize(("own", "there"), [(None, "128"), ("7", "7")])
def test_kernels_of_int8_are_bounded_unless_the_user_says_otherwise(folder, monkeypatch, own, there):
    name = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
    monkeypatch.setenv(name, own or "")
    if own is None:
        monkeypatch.delenv(name)
    translate("source", "-o", "out")
    assert os.environ.get(name) == own
    translate("source", "-o", "out", "--int8")
    assert os.environ[name] == there


# Pipes


def test_an_open_pipe_is_answered_line_by_line(folder):
    expected = nmt.load("a.safetensors", "cpu").translate(LINES[:4], max_ratio=0)
    with start(stdin=subprocess.PIPE) as process:
        for line, translation in zip(LINES[:3], expected, strict=False):
            process.stdin.write(f"{line}\n".encode())
            process.stdin.flush()
            # Hangs (and runs into the timeout) where the answer waits for more input.
            assert process.stdout.readline().decode() == f"{translation}\n"
        # Without a line end, the end of the input ends the line.
        process.stdin.write(LINES[3].encode())
        process.stdin.close()
        assert process.stdout.read().decode() == f"{expected[3]}\n"
        assert process.wait() == 0


def test_a_bad_line_in_a_pipe_comes_after_the_good_ones(folder):
    with start(stdin=subprocess.PIPE) as process:
        process.stdin.write(b"the\ncat\n")
        process.stdin.flush()
        assert process.stdout.readline() and process.stdout.readline()
        process.stdin.write(b"two\nr\xffd\n")
        process.stdin.flush()
        # The pipe stays open; nobody waits for it any more.
        assert process.wait(timeout=60) == 2
        assert process.stdout.read().count(b"\n") == 1
        assert b"standard input, line 4: not UTF-8" in process.stderr.read()


def test_an_interruption_while_waiting_for_a_pipe(folder):
    with start(stdin=subprocess.PIPE) as process:
        process.stdin.write(b"the\n")
        process.stdin.flush()
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
        assert process.stderr.read().decode().splitlines()[-1] == "nmt: interrupted"


def test_a_reader_that_leaves_an_open_pipe(folder):
    with start(stdin=subprocess.PIPE) as process:
        process.stdin.write(b"the\n")
        process.stdin.flush()
        process.stdout.readline()
        process.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(b"cat\n")
            process.stdin.flush()
        assert process.wait(timeout=60) == 1
        assert process.stderr.read().count(b"\n") == 1  # the line that tells of the search


# Files


def test_packed_output_and_devices(folder):
    translate("source", "-o", "plain", "--buffer", "64")
    translate("source", "-o", "packed.gz", "--buffer", "64")
    assert gzip.decompress((folder / "packed.gz").read_bytes()) == (folder / "plain").read_bytes()
    translate("source", "-o", "/dev/null")
    assert files(folder) == ["packed.gz", "plain", "source"]
    (folder / "empty").write_text("")
    for form, expected in (("text", b""), ("tsv", b"line\tn\tscore\tlog_probability\ttext\n")):
        translate("empty", "-o", "nothing", "--format", form)
        assert (folder / "nothing").read_bytes() == expected


RESUMED = {
    "text": [],
    "jsonl": ["--format", "jsonl", "--n_best", "3", "--alignment"],
    "moses": ["--format", "moses", "--n_best", "3"],
    "tsv": ["--format", "tsv", "--strategy", "sample", "--n_best", "2"],
}


@pytest.mark.parametrize("name", RESUMED)
def test_what_was_killed_is_gone_on_with(folder, name, caplog):
    words = ["source", "-o", "out", "--buffer", "2", *RESUMED[name]]
    translate(*words)
    whole = (folder / "out").read_bytes()
    (folder / "out").write_text("old\n")
    (folder / "source.saved").write_bytes((folder / "source").read_bytes())
    with start(*words) as process:
        until(lambda: kept(folder) >= 6)
        process.send_signal(signal.SIGKILL)
    done = kept(folder)
    assert 6 <= done < len(LINES) and done % 2 == 0
    assert (folder / "out").read_text() == "old\n" and parts(folder) == ["out.part", "out.part.json"]
    with open("out.part", "ab") as file:
        file.write(b"half a block that was not noted")
    caplog.set_level("INFO")
    translate(*words, "--resume")
    assert f"{done} lines are done; going on with line {done + 1}" in caplog.text
    assert (folder / "out").read_bytes() == whole and not parts(folder)


def test_a_line_draws_the_same_in_every_block(folder):
    expected = nmt.load("a.safetensors", "cpu").translate(LINES, max_ratio=0, strategy="sample")
    translate("source", "-o", "out", "--strategy", "sample", "--buffer", "30")
    assert read_lines("out") == expected
    assert len(set(expected)) > 100, "lines that are alike are drawn each for itself"


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def kept(folder):
    with contextlib.suppress(OSError):
        return json.loads((folder / "out.part.json").read_text())["lines"]
    return 0


@pytest.fixture
def interrupted(folder, capfd):
    """A part of 8 lines, left by a bad line."""
    good = (folder / "source").read_bytes().split(b"\n")
    (folder / "source").write_bytes(b"\n".join([*good[:8], b"b\xffd", *good[9:]]))
    translate("source", "-o", "out", "--buffer", "4", code=2)
    message = capfd.readouterr().err
    assert message.startswith("nmt: source, line 9: not UTF-8") and message.count("\n") == 1
    assert message.endswith("8 lines are kept in out.part; go on with the same command and --resume\n")
    return folder


def test_a_line_that_was_mended_is_gone_on_with(interrupted):
    text = (interrupted / "source").read_bytes().replace(b"b\xffd", b"bad one")
    (interrupted / "source").write_bytes(text)
    translate("source", "-o", "out", "--buffer", "4", "--resume")
    translate("source", "-o", "whole", "--buffer", "4")
    assert (interrupted / "out").read_bytes() == (interrupted / "whole").read_bytes()
    # There is nothing to go on with: from the beginning.
    translate("source", "-o", "out", "--buffer", "4", "--resume")
    assert (interrupted / "out").read_bytes() == (interrupted / "whole").read_bytes()


def test_a_part_is_not_lost(interrupted, capfd):
    before = {path: path.read_bytes() for path in interrupted.iterdir() if path.is_file()}

    def refused(*words):
        capfd.readouterr()
        translate(*words, code=2)
        assert {path: path.read_bytes() for path in before} == before
        message = capfd.readouterr().err
        assert message.count("\n") == 1
        return message

    words = ["source", "-o", "out", "--buffer", "4"]
    assert "out.part holds 8 lines of a run that did not end; go on with it by --resume, or delete it" in refused(
        *words
    )
    for more, name in (
        (["--beam_size", "3"], "beam_size 5 and now it is 3"),
        (["--format", "jsonl"], "format text and now it is jsonl"),
        (["--seed", "9"], "seed 1 and now it is 9"),
        (["--int8"], "dtype float32 and now it is int8"),
        (["--prefix", "source.prefix"], "prefix not given and now it is"),
        (["--ensemble", "b.safetensors"], "ensemble [] and now it is ['"),
    ):
        with open("source.prefix", "w") as file:
            file.write("\n" * len(read_lines_count(interrupted)))
        assert f"out.part was begun with {name}" in refused(*words, "--resume", *more), more
    assert "buffer 4 and now it is 5" in refused("source", "-o", "out", "--buffer", "5", "--resume")
    (interrupted / "other").write_bytes((interrupted / "source").read_bytes())
    assert "was begun with input" in refused("other", "-o", "out", "--buffer", "4", "--resume")
    os.remove("a.safetensors")
    os.symlink(os.path.realpath("b.safetensors"), "a.safetensors")
    del before[interrupted / "a.safetensors"]
    assert "was begun with model" in refused(*words, "--resume")


def read_lines_count(folder):
    return (folder / "source").read_bytes().split(b"\n")[:-1]


def test_an_interruption_tells_what_is_kept(folder):
    with start("source", "-o", "out", "--buffer", "2") as process:
        until(lambda: kept(folder) >= 4)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
        lines = process.stderr.read().decode().splitlines()
    assert lines[-2:] == [
        f"{kept(folder)} lines are kept in out.part; go on with the same command and --resume",
        "nmt: interrupted",
    ]


def test_a_part_has_one_writer(folder, capfd):
    with start("-", "-o", "out", "--buffer", "2", stdin=subprocess.PIPE) as process:
        process.stdin.write(b"the\n")
        process.stdin.flush()
        until(lambda: kept(folder) >= 1)
        capfd.readouterr()
        (folder / "one").write_text("the\n")
        note = json.loads((folder / "out.part.json").read_text())
        note["settings"]["input"] = str(folder / "one")
        (folder / "out.part.json").write_text(json.dumps(note))
        translate("one", "-o", "out", "--buffer", "2", "--resume", code=2)
        assert "out.part is being written by another process" in capfd.readouterr().err
        process.stdin.close()
        assert process.wait(timeout=60) == 0
    assert len(read_lines("out")) == 1


def test_a_damaged_part_is_told(interrupted, capfd):
    words = ["source", "-o", "out", "--buffer", "4", "--resume"]
    note = (interrupted / "out.part.json").read_text()
    content = (interrupted / "out.part").read_bytes()
    for name, damaged, message in (
        ("out.part.json", b"{", "out.part.json is damaged"),
        ("out.part.json", b"[]", "out.part.json is damaged"),
        ("out.part.json", note.replace('"format": 1', '"format": 9').encode(), "is damaged (format 9)"),
        ("out.part", content[:5], "out.part has 5 bytes and out.part.json speaks of"),
    ):
        (interrupted / name).write_bytes(damaged)
        (interrupted / "source").write_text("the\n" * 20)
        translate(*words, code=2)
        assert message in capfd.readouterr().err
        (interrupted / "out.part.json").write_text(note)
        (interrupted / "out.part").write_bytes(content)
    os.remove("out.part.json")
    translate(*words, code=2)
    assert "out.part is there without out.part.json" in capfd.readouterr().err


# Processes


def test_processes_write_the_same_bytes(folder):
    words = ["source", "--buffer", "7", "--format", "jsonl", "--n_best", "2", "-o"]
    translate(*words, "one")
    with start(*words, "two", "--processes", "2") as process:
        assert process.wait(timeout=120) == 0, process.stderr.read()
        assert process.stderr.read().decode().endswith("float32, 2 processes\n")
    assert (folder / "one").read_bytes() == (folder / "two").read_bytes()


def test_a_worker_that_dies(folder):
    with start("source", "-o", "out", "--buffer", "1", "--processes", "2") as process:
        until(lambda: kept(folder) >= 2)
        os.kill(worker_of(process.pid), signal.SIGKILL)
        assert process.wait(timeout=60) == 2
        message = process.stderr.read().decode().splitlines()
    assert len(message) == 2 and "a worker process died" in message[1]
    assert f"{kept(folder)} lines are kept" in message[1]
    with open(folder / "out.part", "rb") as file:
        assert file.read().count(b"\n") == kept(folder) >= 2


def test_workers_end_with_their_parent(folder):
    with start("source", "-o", "out", "--buffer", "1", "--processes", "2") as process:
        until(lambda: kept(folder) >= 2)
        worker = worker_of(process.pid)
        # An interruption is the parent's alone; a worker would answer it with a stack trace.
        with open(f"/proc/{worker}/status") as file:
            blocked = next(line.split()[1] for line in file if line.startswith("SigBlk"))
        assert int(blocked, 16) & 1 << signal.SIGINT - 1
        process.send_signal(signal.SIGKILL)
        until(lambda: not os.path.exists(f"/proc/{worker}") or is_dead(worker))


def test_processes_pipes_and_errors(folder):
    """A pipe that stays open is answered, an error of a worker is one line, and an interruption is quiet."""
    (folder / "prefix").write_text("\n\n☃\n")
    with start("-", "--processes", "2", "--prefix", "prefix", stdin=subprocess.PIPE) as process:
        for line in ("the", "cat"):
            process.stdin.write(f"{line}\n".encode())
            process.stdin.flush()
            assert process.stdout.readline()
        process.stdin.write(b"two\n")
        process.stdin.flush()
        assert process.wait(timeout=60) == 2
        lines = process.stderr.read().decode().splitlines()
        assert len(lines) == 2 and "line 3: '☃' cannot be asked for" in lines[1]
    with start("-", "--processes", "2", stdin=subprocess.PIPE, start_new_session=True) as process:
        process.stdin.write(b"the\n")
        process.stdin.flush()
        process.stdout.readline()
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does it
        assert process.wait(timeout=60) == 130
        assert process.stderr.read().decode().splitlines()[1:] == ["nmt: interrupted"]


class Sleep(Job):
    """What takes longer than any test."""

    def load(self):
        time.sleep(600)


def test_workers_are_stopped_in_the_middle_of_a_block(folder):
    with pytest.raises(KeyboardInterrupt), Workers(Sleep(""), 2) as workers:
        results = workers.results(SourceText("source").blocks(5))
        main = threading.main_thread().ident
        threading.Timer(3, signal.pthread_kill, [main, signal.SIGINT]).start()
        next(results)


def worker_of(pid):
    """A child that is a worker, not the helper of multiprocessing."""
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        for child in map(int, file.read().split()):
            with open(f"/proc/{child}/cmdline") as line:
                if "spawn_main" in line.read():
                    return child
    raise AssertionError("no worker")


def is_dead(pid):
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as file:
        return file.read().rsplit(")", 1)[1].split()[0] == "Z"
    return True
