"""Blocks of lines from files and pipes: all that is there, nothing that is not, and errors after what stands before."""

import contextlib
import gzip
import io
import os
import threading
import time

import pytest

from nmt.errors import UserError
from nmt.files.blocks import Blocks, SourceText
from nmt.files.pipe import Pipe
from nmt.lines import iterate_lines
from nmt.wishes import Wish


def write(path, lines, end="\n"):
    path.write_text("\n".join(lines) + end, encoding="utf-8")
    return str(path)


def sizes(blocks):
    return [len(block.lines) for block in blocks]


@pytest.fixture
def pipe():
    """A function that makes a pipe: a writing descriptor, and the Blocks that read the other end."""
    ends = []

    def make(size=100):
        reading, writing = os.pipe()
        ends.append(writing)
        blocks = Blocks(SourceText(os.devnull), size)
        blocks._pipe = Pipe(reading)
        blocks._lines = iterate_lines(blocks._pipe)
        return writing, blocks

    yield make
    for end in ends:
        with contextlib.suppress(OSError):
            os.close(end)


def test_a_file_gives_full_blocks(tmp_path):
    lines = [f"line {n}" for n in range(10)]
    for end in ("\n", ""):
        blocks = list(SourceText(write(tmp_path / "a", lines, end)).blocks(4))
        assert sizes(blocks) == [4, 4, 2] and [block.first for block in blocks] == [1, 5, 9]
        assert blocks[-1].last == 10
        assert [line for block in blocks for line in block.lines] == lines
        assert blocks[-1].position == os.path.getsize(tmp_path / "a")
        assert 0 < blocks[0].position <= blocks[1].position
    (tmp_path / "a.gz").write_bytes(gzip.compress("".join(line + "\n" for line in lines).encode()))
    packed = list(SourceText(str(tmp_path / "a.gz")).blocks(4))
    assert [block.lines for block in packed] == [block.lines for block in blocks]
    assert packed[-1].position == os.path.getsize(tmp_path / "a.gz")
    assert [block.digest for block in packed] == [block.digest for block in blocks]
    (tmp_path / "none").write_text("")
    assert list(SourceText(str(tmp_path / "none")).blocks(4)) == []
    with pytest.raises(UserError, match="buffer is 0"):
        SourceText("a").blocks(0)


def test_skipped_lines_have_to_be_those_of_before(tmp_path):
    path = tmp_path / "a"
    text = SourceText(write(path, "abcdefgh"))
    first, second, third = text.blocks(3)
    assert list(text.blocks(3, skip=3, digest=first.digest)) == [second, third]
    assert list(text.blocks(3, skip=6, digest=second.digest)) == [third]
    # What comes later may have changed: a bad line that was mended, say.
    write(path, "abcdefXhijk")
    assert [block.lines for block in text.blocks(3, skip=6, digest=second.digest)] == [["X", "h", "i"], ["j", "k"]]
    write(path, "abXdefgh")
    with pytest.raises(UserError, match="the first 3 lines, which are done, have changed"):
        text.blocks(3, skip=3, digest=first.digest)
    write(path, "ab")
    with pytest.raises(UserError, match="has 2 lines and 3 are done"):
        text.blocks(3, skip=3, digest=first.digest)


def test_wishes_lie_beside_their_lines(tmp_path):
    text = SourceText(
        write(tmp_path / "s", ["one", "two", "three"]),
        prefix=write(tmp_path / "p", ["Il y a", "", " "]),
        include=write(tmp_path / "i", ["", "chat noir\tchien", "\t\t"]),
        exclude=write(tmp_path / "e", ["x", "", "y"]),
    )
    text.check()
    (block,) = text.blocks(5)
    assert block.wishes == [
        Wish("Il y a", (), ("x",)),
        Wish("", ("chat noir", "chien"), ()),
        Wish(" ", (), ("y",)),
    ]
    assert next(SourceText(text.source).blocks(5)).wishes is None
    # A wish that changes among those done is seen, too.
    first = next(text.blocks(2))
    write(tmp_path / "i", ["", "chat noir\tchie", ""])
    with pytest.raises(UserError, match="which are done, have changed"):
        text.blocks(2, skip=2, digest=first.digest)


def test_files_of_other_lengths(tmp_path):
    source, short, long = (write(tmp_path / f"{n}", map(str, range(n))) for n in (3, 2, 4))
    for path, words in ((short, "2 has 2 lines and"), (long, "4 has 4 lines and")):
        with pytest.raises(UserError, match=words):
            SourceText(source, exclude=path).check()
    for path, words, lines in ((short, "3 has more lines than .*2, which has 2", 2),
                               (long, "4 has more lines than .*3, which has 3", 3)):  # fmt: skip
        blocks = SourceText(source, prefix=path).blocks(10)
        assert next(blocks).last == lines
        with pytest.raises(UserError, match=words):
            next(blocks)
    with pytest.raises(UserError, match="can be read once"):
        SourceText("a", prefix="-", include="-")


def test_standard_input_is_called_so(tmp_path, monkeypatch):
    prefix = write(tmp_path / "p", "a")
    cases = {
        b"a\nb\n": "^standard input has more lines than .*p, which has 1",
        b"": "p has more lines than standard input, which has 0",
        gzip.compress(b"a"): r"^standard input is gzipped; unpack it on the way \(zcat FILE",
    }
    for content, words in cases.items():
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
        blocks = SourceText("-", prefix=prefix).blocks(10)
        with pytest.raises(UserError, match=words):
            list(blocks)


def test_a_bad_line_comes_after_those_before_it(tmp_path):
    (tmp_path / "bad").write_bytes(b"a\nb\nc\nd\xff\ne\n")
    for size, expected in ((1, [1, 1, 1]), (2, [2, 1]), (3, [3]), (10, [3])):
        blocks, found = SourceText(str(tmp_path / "bad")).blocks(size), []
        with pytest.raises(UserError, match="bad, line 4: not UTF-8"):
            for block in blocks:
                found.append(block)
        assert sizes(found) == expected


def test_a_pipe_gives_what_is_there(pipe):
    writing, blocks = pipe()
    os.write(writing, b"one\n")
    assert next(blocks).lines == ["one"]
    assert not blocks.ready()
    os.write(writing, b"two\nthree\nfo")
    assert next(blocks).lines == ["two", "three"]
    # Half a line is no line yet.
    assert not blocks.ready()
    os.write(writing, b"ur")
    os.close(writing)
    assert blocks.ready() and next(blocks).lines == ["four"]
    assert blocks.ready() and next(blocks, None) is None


def test_a_pipe_that_waits_is_waited_for(pipe):
    writing, blocks = pipe()
    threading.Timer(0.2, lambda: os.write(writing, b"late\n")).start()
    began = time.monotonic()
    assert next(blocks).lines == ["late"] and time.monotonic() - began > 0.1


def test_a_fast_pipe_is_batched_and_a_long_line_is_put_together(pipe):
    writing, blocks = pipe(50)
    os.write(writing, b"x\n" * 120)
    os.close(writing)
    assert sizes(blocks) == [50, 50, 20]
    writing, blocks = pipe()
    line = "é" * 300_000

    def feed():
        content = f"{line}\nend\n".encode()
        while content:
            content = content[os.write(writing, content[:100_001]) :]
        os.close(writing)

    threading.Thread(target=feed).start()
    assert [text for block in blocks for text in block.lines] == [line, "end"]


def test_a_pipe_with_a_bad_line(pipe):
    writing, blocks = pipe()
    os.write(writing, b"good\nb\xffd\nlater\n")
    assert next(blocks).lines == ["good"]
    assert blocks.ready()
    with pytest.raises(UserError, match="standard input, line 2: not UTF-8"):
        next(blocks)


def test_a_named_pipe_is_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    text = SourceText(str(tmp_path / "fifo"))
    text.check()  # does not wait for a writer

    def feed():
        with open(tmp_path / "fifo", "wb", buffering=0) as file:
            file.write(b"one\n")
            time.sleep(0.3)
            file.write(b"two\n")

    threading.Thread(target=feed).start()
    assert sizes(text.blocks(5)) == [1, 1]
