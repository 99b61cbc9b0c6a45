import dataclasses
import json
import logging
import random
import shutil
import subprocess
import tarfile
import time

import pytest

from nmt.corpus import hub, load_card
from nmt.errors import UserError
from nmt.fetch import fetch, libreoffice
from nmt.fetch.libreoffice import LibreofficeHelp, pair_sentences, pair_trees, read_page, split_help, unpack
from nmt.fetch.reverse import Reverse, generate_reverse
from nmt.fetch.split import Limits, clean_pairs, letters_key, split_pairs

PAGE = """<html><head><title>T</title><script>var p = "<p id='par_id0'>no</p>";</script></head><body>
<h1 id="hd_id1" dir="auto"><a name="x"></a>The &amp; <span class="literal">big</span>
 title</h1>
<p id="par_id2" class="paragraph">Press <span class="switchinline"><span hidden="true" class="MAC"><span
 class="keycode">Command</span></span><span hidden="true"><span class="keycode">Ctrl</span></span></span>+G.<br>Now.</p>
<p id="par_id3" class="code">x = 1</p><pre><code>y = 2</code></pre>
<p class="embedded">No id.</p>
<p id="par_id4" class="tablecontent">twice</p><div><p id="par_id4">again&nbsp;&eacute;</p></div>
<p id="par_id5"><p class="embedded">inner</p> outer</p><p id="bm_module">x</p></body></html>"""


def test_reads_the_texts_of_a_page(tmp_path):
    (tmp_path / "a.html").write_text(PAGE)
    assert dict(read_page(tmp_path / "a.html")) == {
        "hd_id1": ["The & big title"],
        "par_id2": ["Press Ctrl+G. Now."],
        "par_id4": ["twice", "again é"],
        "par_id5": ["outer"],
    }


def test_pairs_by_path_and_id(tmp_path):
    for name, text in [
        (
            "en/sub/a.html",
            '<p id="par_id1">one</p><p id="par_id2">two</p><p id="par_id2">three</p><h2 id="hd_id3">x</h2>',
        ),
        ("fr/sub/a.html", '<h2 id="hd_id3">X</h2><p id="par_id2">deux</p><p id="par_id1">un</p>'),
        ("en/b.html", '<p id="par_id1">alone</p>'),
    ]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    pairs, dropped = pair_trees(tmp_path / "en", tmp_path / "fr")
    assert pairs == [("one", "un"), ("x", "X")]
    assert dropped == {"paragraph missing": 2, "page missing": 1}


def test_sentences_pair_when_they_are_equally_many_and_similar():
    assert pair_sentences("It is. Press it!", 'Il est. "Appuyez !"') == [
        ("It is.", "Il est."),
        ("Press it!", '"Appuyez !"'),
    ]
    whole = ("One. Two.", "Un, deux.")
    assert pair_sentences(*whole) == [whole]
    unlike = ("A. Then comes a very long second sentence.", "Vient la première phrase très longue. B.")
    assert pair_sentences(*unlike) == [unlike]


def test_each_reason_to_drop_is_counted():
    pairs = [
        ("a good line", "une bonne ligne"),
        ("a good line", "une bonne ligne"),
        ("", "x"),
        ("two words", "deux mots"),
        ("word " * 60, "mot " * 60),
        ("Not translated here 1.", "not translated here, 2!"),
        ("12 + 34 = 46", "12 plus 34 = 46"),
        ("short line here", "une ligne bien trop longue pour etre la traduction de cela"),
    ]
    kept, dropped = clean_pairs(pairs, Limits())
    assert kept == pairs[:1]
    reasons = ["repeated", "empty", "too short", "too long", "untranslated", "not words", "ratio"]
    assert dropped == dict.fromkeys(reasons, 1)


def _many_pairs(count, seed):
    generator = random.Random(seed)

    def line(prefix):
        return " ".join(f"{prefix}{generator.choice('abcdefgh') * generator.randint(1, 3)}" for _ in range(6)) + "."

    pairs = {(line("s"), line("t")) for _ in range(count)}
    repeats = {(source, line("t")) for source, _ in sorted(pairs)[::5]}
    near = {(source.upper().replace(" ", " 7 ", 1), line("t")) for source, _ in sorted(pairs)[1::5]}
    return sorted(pairs | repeats | near)


def test_nothing_of_test_or_dev_is_in_training():
    pairs = _many_pairs(1000, 0)
    train, dev, test = split_pairs(pairs, 100, 150)
    assert (len(dev), len(test)) == (100, 150)
    assert sorted(train + dev + test) == pairs
    for side in (0, 1):
        keys = [{letters_key(pair[side]) for pair in part} for part in (train, dev, test)]
        assert not keys[0] & keys[1] and not keys[0] & keys[2] and not keys[1] & keys[2]
    shuffled = random.Random(1).sample(pairs, len(pairs))
    assert [sorted(part) for part in split_pairs(shuffled, 100, 150)] == [
        sorted(train),
        sorted(dev),
        sorted(test),
    ]


def test_a_few_more_pairs_move_few_others():
    pairs = _many_pairs(1000, 0)
    before = set(split_pairs(pairs, 100, 100)[2])
    after = set(split_pairs(sorted({*pairs, *_many_pairs(20, 5)}), 100, 100)[2])
    assert len(before & after) > 85


def test_a_part_of_a_training_line_is_no_test_line():
    part = ("Press the red button now.", "Appuyez sur le bouton rouge.")
    whole = ("Wait. Press the red button, now!", "Attendez un peu, puis appuyez.")
    other = ("Wait until the light is green.", "Attendez que le feu soit vert.")
    train, _, test = split_pairs([part, whole, other], 0, 3)
    assert sorted(test) == sorted([whole, other]) and train == [part]


def test_test_lines_are_ordinary_sentences():
    pairs = [
        ("File - Open - Save", "Fichier - Ouvrir - Sauver"),
        ("An ordinary sentence with words.", "Une phrase de tous les jours."),
    ]
    train, _, test = split_pairs(pairs, 0, 2)
    assert test == pairs[1:] and train == pairs[:1]


def test_help_split_reports_counts():
    parts, dropped = split_help([(f"{s} {s}", t) for s, t in _many_pairs(100, 2)], LibreofficeHelp(dev=5, test=7))
    assert (len(parts["dev"]), len(parts["test"])) == (5, 7)
    assert sum(map(len, parts.values())) > 50
    assert isinstance(dropped, dict)


def test_unpacks_with_and_without_dpkg_deb(tmp_path, monkeypatch):
    (tmp_path / "usr").mkdir()
    (tmp_path / "usr/x.txt").write_text("hello")
    with tarfile.open(tmp_path / "data.tar.xz", "w:xz") as tar:
        tar.add(tmp_path / "usr", "./usr")
    members = {
        "debian-binary": b"2.0\n",
        "control.tar": b"odd",
        "data.tar.xz": (tmp_path / "data.tar.xz").read_bytes(),
    }
    package = b"!<arch>\n"
    for name, content in members.items():
        header = f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n"
        package += header.encode() + content + b"\n" * (len(content) % 2)
    (tmp_path / "p.deb").write_bytes(package)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert (unpack(tmp_path / "p.deb", tmp_path / "tree") / "usr/x.txt").read_text() == "hello"
    (tmp_path / "bad.deb").write_bytes(b"no package")
    with pytest.raises(UserError, match=r"bad\.deb cannot be unpacked here .*install dpkg-deb"):
        unpack(tmp_path / "bad.deb", tmp_path / "tree2")


def test_apt_errors_name_the_alternatives(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"no apt-get.*--corpus reverse.*--corpus multi30k_en-de"):
        libreoffice.download_packages(["x"], tmp_path / "a")
    monkeypatch.undo()
    monkeypatch.setattr(shutil, "which", lambda name: name)
    said = b"Hit:1 somewhere\nE: Unable to locate package x\n"
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 100, said))
    with pytest.raises(UserError, match=r"could not download x: E: Unable to locate package x.*--corpus reverse"):
        libreoffice.download_packages(["x"], tmp_path / "b")


def test_fetches_help_from_packages(tmp_path, monkeypatch):
    pairs = _many_pairs(60, 3)

    def unpacked(packages, work):
        for side in range(len(packages)):
            folder = work / f"tree{side}/usr/share/libreoffice/help/{'xy'[side]}/text"
            folder.mkdir(parents=True)
            folder.joinpath("p.html").write_text(
                "".join(f'<p id="par_id{i}">{p[side]}</p>' for i, p in enumerate(pairs))
            )
        return [work / f"{package}_4%3a7.4_all.deb" for package in packages]

    monkeypatch.setattr(libreoffice, "download_packages", unpacked)
    monkeypatch.setattr(libreoffice, "unpack", lambda archive, folder: folder)
    card = load_card("libreoffice_help", tmp_path / "corpus")
    card = dataclasses.replace(card, fetch={"kind": "libreoffice_help", "dev": 3, "test": 4})
    report = fetch(card)
    assert (report.splits["dev"], report.splits["test"]) == (3, 4)
    assert report.details == {"libreoffice-help-en-us": "4:7.4", "libreoffice-help-fr": "4:7.4"}
    assert len(card.read("test")) == 4
    assert not fetch(card).fetched
    with pytest.raises(UserError, match="names no package for the language 'de'"):
        fetch(dataclasses.replace(card, languages={"source": "en", "target": "de"}), force=True)


def _reverse(tmp_path, **options):
    options = {"kind": "reverse", "train": 60, "dev": 5, "test": 6, **options}
    return dataclasses.replace(load_card("reverse", tmp_path / "corpus"), fetch=options)


def test_reverse_is_reversed_distinct_and_seeded(tmp_path):
    report = fetch(_reverse(tmp_path))
    assert report.splits == {"train": 60, "dev": 5, "test": 6}
    parts = generate_reverse(Reverse(train=3000))
    sources = [source for part in parts.values() for source, _ in part]
    assert len(set(sources)) == len(sources) == 3400
    assert all(source.split() == target.split()[::-1] and 2 <= len(source.split()) <= 8
               for part in parts.values() for source, target in part)  # fmt: skip
    assert parts == generate_reverse(Reverse(train=3000))
    assert parts != generate_reverse(Reverse(train=3000, seed=2))
    with pytest.raises(UserError, match="lines wanted, but only 8 exist"):
        Reverse(lexicon=2, min_words=3, max_words=3)


def test_fetching_twice_does_nothing(tmp_path):
    card = _reverse(tmp_path)
    first = fetch(card)
    times = {path: path.stat().st_mtime_ns for path in card.directory.iterdir()}
    second = fetch(card)
    assert first.fetched and not second.fetched and second.splits == first.splits
    assert times == {path: path.stat().st_mtime_ns for path in card.directory.iterdir()}
    assert "there already, pairs: train 60, dev 5, test 6" in str(second)


@pytest.mark.parametrize("damage", ["file", "record", "option", "missing"])
def test_what_changed_is_fetched_again(tmp_path, damage):
    card = _reverse(tmp_path)
    fetch(card)
    before = card.read("test").checksum()
    if damage == "file":
        (card.directory / "test.forward").write_text("x\n")
    elif damage == "record":
        (card.directory / "fetched.json").write_text(
            json.dumps({"fetch": {}, "files": {}, "dropped": {}, "details": {}})
        )
    elif damage == "option":
        card = _reverse(tmp_path, seed=9)
    else:
        (card.directory / "train.backward").unlink()
    assert fetch(card).fetched
    assert (card.read("test").checksum() == before) == (damage != "option")


def test_files_of_the_user_are_used_and_not_overwritten(tmp_path, caplog):
    card = _reverse(tmp_path)
    card.directory.mkdir()
    for spec in card.splits.values():
        for name in spec.values():
            (card.directory / name).write_text("mine\n")
    with caplog.at_level(logging.INFO):
        assert fetch(card).splits == {"train": 1, "dev": 1, "test": 1}
    assert "put there by hand" in caplog.text
    (card.directory / "train.forward").unlink()
    with pytest.raises(UserError, match=r"holds .*but not train\.forward.*--force"):
        fetch(card)
    assert fetch(card, force=True).splits["train"] == 60


def test_mistakes_in_fetch(tmp_path):
    with pytest.raises(UserError, match=r"fetch.kind is 'revers'.*Did you mean 'reverse'"):
        fetch(_reverse(tmp_path, kind="revers"))
    with pytest.raises(UserError, match=r"unknown key 'sede'.*Did you mean 'seed'"):
        fetch(_reverse(tmp_path, sede=1))
    with pytest.raises(UserError, match="train is 'many'; expected int"):
        fetch(_reverse(tmp_path, train="many"))
    card = dataclasses.replace(_reverse(tmp_path), fetch={"kind": "files"})
    with pytest.raises(UserError, match=r"fetches nothing; put these files there yourself: .*dev\.backward"):
        fetch(card)


def test_a_local_data_set_becomes_files(tmp_path):
    card = load_card("multi30k_en-de", tmp_path / "corpus")
    card = dataclasses.replace(card, fetch={"kind": "hub", "hub": "mine"})
    folder = card.directory / "mine"
    folder.mkdir(parents=True)
    for split in ("train", "validation", "test"):
        rows = [{"en": f"{split} {i}", "de": "x" if i else " "} for i in range(3)]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    report = fetch(card)
    assert report.splits == {"train": 2, "dev": 3, "test": 3} and report.dropped == {"empty": 1}
    assert list(card.read("dev"))[1] == ("validation 1", "x")


def test_an_unreachable_hub_fails_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "_reachable", lambda endpoint: False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    hub_start = time.perf_counter()
    with pytest.raises(UserError, match=r"'nobody/nothing' is not in the local cache.*corpus folder.*--corpus reverse"):
        hub.read_hub("nobody/nothing", "train")
    assert time.perf_counter() - hub_start < 10


def test_a_closed_port_is_not_reachable():
    assert not hub._reachable("http://127.0.0.1:9/")
