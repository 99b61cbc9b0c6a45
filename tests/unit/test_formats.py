"""Formats of translations: what each holds, and that nothing in a text breaks it."""

import json

import pytest
import torch

from nmt.errors import UserError
from nmt.files.formats import FORMATS, Format, pharaoh
from nmt.translation import NOTHING, Translation

ATTENTION = torch.tensor([[0.1, 0.8, 0.1], [0.7, 0.2, 0.1], [0.2, 0.2, 0.6]])
SOURCE = ["▁the", "▁cat", "</s>"]


def make(text="le chat", score=-0.5, attention=ATTENTION):
    return Translation(text, score, -1.25, SOURCE, ["▁le", "▁chat", "</s>"], [-0.25, -0.123456, -0.9], attention)


def test_each_format_as_it_is_documented():
    found = [make(), make("chat", -0.75)]
    assert Format().render(7, "the cat", found) == "le chat\n"
    assert Format("moses").render(7, "the cat", found) == (
        "6 ||| le chat ||| log_p= -1.2500 length= 3 ||| -0.5000\n6 ||| chat ||| log_p= -1.2500 length= 3 ||| -0.7500\n"
    )
    assert Format("moses", alignment=True).render(1, "", found[:1]).endswith(" ||| -0.5000 ||| 1-0 0-1\n")
    assert Format("tsv").header == "line\tn\tscore\tlog_probability\ttext\n"
    assert Format("tsv").render(7, "the cat", found) == (
        "7\t1\t-0.5000\t-1.2500\tle chat\n7\t2\t-0.7500\t-1.2500\tchat\n"
    )
    table = Format("tsv", alignment=True)
    assert table.header.split()[-1] == "alignment"
    assert table.render(7, "the cat", found[:1]) == "7\t1\t-0.5000\t-1.2500\tle chat\t1-0 0-1\n"
    assert all(not Format(name).header for name in FORMATS if name != "tsv")
    row = json.loads(Format("jsonl", alignment=True, attention=True).render(7, "the cat", found))
    assert (row["line"], row["source"], len(row["translations"])) == (7, "the cat", 2)
    assert row["source_pieces"] == SOURCE, "the columns of the attention"
    best = row["translations"][0]
    assert best.pop("attention") == [[pytest.approx(x) for x in line] for line in ATTENTION.tolist()]
    assert best == {
        "text": "le chat",
        "score": -0.5,
        "log_probability": -1.25,
        "pieces": ["▁le", "▁chat", "</s>"],
        "token_scores": [-0.25, -0.1235, -0.9],
        "alignment": "1-0 0-1",
    }
    plain = json.loads(Format("jsonl").render(7, "the cat", found))["translations"][0]
    assert "source_pieces" not in json.loads(Format("jsonl").render(7, "the cat", found))
    assert "alignment" not in plain and "attention" not in plain


ODD = ["a\nb", "a\tb", "a\r\nb", "a ||| b", "\x00\x1b", "a\u2028b\u2029c\x85d", "", '"\\', "😀 שלום", "a||||b"]


@pytest.mark.parametrize("text", ODD, ids=ascii)
def test_no_text_breaks_a_format(text):
    found = [make(text), make(text, -2)]
    assert Format().render(1, text, found).count("\n") == 1
    rows = Format("tsv", alignment=True).render(1, text, found)
    assert [row.count("\t") for row in rows.split("\n")] == [5, 5, 0]
    rows = Format("moses", alignment=True).render(1, text, found)
    assert [len(row.split(" ||| ")) for row in rows.split("\n")] == [5, 5, 1]
    line = Format("jsonl").render(1, text, found)
    assert len(line.splitlines()) == 1
    row = json.loads(line)
    assert row["source"] == row["translations"][1]["text"] == text


def test_a_blank_line_has_its_place_in_every_format():
    assert pharaoh(NOTHING) == ""
    for name in FORMATS:
        form = Format(name, alignment=name != "text", attention=name == "jsonl")
        assert form.render(3, "", [NOTHING]).count("\n") == 1
    row = json.loads(Format("jsonl", True, True).render(3, " ", [NOTHING]))
    assert row["translations"] == [
        {
            "text": "",
            "score": 0,
            "log_probability": 0,
            "pieces": [],
            "token_scores": [],
            "alignment": "",
            "attention": [],
        }
    ]


def test_what_does_not_go_together():
    for words, message in (
        (("jsnol",), "Did you mean 'jsonl'?"),
        (("text", True), "give --format jsonl, tsv or moses"),
        (("tsv", False, True), "attention has no place in format tsv; give --format jsonl"),
        (("text", False, True), "give --format jsonl"),
    ):
        with pytest.raises(UserError, match=message.replace("?", r"\?")):
            Format(*words)
    with pytest.raises(UserError, match="n_best is 2 .* jsonl, tsv or moses"):
        Format().check(2)
    Format().check(1)
    Format("moses").check(2)
    assert not Format("jsonl").reads_attention and Format("tsv", True).reads_attention
    for name in FORMATS:
        assert Format(name).render(1, "", [make(attention=None)])
    with pytest.raises(ValueError, match="attention=True"):
        pharaoh(make(attention=None))
