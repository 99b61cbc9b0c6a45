"""COMET through a stand-in of its command line (options and files as in unbabel-comet 2.2.7), not a real model."""

import sys

import pytest

from nmt.errors import UserError
from nmt.evaluation import evaluate, evaluate_all
from nmt.evaluation.comet import CometConfig, comet_scores

STAND_IN = """#!{python}
import argparse, json, sys
parser = argparse.ArgumentParser(allow_abbrev=False)
parser.add_argument("-s", "--sources")
parser.add_argument("-t", "--translations", nargs="+")
parser.add_argument("-r", "--references")
parser.add_argument("--batch_size", type=int, default=16)
parser.add_argument("--gpus", type=int, default=1)
parser.add_argument("--quiet", action="store_true")
parser.add_argument("--only_system", action="store_true")
parser.add_argument("--to_json", default="")
parser.add_argument("--model", default="Unbabel/wmt22-comet-da")
asked = parser.parse_args()
if asked.model == "none/such":
    sys.exit("Traceback (most recent call last):\\nKeyError: Model 'none/such' not supported.")

def read(path):
    with open(path, encoding="utf-8") as stream:
        return [line.strip() for line in stream.readlines()]

def score(source, translation, reference):
    same = len(set(translation.split()) & set(reference.split())) / max(1, len(reference.split()))
    return 0.9 * same + 0.01 * len(source.split()) + 0.0001 * asked.batch_size

sources, references, found = read(asked.sources), read(asked.references), {{}}
for path in asked.translations:
    rows = [dict(src=s, mt=t, ref=r) for s, t, r in zip(sources, read(path), references)]
    for row in rows:
        row["COMET"] = score(row["src"], row["mt"], row["ref"])
    found[path] = rows
    print(path, "score: %.4f" % (sum(row["COMET"] for row in rows) / len(rows)), sep="\\t")
if asked.model != "writes/nothing":
    with open(asked.to_json, "w", encoding="utf-8") as stream:
        json.dump(found, stream, ensure_ascii=False, indent=4)
"""


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    path = tmp_path_factory.mktemp("comet bin") / "comet-score"
    path.write_text(STAND_IN.format(python=sys.executable))
    path.chmod(0o755)
    return f"'{path}'"


SOURCE = ["eine Katze", "", "das ist ein Haus\rund ein Baum"]
REFERENCE = ["a cat", "b", "this is a house and a tree"]


def test_each_line_of_each_system_is_scored(command):
    systems = [["a cat", "", "this is\ra house"], ["a dog", "b", "tree"]]
    found = comet_scores(systems, SOURCE, REFERENCE, CometConfig(command))
    batch = 0.0016
    assert found[0] == pytest.approx([0.9 + 0.02 + batch, batch, 0.9 * 4 / 7 + 0.07 + batch])
    assert found[1] == pytest.approx([0.45 + 0.02 + batch, 0.9 + batch, 0.9 / 7 + 0.07 + batch])
    # Further words of the command are passed on.
    other = comet_scores(systems, SOURCE, REFERENCE, CometConfig(command + " --gpus 0 --batch_size 116"))
    assert other[0] == pytest.approx([value + 0.01 for value in found[0]])


def test_comet_beside_other_metrics(command):
    comet = CometConfig(command, "Unbabel/XCOMET-XL")
    systems = [["a cat", "b", "this is a house"], ["a cat", "c", "tree"]]
    rows = evaluate_all(systems, [REFERENCE, systems[1]], metrics=["bleu", "comet", "ter"], source=SOURCE, comet=comet)
    for row in rows:
        assert [score.name for score in row] == ["BLEU", "COMET", "TER"]
        assert row[1].value == pytest.approx(sum(row[1].sentences) / 3) and len(row[1].sentences) == 3
        assert row[1].signature == "model:Unbabel/XCOMET-XL|nrefs:1"
        assert str(row[1]) == f"COMET = {row[1].value:.4f}  model:Unbabel/XCOMET-XL|nrefs:1"
        assert row[0].sentences is None
    assert rows[0][1].value > rows[1][1].value, "against the first reference"


@pytest.mark.parametrize(
    ("words", "model", "message"),
    [
        ("no-such-comet", "m", "no command 'no-such-comet'; COMET needs an environment .* pipx install unbabel-comet"),
        ("", "m", "comet_command is empty"),
        ("'", "m", 'comet_command is "\'": No closing quotation'),
        (None, "none/such", "failed with code 1: KeyError: Model 'none/such' not supported"),
        (None, "writes/nothing", "wrote no scores that can be read .* unbabel-comet 2.2 is expected"),
        (" --gpu 0", "m", "failed with code 2: .*unrecognized arguments: --gpu"),
    ],
)
def test_what_goes_wrong_is_told(command, words, model, message):
    whole = command + (words or "") if words is None or words.startswith(" ") else words
    with pytest.raises(UserError, match=message):
        comet_scores([["a"]], ["b"], ["c"], CometConfig(whole, model))


def test_comet_needs_the_source(command):
    with pytest.raises(UserError, match="COMET reads the source text, too"):
        evaluate(["a"], [["a"]], metrics=["comet"], comet=CometConfig(command))
    with pytest.raises(UserError, match="The source has 2 lines and the references have 1"):
        evaluate(["a"], [["a"]], metrics=["comet"], comet=CometConfig(command), source=["a", "b"])
