"""What is odd about a text: each kind of fault once, by hand; filters leave out what the check finds."""

import json
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nmt import cli
from nmt.corpus import Filter, load_card
from nmt.corpus.fingerprints import Seen, fingerprints, paired, repeated
from nmt.corpus.inspection import Checks, inspect
from nmt.corpus.language import Expected
from nmt.corpus.oddities import KINDS, oddities
from nmt.errors import UserError
from nmt.lines import write_lines
from nmt.text.pairs import Bitext, Pairs


@pytest.mark.parametrize(
    "text, kinds",
    [
        ("Plain text, 3 < 4 & more; l'été, Straße, 日本語, мир!\ttab", set()),
        ("می\u200cخواهم", set()),
        ("bell\x07", {"control character"}),
        ("line\u2028end", {"control character"}),
        ("soft\u00adhyphen", {"invisible character"}),
        ("\ufeffbegin", {"invisible character"}),
        ("lost \ufffd letter", {"replacement character"}),
        ("icon \ue000", {"private or unassigned"}),
        ("a &amp; b", {"markup"}),
        ("<b>bold</b>", {"markup"}),
        ("Ã©tÃ©", {"mojibake"}),
        ("donâ€™t", {"mojibake"}),
        ("e\u0301te\u0301", {"not NFC"}),
        ("<i>\u200b</i>", {"markup", "invisible character"}),
    ],
)
def test_kinds_of_oddities(text, kinds):
    assert oddities(text) == kinds and kinds <= set(KINDS)


def test_fingerprints_are_equal_where_lines_are():
    lines = ["A  cat.", "a cat.", "A cat!", " a\tcat. ", ""]
    a, b, c, d, e = fingerprints(lines).tolist()
    assert a == b == d and len({a, c, e}) == 3
    one, other = fingerprints(["x", "y", "x"]), fingerprints(["y", "x", "y"])
    pairs = paired(one, other)
    assert pairs[0] == pairs[2] != pairs[1]
    assert repeated(pairs).tolist() == [False, False, True]
    many = fingerprints(map(str, range(100_000)))
    assert len(np.unique(many)) == 100_000 and not repeated(many).any()


FAULTS = [
    ("A cat sleeps.", "Un chat dort."),
    ("", "Rien."),
    ("Same text here", "Same text here"),
    ("a b c d e f g", "a"),
    ("a CAT  sleeps.", "un chat dort."),
    ("A cat sleeps.", "Le chat dort."),
    ("Odd \u200b one", "Drôle"),
    ("In the test.", "Autre chose."),
]


def findings(inspection):
    return {kind: (found.count, found.first) for kind, found in inspection.findings.items() if found.count}


def test_each_fault_is_found_once():
    pairs = Pairs(*map(list, zip(*FAULTS, strict=True)), "x/train", "en", "fr")
    test = Pairs(["in the  test."], ["Dans le test."], "x/test")
    found = inspect(pairs, Checks(), {"test": test})
    assert findings(found) == {
        "empty side": (1, 2),
        "target is the source": (1, 3),
        "far ratio of words": (1, 4),
        "duplicate pair": (1, 5),
        "source again, other target": (1, 6),
        "invisible character": (1, 7),
        "source also in test": (1, 8),
    }
    assert found.findings["markup"].count == 0 and found.pairs == 8
    assert found.words == (25, 17) and found.longest == (7, 3)
    assert inspect(Pairs([], [], "x/dev"), Checks()).pairs == 0


def test_parts_and_processes_make_one_report(monkeypatch):
    draw = random.Random(3)
    words = ["cat", "&amp;", "dog", "\u200b", "house", ""]
    sides = [[" ".join(draw.choices(words, k=draw.randrange(6))) for _ in range(500)] for _ in range(2)]
    pairs = Pairs(*sides, "x/train")
    whole = inspect(pairs, Checks())
    assert inspect(pairs, Checks(), processes=2) == whole
    monkeypatch.setattr("nmt.corpus.inspection._CHUNK", 7)
    assert inspect(pairs, Checks()) == whole
    first = next(n for n, pair in enumerate(pairs, start=1) if any("markup" in oddities(side) for side in pair))
    assert whole.findings["markup"].first == first


def test_languages():
    english, french = Expected("en-GB"), Expected("fr")
    line = "The committee decided to postpone the meeting until next week."
    assert not english.is_other(line) and french.is_other(line)
    assert not french.is_other("The cat"), "too short to tell"
    assert not french.is_other("12 345 678 901 234 567 890 ...")
    with pytest.raises(UserError, match="does not know the language 'xx'"):
        Expected("xx")
    pairs = Pairs([line, line], ["Le comité a décidé de reporter la réunion.", line], "x/train", "en", "fr")
    found = inspect(pairs, Checks(languages=("en", "fr")))
    assert findings(found)["target is not fr"] == (1, 2) and found.findings["source is not en"].count == 0
    dropped = Counter()
    kept = Filter(language=True).sift(pairs, ("en", "fr"), [], dropped)
    assert [pair[1] for pair in kept] == pairs.target[:1] and dropped == {"other language": 1}


def test_without_the_identifier_the_remedy_is_named(monkeypatch):
    from nmt.corpus import language

    language._identifier.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "py3langid.langid", None)
    with pytest.raises(UserError, match=r"py3langid, which is not installed; pip install 'nmt\[corpus\]'"):
        Expected("en")


def test_filters_leave_out_what_the_check_finds(caplog):
    caplog.set_level("INFO")
    pairs = Pairs(*map(list, zip(*FAULTS, strict=True)), "x/train", "en", "fr")
    test = Pairs(["in the  test."], ["Dans le test."], "x/test")

    def sifted(rules, pairs, others=()):
        languages = pairs.source_language, pairs.target_language
        return Bitext(lambda dropped: rules.sift(pairs, languages, others, dropped), "x/train", *languages).held()

    kept = sifted(Filter(max_ratio=3, copies=False, odd=False, duplicates=False, overlap=True), pairs, [test])
    reasons = {"copy": 1, "duplicate": 1, "empty": 1, "in another split": 1, "odd characters": 1, "ratio": 1}
    assert kept.dropped == reasons
    assert list(kept) == [FAULTS[0], FAULTS[5]]
    assert "x/train: left out 1 copy, 1 duplicate, 1 empty" in caplog.text
    again = inspect(kept, Checks(), {"test": test})
    assert set(findings(again)) == {"source again, other target"}
    # Of duplicates the first that is kept counts, not one that was left out before.
    twice = Pairs(["x \u200b", "x \u200b", "y", "y"], ["u", "u", "v", "v"], "x/train")
    assert list(sifted(Filter(odd=False, duplicates=False), twice)) == [("y", "v")]
    assert sifted(Filter(duplicates=False), twice).dropped == {"duplicate": 2}


@given(st.lists(st.lists(st.integers(0, 40), max_size=30), max_size=12))
def test_what_came_before_is_found_part_by_part(parts):
    seen = Seen()
    found = [again for part in parts for again in seen.again(np.array(part, dtype=np.uint64)).tolist()]
    assert found == repeated(np.array([number for part in parts for number in part], dtype=np.uint64)).tolist()
    assert sum(map(len, seen._runs)) == len({number for part in parts for number in part})


def test_a_filter_sees_behind_the_parts_that_it_works_in(monkeypatch):
    pairs = [(f"line {number % 7} here", "ligne" + " x" * (number % 5)) for number in range(60)]
    others = [Pairs(["line 3 here"], ["x"], "toy/dev")]
    rules = Filter(max_words=4, duplicates=False, overlap=True)
    expected = {}
    for pair in pairs:
        if len(pair[1].split()) <= 4 and "3" not in pair[0]:
            expected[pair] = None
    for part in (1, 4, 1000):
        monkeypatch.setattr("nmt.corpus.filter._PART", part)
        dropped = Counter()
        assert list(rules.sift(pairs, ("en", "fr"), others, dropped)) == list(expected)
        assert sum(dropped.values()) == 60 - len(expected) and set(dropped) == {
            "too long", "in another split", "duplicate"
        }  # fmt: skip


@pytest.fixture
def card(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for split, rows in {"train": FAULTS, "test": [("in the test.", "Dans le test.")]}.items():
        for side, lines in zip(("en", "fr"), zip(*rows, strict=True), strict=True):
            write_lines(tmp_path / "own" / f"{split}.{side}", lines)
    text = "languages: {source: en, target: fr}\nsplits:\n"
    text += "".join(f"  {split}: {{source: {split}.en, target: {split}.fr}}\n" for split in ("train", "test"))
    (tmp_path / "own.yaml").write_text(text + "filter: {overlap: true, duplicates: false}\n")
    return tmp_path / "own.yaml"


def run(*words):
    with pytest.raises(SystemExit) as done:
        cli.main(["corpus", *words])
    return done.value.code


def test_the_verb(card, capsys, tmp_path):
    assert run("check", "own.yaml", "--json", "report.json", "--languages") == 0
    printed = capsys.readouterr().out
    assert "duplicate pair" in printed and "1 (12.50%), line 5" in printed and "source is not en" in printed
    train, test = json.loads((tmp_path / "report.json").read_text())
    assert train["name"] == "own/train" and train["findings"]["source also in test"] == {"count": 1, "first": 8}
    assert test["pairs"] == 1 and "source also in test" not in test["findings"]
    assert run("check", "own.yaml", "--filtered") == 0
    assert "1 (12.50%), line 5" not in capsys.readouterr().out
    assert load_card("own.yaml").read("train").dropped == {"duplicate": 1, "empty": 1, "in another split": 1}
    assert len(load_card("own.yaml").read("train", "fr", "en", filtered=False)) == len(FAULTS)


@pytest.mark.parametrize(
    "words, message",
    [
        (["check"], "nmt corpus check needs the name of a card"),
        (
            ["chekc", "own.yaml"],
            "there is no 'nmt corpus chekc'. Did you mean 'check'? Give get, check, prepare or list",
        ),
        (["check", "own.yaml", "--processes", "0"], "processes is 0; give at least 1"),
        (["check", "own.yaml", "--max_ratio", "0.5"], "max_ratio is 0.5; give 1 or more"),
    ],
)
def test_mistakes(card, capsys, words, message):
    assert run(*words) == 2 and message in capsys.readouterr().err.replace('"', "'")
