import fcntl
import logging
import os
import pickle
import random

import numpy as np
import pytest

from nmt.errors import UserError
from nmt.text import encoding
from nmt.text.encoding import EncodedCorpus, encode_pairs
from nmt.text.pairs import Pairs
from nmt.text.vocabulary import SentencePiece, VocabularyConfig


@pytest.fixture(scope="module")
def pairs():
    generator = random.Random(0)
    words = ["the", "cat", "sees", "one", "big", "house", "near", "a", "river"]
    source = [" ".join(generator.choices(words, k=generator.randint(0, 12))) for _ in range(100)]
    source[7] = "the\u2028cat\rsees"
    return Pairs(source, [" ".join(reversed(line.split())) for line in source], "toy")


@pytest.fixture(scope="module")
def vocabularies(pairs):
    return [
        SentencePiece.train(side, VocabularyConfig(size=size))
        for side, size in ((pairs.source, 40), (pairs.target, 45))
    ]


@pytest.fixture(params=[7, 8192])
def corpus(request, pairs, vocabularies, tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, "_CHUNK", request.param)
    yield encode_pairs(pairs, *vocabularies, tmp_path / "cache")


def test_rows_are_what_was_encoded(corpus, pairs, vocabularies):
    assert len(corpus) == len(pairs)
    sources, targets = vocabularies[0].encode(pairs.source), vocabularies[1].encode(pairs.target)
    for i in random.Random(1).sample(range(len(pairs)), len(pairs)):
        assert corpus.source(i).dtype == np.int32
        assert corpus.source(i).tolist() == sources[i]
        assert corpus.target(np.int64(i)).tolist() == targets[i]
        assert corpus.source_line(i) == pairs.source[i]
        assert corpus.target_line(i) == pairs.target[i]
    assert corpus.source_lengths.tolist() == list(map(len, sources))
    assert corpus.target_lengths.tolist() == list(map(len, targets))
    assert corpus.source_lengths.dtype == np.int32
    for outside in (-1, 100):
        with pytest.raises(IndexError, match="of 100"):
            corpus.source(outside)


def test_rows_are_views_and_the_corpus_pickles(corpus):
    row = next(i for i in range(100) if corpus.source_lengths[i])
    assert not corpus.source(row).flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        corpus.source(row)[0] = 1
    copy = pickle.loads(pickle.dumps(corpus))
    assert copy.checksum == corpus.checksum
    assert copy.source(row).tolist() == corpus.source(row).tolist()


def test_the_cache_is_used_and_knows_what_made_it(pairs, vocabularies, tmp_path, monkeypatch):
    first = encode_pairs(pairs, *vocabularies, tmp_path)
    monkeypatch.setattr(encoding, "_write", None)
    assert encode_pairs(pairs, *vocabularies, tmp_path).checksum == first.checksum
    monkeypatch.undo()
    swapped = Pairs(pairs.target, pairs.source, "toy")
    others = [
        encode_pairs(swapped, *vocabularies, tmp_path),
        encode_pairs(pairs, vocabularies[1], vocabularies[1], tmp_path),
    ]
    assert len({first.checksum, *(other.checksum for other in others)}) == 3
    assert len(list(tmp_path.iterdir())) == 3


def test_a_damaged_cache_is_made_again(pairs, vocabularies, tmp_path, caplog):
    path = encode_pairs(pairs, *vocabularies, tmp_path).path
    whole = path.read_bytes()
    wrong_version = whole.replace(b"format\0\0\x01\0\0\0001", b"format\0\0\x01\0\0\0009")
    for damaged in (
        b"",
        whole[:-100],
        whole[: len(whole) // 2],
        b"x" * len(whole),
        whole[:50] + whole[80:],
        wrong_version,
    ):
        if damaged == whole:
            continue
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="not a whole encoded corpus"):
            EncodedCorpus(path)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            again = encode_pairs(pairs, *vocabularies, tmp_path)
        assert "is damaged" in caplog.text
        assert [again.source_line(i) for i in range(100)] == pairs.source
        assert path.read_bytes() == whole
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_ids_outside_of_the_vocabulary_are_damage(pairs, vocabularies, tmp_path, caplog):
    path = encode_pairs(pairs, *vocabularies, tmp_path).path
    largest = int(np.max(EncodedCorpus(path).source_lengths.argmax()))
    row = EncodedCorpus(path).source(largest).tobytes()
    raw = path.read_bytes()
    assert row in raw
    path.write_bytes(raw.replace(row, b"\xff\0\0\0" + row[4:]))
    assert encode_pairs(pairs, *vocabularies, tmp_path).source(largest).tobytes() == row
    assert "outside of the vocabulary" in caplog.text


def test_unknown_pieces_stop_with_an_example(pairs, vocabularies, tmp_path):
    foreign = Pairs([*pairs.source[:20], "猫 the"], [*pairs.target[:20], "the"], "foreign")
    with pytest.raises(UserError, match=r"foreign: \d.*% of the pieces of the source .*than 0.1%.*'猫' in line 21"):
        encode_pairs(foreign, *vocabularies, tmp_path, max_unknown=0.001)
    assert len(encode_pairs(foreign, *vocabularies, tmp_path, max_unknown=1.0)) == 21
    with pytest.raises(UserError, match=r"of the target .*'猫' in line 21.*byte_fallback"):
        encode_pairs(Pairs(foreign.target, foreign.source, "x"), *reversed(vocabularies), tmp_path, max_unknown=0)


def test_no_pairs(vocabularies, tmp_path):
    with pytest.raises(UserError, match="nothing holds no pairs"):
        encode_pairs(Pairs([], [], "nothing"), *vocabularies, tmp_path)


def test_only_empty_lines(vocabularies, tmp_path):
    corpus = encode_pairs(Pairs(["", ""], ["", ""], "blank"), *vocabularies, tmp_path)
    assert corpus.source(1).tolist() == [] and corpus.target_line(0) == ""
    assert corpus.unknown_shares() == (0.0, 0.0)


def test_a_folder_that_cannot_be_written(pairs, vocabularies, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        encode_pairs(pairs, *vocabularies, tmp_path / "file")


class Breaks(SentencePiece):
    """Fails at its n-th call; counts them."""

    calls, at = 0, 0

    def encode(self, lines):
        Breaks.calls += 1
        if Breaks.calls == Breaks.at:
            raise KeyboardInterrupt
        return super().encode(lines)


def test_what_broke_off_is_gone_on_with(pairs, vocabularies, tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, "_CHUNK", 7)
    whole = encode_pairs(pairs, *vocabularies, tmp_path / "whole").path.read_bytes()
    breaking = Breaks(vocabularies[0].model), vocabularies[1]
    # Twice: behind 5 of the 15 chunks, and behind 3 more.
    for at, calls in ((6, 6), (4, 4)):
        Breaks.calls, Breaks.at = 0, at
        with pytest.raises(KeyboardInterrupt):
            encode_pairs(pairs, *breaking, tmp_path / "cache")
        assert Breaks.calls == calls
        (part,) = (tmp_path / "cache").iterdir()
        assert part.suffix == ".part"
    Breaks.calls, Breaks.at = 0, 0
    again = encode_pairs(pairs, *breaking, tmp_path / "cache")
    assert Breaks.calls == 15 - 5 - 3
    assert again.path.read_bytes() == whole and list((tmp_path / "cache").iterdir()) == [again.path]


def test_any_rest_of_a_file_leads_to_the_same_bytes(pairs, vocabularies, tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, "_CHUNK", 7)
    path = encode_pairs(pairs, *vocabularies, tmp_path).path
    whole, part = path.read_bytes(), path.with_name(f"{path.name}.part")
    generator = random.Random(2)
    lengths = [0, 1, 7, 8, 9, len(whole) - 1, len(whole), *generator.sample(range(len(whole)), 40)]
    rests = [whole[:length] for length in lengths]
    # The end of another corpus, and blocks that a crash of the machine has left empty.
    rests += [b"x" * 5_000, whole.replace(b"checksum", b"chicksum"), whole[:3_000] + bytes(len(whole) - 3_000)]
    for rest in rests:
        path.unlink()
        part.write_bytes(rest)
        assert encode_pairs(pairs, *vocabularies, tmp_path).path.read_bytes() == whole, (len(rest), rest[-9:])
    assert list(tmp_path.iterdir()) == [path]


def test_who_finds_the_folder_at_work_begins_anew(pairs, vocabularies, tmp_path):
    folder = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    left = tmp_path / "other.part"
    left.write_bytes(b"theirs")
    corpus = encode_pairs(pairs, *vocabularies, tmp_path)
    assert len(corpus) == len(pairs) and left.read_bytes() == b"theirs"
    assert {path.name for path in tmp_path.iterdir()} == {corpus.path.name, left.name}
    os.close(folder)
