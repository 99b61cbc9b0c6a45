"""Forced decoding gives what the search gave, line by line, whatever is blank, long or batched."""

import io
import itertools
import json
import logging
import math
import subprocess
import sys

import pytest
import torch

import nmt
from nmt.checkpoint import NAME, save_checkpoint
from nmt.commands.score import _scored
from nmt.errors import UserError
from nmt.files.chunks import chunks
from nmt.lines import read_lines
from nmt.models import Ensemble, decoding_form
from nmt.scoring import Perplexity, score_ids
from nmt.search import SearchConfig, beam_search
from nmt.text.vocabulary import UNK
from nmt.translator import LengthLimit, Translator
from tests.conftest import random_batch
from tests.unit.test_cli import refused, run  # noqa: F401

LINES = ["the cat", "", "one my two", " \t ", "red", "a my the one two red blue green cat", "two"]
FORMULAS = [
    {},
    {"normalization": "none"},
    {"alpha": 0.4},
    {"normalization": "gnmt", "alpha": 0.7},
    {"coverage": 0.3},
    {"normalization": "gnmt", "coverage": 1.5},
]


@pytest.fixture(scope="module")
def translator(tiny_checkpoint):
    return Translator(tiny_checkpoint(joint=False))


def models(tiny_model):
    yield tiny_model()
    yield tiny_model(seed=3, cell="lstm", decoder_layers=2, readout="tanh")
    yield Ensemble([tiny_model(), tiny_model(seed=1, embedding=6)])
    yield decoding_form(tiny_model(decoder_layers=2))
    yield tiny_model().double()


@pytest.mark.parametrize("formula", FORMULAS)
def test_ids_get_the_score_of_the_search(tiny_model, formula):
    """Every hypothesis of every sentence: its scores, its tokens' scores and its attention."""
    batch = random_batch(rows=9, vocabulary=12, longest=8)
    sources = [row[: n - 1].tolist() for row, n in zip(batch.source, batch.source_lengths.tolist(), strict=True)]
    for model in models(tiny_model):
        config = SearchConfig(beam_size=4, n_best=4, **formula)
        found = beam_search(model, batch.source, batch.source_lengths, config, attention=True)
        pairs = [(source, one) for source, several in zip(sources, found, strict=True) for one in several]
        targets = [one.tokens for _, one in pairs]
        for attention in (False, True):
            forced = score_ids(model, [s for s, _ in pairs], targets, config, batch_tokens=40, attention=attention)
            for (_, one), other in zip(pairs, forced, strict=True):
                assert other.tokens == one.tokens
                assert other.score == pytest.approx(one.score, abs=1e-4)
                assert other.log_probability == pytest.approx(one.log_probability, abs=1e-4)
                assert other.token_log_probabilities == pytest.approx(one.token_log_probabilities, abs=1e-4)
                if attention:
                    torch.testing.assert_close(other.attention, one.attention, atol=1e-5, rtol=0)
                else:
                    assert other.attention is None


def test_probabilities_of_all_targets_sum_to_one(tiny_model):
    """Of two tokens at most, in a vocabulary of seven: those that end and those that go on."""
    model = tiny_model(vocabulary=7)
    words = [0, 1, 2, 4, 5, 6]
    ended = [[], *([a] for a in words)]
    going = [[a, b] for a in words for b in words]
    config = SearchConfig(normalization="none")
    found = score_ids(model, [[4, 5]] * (len(ended) + len(going)), [*ended, *going], config)
    total = sum(math.exp(one.log_probability) for one in found[: len(ended)])
    # What goes on after two tokens, whatever comes then: all but the end's own factor.
    total += sum(math.exp(sum(one.token_log_probabilities[:-1])) for one in found[len(ended) :])
    assert total == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("formula", FORMULAS)
def test_pieces_of_a_search_keep_their_score(translator, formula):
    found = translator.search(LINES, n_best=3, beam_size=4, **formula)
    sources = [line for line, several in zip(LINES, found, strict=True) for _ in several]
    several = [one for group in found for one in group]
    scored = translator.score(sources, [o.text for o in several], pieces=[o.pieces for o in several], **formula)
    for one, other in zip(several, scored, strict=True):
        assert other.pieces == one.pieces and other.source_pieces == one.source_pieces and other.text == one.text
        assert other.score == pytest.approx(one.score, abs=1e-4)
        assert other.log_probability == pytest.approx(one.log_probability, abs=1e-4)


def test_text_is_cut_anew(translator):
    """Text has the search's score where its pieces are those that the search wrote, and is told apart where not."""
    pairs = [
        (line, one) for line, group in zip(LINES, translator.search(LINES, n_best=5), strict=True) for one in group
    ]
    sources = [line for line, one in pairs if one.text.strip()]
    found = [one for _, one in pairs if one.text.strip()]
    scored = translator.score(sources, [one.text for one in found])
    vocabulary = translator.target_vocabulary
    for one, other in zip(found, scored, strict=True):
        assert other.pieces == [*vocabulary.pieces(vocabulary.encode([one.text])[0]), "</s>"]
    same = [one.pieces == other.pieces for one, other in zip(found, scored, strict=True)]
    for kept, one, other in zip(same, found, scored, strict=True):
        if kept:
            assert other.score == pytest.approx(one.score, abs=1e-4)
    # Letters instead of a word's own pieces: the same text, another score.
    word = next(piece for piece in vocabulary.pieces(range(4, len(vocabulary))) if piece[0] == "▁" and len(piece) > 2)
    text, letters = word[1:], list(word)
    assert vocabulary.decode(vocabulary.ids(letters)) == text and len(vocabulary.encode([text])[0]) < len(letters)
    whole, spelt = translator.score(["red"] * 2, [text] * 2, pieces=[None, letters])
    assert spelt.pieces == [*letters, "</s>"] and abs(whole.log_probability - spelt.log_probability) > 0.01


def test_blank_sides(translator, monkeypatch):
    sources = ["the cat", "", " ", "the cat", "", "\u3000"]
    targets = ["", "", "\t", "red", "red", "red"]
    empty, *_ = found = translator.score(sources, targets)
    assert [len(one.pieces) for one in found] == [1, 0, 0, len(found[3].pieces), 0, 0]
    assert empty.pieces == ["</s>"] and empty.log_probability < 0
    assert [one.log_probability for one in found[1:3]] == [0, 0] == [one.score for one in found[1:3]]
    assert all(math.isnan(one.score) and math.isnan(one.log_probability) for one in found[4:])
    assert [one.text for one in found] == targets
    # Blank to Python, a piece to SentencePiece: empty, as a source of this is.
    assert translator.target_vocabulary.encode(["\x85"]) != [[]]
    assert translator.score(["the cat"], ["\x85"])[0].log_probability == pytest.approx(empty.log_probability, abs=1e-5)
    monkeypatch.setattr(translator.decoder, "encode", lambda *_: pytest.fail("the model was asked"))
    assert len(translator.score(["", " "], ["red", ""])) == 2 and translator.score([], []) == []


@pytest.mark.parametrize("batch_tokens", [1, 7, 30, 100_000])
def test_order_and_batches_change_nothing(translator, batch_tokens):
    sources = [" ".join(LINES[:n]) for n in range(7)] * 3
    targets = [" ".join(LINES[n % 5 :]) for n in range(21)]
    expected = [translator.score([s], [t])[0] for s, t in zip(sources, targets, strict=True)]
    found = translator.score(sources, targets, batch_tokens=batch_tokens)
    for one, other in zip(expected, found, strict=True):
        assert one.pieces == other.pieces
        assert other.score == pytest.approx(one.score, abs=1e-5, nan_ok=True)


def test_long_sources_are_read_as_the_search_reads_them(translator, caplog):
    line = "the cat one two my red " * 10
    (found,) = translator.search([line], limit=LengthLimit(max_pieces=5))
    (scored,) = translator.score([line], [found[0].text], pieces=[found[0].pieces], limit=LengthLimit(max_pieces=5))
    assert scored.score == pytest.approx(found[0].score, abs=1e-4) and "line 1 has" in caplog.text
    (whole,) = translator.score([line], [found[0].text], pieces=[found[0].pieces])
    assert abs(whole.score - scored.score) > 1e-3
    (none,) = translator.score([line], ["red"], limit=LengthLimit(5, "empty"))
    assert math.isnan(none.score)
    # A target has no limit.
    (long,) = translator.score(["red"], [line * 20])
    assert len(long.pieces) > 600 and math.isfinite(long.score)


def test_mistakes_are_told(translator, tiny_checkpoint):
    for words, message in (
        ((["a"], ["b", "c"]), "1 sources and 2 targets"),
        (("a", ["b"]), r"not one string; give \[source\]"),
    ):
        with pytest.raises(UserError, match=message):
            translator.score(*words)
    with pytest.raises(UserError, match="2 lists of pieces for 1 targets"):
        translator.score(["a"], ["b"], pieces=[None, None])
    with pytest.raises(UserError, match="line 4: the vocabulary has no piece 'qqqq'"):
        translator.score(["a"], ["b"], pieces=[["qqqq"]], first_line=4)
    with pytest.raises(UserError, match="'</s>' stands inside"):
        translator.score(["a"], ["b"], pieces=[["</s>", "</s>"]])
    with pytest.raises(UserError, match="Did you mean 'alpha'"):
        translator.score(["a"], ["b"], alhpa=3)
    with pytest.raises(UserError, match="batch_tokens is 0"):
        translator.score(["a"], ["b"], batch_tokens=0)
    broken = tiny_checkpoint()
    with torch.no_grad():
        broken.model.output.bias.fill_(torch.nan)
    with pytest.raises(UserError, match="not numbers; its training diverged"):
        Translator(broken).score(["the cat"], ["red"])


def test_pieces_have_ids(translator):
    vocabulary = translator.target_vocabulary
    everything = list(range(len(vocabulary)))
    assert vocabulary.ids(vocabulary.pieces(everything)) == everything
    assert vocabulary.ids(["<unk>"]) == [UNK]
    with pytest.raises(ValueError, match="no piece"):
        vocabulary.ids(["<unknown>"])


def test_perplexity_is_that_of_the_validations(translator):
    """exp of the mean negative log-likelihood a token, computed as training reports it."""
    from nmt.objectives.cross_entropy import forced_nll
    from nmt.objectives.objective import shifted
    from nmt.text.batching import pad

    sources, targets = ["the cat", "red two", "one"], ["red", "my two one the", "a a a"]
    perplexity = Perplexity()
    perplexity.add(translator.score([*sources, ""], [*targets, "red"]))
    source, target = (
        pad(translator.source_vocabulary.encode(sources)),
        pad(translator.target_vocabulary.encode(targets)),
    )
    with torch.no_grad():
        features = translator.model.teacher_force(
            shifted(translator.model, target[0]), translator.model.encode(*source)
        )
        nll = forced_nll(translator.model, features, target[0], 0.0)[1]
    assert perplexity.value == pytest.approx(math.exp(nll / target[1].sum()), rel=1e-5)
    assert (perplexity.pairs, perplexity.left_out, perplexity.tokens) == (3, 1, int(target[1].sum()))
    assert "1 blank or too long, left out" in str(perplexity)
    assert math.isnan(Perplexity().value)


# The command


@pytest.fixture
def folder(translator, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_checkpoint(NAME, translator.checkpoint)
    (tmp_path / "source").write_text("".join(line + "\n" for line in LINES))
    (tmp_path / "target").write_text("red\nred\n\n\nthe cat\none two\nmy\n")
    (tmp_path / "short").write_text("red\n")
    return tmp_path


def test_the_verb_writes_what_the_library_finds(folder, translator, caplog):
    caplog.set_level(logging.INFO)
    # Blocks are no different from the whole.
    words = [
        "score",
        NAME,
        "--source",
        "source",
        "--target",
        "target",
        "--device",
        "cpu",
        "--alpha",
        "0.5",
        "--buffer",
        "3",
    ]
    for form in ("tsv", "jsonl", "text"):
        assert run(*words, "--format", form, "-o", form) == 0
    expected = translator.score(LINES, read_lines("target"), alpha=0.5)
    heading, *rows = [line.split("\t") for line in read_lines("tsv")]
    assert heading == ["score", "log_probability", "tokens"]
    assert len(rows) == len(read_lines("text")) == len(LINES)
    records = [json.loads(line) for line in read_lines("jsonl")]
    for one, row, record, text in zip(expected, rows, records, read_lines("text"), strict=True):
        assert float(text) == pytest.approx(one.score, abs=1e-5, nan_ok=True)
        assert [float(row[0]), float(row[1])] == pytest.approx([one.score, one.log_probability], abs=1e-5, nan_ok=True)
        assert int(row[2]) == record["tokens"] == len(one.pieces)
        assert record["pieces"] == one.pieces
        assert record["token_scores"] == pytest.approx(one.token_scores, abs=1e-5)
        assert (record["score"] is None) == math.isnan(one.score)
    perplexity = Perplexity()
    perplexity.add(expected)
    messages = [record.message for record in caplog.records]
    assert "score log p / |y|^0.5" in messages and messages[-1] == str(perplexity)


def test_the_verb_scores_by_what_translates(folder, tiny_checkpoint):
    """Ensembles and precisions: the scores are those of the translations that they make."""
    save_checkpoint("b.safetensors", tiny_checkpoint(joint=False, seed=3))
    words = ["score", NAME, "--source", "source", "--target", "target", "--format", "text", "-o", "scores"]
    found = []
    for flags, options in (
        (["--ensemble", "b.safetensors"], {"ensemble": ["b.safetensors"]}),
        (["--int8"], {"int8": True}),
        (["--dtype", "bfloat16"], {"dtype": "bfloat16"}),
    ):
        assert run(*words, *flags, "--device", "cpu") == 0
        expected = nmt.load(NAME, "cpu", **options).score(LINES, read_lines("target"))
        found.append(list(map(float, read_lines("scores"))))
        assert found[-1] == pytest.approx([one.score for one in expected], abs=1e-5, nan_ok=True)
    assert len(set(map(str, found))) == 3


def test_the_verb_scores_the_pieces_of_a_search(folder):
    """As text, translations may be cut into others than the search wrote."""
    assert run("translate", NAME, "source", "-o", "found", "--format", "jsonl", "--device", "cpu") == 0
    found = [json.loads(line)["translations"][0] for line in read_lines("found")]
    words = ["score", NAME, "--source", "source", "--target", "found", "--jsonl", "--format", "text", "-o", "scores"]
    assert run(*words, "--device", "cpu") == 0
    scores = list(map(float, read_lines("scores")))
    assert scores == pytest.approx([one["score"] for one in found], abs=2e-4)
    (folder / "texts").write_text("".join(one["text"] + "\n" for one in found))
    assert run("score", NAME, "--source", "source", "--target", "texts", "--format", "text", "-o", "cut") == 0
    cut = list(map(float, read_lines("cut")))
    assert cut != pytest.approx(scores, abs=2e-4, nan_ok=True), "the test would not see it"


def test_an_open_pipe_is_scored_line_by_line(folder):
    words = ["--source", "-", "--target", "target", "--format", "text", "--device", "cpu"]
    command = [sys.executable, "-m", "nmt", "score", NAME, *words]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        for line in LINES[:2]:
            process.stdin.write(f"{line}\n".encode())
            process.stdin.flush()
            # Hangs (and runs into the timeout) where the answer waits for more input.
            assert process.stdout.readline()
        process.stdin.close()
        assert process.wait(timeout=60) == 2  # the target has more lines


def test_files_without_end_are_scored_in_blocks(translator):
    pairs = ((line, "red", None) for line in itertools.cycle(LINES))
    blocks = _scored(translator, chunks(pairs, 4), "text", {}, Perplexity())
    found = list(itertools.islice(itertools.chain.from_iterable(blocks), 9))
    expected = translator.score((LINES * 2)[:9], ["red"] * 9)
    assert list(map(float, found)) == pytest.approx([one.score for one in expected], abs=1e-5, nan_ok=True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["score"], "missing: model"),
        (["score", NAME, "--target", "target"], "missing: source"),
        (["score", "none", "--source", "source", "--target", "target"], "none does not exist"),
        (["score", "none", "--source", "source", "--target", "short"], "source has 7 lines and short has 1"),
        (["score", "none", "--source", "nowhere", "--target", "short"], "nowhere does not exist"),
        (["score", "none", "--source", "-", "--target", "-"], "cannot both be standard input"),
        (["score", "none", "--source", "source", "--target", "target", "--format", "tvs"], "Did you mean 'tsv'?"),
        (["score", "none", "--source", "source", "--target", "target", "--alpha", "-1"], "nmt: alpha is -1.0"),
        (["score", "none", "--source", "source", "--target", "target", "--threads", "-1"], "threads is -1"),
        (["score", "none", "--source", "source", "--target", "target", "--beam_size", "2"], "unknown flag --beam_size"),
        (["score", NAME, "--source", "source", "--target", "target", "--int8", "--dtype", "bfloat16"], "two precis"),
        (["score", "none", "--source", "source", "--target", "target", "-o", "./source"], "is read and written"),
        (["score", NAME, "--source", "source", "--target", "target", "--jsonl", "-o", "o"], "line 1 is not what"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(folder, refused, words, message):  # noqa: F811
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert message in refused(*words)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("short", ["source", "target"])
def test_a_side_that_ends_early_on_standard_input(folder, refused, short, monkeypatch):  # noqa: F811
    (folder / "out").write_text("old\n")
    long = "target" if short == "source" else "source"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"red\n")))
    words = [f"--{short}", "-", f"--{long}", long, "-o", "out", "--device", "cpu"]
    logging.disable(logging.INFO)
    try:
        assert "must be the translation of line i" in refused("score", NAME, *words)
    finally:
        logging.disable(logging.NOTSET)
    assert (folder / "out").read_text() == "old\n"
