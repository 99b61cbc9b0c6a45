"""Paired tests: the p-values of sacreBLEU's own command line, and what cannot be compared."""

import os
import re
import subprocess
import sys

import pytest

from nmt.errors import UserError
from nmt.evaluation import evaluate
from nmt.evaluation.significance import compare
from nmt.lines import read_lines, write_lines

SYSTEMS = ("Watermelon", "UF", "Borderline")
LINES = 200


@pytest.fixture(scope="module")
def texts(corpora, tmp_path_factory):
    """A folder with the first lines of three systems and of the reference."""
    folder = corpora / "wmt21_de-en"
    if not folder.is_dir():
        pytest.skip("needs wmt21_de-en")
    made = tmp_path_factory.mktemp("texts")
    for system in SYSTEMS:
        write_lines(made / system, read_lines(folder / f"hyp.{system}.en.gz")[:LINES])
    for reference in "AB":
        write_lines(made / reference, read_lines(folder / f"ref.{reference}.en.gz")[:LINES])
    return made


CELL = re.compile(r"([\d.]+)(?: \(([\d.]+) ± ([\d.]+)\))?(?: \(p = ([\d.]+)\))?")


def sacrebleu(folder, test, *words, **environment):
    """The cells of the table of sacreBLEU's command line, as printed: score, mean, half the interval, p; by system.

    Its JSON would have more digits, but it fails with NumPy 2 after a bootstrap.
    """
    command = [sys.executable, "-m", "sacrebleu", "A", "-i", *SYSTEMS, f"--paired-{test}", "-m", "bleu", "chrf", "ter"]
    done = subprocess.run(
        [*command, *words, "-f", "latex", "-w", "6", "-q", "-nc"],
        cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, check=True, encoding="utf-8",
    )  # fmt: skip
    rows = [line.split("&") for line in done.stdout.splitlines() if "&" in line][1:]
    assert [row[0].strip() for row in rows] == ["Baseline: Watermelon", "UF", "Borderline"]
    return [[CELL.match(cell.strip()).groups() for cell in row[1:]] for row in rows]


@pytest.mark.parametrize(("seed", "samples"), [(None, 0), ("7", 150)], ids=["defaults", "another seed and number"])
def test_p_values_are_those_of_sacrebleu(texts, monkeypatch, seed, samples):
    environment, numbers = {}, {"bs": [], "ar": []}
    monkeypatch.delenv("SACREBLEU_SEED", raising=False)
    if seed is not None:
        environment = {"SACREBLEU_SEED": seed}
        monkeypatch.setenv("SACREBLEU_SEED", seed)
        numbers = {"bs": ["--paired-bs-n", str(samples)], "ar": ["--paired-ar-n", str(samples)]}
    wanted = {test: sacrebleu(texts, test, *numbers[test], **environment) for test in ("bs", "ar")}
    baseline, *systems = (read_lines(texts / name) for name in SYSTEMS)
    found = compare(systems, [baseline], [read_lines(texts / "A")], metrics=["bleu", "chrf", "ter"], samples=samples)
    for number, row in enumerate(found, start=1):
        assert [comparison.name for comparison in row] == ["BLEU", "chrF2", "TER"]
        for c, bs, ar, of_baseline in zip(
            row, wanted["bs"][number], wanted["ar"][number], wanted["bs"][0], strict=True
        ):
            assert f"{c.p['bootstrap']:.4f}" == bs[3]
            assert f"{c.p['randomization']:.4f}" == ar[3]
            assert f"{c.value:.6f}" == bs[0] == ar[0]
            assert f"{c.baseline:.6f}" == of_baseline[0]
            assert c.difference == c.value - c.baseline != 0
            mean, half = float(bs[1]), float(bs[2])
            assert c.interval == pytest.approx((mean - half, mean + half), abs=1e-5)
            assert f"bs:{samples or 1000}|seed:{seed or 12345}|" in c.signatures["bootstrap"]
            assert f"ar:{samples or 10000}|seed:{seed or 12345}|" in c.signatures["randomization"]
    # The systems, metrics and tests do not all give the same number, or the equalities would say little.
    assert len({p for row in found for c in row for p in c.p.values()}) >= 10


def test_baselines_in_pairs(texts):
    """System i with baseline i: what single comparisons say, and not those with the baselines exchanged."""
    first, second, third = (read_lines(texts / name)[:60] for name in SYSTEMS)
    references = [read_lines(texts / name)[:60] for name in "AB"]
    options = {"metrics": ["bleu"], "samples": 100}
    paired = compare([second, third], [first, second], references, **options)
    assert paired[0] == compare([second], [first], references, **options)[0]
    assert paired[1] == compare([third], [second], references, **options)[0]
    assert paired != compare([second, third], [second, first], references, **options)
    assert paired[1][0].baseline == evaluate(second, references, metrics=["bleu"])[0].value
    assert "nrefs:2" in paired[0][0].signatures["bootstrap"]


def test_a_system_beside_itself_is_no_different(texts):
    lines = read_lines(texts / "UF")[:50]
    (found,) = compare([lines], [lines], [read_lines(texts / "A")[:50]], metrics=["bleu", "comet"], samples=50)
    assert [c.name for c in found] == ["BLEU"], "COMET is passed over"
    # A difference of zero is never exceeded: sacreBLEU's (0 + 1) / (n + 1).
    assert found[0].difference == 0 and found[0].p == {"bootstrap": 1 / 51, "randomization": 1 / 51}


def test_one_test_alone(texts):
    lines, other, reference = (read_lines(texts / name)[:50] for name in ("UF", "Borderline", "A"))
    (found,) = compare([lines], [other], [reference], metrics=["chrf"], tests=["randomization"], samples=50)
    assert set(found[0].p) == set(found[0].signatures) == {"randomization"} and found[0].interval is None


@pytest.mark.parametrize(
    ("systems", "baselines", "options", "words"),
    [
        (2, 3, {}, "There are 3 baselines for 2 systems; give one baseline, or one for each"),
        (1, 0, {}, "There are 0 baselines for 1 systems"),
        (1, 1, {"tests": ["bootstap"]}, "Unknown test 'bootstap'; .* Did you mean 'bootstrap'"),
        (1, 1, {"tests": []}, "No test is named"),
        (1, 1, {"samples": -1}, "samples is -1; give at least 1, or 0"),
        (1, 1, {"metrics": ["rouge"]}, "Unknown metric 'rouge'"),
    ],
)
def test_what_cannot_be_compared_is_refused(systems, baselines, options, words):
    with pytest.raises(UserError, match=words):
        compare([["a"]] * systems, [["a"]] * baselines, [["a"]], **options)


def test_lengths_and_seed_are_checked(monkeypatch):
    with pytest.raises(UserError, match="Reference 1 has 1 lines and the hypotheses have 2"):
        compare([["a"]], [["a", "b"]], [["a"]])
    monkeypatch.setenv("SACREBLEU_SEED", "x")
    with pytest.raises(UserError, match="SACREBLEU_SEED is 'x'; give a whole number"):
        compare([["a"]], [["a"]], [["a"]])
