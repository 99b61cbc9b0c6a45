import hashlib
import json
import os
import threading
from pathlib import Path

import pytest

from nmt.corpus import card_names, load_card
from nmt.errors import UserError
from nmt.text.pairs import Pairs, bitext_from_files, pairs_from_files

CARD = """
languages: {source: en, target: fr}
splits:
  train: {source: train.en, target: train.fr}
  dev: {tsv: dev.tsv, columns: [2, 0]}
  test: {jsonl: test.jsonl}
"""


@pytest.fixture
def make_card(tmp_path):
    folder = tmp_path / "toy"
    folder.mkdir()
    (folder / "train.en").write_text("one two\n\na b c d e f g\nx\n")
    (folder / "train.fr").write_text("un deux\nvide\na\ny\n")
    (folder / "dev.tsv").write_text("bonjour\t1\thello\n")
    records = [{"translation": {"en": "t\n1", "fr": "T"}}, {"translation": {"en": "t2", "fr": "T2"}}]
    (folder / "test.jsonl").write_text("\n".join(map(json.dumps, records)))

    def make(text=CARD):
        (tmp_path / "toy.yaml").write_text(text)
        return load_card(tmp_path / "toy.yaml")

    return make


def test_reads_every_form_in_both_directions(make_card):
    card = make_card()
    assert (card.name, card.directory.name) == ("toy", "toy")
    assert next(iter(card.read("train"))) == ("one two", "un deux")
    assert list(card.read("dev")) == [("hello", "bonjour")]
    assert list(card.read("test")) == [("t 1", "T"), ("t2", "T2")]
    swapped = card.read("dev", source_language="fr")
    assert list(swapped) == list(card.read("dev", target_language="en")) == [("bonjour", "hello")]
    assert (swapped.source_language, swapped.target_language) == ("fr", "en")


def test_the_filter_touches_train_only(make_card):
    card = make_card(CARD + "filter: {min_words: 1, max_words: 6, max_ratio: 3}\n")
    train = card.read("train")
    assert list(train) == [("one two", "un deux"), ("x", "y")]
    assert train.dropped == {"empty": 1, "too long": 1}
    assert len(make_card(CARD + "filter: {max_ratio: 3}\n").read("train")) == 2
    assert len(make_card(CARD + "filter: {min_words: 3}\n").read("dev")) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (CARD + "licens: x\n", "unknown key 'licens'.*Did you mean 'licence'"),
        (CARD + "filter: {max_wrds: 1}\n", "filter: unknown key 'max_wrds'.*Did you mean 'max_words'"),
        (CARD + "filter: {max_words: ten}\n", "max_words is 'ten'; expected int"),
        (CARD + "  tset: {source: a, target: b}\n", "unknown split 'tset'.*Did you mean 'test'"),
        (CARD + "  test_2: {sorce: a, target: b}\n", "not a way to read a split"),
        (CARD + "  test_2: {source: a, taget: b}\n", "unknown key 'taget'.*Did you mean 'target'"),
        (CARD + "  test_2: {tsv: a, columns: [0, x]}\n", "give two numbers"),
        (CARD.replace("fr}", "no}"), r"languages.target is False; write the code in quotes"),
        (CARD.replace("fr}", "en}"), "both languages are 'en'"),
        ("splits: {}", "the key 'languages' is missing"),
        ("- a", "not a corpus card"),
        ("a: [", "cannot be read as YAML"),
    ],
)
def test_mistakes_in_a_card(make_card, text, message):
    with pytest.raises(UserError, match=message):
        make_card(text)


def test_mistakes_in_a_request(make_card, tmp_path):
    card = make_card()
    with pytest.raises(UserError, match=r"no split 'tran'; it has train, dev, test\. Did you mean 'train'"):
        card.read("tran")
    with pytest.raises(UserError, match="holds en and fr, not 'de'"):
        card.read("train", "de")
    with pytest.raises(UserError, match="both 'en'"):
        card.read("train", "en", "en")
    (tmp_path / "toy/train.en").unlink()
    with pytest.raises(UserError, match=r"train\.en does not exist; put the file there"):
        card.read("train")
    with pytest.raises(UserError, match="run: nmt corpus get toy"):
        make_card(CARD + "fetch: {kind: reverse}\n").read("train")
    with pytest.raises(UserError, match=r"no corpus card 'revers'.*Did you mean 'reverse'"):
        load_card("revers")
    with pytest.raises(UserError, match=r"x\.yaml does not exist"):
        load_card("x.yaml")


def test_damaged_records(make_card, tmp_path):
    card = make_card()
    (tmp_path / "toy/dev.tsv").write_text("a\tb\tc\na\tb\n")
    with pytest.raises(UserError, match=r"dev\.tsv, line 2: 2 column\(s\), but column 2"):
        card.read("dev")
    (tmp_path / "toy/test.jsonl").write_text('{"en": "a", "fr": "b"}\n{')
    with pytest.raises(UserError, match=r"test\.jsonl, line 2: not JSON"):
        card.read("test")
    (tmp_path / "toy/test.jsonl").write_text('{"en": "a", "fr": "b"}\n{"en": "a", "de": "b"}')
    with pytest.raises(UserError, match=r"record 2: no text in 'fr'; the record has en, de"):
        card.read("test")


def test_checksums_of_files(make_card, tmp_path):
    right = hashlib.sha256((tmp_path / "toy/train.en").read_bytes()).hexdigest()
    assert len(make_card(CARD + f"checksums: {{train.en: {right}}}\n").read("train")) == 3
    (tmp_path / "toy/train.en").write_text("1\n2\n3\n4\n")
    with pytest.raises(UserError, match=rf"has sha256 .*, the card says {right}"):
        make_card(CARD + f"checksums: {{train.en: {right}}}\n").read("train")


def test_reads_a_local_data_set_through_datasets(make_card, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "toy" / "mine"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"en": "a\\u2028b", "fr": "c"}\n{"en": "d", "fr": "e"}\n')
    card = make_card(CARD + "  test_hub: {hub: mine, split: train}\n  test_none: {hub: mine, split: dev}\n")
    assert list(card.read("test_hub")) == [("a\u2028b", "c"), ("d", "e")]
    with pytest.raises(UserError, match=r"mine' .*split 'dev'.* cannot be read: Unknown split"):
        card.read("test_none")


def test_a_data_set_is_streamed(make_card, tmp_path, monkeypatch):
    """Nothing is copied into a cache; what is wrong shows on the way."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "toy" / "mine"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"en": "a\\u2028b", "fr": "c"}\n{"en": "d", "fr": "e"}\n')
    card = make_card(CARD + "  test_hub: {hub: mine, split: train}\n  test_none: {hub: mine, split: dev}\n")
    text = card.bitext("test_hub", streaming=True)
    assert list(text) == list(text) == [("a\u2028b", "c"), ("d", "e")]
    assert not list(tmp_path.rglob("*.arrow"))
    assert list(card.bitext("test_hub", "fr", "en")) == [("c", "a\u2028b"), ("e", "d")]
    assert list((tmp_path / "cache").rglob("*.arrow"))
    with pytest.raises(UserError, match=r"mine' .*split 'dev'.* cannot be read: .*split"):
        next(iter(card.bitext("test_none", streaming=True)))
    (folder / "train.jsonl").write_text('{"en": "a", "fr": "c"}\n{"en": "d"')
    with pytest.raises(UserError, match=r"mine' .* cannot be read"):
        list(text)


def test_a_text_is_read_pass_by_pass(make_card, tmp_path, caplog):
    text = make_card(CARD + "filter: {duplicates: false}\n").bitext("train")
    caplog.set_level("INFO")
    assert list(text) == list(text.held()) == list(text.head(9)) and len(text) == 3
    assert text.checksum() == text.held().checksum() and text.dropped == {"empty": 1}
    assert caplog.text.count("toy/train: left out 1 empty by the card's filter") == 1
    assert list(text.head(1)) == list(text.held().head(1)) == [("one two", "un deux")]
    assert next(iter(text.swapped())) == ("un deux", "one two")
    with pytest.raises(UserError, match="record 1: half a character"):
        (tmp_path / "toy/test.jsonl").write_text('{"en": "\\ud83d", "fr": "b"}')
        make_card().read("test")


def test_what_can_be_read_once_is_held(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "b").write_text("1\n2\n")
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=("one\ntwo\n",))
    writer.start()
    text = bitext_from_files(tmp_path / "pipe", tmp_path / "b")
    writer.join()
    assert list(text) == list(text) == [("one", "1"), ("two", "2")]
    assert not isinstance(bitext_from_files(tmp_path / "b", tmp_path / "b"), Pairs)


def test_checksum_of_pairs_depends_on_every_line():
    seen = {
        Pairs(["a", "b"], ["c", "d"], "x").checksum(),
        Pairs(["a", "b"], ["d", "c"], "x").checksum(),
        Pairs(["a", "b", "c"], ["", "", "d"], "x").checksum(),
        Pairs(["c", "d"], ["a", "b"], "x").checksum(),
    }
    assert len(seen) == 4
    assert Pairs(["a", "b"], ["c", "d"], "y", "en", "fr").checksum() in seen


def test_pairs_without_a_card(tmp_path):
    (tmp_path / "a").write_text("1\n2\n")
    assert list(pairs_from_files(tmp_path / "a", tmp_path / "a")) == [("1", "1"), ("2", "2")]
    with pytest.raises(UserError, match="2 source lines, 1 target"):
        Pairs(["a", "b"], ["c"], "x")


def test_every_shipped_card_loads():
    assert {"libreoffice_help", "reverse", "multi30k_en-de", "multi30k_en-fr", "tatoeba_en-fr"} <= set(card_names())
    for name in card_names():
        card = load_card(name)
        assert card.name == name and card.licence and card.homepage and card.description
        assert {"train", "dev", "test"} <= set(card.splits)


def test_a_real_corpus_of_plain_files(tmp_path):
    folder = Path("../shared/corpora/multi30k")
    if not folder.exists():
        pytest.skip("the corpora for measuring are not here")
    (tmp_path / "m.yaml").write_text(
        "languages: {source: en, target: fr}\nsplits: {dev: {source: val.en.gz, target: val.fr.gz}}"
    )
    assert len(load_card(tmp_path / "m.yaml", directory=folder).read("dev")) == 1014


def test_parquet_and_memories_are_splits(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "own").mkdir()
    rows = [{"translation": {"en": "A cat.", "fr": "Un chat."}}, {"translation": {"en": "a\nb", "fr": "c"}}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "own" / "train.parquet")
    pq.write_table(pa.Table.from_pylist([{"a": "x", "b": "y", "c": 1}]), tmp_path / "own" / "dev.parquet")
    (tmp_path / "own" / "test.po").write_text('msgid "A dog."\nmsgstr "Un chien."\n')
    (tmp_path / "own" / "damaged.parquet").write_bytes(b"PAR1")
    (tmp_path / "own.yaml").write_text(
        "languages: {source: en, target: fr}\nsplits:\n  train: {parquet: train.parquet}\n"
        "  dev: {parquet: dev.parquet, columns: [a, b]}\n  test: {memory: test.po}\n"
        "  test_damaged: {parquet: damaged.parquet}\n  test_columns: {parquet: dev.parquet, columns: [a, c]}\n"
    )
    card = load_card(tmp_path / "own.yaml")
    assert list(card.read("train")) == [("A cat.", "Un chat."), ("a b", "c")]
    assert list(card.read("dev")) == [("x", "y")]
    assert list(card.read("test", "fr", "en")) == [("Un chien.", "A dog.")]
    with pytest.raises(UserError, match=r"damaged\.parquet cannot be read as Parquet"):
        card.read("test_damaged")
    with pytest.raises(UserError, match=r"test_columns, record 1: no text in 'c'; the record has a, b, c"):
        card.read("test_columns")


def test_wmt_from_copies_of_the_hub_and_of_sacrebleu(tmp_path, monkeypatch):
    """Files with the schema of the data set on the hub, and a cache as sacreBLEU leaves it."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from sacrebleu.dataset import DATASETS

    folder = tmp_path / "wmt14_en-fr" / "wmt" / "wmt14"
    (folder / "fr-en").mkdir(parents=True)
    rows = [{"translation": {"fr": f"Phrase {n % 4}.", "en": f"Sentence {n % 4}."}} for n in range(6)]
    rows.append({"translation": {"fr": "Jeu 12.", "en": "Jeu 12."}})
    pq.write_table(pa.Table.from_pylist(rows), folder / "fr-en" / "train-00000-of-00001.parquet")
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: fr-en\n  data_files:\n  - split: train\n    path: fr-en/train-*\n---\n"
    )
    for name in ("wmt12", "wmt13", "wmt14/full"):
        cache = tmp_path / "sacrebleu" / name
        cache.mkdir(parents=True)
        monkeypatch.setattr(DATASETS[name], "_outdir", str(cache))
        texts = {"src": f"From {name}.", "ref": f"De {name}.", "docid": "d", "genre": "g", "origlang": "en"}
        for kind, text in texts.items():
            (cache / f"{name.replace('/', '_')}.en-fr.{kind}").write_text(f"{text}\n")
    card = load_card("wmt14_en-fr", tmp_path / "wmt14_en-fr")
    train = card.read("train")
    assert list(train) == [(f"Sentence {n}.", f"Phrase {n}.") for n in range(4)]
    assert train.dropped == {"copy": 1, "duplicate": 2}
    assert list(card.read("dev")) == [("From wmt12.", "De wmt12."), ("From wmt13.", "De wmt13.")]
    assert list(card.read("test")) == [("From wmt14/full.", "De wmt14/full.")]


def test_what_lacks_a_network_names_the_place_of_a_copy(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    card = load_card("wmt14_en-de", tmp_path / "here")
    with pytest.raises(UserError, match=rf"put a copy of the data set into {tmp_path}/here/wmt/wmt14"):
        card.read("train")


@pytest.mark.parametrize(
    "spec, words",
    [("[]", "an empty list is not a way"), ("[{hub: x}, {file: y}]", "'file': 'y'.* is not a way to read a split")],
)
def test_lists_of_specifications(make_card, spec, words):
    with pytest.raises(UserError, match=words):
        make_card(CARD + f"  test_list: {spec}\n")
