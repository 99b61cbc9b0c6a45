"""`nmt rescore`: features of models, combination, minimum Bayes risk, and weights that are tuned."""

import gzip
import itertools
import json
import logging

import pytest
from sacrebleu.metrics.bleu import BLEU

from nmt.checkpoint import NAME, save_checkpoint
from nmt.files.formats import Format
from nmt.lines import read_lines
from nmt.nbest import Entry, read_nbest, survey
from nmt.nbest.mbr import choose, choose_translation, posterior
from nmt.nbest.rescoring import Ranking, add_scores, all_names, default_weights, model_names, with_base
from nmt.translation import Translation
from nmt.translator import Translator
from tests.unit.test_cli import refused, run  # noqa: F401
from tests.unit.test_mbr import sentences

SOURCES = ["the cat", "one my two", "", "red"]
LISTS = {
    0: ["red two", "two", "one my", "red two"],
    1: ["cat the my", "", "my"],
    2: ["what", "else"],
    3: ["one two red blue", "the", "two one"],
}


@pytest.fixture(scope="module")
def models(tiny_checkpoint):
    return [tiny_checkpoint(seed=seed) for seed in (0, 5)]


@pytest.fixture
def folder(models, tmp_path, monkeypatch):
    """The current folder, with models, a list, what was translated and references."""
    monkeypatch.chdir(tmp_path)
    for name, checkpoint in zip(("one", "two"), models, strict=True):
        (tmp_path / name).mkdir()
        save_checkpoint(tmp_path / name / NAME, checkpoint)
    (tmp_path / "source").write_text("".join(line + "\n" for line in SOURCES))
    (tmp_path / "reference").write_text("one my\nmy\nelse\nthe\n")
    (tmp_path / "short").write_text("red\n")
    rows = [(sentence, text, place) for sentence, texts in LISTS.items() for place, text in enumerate(texts)]
    (tmp_path / "list").write_text(
        "".join(f"{s} ||| {text} ||| LM= {-p} TM= {p} {s} ||| {-0.1 * p:g}\n" for s, text, p in rows)
    )
    (tmp_path / "plain").write_text("".join(f"{s} ||| {text}\n" for s, text, _ in rows))
    (tmp_path / "weights").write_text('{"weights": {"nmt1": 0.5, "nmt1_length": 2, "TM_1": -0.25}}')
    (tmp_path / "bad").write_text("0 ||| a\nbad\n")
    return tmp_path


def expected_features(models):
    """(log p, length) of every text under every model."""
    found = {}
    for number, checkpoint in enumerate(models, start=1):
        translator = Translator(checkpoint)
        for sentence, texts in LISTS.items():
            for text in texts:
                (one,) = translator.score([SOURCES[sentence]], [text])
                blank = not SOURCES[sentence]
                found[number, sentence, text] = (0.0, 0) if blank else (one.log_probability, len(one.pieces))
    return found


def test_models_add_their_features(folder, models, caplog):
    caplog.set_level(logging.INFO)
    command = ["rescore", "list", "--model", "one", "two/model.safetensors", "--source", "source", "--device", "cpu"]
    assert run(*command, "-o", "best", "--n_best_out", "new.gz") == 0
    assert "score 1 score + 1 nmt1 + 1 nmt2" in caplog.text and "nmt2: log p of two/model" in caplog.text
    features = expected_features(models)
    groups = list(read_nbest("new.gz"))
    assert [len(group) for group in groups] == [4, 3, 2, 3]
    for group in groups:
        for entry in group:
            values = entry.values
            for number in (1, 2):
                log_probability, length = features[number, entry.sentence, entry.text]
                assert values[f"nmt{number}"] == pytest.approx(log_probability, abs=1e-4)
                assert values[f"nmt{number}_length"] == length
            assert entry.score == pytest.approx(values["base"] + values["nmt1"] + values["nmt2"], abs=1e-6)
            assert LISTS[entry.sentence][int(values["TM_1"])] == entry.text and values["base"] == pytest.approx(
                -0.1 * values["TM_1"]
            )
        assert [entry.score for entry in group] == sorted((entry.score for entry in group), reverse=True)
    assert read_lines("best") == [group[0].text for group in groups]
    assert read_lines("best") != [texts[0] for texts in LISTS.values()]
    # What was written is read again, and ranks the same; then the features are there without a model.
    assert run("rescore", "new.gz", "-o", "again") == 0 and read_lines("again") == read_lines("best")


def test_small_blocks_change_nothing(folder, monkeypatch):
    command = ["rescore", "list", "--model", "one", "--source", "source", "--device", "cpu", "-o", "-"]
    for size, name in ((2048, "whole"), (1, "split")):
        monkeypatch.setattr("nmt.nbest.rescoring._BLOCK", size)
        assert run(*command[:-1], name, "--n_best_out", f"{name}.list") == 0
    whole, split = (list(read_nbest(f"{name}.list")) for name in ("whole", "split"))
    for one, other in zip(whole, split, strict=True):
        assert [e.text for e in one] == [e.text for e in other]
        assert [e.score for e in one] == pytest.approx([e.score for e in other], abs=1e-5)


def test_lists_without_end_are_scored_in_blocks(models, monkeypatch):
    monkeypatch.setattr("nmt.nbest.rescoring._BLOCK", 4)
    groups = ([Entry(number, text) for text in LISTS[number % 4]] for number in itertools.count())
    translators = {"nmt1": Translator(models[0])}
    found = list(itertools.islice(add_scores(groups, itertools.cycle(SOURCES), translators), 6))
    features = expected_features(models[:1])
    for number, group in enumerate(found):
        for entry in group:
            expected = features[1, number % 4, entry.text]
            assert (entry.values["nmt1"], entry.values["nmt1_length"]) == pytest.approx(expected, abs=1e-4)


def test_what_a_model_cannot_read_is_no_likelier_than_the_rest_of_its_list(models, monkeypatch, caplog):
    """A decoder with positions for two words and the end; the line of the source is named."""
    translator, told = Translator(models[0]), []
    own = {key[1:]: value for key, value in expected_features(models[:1]).items()}
    monkeypatch.setattr(type(translator.decoder), "most_tokens", 3)
    groups = [[Entry(number, text) for text in texts] for number, texts in LISTS.items()]
    found = list(add_scores(groups, SOURCES, {"nmt1": translator}))
    for number, group in enumerate(found):
        sizes = [len(translator.target_vocabulary.encode([entry.text])[0]) for entry in group]
        known = [own[number, e.text] for e, size in zip(group, sizes, strict=True) if size < 3]
        for entry, size in zip(group, sizes, strict=True):
            expected = own[number, entry.text] if size < 3 else min(known, default=(0, 0))
            assert (entry.values["nmt1"], entry.values["nmt1_length"]) == pytest.approx(expected, abs=1e-4)
            told += [f"line {number + 1}: "] if size >= 3 else []
    assert told and all(any(message.startswith(line) for message in caplog.messages) for line in told)


def test_without_a_model_the_best_of_the_list(folder):
    assert run("rescore", "list", "-o", "best") == 0
    assert read_lines("best") == [texts[0] for texts in LISTS.values()]


def test_weights_combine_features(folder, models):
    command = ["rescore", "list", "--model", "one", "--source", "source", "--device", "cpu", "--weights", "weights"]
    assert run(*command, "-o", "best") == 0
    features = expected_features(models)

    def score(sentence, place):
        log_probability, length = features[1, sentence, LISTS[sentence][place]]
        return 0.5 * log_probability + 2 * length - 0.25 * place

    best = {s: max(range(len(texts)), key=lambda place: score(s, place)) for s, texts in LISTS.items()}
    assert read_lines("best") == [LISTS[sentence][place] for sentence, place in best.items()]


@pytest.mark.parametrize("utility", ["chrf", "bleu"])
def test_minimum_bayes_risk_of_a_list(folder, utility):
    """Weighted by the scores, sharply or not at all, and of samples without any."""
    for name, scale in (("list", 1.0), ("list", 0.0), ("list", 50.0), ("plain", 1.0)):
        assert run("rescore", name, "--mbr", utility, "--mbr_scale", str(scale), "-o", "best") == 0
        expected = []
        for texts in LISTS.values():
            scores = [-0.1 * place if name == "list" else 0.0 for place in range(len(texts))]
            expected.append(texts[choose(texts, utility, posterior(scores, scale))])
        assert read_lines("best") == expected
    assert run("rescore", "list", "--mbr", utility, "--samples", "-o", "same") == 0
    assert run("rescore", "plain", "--mbr", utility, "-o", "best") == 0
    assert read_lines("same") == read_lines("best")


def test_a_list_of_ours_is_weighed_by_log_probabilities(tmp_path, monkeypatch, caplog):
    """By its scores, which are divided by lengths, the two that agree would win; by log_p neither is probable."""
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO)
    found = [("one two red", -2.0), *((f"blue cat {word}", -8.0) for word in ("the", "my", "tea", "thy"))]
    translations = [Translation(text, log_p / 10, log_p, [], ["▁x"] * 10) for text, log_p in found]
    (tmp_path / "own").write_text(Format("moses").render(1, "", translations))
    best = choose_translation(translations).text
    by_score = choose([one.text for one in translations], weights=posterior([one.score for one in translations]))
    assert best == "one two red" and by_score > 0
    assert run("rescore", "own", "--mbr", "chrf", "-o", "best") == 0
    assert read_lines("best") == [best]
    assert "score 1 log_p, minimum Bayes risk by chrf" in caplog.text
    # Without risk, and once ranked anew, a list counts by the scores that somebody chose.
    assert run("rescore", "own", "--n_best_out", "anew", "-o", "best") == 0
    assert default_weights(survey("own"), []) == default_weights(survey("anew"), [], mbr=True) == {"score": 1.0}
    assert default_weights(survey("own"), ["nmt1"], mbr=True) == {"log_p": 1.0, "nmt1": 1.0}


def test_of_equal_risks_the_better_score_wins(tmp_path):
    (tmp_path / "list").write_text("0 ||| a b ||| ||| -2\n0 ||| c d ||| ||| -2\n0 ||| e f ||| ||| -1\n")
    (group,) = read_nbest(tmp_path / "list")
    # Different texts of no common letter: alike but for their weights, and alike altogether.
    assert Ranking({"score": 1.0}, "chrf", 0.0)(group)[0].text == "e f"
    assert [entry.text for entry in Ranking(None, "chrf")(group)] == ["a b", "c d", "e f"]


def test_sentences_without_a_hypothesis_are_empty_lines(folder, caplog):
    (folder / "list").write_text("1 ||| a ||| ||| 1\n1 ||| b ||| ||| 2\n3 ||| c ||| ||| 1\n")
    (folder / "source").write_text("x\n" * 6)
    assert run("rescore", "list", "-o", "best") == 0
    assert read_lines("best") == ["", "b", "", "c"] and "2 sentences have no hypothesis" in caplog.text
    assert run("rescore", "list", "--source", "source", "-o", "best") == 0
    assert read_lines("best") == ["", "b", "", "c", "", ""]


def test_names_of_features(tmp_path):
    (tmp_path / "list").write_text("0 ||| a ||| nmt2= 1 nmt2_length= 3 LM= 1 ||| 2\n")
    found = survey(tmp_path / "list")
    models = model_names(found, 2)
    assert models == ["nmt1", "nmt3"]
    assert all_names(found, models) == ["nmt2", "nmt2_length", "LM", "base", "nmt1", "nmt1_length", "nmt3",
                                        "nmt3_length"]  # fmt: skip
    # The score that a list came with stays what it was when it is ranked again.
    (entry,) = with_base(Ranking({"LM": 5.0})(with_base(next(read_nbest(tmp_path / "list")))))
    assert entry.score == 5 and entry.values["base"] == 2


def test_tuned_weights_make_a_better_bleu(folder):
    """On the list as it is and with a model's features, computed now or before; and the weights do what is told."""
    lines, entries = sentences(4, seed=3, words=["red", "two", "one", "my", "cat", "the"]), []
    for number, line in enumerate(lines):
        # The score prefers what the sum of two features tells to be worse.
        for place, text in enumerate([f"{line} the", line, f"my {line[4:]}"]):
            noise = (number * 7 + place * 5) % 11 - 5
            features = f"LM= {(place == 1) + noise} TM= {(place == 1) - noise} {number}"
            entries.append(f"{number} ||| {text} ||| {features} ||| {-place}\n")
    (folder / "list").write_text("".join(entries))
    (folder / "reference").write_text("".join(line + "\n" for line in lines))
    references = read_lines("reference")
    assert run("rescore", "list", "-o", "first") == 0
    before = BLEU().corpus_score(read_lines("first"), [references]).score
    assert run("rescore", "list", "--tune", "--reference", "reference", "--weights", "tuned.json") == 0
    tuned = json.loads((folder / "tuned.json").read_text())
    assert set(tuned["weights"]) == {"base", "LM", "TM_1", "TM_2"} and tuned["seed"] == 1
    assert run("rescore", "list", "--weights", "tuned.json", "-o", "best") == 0
    after = BLEU().corpus_score(read_lines("best"), [references]).score
    assert (tuned["start_bleu"], tuned["bleu"]) == pytest.approx((before, after)) and after > before
    assert after == pytest.approx(100) and tuned["weights"]["TM_2"] == 0
    model = ["--model", "one", "--source", "source", "--device", "cpu"]
    assert run("rescore", "list", *model, "--n_best_out", "new", "-o", "ignored") == 0
    words = ["--tune", "--reference", "reference"]
    assert run("rescore", "list", *model, *words, "--weights", "now.json") == 0
    assert run("rescore", "new", *words, "--weights", "before.json") == 0
    now, earlier = (json.loads((folder / name).read_text()) for name in ("now.json", "before.json"))
    assert list(now["weights"]) == list(earlier["weights"]) == ["LM", "TM_1", "TM_2", "base", "nmt1", "nmt1_length"]
    assert now["bleu"] == pytest.approx(earlier["bleu"]) and now["bleu"] >= now["start_bleu"]
    assert run("rescore", "list", *model, "--weights", "now.json", "-o", "best") == 0
    assert BLEU().corpus_score(read_lines("best"), [references]).score == pytest.approx(now["bleu"])
    assert run("rescore", "list", *model, *words, "--weights", "once_more.json") == 0
    assert (folder / "once_more.json").read_bytes() == (folder / "now.json").read_bytes()


def test_a_sentence_without_hypotheses_counts_for_bleu(folder, caplog):
    """As an empty translation, whose reference makes the corpus longer; which is told."""
    (folder / "list").write_text("1 ||| a b c d e ||| x= 1 ||| 1\n1 ||| a b c d f ||| x= 2 ||| 2\n")
    (folder / "reference").write_text("g h\na b c d e\ni j\n")
    assert run("rescore", "list", "--tune", "--reference", "reference", "--weights", "tuned") == 0
    assert "2 of 3 sentences have no hypothesis and count as empty translations" in caplog.text
    expected = BLEU().corpus_score(["", "a b c d e", ""], [["g h", "a b c d e", "i j"]])
    assert json.loads((folder / "tuned").read_text())["bleu"] == pytest.approx(expected.score)


def test_packed_lists_are_the_same_bytes(folder):
    for name in ("a.gz", "b.gz", "c"):
        assert run("rescore", "list", "--n_best_out", name, "-o", "best") == 0
    assert (folder / "a.gz").read_bytes() == (folder / "b.gz").read_bytes()
    assert gzip.decompress((folder / "a.gz").read_bytes()) == (folder / "c").read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "missing: nbest"),
        (["none"], "none does not exist"),
        (["bad"], "bad, line 2: 'bad' has no |||"),
        (["-"], "read twice"),
        (["one"], "one is read twice; give a file"),
        (["plain"], "no scores to rank by; give --weights"),
        (["list", "--model", "one"], "give --source"),
        (["list", "--model", "none", "--source", "source"], "none does not exist; give a model file"),
        (["list", "--model", "one", "one", "--source", "source"], "one is given twice"),
        (["list", "--source", "short"], "short has 1 lines, but the n-best list goes on to sentence 3"),
        (["list", "--weights", "none"], "none cannot be read (No such file"),
        (["list", "--weights", "short"], "short cannot be read (not JSON"),
        (["list", "--weights", "empty.json"], "holds no weights"),
        (["list", "--weights", "strange.json"], "the weight of LM is 'much'"),
        (["list", "--weights", "typo.json"], "typo.json weighs TM1, which is no feature here. Did you mean 'TM_1'?"),
        (["list", "--weights", "weights"], "weights weighs nmt1, which is no feature here. Features: LM, TM_1"),
        (["list", "--mbr", "blue"], "Unknown utility 'blue'; choose chrf or bleu. Did you mean 'bleu'?"),
        (["list", "--mbr", "bleu", "--mbr_scale", "-1"], "mbr_scale is -1.0"),
        (["list", "--samples"], "--samples is for minimum Bayes risk"),
        (["list", "--samples", "--mbr", "bleu", "--weights", "weights"], "leave out --model and --weights"),
        (["list", "--tune", "--reference", "reference"], "--tune needs --reference"),
        (["list", "--tune", "--weights", "new"], "--tune needs --reference"),
        (["list", "--tune", "--weights", "new", "--reference", "short"], "short has 1 lines, but"),
        (["list", "--tune", "--weights", "new", "--reference", "reference", "-o", "x"], "writes weights alone"),
        (["list", "--tune", "--weights", "list", "--reference", "reference"], "list is read and written"),
        (["list", "--tune", "--weights", "n", "--reference", "reference", "--tokenize", "x"], "Unknown tokeniser 'x'"),
        (["list", "--tune", "--weights", "n", "--reference", "reference", "--restarts", "-1"], "restarts is -1"),
        (["list", "--reference", "reference"], "--reference is for --tune"),
        (["list", "-o", "./list"], "list is read and written"),
        (["list", "-o", "x", "--n_best_out", "./x"], "is to be written twice"),
        (["list", "--n_best_out", "-"], "--n_best_out is a file"),
        (["list", "--batch_tokens", "0"], "batch_tokens is 0"),
        (["list", "-o", "new", "--n_best_out", "short/x"], "cannot be written"),
    ],
)
def test_mistakes_are_one_line(folder, refused, words, message):  # noqa: F811
    (folder / "empty.json").write_text("{}")
    (folder / "typo.json").write_text('{"TM1": 1}')
    (folder / "strange.json").write_text('{"LM": "much"}')
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    logging.disable(logging.INFO)
    try:
        assert message in refused("rescore", *words)
    finally:
        logging.disable(logging.NOTSET)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
