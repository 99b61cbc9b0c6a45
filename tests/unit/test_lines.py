import gzip
import io
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nmt.errors import UserError
from nmt.lines import iterate_lines, read_lines, read_parallel, write_lines


def test_only_newline_ends_a_line(tmp_path):
    path = tmp_path / "odd.txt"
    path.write_bytes("\ufeffa\rb\r\nc\u2028d\u0085e\x0bf\n\n last ".encode())
    assert read_lines(path) == ["a\rb", "c\u2028d\u0085e\x0bf", "", " last "]


@pytest.mark.parametrize(
    ("raw", "lines"),
    [
        (b"", []),
        (b"\n", [""]),
        (b"\xef\xbb\xbf", []),
        (b"\xef\xbb\xbf\n", [""]),
        (b"a\n\n", ["a", ""]),
        (b"a", ["a"]),
    ],
)
def test_the_ends_of_files(raw, lines):
    assert list(iterate_lines(io.BytesIO(raw))) == lines


@settings(deadline=None)  # it waits for the disk
@given(st.lists(st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]))))
def test_what_is_written_is_read(tmp_path_factory, lines):
    lines = [line for line in lines if not line.endswith("\r") and not line.startswith("\ufeff")]
    for name in ("x.txt", "x.txt.gz"):
        path = tmp_path_factory.getbasetemp() / name
        assert write_lines(path, lines) == len(lines)
        assert read_lines(path) == lines


def test_standard_input_and_output():
    code = "from nmt.lines import *; write_lines('-', (x.upper() for x in iterate_lines('-')))"
    done = subprocess.run([sys.executable, "-c", code], input="é\u2028\nb".encode(), capture_output=True, check=True)
    assert done.stdout.decode() == "É\u2028\nB\n"


def test_bad_utf8_names_file_and_line(tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes(b"good\ncaf\xe9\n")
    with pytest.raises(UserError, match=r"latin\.txt, line 2: not UTF-8 \(byte 0xe9 at position 4\).*iconv"):
        read_lines(path)
    path.write_bytes("good\n".encode("utf-16"))
    with pytest.raises(UserError, match=r"line 1: not UTF-8 .* iconv -f utf-16 -t utf-8"):
        read_lines(path)


def test_unreadable_files(tmp_path):
    with pytest.raises(UserError, match=r"none\.txt does not exist"):
        read_lines(tmp_path / "none.txt")
    with pytest.raises(UserError, match="is a directory"):
        read_lines(tmp_path)
    whole = gzip.compress(b"some text\n" * 1000)
    for number, raw in enumerate([whole[:-20], b"no gzip", whole[:15] + b"\0\0\0\0" + whole[19:]]):
        path = tmp_path / f"{number}.gz"
        path.write_bytes(raw)
        with pytest.raises(UserError, match="not a whole gzip file"):
            read_lines(path)
    hidden = tmp_path / "hidden.txt"
    hidden.write_bytes(whole)
    with pytest.raises(UserError, match=r"name does not end in \.gz"):
        read_lines(hidden)


def test_parallel_files_must_be_equally_long(tmp_path):
    (tmp_path / "a").write_text("1\n2\n")
    (tmp_path / "b").write_text("1\n2\n3")
    with pytest.raises(UserError, match=r"a has 2 lines and .*b has 3"):
        read_parallel(tmp_path / "a", tmp_path / "b")
    assert read_parallel(tmp_path / "a", tmp_path / "a") == (["1", "2"], ["1", "2"])


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "out.txt"
    write_lines(path, ["old"])

    def lines():
        yield "new"
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_lines(path, lines())
    with pytest.raises(UserError, match=r"line 1.*holds a line end"):
        write_lines(path, ["a\nb"])
    assert read_lines(path) == ["old"]
    assert os.listdir(tmp_path) == ["out.txt"]
    with pytest.raises(UserError, match="cannot be written"):
        write_lines(path / "below", ["x"])


def test_devices_and_links_survive(tmp_path):
    write_lines("/dev/null", ["x"])
    assert not os.path.isfile("/dev/null")
    (tmp_path / "real").write_text("")
    (tmp_path / "link").symlink_to("real")
    write_lines(tmp_path / "link", ["x"])
    assert (tmp_path / "link").is_symlink()
    assert read_lines(tmp_path / "real") == ["x"]
