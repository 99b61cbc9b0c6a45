"""Warnings of tokenised and lower-cased hypotheses: none on real text, one on each kind of damage."""

import re

import pytest

from nmt.evaluation.suspicion import suspicions
from nmt.lines import read_lines


def tokenised(line: str) -> str:
    """As Moses's tokeniser writes a line, roughly."""
    line = re.sub(r"([.,!?;:()\"«»])", r" \1 ", line.replace("'", " &apos;").replace("-", " @-@ "))
    return " ".join(line.split())


def spaced(line: str) -> str:
    """Punctuation set apart, nothing escaped: as NLTK or a regular expression does it."""
    return " ".join(re.sub(r"([.,!?;:()])", r" \1 ", line).split())


def pieces(line: str) -> str:
    return " ".join("▁" + word[:3] + (" " + word[3:] if word[3:] else "") for word in line.split())


def subwords(line: str) -> str:
    return re.sub(r"(\w{4})(\w+)", r"\1@@ \2", line)


REAL = [
    ("wmt21_de-en", "ref.A.en.gz", "hyp.Borderline.en.gz"),
    ("wmt21_de-en", "ref.A.en.gz", "hyp.UF.en.gz"),
    ("wmt21_de-en", "ref.B.en.gz", "hyp.Watermelon.en.gz"),
    ("wmt21_de-en", "ref.A.en.gz", "ref.B.en.gz"),
    ("wmt21_de-en", "ref.B.en.gz", "ref.A.en.gz"),
    *(("newstest", f"newstest{year}.fr.gz", f"newstest{year}.fr.gz") for year in range(2008, 2014)),
    *(("newstest", f"newstest{year}.en.gz", f"newstest{year}.en.gz") for year in range(2008, 2014)),
    *(("multi30k", f"test_2016_flickr.{code}.gz", f"test_2016_flickr.{code}.gz") for code in ("de", "en", "fr")),
    ("tatoeba_enfr", "test.fr.gz", "test.fr.gz"),
]


@pytest.mark.parametrize(("folder", "reference", "hypotheses"), REAL)
def test_real_text_is_trusted_and_its_damage_is_not(corpora, folder, reference, hypotheses):
    if not (corpora / folder).is_dir():
        pytest.skip(f"needs {folder}")
    right, lines = read_lines(corpora / folder / reference), read_lines(corpora / folder / hypotheses)
    # Also against references that hold not a single mark, so that nothing excuses the lines.
    assert suspicions(lines, [right]) == suspicions(lines, [["A clean line."] * len(lines)]) == []
    for damage in (tokenised, spaced, pieces, subwords):
        found = suspicions([damage(line) for line in lines], [right])
        assert len(found) == 1 and "they look tokenised" in found[0], damage
    found = suspicions([line.lower() for line in lines], [right])
    assert len(found) == 1 and "they look lower-cased (a capital in 0% of the lines" in found[0]
    assert len(suspicions([tokenised(line.lower()) for line in lines], [right])) == 2


def test_what_the_references_have_too_is_no_reason_to_warn():
    lines = ["the house , the tree .", "it &apos;s open ."]
    assert suspicions(lines, [lines]) == []
    # One of several references is enough to excuse marks, and none is needed to have no capitals.
    assert suspicions(lines, [["The house, the tree.", "It's open."], lines]) == []


def test_spaces_of_french_and_odd_lines_are_no_marks():
    lines = ["Vraiment ? Oui ! Il a dit : « non » ; puis rien ...", "Environ 1 000 000 - ou .5 %", "", "Quoi"]
    assert suspicions(lines, [["Oui."] * 4]) == []
    # A model that says nothing is not lower-cased, nor is a script without case.
    assert suspicions(["", ""], [["Oui.", "Non."]]) == []
    assert suspicions(["你好。", "再见。"], [["你好。", "再见。"]]) == []
