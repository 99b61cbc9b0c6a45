"""Lines of every kind, thousands of them: as many come out as go in, whatever stands beside them."""

import io
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nmt.checkpoint import Checkpoint
from nmt.errors import UserError
from nmt.files.blocks import SourceText
from nmt.files.formats import Format
from nmt.files.job import Job
from nmt.lines import count_lines, iterate_lines
from nmt.models import RNNsearch, RNNsearchConfig
from nmt.search import SearchConfig
from nmt.text.vocabulary import SentencePiece, VocabularyConfig
from nmt.translator import LengthLimit, Translator
from tests import ROOT

COUNT = 10_000
OPTIONS = {"config": SearchConfig(beam_size=2, max_ratio=0, max_extra=4), "limit": LengthLimit(max_pieces=12)}


def odd_lines(count: int = COUNT, seed: int = 1) -> list[str]:
    """Empty and blank lines, control characters, NUL, right-to-left, emoji, every kind of space, and long lines."""
    draw = random.Random(seed)
    controls = [chr(code) for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) != "\n"]
    spaces = " \t\u00a0\u2003\u3000\u2028\u2029\x85\u200b\ufeff"
    words = [
        "the",
        "red",
        "two",
        "שלום",
        "مرحبا",
        "\u202ered\u202c",
        "👩‍👩‍👧‍👦",
        "🇫🇷",
        "e\u0301",
        "ﬁ",
        "\x00",
        "▁",
        "</s>",
        "<unk>",
    ]
    kinds = [
        lambda: "",
        lambda: "".join(draw.choices(spaces, k=draw.randint(1, 5))),
        lambda: " ".join(draw.choices(words, k=draw.randint(1, 8))),
        lambda: "".join(draw.choices(controls, k=draw.randint(1, 10))),
        lambda: "".join(
            chr(draw.choice((draw.randrange(0x20, 0xD800), draw.randrange(0xE000, 0x110000))))
            for _ in range(draw.randint(1, 12))
        ),
        lambda: draw.choice(words) * draw.randint(1, 30),
        lambda: "\x00".join(draw.choices(words, k=3)) + "\r\r",
    ]
    lines = [draw.choice(kinds)() for _ in range(count)]
    for place in draw.sample(range(count), min(5, count)):
        lines[place] = (draw.choice(words) + " ") * 10_000
        lines[place] = lines[place][:10_000]
    # A byte order mark at the beginning of a text is none of its characters.
    return ["first", *lines[1:]]


@pytest.fixture(scope="module")
def translator():
    """A random model to which every character matters: those without a piece are spelt as bytes. So are some of what it
    writes, line ends too. In float64, in which no two of so many hypotheses tie."""
    text = ["the red two one blue green my your new old small a"] * 9
    vocabulary = SentencePiece.train(text, VocabularyConfig(size=330, byte_fallback=True, normalization="identity"))
    torch.manual_seed(11)
    model = RNNsearch(RNNsearchConfig(embedding=8, hidden=10), len(vocabulary), len(vocabulary)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return Translator(Checkpoint(model, vocabulary, vocabulary))


@pytest.fixture(scope="module")
def lines():
    return odd_lines()


@pytest.fixture(scope="module")
def expected(translator, lines):
    return translator.translate(lines, **OPTIONS)


@pytest.fixture(autouse=True)
def quiet(caplog):
    """Each long line is reported; not to the terminal of the tests."""
    caplog.set_level("ERROR", logger="nmt")


def test_as_many_lines_come_out(translator, lines, expected):
    assert len(expected) == len(lines) == COUNT
    assert not any("\n" in text for text in expected)
    found = translator.search(lines[:2_000], **OPTIONS)
    assert any("<0x0A>" in one[0].pieces for one in found), "the model does write line ends"
    blank = [place for place, line in enumerate(lines) if not line.strip()]
    assert len(blank) > 1000 and not any(expected[place] for place in blank)
    assert len(set(expected)) > 500, "the model does read what it translates"


@pytest.mark.parametrize("batch_tokens", [1, 50, 1_000, 1_000_000])
def test_batches_change_nothing(translator, lines, expected, batch_tokens):
    count = COUNT if batch_tokens > 100 else 500
    assert translator.translate(lines[:count], **OPTIONS, batch_tokens=batch_tokens) == expected[:count]


@pytest.mark.parametrize("chunk", [1, 7, 999, COUNT])
def test_blocks_change_nothing(translator, lines, expected, chunk):
    count = COUNT if chunk > 100 else 500
    assert list(translator.stream(lines[:count], chunk=chunk, **OPTIONS)) == expected[:count]


def test_the_order_changes_nothing(translator, lines, expected):
    order = random.Random(2).sample(range(COUNT), COUNT)
    found = translator.translate([lines[place] for place in order], **OPTIONS)
    assert found == [expected[place] for place in order]


def test_threads_change_nothing(translator, lines, expected):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        # Two threads on a busy machine wait for each other; a part of the lines is enough.
        assert translator.translate(lines[:1_000], **OPTIONS) == expected[:1_000]
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["text", "jsonl", "tsv", "moses"])
def test_files_hold_a_row_a_line(translator, lines, expected, tmp_path, name):
    path = tmp_path / "odd"
    path.write_bytes("".join(line + "\n" for line in lines).encode())
    assert count_lines(path) == COUNT
    job = Job("", options=OPTIONS, format=Format(name))
    written = b"".join(content for _, content in job.results(translator, SourceText(str(path)).blocks(2048)))
    assert written.count(b"\n") == COUNT
    if name == "text":
        # A carriage return before the line end belongs to the line end.
        read = translator.translate([line.removesuffix("\r") for line in lines], **OPTIONS)
        assert list(iterate_lines(io.BytesIO(written))) == [text.removesuffix("\r") for text in read]
        assert read != expected


@pytest.mark.parametrize("place", [1, 2, 1_000, COUNT])
def test_a_byte_that_is_no_text_names_its_line(lines, tmp_path, place):
    content = [line.encode() for line in lines]
    content[place - 1] = b"caf\xe9"
    (tmp_path / "odd").write_bytes(b"".join(line + b"\n" for line in content))
    seen = 0
    with pytest.raises(UserError, match=f"odd, line {place:,}: not UTF-8 \\(byte 0xe9 at position 4\\)"):
        for block in SourceText(str(tmp_path / "odd")).blocks(300):
            seen += len(block.lines)
    assert seen == place - 1


STUB = """
import resource, sys
from nmt import cli
from nmt.files import output
from nmt.commands import translate
from nmt.translation import Translation

class Stub:
    def search(self, lines, **options):
        return [[Translation(line, 0.0, 0.0, ["</s>"], ["</s>"])] for line in lines]

translate.load_translator = lambda chosen: Stub()
translate._find_models = lambda job: None
real = output.make_part
output.make_part = lambda path, settings, resume: real(path, dict, resume)
for name in sys.argv[1:]:
    try:
        cli.main(["translate", "none", name, "-o", name + ".out"])
    except SystemExit as ended:
        assert not ended.code, ended.code
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_lines(tmp_path):
    """Peak memory of a small file and then of one thirty times as long, in one process."""
    for name, count in (("small", 10_000), ("large", 300_000)):
        with open(tmp_path / name, "w") as file:
            file.writelines(f"{number} the red cat is in the small house of the old man and looks out of it\n"
                            for number in range(count))  # fmt: skip
    done = subprocess.run([sys.executable, "-c", STUB, "small", "large"], cwd=tmp_path, capture_output=True, text=True,
                          env={"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1"})  # fmt: skip
    assert done.returncode == 0, done.stderr
    small, large = map(int, done.stdout.split())
    assert (tmp_path / "large.out").read_bytes() == (tmp_path / "large").read_bytes()
    unit = 1 if sys.platform == "darwin" else 1024
    grown, size = (large - small) * unit, Path(tmp_path / "large").stat().st_size
    assert grown < size / 4, f"{grown:,} bytes more for a file of {size:,}"
