"""N-best lists as Moses and others write them; whatever is wrong is told with file and line."""

import gzip

import pytest

from nmt.errors import UserError
from nmt.nbest import parse_entry, read_nbest, survey

MOSES = (
    "0 ||| the house is small .  ||| LexicalReordering0= -1.5 0 -2 Distortion0= 0 LM0= -20.25 WordPenalty0= -5 ||| "
    "-3.25 ||| 0-0 1-1 ||| 0=0"
)


def test_a_line_of_moses():
    entry = parse_entry(MOSES, "here")
    assert (entry.sentence, entry.text, entry.score) == (0, "the house is small .", -3.25)
    assert entry.features["LexicalReordering0"] == (-1.5, 0, -2) and entry.rest == ("0-0 1-1", "0=0")
    assert entry.values == {
        "LexicalReordering0_1": -1.5, "LexicalReordering0_2": 0, "LexicalReordering0_3": -2, "Distortion0": 0,
        "LM0": -20.25, "WordPenalty0": -5,
    }  # fmt: skip
    again = parse_entry(str(entry), "there")
    assert (again.features, again.score, again.rest) == (entry.features, entry.score, entry.rest)


@pytest.mark.parametrize(
    ("line", "text", "values", "score"),
    [
        ("3 ||| a", "a", {}, None),
        ("3 |||  ", "", {}, None),
        ("3 ||| a |||", "a", {}, None),
        ("3 ||| a ||| -2.5", "a", {}, -2.5),
        ("3 ||| a ||| x= 1", "a", {"x": 1}, None),
        ("3 ||| a ||| ||| -2.5", "a", {}, -2.5),
        ("3 ||| a ||| x= 1 ||| ", "a", {"x": 1}, None),
        ("3|||a|||x=1 y=-2e-3|||7", "a", {"x": 1, "y": -0.002}, 7),
        ("3 ||| a ||| d: 0 lm: -1 -2 ||| 1", "a", {"d": 0, "lm_1": -1, "lm_2": -2}, 1),
        ("3 ||| a: b= c | d ||| x= 1 ||| 1", "a: b= c | d", {"x": 1}, 1),
        ("3 ||| a &#124;&#124;&#124; b &#124; ||| x= 1 ||| 1", "a ||| b &#124;", {"x": 1}, 1),
        ("3 ||| a\u2028b\x85 \u3000 ||| x= 1 ||| 1", "a\u2028b\x85 \u3000", {"x": 1}, 1),
    ],
)
def test_fields_may_lack(line, text, values, score):
    entry = parse_entry(line, "here")
    assert (entry.sentence, entry.text, entry.values, entry.score) == (3, text, values, score)
    again = parse_entry(str(entry), "there")
    assert (again.sentence, again.text, again.values, again.score) == (3, text, values, score)


BAD = [
    ("", "'' has no |||"),
    ("no list at all", "'no list at all' has no |||"),
    ("x ||| a", "the id is 'x'"),
    ("-1 ||| a", "the id is '-1'"),
    ("1_0 ||| a", "the id is '1_0'"),
    ("1.5 ||| a", "the id is '1.5'"),
    ("0 ||| a ||| 1 2 ||| 3", "the value 1 has no name"),
    ("0 ||| a ||| x= ||| 3", "the feature x has no value"),
    ("0 ||| a ||| x= y= 1 ||| 3", "the feature x has no value"),
    ("0 ||| a ||| x= one ||| 3", "a feature is 'one'; give a finite number"),
    ("0 ||| a ||| x= nan ||| 3", "a feature is 'nan'"),
    ("0 ||| a ||| x= 1 ||| -inf", "the score is '-inf'"),
    ("0 ||| a ||| x= 1 ||| 1_0", "the score is '1_0'"),
    ("0 ||| a ||| x= 1 x= 2 ||| 3", "the feature x stands there twice"),
    ("0 ||| a ||| = 1 ||| 3", "a feature has no name"),
    ("0 ||| a ||| x= 1 2 x_1= 2 ||| 3", "two features are named x_1"),
    ("0 ||| a ||| x= 1", "no score, unlike the lines before"),
]


@pytest.mark.parametrize(("line", "message"), BAD)
def test_malformed_lines_are_told_with_their_number(tmp_path, line, message):
    (tmp_path / "list").write_text(f"{MOSES}\n{line}\n{MOSES}\n")
    with pytest.raises(UserError) as error:
        survey(tmp_path / "list")
    assert f"{tmp_path}/list, line 2: " in str(error.value) and message in str(error.value)


def test_lists_are_grouped(tmp_path):
    lines = "".join(f"{i} ||| {i} {j} ||| x= {j} ||| {j}\n" for i, n in ((0, 3), (2, 1), (5, 2)) for j in range(n))
    for name, write in (("list", open), ("list.gz", gzip.open)):
        with write(tmp_path / name, "wt") as stream:
            stream.write(lines)
        groups = list(read_nbest(tmp_path / name))
        assert [[entry.sentence for entry in group] for group in groups] == [[0] * 3, [2], [5] * 2]
        assert groups[2][1].text == "5 1" and groups[2][1].where.endswith("line 6")
        found = survey(tmp_path / name)
        assert (found.names, found.scored, found.sentences, found.entries) == (["x"], True, 6, 6)


def test_only_one_list_is_read_at_a_time(tmp_path):
    (tmp_path / "list").write_text("0 ||| a\n0 ||| b\n1 ||| c\n2 ||| d\nx\n")
    groups = read_nbest(tmp_path / "list")
    assert len(next(groups)) == 2 and len(next(groups)) == 1
    with pytest.raises(UserError, match="line 5"):
        list(groups)


def test_ids_that_go_back_and_files_without_lines(tmp_path):
    (tmp_path / "list").write_text("1 ||| a\n0 ||| b\n")
    with pytest.raises(UserError, match="line 2: sentence 0 comes after 1; sort the list"):
        survey(tmp_path / "list")
    (tmp_path / "list").write_text("")
    with pytest.raises(UserError, match="list is empty"):
        survey(tmp_path / "list")
    with pytest.raises(UserError, match="does not exist"):
        survey(tmp_path / "none")


def test_names_are_those_of_all_lines(tmp_path):
    (tmp_path / "list").write_text("0 ||| a ||| x= 1\n0 ||| b\n4 ||| b ||| y= 1 2\n")
    found = survey(tmp_path / "list")
    assert found.names == ["x", "y_1", "y_2"] and not found.scored and found.sentences == 5
