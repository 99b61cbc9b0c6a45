"""Is a difference between two systems more than chance? sacreBLEU's paired tests.

Both are meant two-sided: they ask whether the scores differ in either direction, not whether the system is the better
one. The p-values are those that sacreBLEU's command line prints for the same lines (`--paired-bs`, `--paired-ar`); it
honours SACREBLEU_SEED, and so do we.

The two are not equally strict. sacreBLEU's bootstrap centres the absolute differences of the samples by their own mean,
which leaves one tail of two: its p is about half of the randomisation's and hardly ever above 0.5. Where they disagree,
believe the randomisation.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nmt.errors import UserError, did_you_mean
from nmt.evaluation.metrics import check_lengths, check_metrics, make_metrics

if TYPE_CHECKING:
    from sacrebleu.metrics.base import Metric

TESTS = {"bootstrap": "bs", "randomization": "ar"}
"""Our names of the tests and sacreBLEU's: paired bootstrap resampling, paired approximate randomisation."""


@dataclass(frozen=True)
class Comparison:
    """A system beside a baseline, in one metric.

    Attributes:
        name: the metric's, as in `nmt.evaluation.Score`.
        value: score of the system.
        baseline: score of the baseline.
        p: two-sided p-value by test: that of "bootstrap", of "randomization", or both.
        interval: 95% interval of the system's own score (not of the difference) over the samples of the bootstrap: its
            lower and upper end, as far from the samples' mean as sacreBLEU says; None without the bootstrap.
        signatures: sacreBLEU's signature by test, with seed and number of samples.
    """

    name: str
    value: float
    baseline: float
    p: Mapping[str, float]
    interval: tuple[float, float] | None
    signatures: Mapping[str, str]

    @property
    def difference(self) -> float:
        """The system's score minus the baseline's; for TER, less is better."""
        return self.value - self.baseline


def compare(
    systems: Sequence[Sequence[str]],
    baselines: Sequence[Sequence[str]],
    references: Sequence[Sequence[str]],
    *,
    metrics: Sequence[str] = ("bleu", "chrf"),
    tests: Sequence[str] = ("bootstrap", "randomization"),
    samples: int = 0,
    lowercase: bool = False,
    tokenize: str = "13a",
) -> list[list[Comparison]]:
    """Compares systems with baselines, which translated the same source.

    Args:
        systems: lines of each system.
        baselines: lines of one baseline for all systems, or of as many baselines as systems: system i is then compared
            with baseline i.
        references: one or more sets of lines.
        metrics: as in `nmt.evaluation.evaluate`; "comet" is passed over, for sacreBLEU cannot test it.
        tests: "bootstrap", "randomization", or both.
        samples: samples of the bootstrap and trials of the randomisation; 0: sacreBLEU's 1,000 and 10,000.
        lowercase: whether BLEU ignores case.
        tokenize: sacreBLEU's tokeniser for BLEU.

    Returns:
        For each system one comparison a metric.

    Raises:
        UserError: numbers that do not match, an unknown test or metric, an impossible number or seed.
    """
    check_tests(tests, samples)
    check_counts(len(systems), len(baselines))
    for lines in (*systems, *baselines):
        check_lengths(lines, references)
    made = make_metrics(check_metrics(metrics), references, lowercase=lowercase, tokenize=tokenize)
    if len(baselines) == 1:
        return _compare(baselines[0], systems, made, tests, samples)
    return [_compare(*pair, made, tests, samples)[0] for pair in zip(baselines, ([s] for s in systems), strict=True)]


def check_counts(systems: int, baselines: int) -> None:
    """Refuses numbers of systems and baselines that cannot be matched.

    Raises:
        UserError: neither one baseline nor as many as systems.
    """
    if baselines not in (1, systems):
        raise UserError(
            f"There are {baselines} baselines for {systems} systems; give one baseline, or one for each system in the "
            "same order."
        )


def check_tests(tests: Sequence[str], samples: int) -> None:
    """Refuses what no test can be made of.

    Raises:
        UserError: an unknown test, an impossible number of samples or seed.
    """
    if not tests:
        raise UserError(f"No test is named; choose from {', '.join(TESTS)}.")
    for test in tests:
        if test not in TESTS:
            raise UserError(f"Unknown test '{test}'; choose from {', '.join(TESTS)}.{did_you_mean(test, TESTS)}")
    if samples < 0:
        raise UserError(
            f"samples is {samples}; give at least 1, or 0 for 1,000 (bootstrap) and 10,000 (randomization)."
        )
    seed = os.environ.get("SACREBLEU_SEED", "12345")
    if seed.lower() != "none" and not seed.isdecimal():
        raise UserError(f"SACREBLEU_SEED is {seed!r}; give a whole number, or None for another seed each time.")


def _compare(
    baseline: Sequence[str],
    systems: Sequence[Sequence[str]],
    metrics: "Mapping[str, Metric]",
    tests: Sequence[str],
    samples: int,
) -> list[list[Comparison]]:
    """One baseline, several systems: sacreBLEU draws the samples anew, and the same, for each."""
    from sacrebleu.significance import PairedTest, Result

    # The names are ours alone; sacreBLEU would pass over a system that is named like the baseline.
    named: list[tuple[str, Sequence[str]]] = [("baseline", list(baseline))]
    named += [(f"system {number}", list(lines)) for number, lines in enumerate(systems)]
    by_test: dict[str, tuple[dict[str, str], dict[str, list[Result]]]] = {}
    for test in dict.fromkeys(tests):
        signatures, results = PairedTest(named, metrics, None, TESTS[test], samples)()
        by_test[test] = (
            {name: str(signature) for name, signature in signatures.items()},
            {name: [r for r in of_metric if isinstance(r, Result)] for name, of_metric in results.items()
             if name != "System"},
        )  # fmt: skip
    rows: list[list[Comparison]] = [[] for _ in systems]
    for name in next(iter(by_test.values()))[0]:
        for number, row in enumerate(rows, start=1):
            found = {test: results[name][number] for test, (_, results) in by_test.items()}
            interval = None
            if (sampled := found.get("bootstrap")) and sampled.mean is not None and sampled.ci is not None:
                interval = (float(sampled.mean - sampled.ci), float(sampled.mean + sampled.ci))
            first = next(iter(by_test.values()))[1][name]
            row.append(
                Comparison(
                    name,
                    float(first[number].score),
                    float(first[0].score),
                    {test: float(result.p_value) for test, result in found.items() if result.p_value is not None},
                    interval,
                    {test: signatures[name] for test, (signatures, _) in by_test.items()},
                )
            )
    return rows
