"""What `nmt export` writes translates as the model does, token for token, without torch."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nmt import cli, runner
from nmt.checkpoint import save_checkpoint
from nmt.errors import UserError
from nmt.export import export_model
from nmt.lines import read_lines
from nmt.models import decoding_form
from nmt.runner import Settings
from nmt.runner.__main__ import main as run_exported
from nmt.runner.graphs import Encoded, Graphs
from nmt.text.tokens import Cut, TokenList
from nmt.text.vocabulary import SentencePiece, VocabularyConfig
from nmt.translator import LengthLimit, Translator
from tests import ROOT
from tests.conftest import random_batch

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

SHAPES = [
    {"seed": 2},
    {"seed": 10, "cell": "lstm", "encoder_layers": 2, "decoder_layers": 3, "joint": False},
    {"seed": 10, "encoder_layers": 3, "decoder_layers": 2, "readout": "tanh", "dropout": 0.3, "tied_embeddings": "all"},
    {"seed": 4, "decoder_layers": 3, "bridge": "mean", "attention_hidden": 11, "upper": "skip", "start": "eos"},
    {"seed": 7, "decoder": "luong", "readout": "tanh", "input_feeding": True, "output_size": 16},
    {
        **{
            "seed": 1,
            "decoder": "luong",
            "cell": "lstm",
            "encoder_layers": 2,
            "decoder_layers": 2,
            "bridge": "linear",
        },
        **{
            "input_feeding": True,
            "attention": "general",
            "encoder_hidden": 9,
            "scale": 20.0,
            "source_embedding": 11,
            "joint": False,
        },
    },
    {
        **{"seed": 3, "decoder": "luong", "attention": "dot", "bridge": "layers", "bidirectional": False},
        **{"source_end": False, "readout": "linear", "start": "eos"},
    },
    {
        "seed": 1,
        "scale": 12.0,
        "decoder": "luong",
        "bridge": "mean",
        "attention_hidden": 11,
        "decoder_layers": 2,
        "cell": "lstm",
    },
]
LINES = [
    *["the cat", "", "one my two", " \t ", "red", "a my the one two red blue green cat", "\u3000", "two"],
    *["one two red " * n for n in (1, 7, 2, 4)],
    "the\u2028cat\rone\x00two\x1b[0m red",
    "cat ☃ one",
]
# What a machine that only translates need not have.
_NEEDLESS = ["torch", "pytorch_lightning", "safetensors", "jsonargparse", "yaml", "pyarrow", "onnx", "onnxscript"]
_BLOCK = f"""
import sys
class Blocked:
    def find_spec(self, name, *_):
        if name.split(".")[0] in {_NEEDLESS}:
            raise ImportError(name + " is not for the runner")
sys.meta_path.insert(0, Blocked())
"""


def varied(make, scale=3.0, **config):
    """A checkpoint whose hypotheses end sooner or later, and whose vocabularies are two where they are not joint."""
    checkpoint = make(**{"hidden": 16, "embedding": 16, **config})
    with torch.no_grad():
        checkpoint.model.output.weight.mul_(scale)
        checkpoint.model.output.bias[3] = 1.0
    if checkpoint.source_vocabulary is not checkpoint.target_vocabulary:
        lines = ["red blue green", "the cat two one my", "a two cat red the"] * 3
        checkpoint.target_vocabulary = SentencePiece.train(lines, VocabularyConfig(size=60))
    return checkpoint


@pytest.fixture(scope="module", params=SHAPES, ids=str)
def exported(request, tiny_checkpoint, tmp_path_factory):
    """A checkpoint, its translator, the folder of its export, and the runner of that."""
    checkpoint = varied(tiny_checkpoint, **request.param)
    folder = tmp_path_factory.mktemp("exports") / "model"
    export_model(checkpoint, folder)
    return SimpleNamespace(
        checkpoint=checkpoint, folder=folder, translator=Translator(checkpoint), runner=runner.load(folder, threads=1)
    )


def graphs_of(exported):
    return Graphs(*((exported.folder / name).read_bytes() for name in ("encoder.onnx", "step.onnx")), threads=1)


def in_torch(parts):
    return [torch.from_numpy(part) for part in parts]


def test_the_graphs_are_the_model(exported):
    """At every source position and at every step, at other sizes than those of the export; float32 on both sides."""
    form, graphs = decoding_form(exported.checkpoint.model), graphs_of(exported)
    vocabulary = len(exported.checkpoint.target_vocabulary)
    generator = torch.Generator().manual_seed(0)
    for rows, longest, slots in ((1, 1, 1), (7, 12, 3), (2, 30, 8)):
        batch = random_batch(rows, 50, longest, seed=rows, shortest=1)
        memory = form.encode(batch.source, batch.source_lengths)
        encoded = graphs.encode(batch.source.numpy(), batch.source_lengths.numpy())
        there = memory.mask if memory.mask.dtype == torch.bool else memory.mask == 0
        *found, mask = in_torch(encoded.memory)
        assert len(found) == 2 or form.config.attention == "dot"
        # Of a "dot" attention the first stands for both.
        for one, other in zip(found, memory[:2], strict=False):
            torch.testing.assert_close(one[there], other[there], atol=1e-5, rtol=1e-5)
            assert torch.isfinite(one).all()
        assert torch.equal(mask, memory.mask)
        state = form.start(memory)
        for step in range(4):
            flat = [part for layer in state for part in layer]
            for one, other in zip(in_torch(encoded.state), flat, strict=True):
                torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
            width = 1 if step == 0 else slots
            tokens = torch.randint(4, vocabulary, (rows, width), generator=generator)
            advanced = form.advance(form.embed(tokens), state, memory)
            logits, new = graphs.step(tokens.numpy(), encoded)
            expected = form.project(advanced.features)
            torch.testing.assert_close(torch.from_numpy(logits), expected, atol=2e-5, rtol=1e-5)
            parents = torch.randint(0, width, (rows, slots), generator=generator)
            each = torch.arange(rows).unsqueeze(1)
            state = tuple(tuple(part[each, parents] for part in layer) for layer in advanced.state)
            encoded = Encoded(encoded.memory, [part[each.numpy(), parents.numpy()] for part in new])


def test_the_encoder_does_not_see_padding(exported):
    graphs = graphs_of(exported)
    batch = random_batch(9, 50, 8, shortest=1)
    source, lengths = batch.source.numpy(), batch.source_lengths.numpy()
    expected = graphs.encode(source, lengths)
    for fill in (5, 40):
        other = np.where(np.arange(8) < lengths[:, None], source, fill)
        found = graphs.encode(other, lengths)
        for one, two in zip((*found.memory, *found.state), (*expected.memory, *expected.state), strict=True):
            np.testing.assert_array_equal(one, two)
    # A token that is no padding is seen from both of its ends, or by those that come later.
    source[0, 4] = 5 if source[0, 4] != 5 else 6
    changed = np.abs(graphs.encode(source, lengths).memory[-2] - expected.memory[-2]).max(axis=2) > 1e-7
    config = exported.checkpoint.model.config
    wanted = np.zeros_like(changed)
    # Some models do not read the EOS.
    wanted[0, 0 if config.bidirectional else 4 : None if config.source_end else -1] = True
    np.testing.assert_array_equal(changed, wanted)


@pytest.mark.parametrize(
    "options",
    [
        {"beam_size": 1},
        {},
        {"normalization": "none"},
        {"normalization": "gnmt", "alpha": 0.6},
        {"n_best": 5, "alpha": 0.4},
        {"n_best": 3, "beam_size": 4, "max_ratio": 0.5, "max_extra": 3, "min_extra": 2},
        {"n_best": 2, "batch_tokens": 1},
        {"n_best": 2, "batch_tokens": 17},
    ],
    ids=str,
)
def test_token_for_token(exported, options):
    vocabulary = exported.checkpoint.target_vocabulary
    found, expected = exported.runner.search(LINES, **options), exported.translator.search(LINES, **options)
    assert len(found) == len(LINES)
    for line, one, other in zip(LINES, found, expected, strict=True):
        assert [t.text for t in one] == [t.text for t in other]
        assert [t.score for t in one] == pytest.approx([t.score for t in other], abs=1e-4)
        totals = [t.log_probability for t in other]
        assert [t.log_probability for t in one] == pytest.approx(totals, abs=1e-4, rel=1e-5)
        if line.strip():
            assert [[*vocabulary.pieces(t.tokens), "</s>"] for t in one] == [t.pieces for t in other]
            assert len(one) == options.get("n_best", 1)
        else:
            assert [t.text for t in one] == [""]


def test_the_searches_differ(exported):
    """Or the test above could not tell one setting from another."""
    greedy, beam, without = (
        exported.runner.translate(LINES, **options) for options in ({"beam_size": 1}, {}, {"normalization": "none"})
    )
    assert greedy != beam != without != greedy and len(set(beam)) > 5


def test_the_order_of_lines_and_the_chunks_change_nothing(exported):
    expected = exported.runner.translate(LINES)
    assert exported.runner.translate(LINES[::-1]) == expected[::-1]
    assert list(exported.runner.stream(iter(LINES), chunk=3)) == expected
    assert exported.runner.translate([]) == [] and exported.runner.translate(["", " \u2028"]) == ["", ""]


def test_long_lines_are_cut_or_left_empty_as_by_the_translator(exported, caplog):
    lines = ["the cat", "", "the cat one two my red " * 50]
    for what in ("truncate", "empty"):
        expected = exported.translator.translate(lines, limit=LengthLimit(20, what))
        told = caplog.messages.copy()
        caplog.clear()
        assert list(exported.runner.stream(lines, max_pieces=20, too_long=what, chunk=2)) == expected
        assert caplog.messages == told and "line 3 has" in told[0] and len(told) == 1
        caplog.clear()


def test_nothing_in_the_folder_can_run(exported):
    vocabularies = exported.checkpoint.source_vocabulary, exported.checkpoint.target_vocabulary
    if vocabularies[0] is vocabularies[1]:
        names = {"vocabulary.model": vocabularies[0]}
    else:
        names = dict(zip(("source.model", "target.model"), vocabularies, strict=True))
    assert {file.name for file in exported.folder.iterdir()} == {"encoder.onnx", "step.onnx", "config.json", *names}
    for name in ("encoder.onnx", "step.onnx"):
        graph = onnx.load(exported.folder / name, load_external_data=False)
        onnx.checker.check_model(graph)
        assert not graph.functions and {node.domain for node in graph.graph.node} <= {"", "ai.onnx"}
        assert all(one.data_location == onnx.TensorProto.DEFAULT for one in graph.graph.initializer)
        content = (exported.folder / name).read_bytes()
        assert str(ROOT).encode() not in content and b"site-packages" not in content, "names of this machine"
    for name, vocabulary in names.items():
        assert (exported.folder / name).read_bytes() == vocabulary.model


def test_the_runner_needs_neither_torch_nor_the_training_side(exported):
    """On a machine that has none of it: N lines in, N lines out, those of `nmt translate`."""
    save_checkpoint(exported.folder.parent / "model.safetensors", exported.checkpoint)
    text = "".join(line + "\n" for line in LINES).encode()
    words = "import runpy; sys.argv = ['x', sys.argv[1], '--threads', '1']; runpy.run_module('nmt.runner', run_name="
    done = subprocess.run(
        [sys.executable, "-c", f"{_BLOCK}{words}'__main__')", "model"],
        **{"input": text, "capture_output": True, "cwd": exported.folder.parent},
    )
    toolkit = subprocess.run(
        [sys.executable, "-m", "nmt", "translate", "model.safetensors", "--device", "cpu"],
        **{"input": text, "capture_output": True, "cwd": exported.folder.parent},
    )
    assert done.returncode == 0 and done.stderr == b"", done.stderr.decode()
    assert done.stdout == toolkit.stdout and done.stdout.count(b"\n") == len(LINES)
    code = f"{_BLOCK}from nmt.runner import load\nprint(load('model').translate(['the cat']), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=exported.folder.parent, capture_output=True, text=True)
    assert done.stdout == f"{exported.runner.translate(['the cat'])} False\n", done.stderr


def start_runner(folder, **pipes):
    command = [sys.executable, "-m", "nmt.runner", str(folder), "--threads", "1"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **pipes}
    return subprocess.Popen(command, **pipes)


@pytest.mark.parametrize("exported", SHAPES[:1], indirect=True)
def test_the_runner_answers_an_open_pipe_line_by_line(exported):
    lines = ["the cat", "", "one my two", "the cat one two my red " * 50]
    expected = exported.translator.translate(lines)
    with start_runner(exported.folder) as process:
        for line, wanted in zip(lines, expected, strict=True):
            process.stdin.write(f"{line}\n".encode())
            process.stdin.flush()
            # Hangs (and runs into the timeout) where the answer waits for more input.
            assert process.stdout.readline().decode() == f"{wanted}\n"
        process.stdin.write(b"\xff\n")
        process.stdin.close()
        told = process.stderr.read().decode()
        assert process.wait(timeout=60) == 2
    # Numbers of lines go on from block to block.
    assert told.startswith("line 4 has ") and "line 5" in told and told.count("\n") == 2


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("exported", SHAPES[:1], indirect=True)
def test_a_full_disk_is_told_in_one_line(exported):
    with open("/dev/full", "wb") as full, start_runner(exported.folder, stdout=full) as process:
        _, told = process.communicate(b"the cat\n", timeout=60)
    assert process.returncode == 2
    assert told == b"nmt.runner: No space left on device; make room or write elsewhere\n"


@pytest.fixture
def model(tiny_checkpoint, tmp_path, monkeypatch):
    """The current folder, with a model in it."""
    monkeypatch.chdir(tmp_path)
    checkpoint = tiny_checkpoint()
    save_checkpoint("model.safetensors", checkpoint)
    return checkpoint


def run(*words):
    with pytest.raises(SystemExit) as ended:
        cli.main([str(word) for word in words])
    return ended.value.code or 0


def test_the_verb_writes_what_the_runner_reads(model, tmp_path, capsys, caplog):
    caplog.set_level("INFO")
    assert run("export", ".", "-o", "out/model", "--beam_size", 2, "--normalization", "none") == 0
    told = [record.getMessage() for record in caplog.records if record.levelname != "DEBUG"]
    assert "".join(capsys.readouterr()) == "" and len(told) == 1, "the exporter's own messages are kept quiet"
    assert told[0].startswith("out/model: ")
    found = runner.load("out/model", threads=1)
    assert found.settings == Settings(beam_size=2, normalization="none")
    assert found.languages == {"source": "aa", "target": "bb"}
    (tmp_path / "in").write_text("".join(line + "\n" for line in LINES))
    assert run_exported(["out/model", "in", "-o", "a"]) == 0
    assert run("translate", ".", "in", "-o", "b", "--beam_size", 2, "--normalization", "none") == 0
    assert run_exported(["out/model", "in", "-o", "c", "--beam_size", "5", "--normalization", "length"]) == 0
    assert read_lines("a") == read_lines("b") != read_lines("c")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["model"]
    with pytest.raises(UserError, match="Unknown option 'beamsize'. Did you mean 'beam_size'"):
        found.translate(["a"], beamsize=2)
    with pytest.raises(UserError, match=r"give \[line\]"):
        found.translate("a")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["."], "needs a folder to write; give -o FOLDER"),
        (["none", "-o", "out"], "none does not exist"),
        ([".", "-o", "full"], "full is there and holds something"),
        ([".", "-o", "model.safetensors"], "model.safetensors is there"),
        ([".", "-o", "out", "--beam_size", "0"], "beam_size is 0"),
        ([".", "-o", "out", "--beamsize", "2"], "Did you mean '--beam_size'"),
        ([".", "-o", "out", "--n_best", "9"], "n_best is 9, more than beam_size 5"),
    ],
)
def test_the_verb_refuses_in_one_line(model, tmp_path, capsys, words, message):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "text").write_text("kept")
    assert run("export", *words) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == ["full", "model.safetensors"]


def test_an_imported_vocabulary_is_refused(tiny_checkpoint, tmp_path):
    checkpoint = tiny_checkpoint()
    checkpoint.source_vocabulary = TokenList.build(["<pad>", "<unk>", "<s>", "</s>", "a"], Cut("words"))
    with pytest.raises(UserError, match="reads SentencePiece models alone"):
        export_model(checkpoint, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_failure_leaves_no_folder(model, tmp_path, monkeypatch):
    monkeypatch.setattr("nmt.export._graphs", lambda _: (b"encoder", b"step"))
    monkeypatch.setattr("nmt.export.CONFIG", "none/config.json")
    with pytest.raises(UserError, match="out cannot be written"):
        export_model(model, "out")
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


def test_missing_packages_are_named(model, tmp_path, monkeypatch):
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "onnxscript", None)
        with pytest.raises(UserError, match=r"install the extra \(pip install -e .\[onnx\]\)"):
            export_model(model, "out")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match="needs onnxruntime; install it"):
        Graphs(b"", b"")


def test_graphs_that_do_not_fit_are_refused(exported):
    encoder, step = ((exported.folder / name).read_bytes() for name in ("encoder.onnx", "step.onnx"))
    with pytest.raises(UserError, match=r"onnxruntime [\d.]+ cannot take the graph"):
        Graphs(encoder[:-100], step)
    with pytest.raises(UserError, match="The graphs do not fit"):
        Graphs(encoder, encoder)


def test_a_model_that_diverged_is_told(tiny_checkpoint, tmp_path):
    broken = tiny_checkpoint()
    with torch.no_grad():
        broken.model.output.bias.fill_(torch.nan)
    export_model(broken, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["format"] == 1
    with pytest.raises(UserError, match="not numbers; its training diverged"):
        runner.load(tmp_path / "out", threads=1).translate(["the cat"])
