"""Minimum Bayes risk and the counts that it rests on, against sacreBLEU a pair at a time."""

import itertools
import random

import numpy as np
import pytest
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from nmt.errors import UserError
from nmt.nbest.mbr import choose, choose_translation, expected_utilities, posterior
from nmt.nbest.ngrams import bleu_of, bleu_statistics, pairwise_utility
from nmt.translation import Translation
from nmt.translator import Translator

ODD = ["", " ", "a", "a a a a a a", "a b", "the cat, the cat; the cat!", "ab", "Ça va? 你好 — 😀", "the\u2028cat",
       "a b a b a b", "no word of it", "don't stop.", "a  b", "  a b "]  # fmt: skip


WORDS = "the cat sat on a mat , red dog ran fast . the the".split()  # noqa: SIM905


def sentences(count, seed=0, words=WORDS):
    draw = random.Random(seed)
    return [" ".join(draw.choices(words, k=draw.randint(1, 12))) for _ in range(count)]


def naive(texts, utility):
    metric = {"chrf": CHRF(), "bleu": BLEU(effective_order=True)}[utility]
    return np.array([[metric.sentence_score(one, [other]).score for other in texts] for one in texts])


@pytest.mark.parametrize("utility", ["chrf", "bleu"])
@pytest.mark.parametrize("texts", [ODD, sentences(40), sentences(25, 1, list("abcab")), ["x"]], ids=len)
def test_utilities_are_those_of_sacrebleu(texts, utility):
    np.testing.assert_allclose(pairwise_utility(texts, utility), naive(texts, utility), atol=1e-9, rtol=0)


@pytest.mark.parametrize("tokenize", ["13a", "char", "none"])
def test_tokenisers_of_bleu(tokenize):
    metric = BLEU(effective_order=True, tokenize=tokenize)
    expected = [[metric.sentence_score(one, [other]).score for other in ODD] for one in ODD]
    np.testing.assert_allclose(pairwise_utility(ODD, "bleu", tokenize), expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_bleu_of_corpora_is_that_of_sacrebleu(count):
    """By sums of what sentences have; with several references, of odd texts, and where nothing matches."""
    for seed in range(30):
        size = 1 + seed % 7
        hypotheses = random.Random(seed).choices([*ODD, *sentences(20, seed)], k=size)
        references = [random.Random(100 * seed + r).choices([*ODD, *sentences(20, seed + r)], k=size)
                      for r in range(count)]  # fmt: skip
        found = [bleu_statistics([h], rs)[0] for h, *rs in zip(hypotheses, *references, strict=True)]
        expected = BLEU().corpus_score(hypotheses, references)
        total = np.sum(found, axis=0)
        assert total.tolist() == [expected.sys_len, expected.ref_len, *expected.counts, *expected.totals]
        assert bleu_of(total) == pytest.approx(expected.score, abs=1e-9)
        for h, s, *rs in zip(hypotheses, found, *references, strict=True):
            assert bleu_of(s, True) == pytest.approx(BLEU(effective_order=True).sentence_score(h, rs).score, abs=1e-9)


def test_bleu_of_arrays_and_of_equal_texts():
    texts = sentences(5)
    rows = bleu_statistics([*texts, *texts], ["the cat sat"])
    assert (rows[:5] == rows[5:]).all()
    together = bleu_of(rows.reshape(2, 5, 10))
    assert together.shape == (2, 5) and together[1, 3] == bleu_of(rows[3])


@pytest.mark.parametrize("utility", ["chrf", "bleu"])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_choice_is_that_of_the_sum_over_all_pairs(utility, weighted):
    for seed in range(15):
        drawn = random.Random(seed).choices(sentences(7, seed), k=14)
        weights = np.random.default_rng(seed).random(14) if weighted else None
        share = np.full(14, 1 / 14) if weights is None else weights / weights.sum()
        expected = (naive(drawn, utility) * share).sum(axis=1)
        found = expected_utilities(drawn, utility, weights)
        np.testing.assert_allclose(found, expected, atol=1e-9, rtol=0)
        assert choose(drawn, utility, weights) == np.flatnonzero(expected > expected.max() - 1e-9)[0]


def test_duplicates_count_as_often_as_they_are_there():
    # Each alone "a b c d" is as good as any; what is there three times is likelier to be right.
    texts = ["a b c d", "w x y z", "w x y z", "w x y z"]
    assert choose(texts) == 1 and choose(texts[:2]) == 0
    assert expected_utilities(texts)[0] == pytest.approx(25) and expected_utilities(texts)[2] == pytest.approx(75)
    # Once with all their weight is the same.
    assert expected_utilities(texts[:2], weights=[1, 3]) == pytest.approx(expected_utilities(texts)[:2])


def test_consensus_beats_the_likeliest():
    texts = ["completely different words", "the cat sat on the mat", "a cat sat on the mat", "the cat sat on a mat"]
    assert choose(texts, weights=[0.4, 0.2, 0.2, 0.2]) == 1
    assert choose(texts, weights=[0.97, 0.01, 0.01, 0.01]) == 0
    assert choose(texts, "bleu", [0.4, 0.2, 0.2, 0.2]) == 1


def test_of_equal_ones_the_models_first():
    for order in itertools.permutations(["a b c d", "e f g h", "i j k l"]):
        assert choose(order) == 0
    assert choose(["", ""]) == 0 and choose(["same"]) == 0


def test_posterior_is_a_softmax():
    scores = [-3.0, -1.0, -2.5]
    expected = np.exp(scores) / np.exp(scores).sum()
    assert posterior(scores) == pytest.approx(expected)
    assert posterior([s - 5000 for s in scores]) == pytest.approx(expected)
    assert posterior(scores, 0) == pytest.approx([1 / 3] * 3)
    assert posterior(scores, 1e6) == pytest.approx([0, 1, 0])


def test_mistakes_are_told():
    for words, message in (
        (([],), "0 hypotheses"),
        ((["a"], "chfr"), "Unknown utility 'chfr'; choose chrf or bleu. Did you mean 'chrf'"),
        ((["a"], "chrf", [1, 2]), "2 weights for 1 hypotheses"),
        ((["a"], "chrf", [-1]), "0 or more"),
        ((["a", "b"], "chrf", [0, 0]), "not all 0"),
        ((["a"], "chrf", [np.nan]), "0 or more"),
    ):
        with pytest.raises(UserError, match=message):
            choose(*words)
    with pytest.raises(UserError, match="not a number"):
        posterior([1.0, np.nan])
    with pytest.raises(UserError, match="scale of the scores is -1"):
        posterior([1.0], -1)


def test_translations_of_a_model(tiny_checkpoint):
    translator = Translator(tiny_checkpoint())
    (drawn,) = translator.search(["the cat one"], strategy="sample", n_best=12)
    assert choose_translation(drawn, samples=True) is drawn[choose([one.text for one in drawn])]
    (best,) = translator.search(["the cat one"], n_best=4)
    weights = posterior([one.log_probability for one in best])
    assert choose_translation(best, "bleu") is best[choose([one.text for one in best], "bleu", weights)]
    # What is all but sure wins, and with equal weights the consensus does.
    sure = [Translation("x y z", -0.01, -0.01, [], []), *[Translation(f"a b c {n}", -9, -9, [], []) for n in range(3)]]
    assert choose_translation(sure) is sure[0] and choose_translation(sure, scale=0) is sure[1]
