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


@pytest.mark.parametrize(
    "options",
    [
        {"strategy": "sample", "n_best": 3, "top_p": 0.9},
        {"strategy": "sample", "temperature": 0.7, "top_k": 20},
        {"beam_size": 6, "groups": 3, "n_best": 4},
        {"coverage": 0.3, "normalization": "gnmt", "min_ratio": 0.8},
        {"beam_size": 20},
    ],
    ids=lambda options: next(iter(options.values())),
)
def test_batches_change_nothing_of_other_searches(translator, sentences, options):
    chosen = sentences[200:320]
    together = translator.search(chosen, **options)
    apart = translator.search(chosen, batch_tokens=60, **options)
    assert [[one.text for one in found] for found in apart] == [[one.text for one in found] for found in together]
    order = random.Random(2).sample(range(120), 120)
    if options.get("strategy") != "sample":
        # A sample is drawn by the number of its line.
        turned = translator.search([chosen[place] for place in order], **options)
        assert [found[0].text for found in turned] == [together[place][0].text for place in order]


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
