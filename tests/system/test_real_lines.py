"""A thousand real sentences come out the same however they are batched, ordered, blocked and written."""

import gzip
import random

import pytest
import torch

from nmt.files.blocks import SourceText
from nmt.files.formats import Format
from nmt.files.job import Job
from nmt.translator import Translator

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def sentences(corpora) -> list[str]:
    with gzip.open(corpora / "multi30k" / "test_2016_flickr.en.gz", "rt", encoding="utf-8") as file:
        lines = [line.rstrip("\n") for line in file]
    assert len(lines) >= 1_000
    return lines[:1_000]


@pytest.fixture(scope="module", params=["float32", "int8"])
def translator(real_translator, request) -> Translator:
    # Where two hypotheses tie to the last digit but one, the batch may decide (none of these does).
    return Translator(real_translator.checkpoint, int8=request.param == "int8")


@pytest.fixture(scope="module")
def expected(translator, sentences):
    return translator.translate(sentences)


def test_the_sentences_differ(expected):
    assert len(set(expected)) > 200


@pytest.mark.parametrize("batch_tokens", [1, 300])
def test_batches_change_nothing(translator, sentences, expected, batch_tokens):
    count = 100 if batch_tokens == 1 else 1_000
    assert translator.translate(sentences[:count], batch_tokens=batch_tokens) == expected[:count]


def test_the_order_changes_nothing(translator, sentences, expected):
    order = random.Random(1).sample(range(1_000), 1_000)
    assert translator.translate([sentences[place] for place in order]) == [expected[place] for place in order]


def test_threads_change_nothing(translator, sentences, expected):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert translator.translate(sentences[:200]) == expected[:200]
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("size", [1, 77, 2_048])
def test_blocks_change_nothing(translator, sentences, expected, tmp_path, size):
    count = 100 if size == 1 else 1_000
    (tmp_path / "lines").write_text("".join(line + "\n" for line in sentences[:count]))
    job = Job("", format=Format())
    results = job.results(translator, SourceText(str(tmp_path / "lines")).blocks(size))
    written = b"".join(content for _, content in results).decode()
    assert written.split("\n") == [*expected[:count], ""]
