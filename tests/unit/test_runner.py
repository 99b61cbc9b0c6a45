"""The runner's search, settings and folder; none of these tests needs the packages of the extra `onnx`."""

import dataclasses
import json
import re

import numpy as np
import pytest
import torch

from nmt.errors import UserError
from nmt.models import decoding_form
from nmt.models.portable import StepGraph
from nmt.runner import Settings, load
from nmt.runner.__main__ import main
from nmt.runner.beam import Hypothesis, _largest, _log_normaliser, beam_search
from nmt.runner.folder import CONFIG, PARTS, Exported, Special, describe, read_folder
from nmt.runner.graphs import Encoded
from nmt.runner.runner import Runner, _batches
from nmt.search import SearchConfig
from nmt.search import beam_search as search_of_torch
from nmt.text.vocabulary import SentencePiece, VocabularyConfig
from nmt.translator import LengthLimit
from tests.conftest import random_batch

SPECIAL = Special(pad=0, unk=1, bos=2, eos=3)
SEARCHES = [
    {"beam_size": 1},
    {},
    {"normalization": "none"},
    {"normalization": "gnmt", "alpha": 1.5},
    {"beam_size": 4, "n_best": 4, "alpha": 0.3},
    {"beam_size": 3, "n_best": 2, "max_ratio": 0.0, "max_extra": 4},
    {"min_ratio": 1.0, "min_extra": 2, "n_best": 5},
    {"max_ratio": 0.3, "max_extra": 0, "min_extra": 50},
]


class TorchGraphs:
    """A model as the runner sees graphs."""

    def __init__(self, model):
        self.form = decoding_form(model)
        self.graph = StepGraph(self.form)

    def encode(self, source, lengths):
        memory = self.form.encode(torch.from_numpy(source), torch.from_numpy(lengths))
        state = [part for layer in self.form.start(memory) for part in layer]
        return Encoded([part.numpy() for part in memory[:3]], [part.numpy() for part in state])

    def step(self, tokens, encoded):
        memory, state = (tuple(map(torch.from_numpy, map(np.ascontiguousarray, parts))) for parts in encoded)
        logits, *new = self.graph(torch.from_numpy(tokens), memory, state)
        return logits.numpy(), [part.numpy() for part in new]


def ending(make, **config):
    """A model whose hypotheses end after few or many tokens, so that the normalisation matters."""
    model = make(vocabulary=30, scale=6.0, **config)
    with torch.no_grad():
        model.output.bias.mul_(0.3)
        model.output.bias[SPECIAL.eos] = 1.0
    return model


def both(model, batch, options):
    """What the runner's search and torch's find."""
    source, lengths = batch.source, batch.source_lengths
    found = beam_search(TorchGraphs(model), source.numpy(), lengths.numpy(), Settings(**options), SPECIAL)
    return found, search_of_torch(decoding_form(model), source, lengths, SearchConfig(**options))


@pytest.mark.parametrize("options", SEARCHES)
@pytest.mark.parametrize("shape", [{}, {"cell": "lstm", "decoder_layers": 2}])
def test_the_search_is_that_of_the_toolkit(tiny_model, shape, options):
    lengths = set()
    for seed in range(4, 8):
        model = ending(tiny_model, seed=seed, **shape)
        found, expected = both(model, random_batch(20, 30, 9, seed=seed, shortest=1), options)
        for one, other in zip(found, expected, strict=True):
            assert [h.tokens for h in one] == [h.tokens for h in other]
            assert [h.score for h in one] == pytest.approx([h.score for h in other], abs=1e-4)
            assert [h.log_probability for h in one] == pytest.approx([h.log_probability for h in other], abs=1e-4)
            lengths.update(len(h.tokens) for h in one)
    assert len(lengths) > 1, "hypotheses of one length would not tell the normalisations apart"


def test_the_searches_differ(tiny_model):
    """Or the test above would hold with any of them."""
    batch = random_batch(20, 30, 9, shortest=1)
    models = [ending(tiny_model, seed=seed) for seed in range(4)]
    found = [str([both(model, batch, options)[0] for model in models]) for options in SEARCHES]
    tokens = {re.sub(r"(log_probability|score)=\S+", "", one) for one in found}
    assert len(tokens) == len(SEARCHES)


def test_as_many_hypotheses_as_there_are(tiny_model):
    """A vocabulary of two words, a beam of nine, and one token at most."""
    model = tiny_model(vocabulary=6)
    found, expected = both(model, random_batch(3, 6, 4), {"beam_size": 9, "n_best": 9, "max_ratio": 0, "max_extra": 1})
    assert [[h.tokens for h in one] for one in found] == [[h.tokens for h in one] for one in expected] == [[[]]] * 3


@pytest.mark.parametrize("vocabulary", [5, 2047, 2048, 8011])
@pytest.mark.parametrize("size", [1, 8, 13])
def test_largest_entries(vocabulary, size):
    rows = np.random.default_rng(vocabulary).normal(size=(7, 3, vocabulary)).astype(np.float32)
    rows[0, 0, -1] = 50
    size = min(size, vocabulary)
    found = _largest(rows, size)
    assert found.shape == (7, 3, size) and found[0, 0].max() == vocabulary - 1
    values = np.sort(np.take_along_axis(rows, found, axis=2), axis=2)
    np.testing.assert_array_equal(values, np.sort(rows, axis=2)[..., -size:])


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_log_normaliser(scale):
    rows = np.random.default_rng(0).normal(size=(5, 40, 900)) * scale
    expected = torch.from_numpy(rows).logsumexp(dim=2).numpy()
    np.testing.assert_allclose(_log_normaliser(rows.astype(np.float32)), expected, atol=1e-5, rtol=1e-6)


def test_settings_are_those_of_the_toolkit():
    known = {field.name: field.default for kind in (SearchConfig, LengthLimit) for field in dataclasses.fields(kind)}
    for field in dataclasses.fields(Settings):
        assert known.get(field.name, 4096) == field.default, field.name
    for name, alpha in (("none", 1.0), ("length", 0.7), ("gnmt", 1.3)):
        one, other = (kind(normalization=name, alpha=alpha, min_ratio=0.4) for kind in (Settings, SearchConfig))
        lengths = np.arange(1, 50)
        expected = other.divisor(torch.from_numpy(lengths).float()).numpy()
        np.testing.assert_allclose(one.divisor(lengths), expected, rtol=1e-6)
        assert one.divisor(lengths).dtype == np.float32
        for n in lengths.tolist():
            assert (one.max_length(n), one.min_length(n)) == (other.max_length(n), other.min_length(n))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"beam_size": 0}, "beam_size is 0; give at least 1"),
        ({"batch_tokens": 0}, "batch_tokens is 0"),
        ({"max_pieces": 0}, "max_pieces is 0"),
        ({"n_best": 6}, "n_best is 6, more than beam_size 5"),
        ({"normalization": "mean"}, "choose none, length or gnmt"),
        ({"too_long": "drop"}, "choose truncate or empty"),
        ({"alpha": -1.0}, "alpha is -1.0; give 0 or more"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"max_ratio": 0.0, "max_extra": 0}, "allow no token"),
    ],
)
def test_impossible_settings_are_refused(options, words):
    with pytest.raises(UserError, match=words):
        Settings(**options)


@pytest.mark.parametrize("budget", [1, 7, 20, 1000])
def test_batches_hold_every_line_once_within_the_budget(budget):
    lengths = [3, 9, 1, 4, 4, 2, 9, 5]
    batches = list(_batches(lengths, budget))
    assert sorted(row for batch in batches for row in batch) == list(range(8))
    for batch in batches:
        longest = lengths[batch[0]]
        assert longest == max(lengths[row] for row in batch)
        assert len(batch) == 1 or len(batch) * longest <= budget
    firsts = [lengths[row] for batch in batches for row in batch]
    assert firsts == sorted(firsts, reverse=True)
    assert len(batches) == {1: 8, 7: 7, 20: 3, 1000: 1}[budget]


@pytest.fixture
def folder(tmp_path):
    """A folder as `nmt export` writes it, but for what is in the files."""
    names = {part: f"{part}.bin" for part in PARTS}
    files = {part: part.encode() for part in PARTS}
    for part, name in names.items():
        (tmp_path / name).write_bytes(files[part])
    exported = Exported(files, SPECIAL, Settings(beam_size=3), {"source": "aa", "target": "bb"})
    (tmp_path / CONFIG).write_text(json.dumps(describe(names, exported, "0")))
    assert read_folder(tmp_path) == exported
    return tmp_path


def change(folder, *keys, to):
    config = json.loads((folder / CONFIG).read_text())
    inner = config
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = to
    (folder / CONFIG).write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("keys", "to", "words"),
    [
        (["format"], 2, "has format 2 for onnx, this version reads format 1"),
        (["runtime"], "tea", "has format 1 for tea"),
        (["files", "step", "sha256"], "00", "step.bin is not the file that was exported"),
        (["files", "step", "name"], "../step.bin", "names a file outside of its folder"),
        (["files", "step", "name"], "/etc/passwd", "names a file outside of its folder"),
        (["files", "step", "name"], "link.bin", "names a file outside of its folder"),
        (["files", "step", "name"], "none.bin", "none.bin cannot be read"),
        (["files"], {}, "is damaged"),
        (["settings", "beam"], 3, "is damaged"),
        (["settings", "beam_size"], "many", "is damaged"),
        (["settings", "beam_size"], 0, "beam_size is 0"),
        (["special", "eos"], "end", "is damaged"),
        (["languages"], 3, "is damaged"),
    ],
)
def test_a_folder_that_is_not_as_it_was_is_refused(folder, keys, to, words):
    (folder / "link.bin").symlink_to(folder / "step.bin")
    change(folder, *keys, to=to)
    with pytest.raises(UserError, match=words):
        read_folder(folder)


def test_a_line_end_that_the_model_writes_is_a_space():
    """A vocabulary that spells unknown characters as bytes can spell it; a line stays one."""
    config = VocabularyConfig(size=330, byte_fallback=True, normalization="identity")
    vocabulary = SentencePiece.train(["the red two one blue green my your new old small a"] * 9, config)
    runner = Runner.__new__(Runner)
    runner.settings = Settings()
    runner._source = runner._target = vocabulary._processor
    tokens = vocabulary.ids(["▁red", "<0x0A>", "▁two"])
    runner._search = lambda sources, settings: [[Hypothesis(tokens, -1.0, -1.0)] for _ in sources]
    assert runner.translate(["one"]) == ["red  two"]


def test_a_folder_that_is_none_is_refused(folder):
    with pytest.raises(UserError, match=r"cannot be read .*; give a folder that nmt export wrote"):
        load(folder / "none")
    (folder / "step.bin").write_bytes(b"steq")
    with pytest.raises(UserError, match="step.bin is not the file"):
        load(folder)
    (folder / CONFIG).write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        load(folder)
    (folder / CONFIG).write_text("[]")
    with pytest.raises(UserError, match="is damaged"):
        load(folder)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the following arguments are required: folder; --help tells what is expected"),
        (["none"], "none/config.json cannot be read"),
        (["none", "--beam", "3"], "unrecognized arguments: --beam 3"),
        (["none", "--beam_size", "many"], "argument --beam_size: invalid int value: 'many'"),
        (["none", "--normalization", "mean"], "invalid choice: 'mean'"),
        (["none", "--n_best", "2"], "one line is written a line"),
        (["none", "--threads", "-1"], "threads is -1; give at least 0"),
        (["none", "a", "-o", "./a"], "input and output are both a"),
    ],
)
def test_the_command_line_refuses_in_one_line(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("nmt.runner: ") and err.count("\n") == 1 and message in err
    assert list(tmp_path.iterdir()) == []


def test_help_tells_every_setting(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "most source tokens of a batch, padding counted" in text
    for field in dataclasses.fields(Settings):
        assert f"--{field.name} " in text
