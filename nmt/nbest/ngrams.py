"""BLEU and chrF from counts that are taken once: many translations against each other, or summed up anew.

sacreBLEU cuts the text and takes out the n-grams; what it computes from them a pair at a time is computed for arrays.
"""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from nmt.errors import UserError, did_you_mean

UTILITIES = ("chrf", "bleu")

BLEU_ORDER = 4
"""Longest n-grams of BLEU."""

Floats = NDArray[np.float64]


def bleu_statistics(hypotheses: Sequence[str], references: Sequence[str], tokenize: str = "13a") -> NDArray[np.int64]:
    """What BLEU is made of, for several hypotheses of one sentence; sums over sentences give that of the corpus.

    Args:
        hypotheses: detokenised.
        references: one or more of the sentence; an n-gram counts as often as in that which has it most, and the length
            is that of the closest, of two as close the shorter.
        tokenize: sacreBLEU's tokeniser.

    Returns:
        (hypotheses, 10): length, length of the reference, n-grams that match, n-grams that there are, for n = 1 to 4.
    """
    from sacrebleu.metrics.helpers import extract_all_word_ngrams

    cut = _tokenizer(tokenize)
    counts: Counter = Counter()
    lengths = []
    for reference in references:
        ngrams, length = extract_all_word_ngrams(cut(reference), 1, BLEU_ORDER)
        counts |= ngrams
        lengths.append(length)
    found = np.zeros((len(hypotheses), 2 + 2 * BLEU_ORDER), dtype=np.int64)
    known: dict[str, int] = {}
    for row, hypothesis in enumerate(hypotheses):
        # Lists often hold a text many times, by several derivations.
        first = known.setdefault(hypothesis, row)
        if first != row:
            found[row] = found[first]
            continue
        ngrams, length = extract_all_word_ngrams(cut(hypothesis), 1, BLEU_ORDER)
        found[row, 0] = length
        found[row, 1] = min(lengths, key=lambda other: (abs(length - other), other))
        for ngram, count in ngrams.items():
            found[row, 1 + len(ngram)] += min(count, counts[ngram])
            found[row, 1 + BLEU_ORDER + len(ngram)] += count
    return found


def bleu_of(statistics: NDArray, effective_order: bool = False) -> Floats:
    """BLEU from 0 to 100, smoothed as sacreBLEU does by default ("exp": the k-th n for which nothing matches counts
    as 1 / 2^k matches; Chen and Cherry, WMT 2014, method 3).

    Args:
        statistics: (..., 10), see `bleu_statistics`.
        effective_order: whether it stops at the longest n-grams that there are, as sentences want it.

    Returns:
        (...).
    """
    length, reference = statistics[..., 0].astype(np.float64), statistics[..., 1]
    matches = statistics[..., 2 : 2 + BLEU_ORDER].astype(np.float64)
    totals = statistics[..., 2 + BLEU_ORDER :].astype(np.float64)
    there = totals > 0
    missed = there & (matches == 0)
    smoothed = np.where(missed, 0.5 ** missed.cumsum(axis=-1), matches)
    logs = np.log(np.where(there, smoothed, 1.0) / np.maximum(totals, 1.0))
    orders = there.sum(axis=-1)
    used = np.maximum(orders, 1) if effective_order else BLEU_ORDER
    brevity = np.where(length < reference, 1.0 - reference / np.maximum(length, 1.0), 0.0)
    value = 100.0 * np.exp(logs.sum(axis=-1) / used + brevity)
    nothing = matches.sum(axis=-1) == 0
    return np.where(nothing | ((orders < BLEU_ORDER) & (not effective_order)), 0.0, value)


def pairwise_utility(texts: Sequence[str], utility: str = "chrf", tokenize: str = "13a") -> Floats:
    """sacreBLEU's sentence score of each text against each text as the reference, from 0 to 100.

    Each text's n-grams are taken out once. How many two texts share, with repetitions, is the product of two rows of
    zeros and ones: a column for each n-gram and the how-manieth of its kind in the text it is.

    Args:
        texts: any number; equal ones are better given once.
        utility: "chrf" (chrF2) or "bleu" (with effective order).
        tokenize: sacreBLEU's tokeniser for BLEU.

    Returns:
        (texts, texts): in row i, what text i is worth where text j is right.
    """
    check_utility(utility)
    if not texts:
        return np.zeros((0, 0))
    from sacrebleu.metrics.chrf import CHRF
    from sacrebleu.metrics.helpers import extract_all_char_ngrams, extract_word_ngrams

    if utility == "bleu":
        cut = _tokenizer(tokenize)
        words = [cut(text).split() for text in texts]
        by_order = [[extract_word_ngrams(of, n) for of in words] for n in range(1, BLEU_ORDER + 1)]
    else:
        ngrams = [extract_all_char_ngrams(text, CHRF.CHAR_ORDER) for text in texts]
        by_order = [list(of_order) for of_order in zip(*ngrams, strict=True)]
    totals = np.array([[sum(counts.values()) for counts in of_order] for of_order in by_order], dtype=np.float64)
    shared = np.stack([_shared(of_order) for of_order in by_order])
    if utility == "bleu":
        length = totals[0]
        size = len(texts)
        statistics = np.concatenate(
            [
                np.broadcast_to(length[:, None, None], (size, size, 1)),
                np.broadcast_to(length[None, :, None], (size, size, 1)),
                np.moveaxis(shared, 0, 2),
                np.broadcast_to(totals.T[:, None, :], (size, size, BLEU_ORDER)),
            ],
            axis=2,
        )
        return bleu_of(statistics, effective_order=True)
    return _chrf(shared, totals, CHRF.BETA)


def check_utility(utility: str) -> None:
    """Raises UserError for a utility that there is not."""
    if utility not in UTILITIES:
        raise UserError(
            f"Unknown utility '{utility}'; choose {' or '.join(UTILITIES)}.{did_you_mean(utility, UTILITIES)}"
        )


def _chrf(shared: Floats, totals: Floats, beta: int) -> Floats:
    """chrF of counts, (orders, texts, texts) and (orders, texts): precision and recall are averaged over the orders for
    which both sides have n-grams (Popović 2015, as sacreBLEU has it)."""
    both = (totals[:, :, None] > 0) & (totals[:, None, :] > 0)
    orders = np.maximum(both.sum(axis=0), 1)
    # Where a side has none, nothing is shared.
    precision = (shared / np.maximum(totals, 1)[:, :, None]).sum(axis=0) / orders
    recall = (shared / np.maximum(totals, 1)[:, None, :]).sum(axis=0) / orders
    factor = beta**2
    below = factor * precision + recall
    return np.where(below > 0, 100 * (1 + factor) * precision * recall / np.where(below > 0, below, 1.0), 0.0)


def _shared(counts: Sequence[Counter]) -> Floats:
    """(texts, texts): n-grams that two texts have in common, repetitions counted."""
    columns: Counter = Counter()
    for of_text in counts:
        columns.update((ngram, number) for ngram, count in of_text.items() for number in range(count))
    # What one text alone has is shared with nobody, and is most of what there is.
    places = {column: place for place, column in enumerate(c for c, texts in columns.items() if texts > 1)}
    rows = np.zeros((len(counts), len(places)), dtype=np.float32)
    for row, of_text in enumerate(counts):
        for ngram, count in of_text.items():
            for number in range(count):
                if (place := places.get((ngram, number))) is not None:
                    rows[row, place] = 1
    # Whole numbers far below 2^24: float32 is exact.
    found = (rows @ rows.T).astype(np.float64)
    np.fill_diagonal(found, [sum(of_text.values()) for of_text in counts])
    return found


def _tokenizer(name: str) -> Callable[[str], str]:
    from nmt.evaluation import make_metrics

    return make_metrics(["bleu"], [], tokenize=name)["bleu"]._preprocess_segment
