"""Pictures are made, hold what they should, and say what is wrong."""

import pytest
import torch
from matplotlib import rc_context
from matplotlib.text import Text

from nmt.checkpoint import Checkpoint
from nmt.errors import UserError
from nmt.glyphs import drawable
from nmt.plots import BeamStep, draw_attention, draw_beam, draw_curves, save_figure, trace_beam
from nmt.search import SoftSearchConfig
from nmt.text.vocabulary import SentencePiece, VocabularyConfig
from nmt.translation import Translation
from nmt.translator import Translator

LINE = "the cat sees the dog"


@pytest.fixture
def translator(tiny_model) -> Translator:
    lines = ["the cat sees the dog", "a dog sees a cat", "the bird eats", "a cat eats a bird"] * 5
    vocabulary = SentencePiece.train(lines, VocabularyConfig(size=30))
    return Translator(Checkpoint(tiny_model(vocabulary=len(vocabulary)), vocabulary, vocabulary))


def words_of(figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text)]


def test_attention_shows_every_piece(translator):
    translation = translator.search([LINE], attention=True)[0][0]
    words = words_of(draw_attention(translation))
    for piece in [*translation.source_pieces, *translation.pieces]:
        assert piece in words


def test_attention_of_a_blank_line_is_refused(translator):
    with pytest.raises(UserError, match="blank"):
        draw_attention(translator.search([""], attention=True)[0][0])


def test_trace_holds_one_distribution_a_slot(translator):
    trace = trace_beam(translator, LINE, SoftSearchConfig(3, 12, 0.4), steps=6)
    assert 1 <= len(trace) <= 6
    for before, step in zip([None, *trace[:-1]], trace, strict=True):
        assert len(step.pieces) == 3 and step.weights.shape == (3,)
        assert ((step.weights > 0) & (step.weights <= 1 + 1e-6)).all()
        assert step.parents.shape == (3, 1 if before is None else 3)
        torch.testing.assert_close(step.parents.sum(1), torch.ones(3))
        assert step.scores.tolist() == sorted(step.scores.tolist(), reverse=True)


def test_trace_at_temperature_zero_shows_the_beam_itself(translator):
    """Best pieces weigh 1, and the first step shows the three best first tokens of the model."""
    trace = trace_beam(translator, LINE, SoftSearchConfig(3, 12, 1e-6), steps=3)
    torch.testing.assert_close(trace[0].weights, torch.ones(3))
    model, ids = translator.model, translator.source_vocabulary.encode([LINE])[0]
    with torch.no_grad():
        memory = model.encode(torch.tensor([[*ids, 3]]), torch.tensor([len(ids) + 1]))
        logits, _ = model.step(model.embed(torch.tensor([[model.bos]])), model.start(memory), memory)
    logits[..., [model.padding, model.bos]] = -torch.inf
    best = logits[0, 0].topk(3).indices.tolist()
    assert trace[0].pieces == translator.target_vocabulary.pieces(best)


def test_a_trace_with_hard_states_is_the_decoders_search(translator):
    """The best of its hypotheses that ended is the translation; each slot has one parent, as dark as it is kept."""
    trace = trace_beam(translator, LINE, SoftSearchConfig(3, 12, 0.4), steps=40, hard_states=True)
    slots: list[tuple[str, ...]] = [()]
    ended: list[tuple[float, tuple[str, ...]]] = []
    for number, step in enumerate(trace, start=1):
        held = step.scores > -torch.inf
        assert (step.parents[held].count_nonzero(dim=1) == 1).all()
        torch.testing.assert_close(step.parents.sum(1)[held], step.weights[held])
        parents = step.parents.argmax(dim=1).tolist()
        new = [(*slots[parent], piece) for parent, piece in zip(parents, step.pieces, strict=True)]
        scores = step.scores.tolist()
        ended += [(scores[m] / number, new[m][:-1]) for m in range(len(new)) if step.finished[m]]
        slots = new
    assert ended
    best = translator.search([LINE], beam_size=3, max_ratio=0, max_extra=40)[0][0]
    score, pieces = max(ended)
    assert list(pieces) == best.pieces[: len(pieces)] and score == pytest.approx(best.score, abs=1e-4)


def test_beam_picture_shows_slots_and_pieces(translator):
    trace = trace_beam(translator, LINE, SoftSearchConfig(3, 12, 0.4), steps=4)
    words = words_of(draw_beam(trace))
    assert all(piece in words for step in trace for piece in step.pieces)
    assert all(f"slot {slot}" in words for slot in (1, 2, 3))


def test_curves_have_a_line_a_run_and_the_numbers(tmp_path):
    reports = [{"step": 10, "loss": 3.0}, {"step": 10, "dev/bleu": 5.0}, {"step": 20, "loss": 2.0}]
    figure = draw_curves({"first": reports, "second": reports})
    losses, scores = figure.axes
    assert [line.get_label() for line in scores.get_lines()] == ["first", "second"]
    assert losses.get_lines()[0].get_xydata().tolist() == [[10, 3], [20, 2]]
    for name in ("curves.png", "curves.svg", "curves.pdf"):
        save_figure(figure, tmp_path / name)
        assert (tmp_path / name).stat().st_size > 1000


def test_unknown_picture_format_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"\.jpgg|known picture format"):
        save_figure(draw_curves({}), tmp_path / "x.jpgg")
    assert list(tmp_path.iterdir()) == []


def odd_step(*pieces: str) -> BeamStep:
    slots = len(pieces)
    return BeamStep(list(pieces), torch.full((slots,), 0.5), torch.eye(slots), torch.zeros(slots), torch.zeros(slots))


def test_characters_without_a_font_are_boxes_and_told(tmp_path, caplog, recwarn):
    """In one line, where matplotlib would warn of each; $ begins no formula, which could not be read."""
    # No machine has a font for a private character.
    pieces = ["▁$x", "5$_{", "été", "\U0010fffd\t!"]
    for figure in (
        draw_beam([odd_step(*pieces)]),
        draw_attention(Translation("", 0.0, 0.0, pieces, pieces, [], torch.eye(4))),
    ):
        save_figure(figure, tmp_path / "a.png")
        assert {"▁$x", "5$_{", "été", "□□!"} <= set(words_of(figure))
    told = r"no font on this machine has \t, \U0010fffd; the picture shows □ for it"
    assert caplog.messages == [told, told] and not recwarn.list
    caplog.clear()
    save_figure(draw_beam([odd_step("été")]), tmp_path / "a.png")
    assert not caplog.messages


def test_a_font_that_has_a_character_is_found(tmp_path, caplog, recwarn):
    """One of matplotlib's own, where another is the default."""
    with rc_context({"font.family": "cmss10"}):
        drawn, options = drawable(["a", "été ▁я"])
        save_figure(draw_beam([odd_step("▁я")]), tmp_path / "a.png")
    assert drawn == {"a": "a", "été ▁я": "été ▁я"} and options["fontfamily"][0] == "cmss10"
    assert len(options["fontfamily"]) > 1 and not caplog.messages and not recwarn.list
