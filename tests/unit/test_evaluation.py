"""Scores: the published ones of WMT 2021, and what cannot be scored."""

import json

import pytest

from nmt import cli
from nmt.errors import UserError
from nmt.evaluation import bleu, evaluate
from nmt.lines import read_lines

# BLEU against the references A, B and both, chrF against A; "-" is not published.
PUBLISHED = {
    "Watermelon": (34.4743, 39.8017, 51.8962, 62.3065),
    "Borderline": (34.9179, 39.0291, 51.6283, 62.9061),
    "UF": (33.7980, 40.0609, 51.7937, None),
}


@pytest.fixture(scope="module")
def wmt(corpora):
    folder = corpora / "wmt21_de-en"
    if not folder.is_dir():
        pytest.skip("needs wmt21_de-en")
    return folder


def files(folder, system):
    def one(*words):
        found = [path for path in folder.iterdir() if all(word in path.name for word in words)]
        assert len(found) == 1, (words, found)
        return found[0]

    return one(system), one("ref", "A"), one("ref", "B")


@pytest.mark.parametrize("system", PUBLISHED)
def test_published_scores(wmt, system):
    hypotheses, first, second = (read_lines(path) for path in files(wmt, system))
    *expected, chrf = PUBLISHED[system]
    for references, value in zip(([first], [second], [first, second]), expected, strict=True):
        score = evaluate(hypotheses, references, metrics=["bleu"])[0]
        assert round(score.value, 4) == value
        assert f"nrefs:{len(references)}|case:mixed|eff:no|tok:13a|smooth:exp" in score.signature
    if chrf is not None:
        assert round(evaluate(hypotheses, [first], metrics=["chrf"])[0].value, 4) == chrf


def test_the_command_line_gives_the_same(wmt, capsys):
    hypotheses, first, second = map(str, files(wmt, "Watermelon"))
    with pytest.raises(SystemExit) as ended:
        cli.main(["evaluate", "--hypotheses", hypotheses, "--reference", first, second, "--json"])
    assert not ended.value.code
    found = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in found] == ["BLEU", "chrF2"]
    assert round(found[0]["score"], 4) == 51.8962
    assert found[0]["signature"].startswith("nrefs:2|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    with pytest.raises(SystemExit) as ended:
        cli.main(["evaluate", "--hypotheses", hypotheses, "--reference", first])
    assert not ended.value.code
    printed = capsys.readouterr().out
    assert "BLEU = 34.47" in printed and "chrF2 = 62.31" in printed
    assert printed.count("signature: nrefs:1|case:mixed|eff:") == 2


def test_bleu_of_equal_and_of_different_lines():
    lines = ["the cat sat on the mat", "there is a house in the garden"]
    assert bleu(lines, lines).value == pytest.approx(100)
    assert bleu(["nothing at all here"] * 2, lines).value < 5
    assert str(bleu(lines, lines)).startswith("BLEU = 100.00  nrefs:1|")


def test_case_and_tokeniser_are_in_the_signature():
    lines = ["The cat sat on the mat"]
    lower = [line.lower() for line in lines]
    assert evaluate(lower, [lines])[0].value < 100
    score = evaluate(lower, [lines], lowercase=True, tokenize="char")[0]
    assert score.value == pytest.approx(100) and "case:lc" in score.signature and "tok:char" in score.signature


@pytest.mark.parametrize(
    ("hypotheses", "references", "options", "words"),
    [
        ([], [[]], {}, "There are 0 hypotheses"),
        (["a"], [], {}, "There is no reference"),
        (["a"], [["a"], ["a", "b"]], {}, "Reference 2 has 2 lines and the hypotheses have 1"),
        (
            ["a"],
            [["a"]],
            {"metrics": ["chrff"]},
            "Unknown metric 'chrff'; choose from bleu, chrf, chrf\\+\\+, ter, comet. Did you mean 'chrf'",
        ),
        (["a"], [["a"]], {"tokenize": "13b"}, "Unknown tokeniser '13b'; choose one of 13a"),
    ],
)
def test_what_cannot_be_scored_is_refused(hypotheses, references, options, words):
    with pytest.raises(UserError, match=words):
        evaluate(hypotheses, references, **options)
