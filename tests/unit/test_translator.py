"""Lines in, lines out: as many, in order, whatever they hold and however they are batched."""

import gc
import io
import logging
import subprocess
import sys
import weakref

import pytest
import torch

import nmt
from nmt import decoding
from nmt.checkpoint import NAME, save_checkpoint
from nmt.decoding import search_ids
from nmt.errors import UserError
from nmt.lines import iterate_lines
from nmt.loading import resolve_device
from nmt.search import SearchConfig
from nmt.translator import LengthLimit, Translator

LINES = ["the cat", "", "one my two", " \t ", "red", "a my the one two red blue green cat", "\u3000", "two"]
BLANK = [place for place, line in enumerate(LINES) if not line.strip()]


@pytest.fixture(scope="module")
def translator(tiny_checkpoint):
    return Translator(tiny_checkpoint())


def test_lines_stay_in_order_and_blank_lines_blank(translator, monkeypatch):
    found = translator.translate(LINES)
    assert len(found) == len(LINES)
    assert [place for place, text in enumerate(found) if not text] == BLANK
    assert [translator.translate([line])[0] for line in LINES] == found
    assert translator.translate(LINES[::-1]) == found[::-1]
    assert translator.translate([]) == [] and translator.translate(["", " "]) == ["", ""]
    # Blank lines never reach the model.
    monkeypatch.setattr(translator.decoder, "encode", lambda *_: pytest.fail("the model was asked"))
    assert translator.translate(["", " \t", "\u2028", "\xa0"]) == [""] * 4


@pytest.mark.parametrize("batch_tokens", [1, 7, 20, 100_000])
def test_the_batch_size_changes_nothing(translator, batch_tokens):
    lines = [" ".join(LINES[:n]) for n in range(8)] * 3
    expected = translator.search(lines, n_best=3, attention=True)
    found = translator.search(lines, n_best=3, attention=True, batch_tokens=batch_tokens)
    assert [[t.text for t in ts] for ts in found] == [[t.text for t in ts] for ts in expected]
    for one, other in zip(found, expected, strict=True):
        assert [t.score for t in one] == pytest.approx([t.score for t in other], abs=1e-5)


def test_a_stream_is_the_same_in_chunks(translator, caplog):
    lines = [f"{line} the" for line in LINES] * 3
    at_once = translator.translate(lines)
    for chunk in (1, 5, 1000):
        assert list(translator.stream(iter(lines), chunk=chunk)) == at_once
    # Numbers of lines go on from chunk to chunk.
    list(translator.stream(["a", "a", "a my two"], chunk=2, limit=LengthLimit(max_pieces=2)))
    assert "line 3 has" in caplog.text


def test_odd_characters_do_not_break_lines(translator):
    text = "the\u2028cat\r\none\x00two\r\n\x01\x1b[0m red\x7f\r\nb\x85c\x0bd\x0ce\n\ufeffmy\rcat\nlast".encode()
    lines = list(iterate_lines(io.BytesIO(text)))
    assert len(lines) == 6
    found = list(translator.stream(lines))
    assert len(found) == 6
    assert not any("\n" in line for line in found)


def test_a_long_line_is_reported_and_cut_or_left_empty(translator, caplog):
    words = ("the cat one two my red " * 500)[:10_000]
    lines = ["the cat", words]
    cut = translator.translate(lines, limit=LengthLimit(max_pieces=20))
    assert "line 2 has" in caplog.text and "more than max_pieces 20: translated up to there" in caplog.text
    vocabulary = translator.source_vocabulary
    ids = vocabulary.encode([words])[0][:20]
    expected = search_ids(translator.model, [ids], SearchConfig())[0][0]
    assert cut[1] == translator.target_vocabulary.decode(expected.tokens) != ""
    read = translator.search([words], limit=LengthLimit(max_pieces=20))[0][0].source_pieces
    assert read == [*vocabulary.pieces(ids), "</s>"]
    caplog.clear()
    empty = translator.translate(lines, limit=LengthLimit(max_pieces=20, too_long="empty"))
    assert empty == [cut[0], ""] and "line 2 has" in caplog.text and "left empty" in caplog.text
    caplog.clear()
    assert translator.translate(lines)[0] == cut[0]  # the default limit
    assert "more than max_pieces 256" in caplog.text
    # A line of the very length allowed is no news.
    caplog.clear()
    limit = len(vocabulary.encode(["the cat"])[0])
    translator.translate(["the cat"], limit=LengthLimit(max_pieces=limit))
    assert caplog.text == ""


def test_what_a_translation_tells(translator):
    best, second = translator.search(["the cat"], n_best=2, attention=True, normalization="length", alpha=0.5)[0]
    assert best.score >= second.score and best.pieces != second.pieces
    assert best.source_pieces[-1] == best.pieces[-1] == "</s>"
    assert best.attention.shape == (len(best.pieces), len(best.source_pieces))
    assert best.score == pytest.approx(best.log_probability / len(best.pieces) ** 0.5, abs=1e-5)
    nothing = translator.search([""])[0]
    assert len(nothing) == 1 and nothing[0].text == "" and nothing[0].pieces == []


def test_options_are_fields_of_the_search(translator):
    lines = ["one my two", "the cat"]
    by_name = translator.search(lines, beam_size=2, alpha=0.3)
    assert by_name == translator.search(lines, config=SearchConfig(beam_size=2, alpha=0.3))
    with pytest.raises(UserError, match=r"'beamsize'\. Did you mean 'beam_size'\?"):
        translator.translate(lines, beamsize=3)
    for options, words in (
        ({"beam_size": 0}, "beam_size is 0"),
        ({"batch_tokens": 0}, "batch_tokens is 0"),
    ):
        with pytest.raises(UserError, match=words):
            translator.translate(lines, **options)
    for options, words in (({"max_pieces": 0}, "max_pieces is 0"), ({"too_long": "drop"}, "too_long is 'drop'")):
        with pytest.raises(UserError, match=words):
            LengthLimit(**options)
    with pytest.raises(UserError, match=r"not one string; give \[line\]"):
        translator.translate("the cat")


def test_a_model_that_diverged_is_told(tiny_checkpoint):
    broken = tiny_checkpoint()
    with torch.no_grad():
        broken.model.output.bias.fill_(torch.nan)
    with pytest.raises(UserError, match="not numbers; its training diverged"):
        Translator(broken).translate(["the cat"])


def test_load_takes_a_file_or_a_folder_and_a_device(tiny_checkpoint, translator, tmp_path):
    save_checkpoint(tmp_path / NAME, tiny_checkpoint())
    for path in (tmp_path, tmp_path / NAME, str(tmp_path)):
        assert nmt.load(path, device="cpu").translate(LINES) == translator.translate(LINES)
    for device in ("gpu", "meta:x"):
        with pytest.raises(UserError, match=f"there is no device '{device}'; give auto, cpu or cuda"):
            resolve_device(device)
    with pytest.raises(UserError, match=r"device 'cuda:99' cannot be used .*; give auto or cpu"):
        resolve_device("cuda:99")
    assert resolve_device("cpu") == torch.device("cpu")


def test_the_file_on_the_disk_is_all_that_is_needed(tiny_checkpoint, translator, tmp_path):
    save_checkpoint(tmp_path / NAME, tiny_checkpoint())
    text = "".join(line + "\n" for line in LINES)
    done = subprocess.run(
        [sys.executable, "-m", "nmt", "translate", NAME, "--device", "cpu"],
        input=text.encode(),
        capture_output=True,
        cwd=tmp_path,
    )
    assert done.stdout.decode().split("\n") == [*translator.translate(LINES), ""]
    assert done.stderr.decode() == "beam 5, score log p / |y|^1, float32\n"


@pytest.mark.parametrize("int8", [False, True])
def test_the_weights_that_only_training_needs_can_go(tiny_checkpoint, int8):
    checkpoint = tiny_checkpoint()
    translator = Translator(checkpoint, int8=int8)
    expected = translator.search(LINES, n_best=2)
    # The decoder's part of the target embedding is in its table.
    loaded = weakref.ref(checkpoint.model.target_embedding)
    del checkpoint
    assert loaded() is not None and translator.keep_decoder_alone() is translator
    gc.collect()
    assert loaded() is None
    assert translator.search(LINES, n_best=2) == expected
    assert translator.model is translator.checkpoint.model is translator.decoder


def test_no_warning_for_ordinary_lines(translator, caplog):
    caplog.set_level(logging.DEBUG, logger="nmt")
    translator.translate(LINES)
    assert caplog.text == ""


def test_wider_beams_have_smaller_batches(translator, monkeypatch):
    sizes, search = [], decoding.beam_search
    monkeypatch.setattr(
        decoding, "beam_search", lambda *words, **more: (sizes.append(len(words[1])), search(*words, **more))[1]
    )
    for beam_size in (5, 16, 32, 160):
        found = search_ids(translator.model, [[4, 5, 6]] * 40, SearchConfig(beam_size, max_extra=1), batch_tokens=80)
        assert len(found) == 40
        assert max(sizes) == {5: 20, 16: 20, 32: 10, 160: 2}[beam_size], "4 tokens each, EOS counted once"
        sizes.clear()
