"""Translation memories of each kind, written by hand."""

import gzip

import pytest

from nmt.corpus.memory import read_memory
from nmt.errors import UserError

TMX = """<?xml version="1.0" encoding="utf-8"?>
<tmx version="1.4"><header srclang="en"/><body>
<tu><tuv xml:lang="en-GB"><seg>A lift.</seg></tuv><tuv xml:lang="fr"><seg>Un <bpt i="1">&lt;b></bpt>ascenseur<ept
i="1">&lt;/b></ept>.</seg></tuv><tuv xml:lang="de"><seg>Ein Aufzug.</seg></tuv></tu>
<tu><tuv xml:lang="de"><seg>Nur deutsch</seg></tuv></tu>
<tu><tuv xml:lang="en-US"><seg>An elevator.</seg></tuv><tuv xml:lang="en"><seg>Lift it.</seg></tuv>
<tuv xml:lang="FR"><seg>Soulève-<hi>le</hi>.</seg></tuv></tu>
<tu><tuv xml:lang="fr"><seg>Deux
lignes</seg></tuv><tuv xml:lang="en"><seg>Two
lines</seg></tuv></tu>
</body></tmx>
"""

PO = """msgid ""
msgstr "Content-Type: text/plain; charset=UTF-8\\n"

msgid "A cat.\\n"
msgstr "Un chat.\\n"

#, fuzzy
msgid "A dog."
msgstr "Un chien ?"

msgid "Not done"
msgstr ""

msgid "%d file"
msgid_plural "%d files"
msgstr[0] "%d fichier"
msgstr[1] "%d fichiers"
"""

XLIFF = """<?xml version="1.0" encoding="utf-8"?>
<xliff version="1.2" xmlns="urn:oasis:names:tc:xliff:document:1.2"><file original="x" source-language="en"
 target-language="fr" datatype="plaintext"><body>
<trans-unit id="1"><source>A cat.</source><target>Un chat.</target></trans-unit>
<trans-unit id="2"><source>Not done</source></trans-unit>
<trans-unit id="3" translate="no"><source>X</source><target>X</target></trans-unit>
<trans-unit id="4"><source>Press <g id="1">OK</g><ph id="2">{0}</ph>.</source>
<target state="translated">Appuyez sur <g id="1">OK</g><ph id="2">{0}</ph>.</target></trans-unit>
<trans-unit id="5"><source>Draft</source><target state="needs-translation">Brouillon</target></trans-unit>
</body></file></xliff>
"""


def test_tmx_holds_texts_by_language(tmp_path, caplog):
    caplog.set_level("INFO")
    path = tmp_path / "memory.tmx"
    path.write_text(TMX, encoding="utf-8")
    found = list(zip(*read_memory(path, ("en", "fr")), strict=True))
    assert found == [("A lift.", "Un ascenseur."), ("Lift it.", "Soulève-le."), ("Two lines", "Deux lignes")]
    assert "memory.tmx: 3 pairs; 1 units without a finished translation were left out" in caplog.text
    assert read_memory(path, ("en-US", "fr"))[0][1] == "An elevator."
    assert read_memory(path, ("de", "fr")) == (["Ein Aufzug."], ["Un ascenseur."])


def test_po_without_what_is_fuzzy(tmp_path):
    path = tmp_path / "fr.po.gz"
    path.write_bytes(gzip.compress(PO.encode()))
    expected = [("A cat.", "Un chat."), ("%d file", "%d fichier"), ("%d files", "%d fichiers")]
    assert list(zip(*read_memory(path, ("en", "fr")), strict=True)) == expected


def test_xliff_without_what_is_to_do(tmp_path):
    path = tmp_path / "a.xlf"
    path.write_text(XLIFF, encoding="utf-8")
    found = list(zip(*read_memory(path, ("en", "fr")), strict=True))
    assert found == [("A cat.", "Un chat."), ("Press OK.", "Appuyez sur OK.")]


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.tmx", TMX[:300], r"a.tmx is not a whole .tmx file"),
        ("a.po", "garbage", r"a.po is not a whole .po file: Syntax error on line 1"),
        ("a.xlf", TMX, r"a.xlf is not a whole .xlf file"),
        ("a.po", None, r"a.po cannot be read: No such file"),
        ("a.doc", "", r"a.doc is not a translation memory that can be read; the kinds are .tmx, .xlf, .xliff, .po"),
    ],
)
def test_what_cannot_be_read(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        read_memory(tmp_path / name, ("en", "fr"))


def test_entities_are_not_opened(tmp_path):
    """A file from someone else cannot read the user's files, nor fill the memory."""
    (tmp_path / "secret").write_text("secret")
    head = f'<?xml version="1.0"?><!DOCTYPE tmx [<!ENTITY e SYSTEM "file://{tmp_path}/secret">'
    head += "".join(f'<!ENTITY l{n + 1} "{f"&l{n};" * 20}">' for n in range(9)) + '<!ENTITY l0 "laugh">]>'
    for entity in ("e", "l9"):
        path = tmp_path / f"{entity}.tmx"
        unit = f'<tuv xml:lang="en"><seg>A &{entity};</seg></tuv><tuv xml:lang="fr"><seg>B</seg></tuv>'
        path.write_text(f'{head}<tmx version="1.4"><header/><body><tu>{unit}</tu></body></tmx>')
        try:
            (source,), _ = read_memory(path, ("en", "fr"))
        except UserError:
            continue
        assert "secret" not in source and len(source) < 10_000


def test_without_the_library_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "translate.storage", None)
    with pytest.raises(UserError, match=r"read by translate-toolkit, which is not installed; pip install 'nmt\[tm\]'"):
        read_memory(tmp_path / "a.po", ("en", "fr"))
