"""N-best lists of another system, or of our own, with the scores of models as further features, ranked anew.

As Cho et al. (EMNLP 2014) and Luong et al. (2014) did on top of the phrase-based system of Durrani et al. (WMT 2014).
"""

import dataclasses
import json
import logging
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nmt.errors import UserError, hint
from nmt.lines import atomic_path
from nmt.nbest.lists import Entry, Survey
from nmt.nbest.mbr import expected_utilities, posterior
from nmt.nbest.mert import Lists, Tuned, tune
from nmt.nbest.ngrams import Floats, bleu_statistics

if TYPE_CHECKING:
    from nmt.translator import Translator

logger = logging.getLogger(__name__)

BASE = "base"
"""The list's own score, as a feature: that which it came with first."""
LOG_P = "log_p"
"""The feature in which `nmt translate` writes the log-probability of a hypothesis, in nats."""
_SCORE = "score"
"""Stands for the score that a list has now, which may be that of an earlier ranking; no feature is named so."""
_BLOCK = 2048


def model_names(survey: Survey, models: int) -> list[str]:
    """Names of the features of models, nmt1, nmt2, ..., after those that the list has already."""
    taken = {name.removesuffix("_length") for name in survey.names}
    numbers = (number for number in range(1, len(taken) + models + 1) if f"nmt{number}" not in taken)
    return [f"nmt{number}" for number, _ in zip(numbers, range(models), strict=False)]


def all_names(survey: Survey, models: Sequence[str]) -> list[str]:
    """The features that can have a weight: those of the list, its score, and of each model its log-probability and its
    length."""
    base = [BASE] if survey.scored and BASE not in survey.names else []
    return [*survey.names, *base, *(f"{name}{end}" for name in models for end in ("", "_length"))]


def default_weights(survey: Survey, models: Sequence[str], *, mbr: bool = False) -> dict[str, float]:
    """1 for the list's present score and for the log-probability of each model.

    Args:
        survey: of the list.
        models: names of the features of models.
        mbr: whether risk is expected over the scores. A list of `nmt translate` then counts by its log-probabilities:
            its scores are divided by the lengths, which makes all hypotheses of a sentence nearly as probable.

    Raises:
        UserError: there is neither.
    """
    # A list that was ranked anew (it has a base) has a score that somebody chose.
    own = LOG_P if mbr and LOG_P in survey.names and BASE not in survey.names else _SCORE
    names = [*([own] if survey.scored else []), *models]
    if not names:
        raise UserError("The list has no scores to rank by; give --weights for its features, a --model, or --mbr.")
    return dict.fromkeys(names, 1.0)


def start_weights(names: Sequence[str]) -> dict[str, float]:
    """What tuning begins with: 1 for the list's own score and for each model's log-probability, of now or before."""
    return {name: 1.0 for name in names if name == BASE or re.fullmatch(r"nmt\d+", name)}


def read_weights(path: str | Path, known: Sequence[str]) -> dict[str, float]:
    """Weights by the names of features, from the JSON that tuning wrote or a mapping of names to numbers.

    Raises:
        UserError: the file cannot be read, is no such mapping, or weighs a feature that is not among the known.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        cause = getattr(error, "strerror", None) or f"not JSON: {error}"
        raise UserError(f"{path} cannot be read ({cause}); give weights that nmt rescore --tune wrote.") from None
    weights = content.get("weights", content) if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not weights:
        raise UserError(f'{path} holds no weights; give a mapping such as {{"nmt1": 0.6, "base": 0.4}}.')
    for name, value in weights.items():
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise UserError(f"{path}: the weight of {name} is {value!r}; give a finite number.")
        if name not in known:
            raise UserError(f"{path} weighs {name}, which is no feature here.{hint(name, set(known))} Features: "
                            f"{', '.join(known)}.")  # fmt: skip
    return {name: float(value) for name, value in weights.items()}


def write_weights(path: str | Path, weights: Mapping[str, float], tuned: Tuned, about: Mapping[str, Any]) -> None:
    """Writes what `read_weights` reads, with BLEU before and after.

    Raises:
        UserError: the file cannot be written.
    """
    content = {"weights": dict(weights), "bleu": tuned.bleu, "start_bleu": tuned.start_bleu, **about}
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def add_scores(
    groups: Iterable[list[Entry]],
    sources: Iterable[str],
    translators: Mapping[str, "Translator"],
    **options: Any,
) -> Iterator[list[Entry]]:
    """Adds to every entry, for each model, its log-probability in nats and its length in pieces, the end counted.

    Hypotheses are scored as they stand in the list, cut into the model's own pieces. Where the source is blank a model
    has no opinion: both are 0. One that is longer than the model has positions for has those of the least probable of
    its sentence.

    Args:
        groups: the entries of each sentence; they are taken by blocks, and held in memory so long.
        sources: all of them, line by line.
        translators: by the names of the features.
        options: of `Translator.score`.

    Raises:
        UserError: a sentence without a source.
    """
    lines = enumerate(sources)
    number, source = -1, ""
    block: list[tuple[str, list[Entry]]] = []
    size = 0
    for group in groups:
        while number < group[0].sentence:
            number, source = next(lines, (-1, ""))
            if number < 0:
                raise UserError(f"{group[0].where}: there is no source for sentence {group[0].sentence}; ids count "
                                "from 0.")  # fmt: skip
        block.append((source, group))
        size += len(group)
        if size >= _BLOCK:
            yield from _scored(block, translators, options)
            block, size = [], 0
    yield from _scored(block, translators, options)


def _scored(
    block: Sequence[tuple[str, list[Entry]]], translators: Mapping[str, "Translator"], options: Mapping[str, Any]
) -> Iterator[list[Entry]]:
    # Lists often hold a text many times, by several derivations; it is scored once.
    places = {(entry.sentence, entry.text): (source, entry) for source, group in block for entry in group}
    sources, texts = [source for source, _ in places.values()], [text for _, text in places]
    numbers = [sentence + 1 for sentence, _ in places]
    known: dict[tuple[int, str], dict[str, tuple[float, ...]]] = {place: {} for place in places}
    for name, translator in translators.items():
        found = translator.score(sources, texts, numbers=numbers, **options)
        by_place = {
            place: (one.log_probability, float(len(one.pieces))) for place, one in zip(places, found, strict=True)
        }
        for _, group in block:
            values = [by_place[entry.sentence, entry.text] for entry in group]
            lowest = min((value for value in values if not math.isnan(value[0])), default=(0.0, 0.0))
            for entry, value in zip(group, values, strict=True):
                log_probability, length = lowest if math.isnan(value[0]) else value
                known[entry.sentence, entry.text].update({name: (log_probability,), f"{name}_length": (length,)})
    for _, group in block:
        yield [
            dataclasses.replace(entry, features={**entry.features, **known[entry.sentence, entry.text]})
            for entry in group
        ]


def with_base(group: list[Entry]) -> list[Entry]:
    """The entries with the list's own score among their features."""
    return [
        entry
        if entry.score is None or BASE in entry.features
        else dataclasses.replace(entry, features={**entry.features, BASE: (entry.score,)})
        for entry in group
    ]


@dataclasses.dataclass(frozen=True)
class Ranking:
    """How hypotheses are ranked.

    Attributes:
        weights: of features; those that are not named weigh 0. None: all hypotheses are the same, which is for samples
            and minimum Bayes risk.
        mbr: None, or the utility of minimum Bayes risk: "chrf" or "bleu".
        scale: of the combined score in the distribution over which the risk is expected; see `nmt.nbest.mbr.posterior`.
    """

    weights: Mapping[str, float] | None
    mbr: str | None = None
    scale: float = 1.0

    def __call__(self, group: Sequence[Entry]) -> list[Entry]:
        """The entries, best first, with what they are ranked by as their scores: the features combined, or the expected
        utility; of equal ones the first stays first."""
        scores = [0.0] * len(group)
        if self.weights is not None:
            scores = [combine(entry, self.weights) for entry in group]
        if self.mbr is not None:
            # What is not the model's first choice is to win by more than rounding.
            share = posterior(scores, self.scale).tolist()
            order = sorted(range(len(group)), key=lambda place: -scores[place])
            values = expected_utilities([group[i].text for i in order], self.mbr, [share[i] for i in order])
            group, scores = [group[i] for i in order], np.round(values, 9).tolist()
        ranked = sorted(zip(scores, group, strict=True), key=lambda one: -one[0])
        return [dataclasses.replace(entry, score=score) for score, entry in ranked]


def combine(entry: Entry, weights: Mapping[str, float]) -> float:
    """sum over features of weight * value; a feature that the entry lacks is 0."""
    values = entry.values
    if entry.score is not None:
        values.setdefault(_SCORE, entry.score)
    return math.fsum(weight * values.get(name, 0.0) for name, weight in weights.items())


def tune_weights(
    groups: Iterable[list[Entry]],
    references: Sequence[Sequence[str]],
    names: Sequence[str],
    start: Mapping[str, float],
    *,
    tokenize: str = "13a",
    restarts: int = 20,
    seed: int = 1,
) -> tuple[dict[str, float], Tuned]:
    """Weights that make the best corpus BLEU on a dev set; see `nmt.nbest.mert.tune`.

    Args:
        groups: the entries of each sentence, all their features with them. A sentence without any counts as an empty
            translation.
        references: one or more sets of lines, of all sentences.
        names: of the features.
        start: weights to begin with.
        tokenize: sacreBLEU's tokeniser.
        restarts, seed: of the search.

    Raises:
        UserError: more sentences than references, or an impossible number.
    """
    features: list[Floats] = []
    statistics = []

    def add(rows: list[list[float]], texts: list[str]) -> None:
        place = len(features)
        features.append(np.array(rows, dtype=np.float64).reshape(len(texts), len(names)))
        statistics.append(bleu_statistics(texts, [lines[place] for lines in references], tokenize))

    for group in groups:
        sentence = group[0].sentence
        if sentence >= len(references[0]):
            raise UserError(f"{group[0].where}: sentence {sentence} has no reference, of which there are "
                            f"{len(references[0]):,}; ids count from 0.")  # fmt: skip
        while len(features) < sentence:
            add([[0.0] * len(names)], [""])
        values = [entry.values for entry in group]
        add([[one.get(name, 0.0) for name in names] for one in values], [entry.text for entry in group])
    while len(features) < len(references[0]):
        add([[0.0] * len(names)], [""])
    first = np.array([start.get(name, 0.0) for name in names])
    found = tune(Lists.of(features, statistics), first, restarts=restarts, seed=seed)
    return dict(zip(names, found.weights.tolist(), strict=True)), found
