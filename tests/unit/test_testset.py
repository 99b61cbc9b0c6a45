"""Test sets by name from a cache of sacreBLEU's that is written here; the network is never reached."""

import os
import socket
import subprocess
import sys
import time

import pytest

from nmt.corpus import testset
from nmt.corpus.testset import published_test_set, split_of_card
from nmt.errors import UserError
from tests import ROOT

SOURCE = ["A cat.", "A house & a tree."]
FRENCH = ["Un chat.", "Une maison et un arbre."]
XML = """<?xml version='1.0' encoding='utf-8'?>
<dataset id="newstest2021.de-en"><collection id="general"><doc origlang="de" id="d">
<src lang="de"><p><seg id="1">Eine Katze.</seg><seg id="2">Ein Haus.</seg></p></src>
<ref lang="en" translator="A"><p><seg id="1">A cat.</seg><seg id="2">A house.</seg></p></ref>
<ref lang="en" translator="B"><p><seg id="1">One cat.</seg><seg id="2">One house.</seg></p></ref>
</doc></collection></dataset>
"""


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """sacreBLEU's cache with wmt14/full en-fr and wmt21 de-en as it leaves them; the proxy refuses connections."""
    import sacrebleu.utils
    from sacrebleu.dataset import DATASETS

    folder = tmp_path / "sacre bleu"
    monkeypatch.setattr(sacrebleu.utils, "SACREBLEU_DIR", str(folder))
    for name in ("wmt14", "wmt14/full", "wmt21", "wmt21/AB", "wmt21/systems"):
        monkeypatch.setattr(DATASETS[name], "_outdir", str(folder / name))
        monkeypatch.setattr(DATASETS[name], "_rawdir", str(folder / name / "raw"))
    (folder / "wmt14/full").mkdir(parents=True)
    texts = {"src": SOURCE, "ref": FRENCH, "docid": ["d"] * 2, "genre": ["g"] * 2, "origlang": ["en"] * 2}
    for field, lines in texts.items():
        (folder / f"wmt14/full/wmt14_full.en-fr.{field}").write_text("".join(line + "\n" for line in lines))
    for name in ("wmt21", "wmt21/AB"):
        (folder / name / "raw" / "test").mkdir(parents=True)
        (folder / name / "raw" / f"{name.replace('/', '_')}.test.tgz").write_bytes(b"unpacked already")
        (folder / name / "raw" / "test" / "newstest2021.de-en.xml").write_text(XML)
    # A port that refuses, so that the network counts as unreachable wherever the test runs.
    for variable in ("https_proxy", "http_proxy", "HTTPS_PROXY", "HTTP_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("SACREBLEU", str(folder))
    return folder


def test_sets_of_the_cache(cache):
    found = published_test_set("wmt14/full", "en-fr")
    assert (found.source, found.references) == (SOURCE, [FRENCH])
    assert (found.name, found.target_language) == ("wmt14/full en-fr", "fr")
    assert published_test_set("wmt21", "de-en").references == [["A cat.", "A house."]]
    both = published_test_set("wmt21/AB", "de-en")
    assert sorted(both.references) == [["A cat.", "A house."], ["One cat.", "One house."]]
    assert both.source == ["Eine Katze.", "Ein Haus."]


@pytest.mark.parametrize(
    ("name", "pair", "words"),
    [
        ("wmt14-full", "en-fr", "sacreBLEU knows no test set 'wmt14-full'. Did you mean 'wmt14/full'\\?"),
        ("WMT14", "en-fr", "knows no test set 'WMT14'. Did you mean 'wmt14'\\?"),
        ("wmt14", "fr-de", "language_pair 'fr-de' is not among the pairs of wmt14: cs-en, de-en, en-cs, .*ru-en"),
        ("wmt14", "", "language_pair '' is missing; wmt14 has several pairs: cs-en"),
    ],
)
def test_unknown_names_are_refused(cache, name, pair, words):
    with pytest.raises(UserError, match=words):
        published_test_set(name, pair)


def test_a_set_that_cannot_be_reached(cache):
    """On the command line: fast, one line, with the set, the folder and the alternatives."""
    (cache / "hyp").write_text("Un chat.\n")
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "nmt", "evaluate", "--hypotheses", cache / "hyp", "--test_set", "wmt14",
         "--language_pair", "en-fr"],
        capture_output=True, text=True, cwd=ROOT, env=dict(os.environ),
    )  # fmt: skip
    assert time.monotonic() - began < 30
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("nmt: test set wmt14 en-fr cannot be had (URLError")
    for words in (str(cache / "wmt14"), "SACREBLEU", "--source and --reference", "--corpus CARD"):
        assert words in done.stderr


def test_the_command_line_finds_the_cache(cache):
    (cache / "hyp").write_text("".join(line + "\n" for line in FRENCH))
    done = subprocess.run(
        [sys.executable, "-m", "nmt", "evaluate", "--hypotheses", cache / "hyp", "--test_set", "wmt14/full",
         "--language_pair", "en-fr"],
        capture_output=True, text=True, cwd=ROOT, env=dict(os.environ),
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.startswith("BLEU = 100.00")
    assert done.stderr.startswith("test set wmt14/full en-fr: 2 lines, 1 reference(s), from ")


def test_chinese_is_cut_as_sacrebleu_does(cache):
    """The tokeniser is the one that published scores of such a set have, unless the user says otherwise."""
    xml = XML.replace('lang="de"', 'lang="en"', 1).replace('lang="en" translator', 'lang="zh" translator')
    for english, chinese in {"A cat.": "一只猫。", "A house.": "一所房子。"}.items():
        xml = xml.replace(english, chinese)
    (cache / "wmt21" / "raw" / "test" / "newstest2021.en-zh.xml").write_text(xml, encoding="utf-8")
    (cache / "hyp").write_text("一只猫。\n一所大房子。\n", encoding="utf-8")
    command = [sys.executable, "-m", "nmt", "evaluate", "--hypotheses", cache / "hyp", "--test_set", "wmt21"]
    command += ["--language_pair", "en-zh", "--metrics", "bleu"]
    options = {"capture_output": True, "text": True, "cwd": ROOT, "env": dict(os.environ)}
    done = subprocess.run(command, **options)
    assert done.returncode == 0 and "|tok:zh|" in done.stdout, done.stderr
    done = subprocess.run([*command, "--tokenize", "char"], **options)
    assert done.returncode == 0 and "|tok:char|" in done.stdout, done.stderr


def test_a_silent_server_is_given_up(cache, monkeypatch):
    """A network that swallows everything: sacreBLEU alone would wait for minutes."""
    monkeypatch.setattr(testset, "SILENCE", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        for variable in ("https_proxy", "HTTPS_PROXY"):
            monkeypatch.setenv(variable, f"http://127.0.0.1:{silent.getsockname()[1]}")
        for variable in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(variable, raising=False)
        # urllib reads the variables once a process: whatever downloaded before this test has settled the proxy.
        monkeypatch.setattr("urllib.request._opener", None)
        began = time.monotonic()
        with pytest.raises(UserError, match="wmt14 en-fr cannot be had .*timed out"):
            published_test_set("wmt14", "en-fr")
        assert time.monotonic() - began < 10
    assert socket.getdefaulttimeout() is None, "the limit is for this download only"


def test_damaged_sets_are_told(cache, monkeypatch):
    (cache / "wmt14/full/wmt14_full.en-fr.ref").write_text("Un chat.\n")
    with pytest.raises(UserError, match="wmt14/full en-fr is damaged .source and references have 2, 1 lines.; remove"):
        published_test_set("wmt14/full", "en-fr")

    def broken(url, path, extract_to=None, expected_md5=None):
        import logging

        logging.getLogger("sacrebleu").error("Fatal: MD5 sum of downloaded file was incorrect")
        sys.exit(1)

    monkeypatch.setattr("sacrebleu.dataset.base.download_file", broken)
    with pytest.raises(UserError, match="cannot be had .Fatal: MD5 sum of downloaded file was incorrect.; .*remove"):
        published_test_set("wmt14", "en-fr")


def test_splits_of_cards(tmp_path):
    (tmp_path / "mine").mkdir()
    for name, lines in {"test.en": SOURCE, "test.fr": FRENCH}.items():
        (tmp_path / "mine" / name).write_text("".join(line + "\n" for line in lines))
    card = tmp_path / "mine.yaml"
    card.write_text("languages: {source: en, target: fr}\nsplits:\n  test: {source: test.en, target: test.fr}\n")
    found = split_of_card(str(card), "test")
    assert (found.name, found.source, found.references) == ("mine/test", SOURCE, [FRENCH])
    turned = split_of_card(str(card), "test", "fr-en")
    assert (turned.source, turned.references) == (FRENCH, [SOURCE])
    assert (turned.source_language, turned.target_language) == ("fr", "en")
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match="other/test.en does not exist"):
        split_of_card(str(card), "test", directory=str(tmp_path / "other"))
    with pytest.raises(UserError, match="no split 'tset'.* Did you mean 'test'"):
        split_of_card(str(card), "tset")
    with pytest.raises(UserError, match="language_pair is 'fr'; write source-target"):
        split_of_card(str(card), "test", "fr")
