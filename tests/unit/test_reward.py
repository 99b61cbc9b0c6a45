"""Rewards: corpus BLEU is what its values add up to, and each value is its derivative."""

import pytest
import torch
from sacrebleu.metrics.bleu import BLEU

from nmt.objectives import RewardConfig
from nmt.objectives.prefix_bleu import PrefixBLEU
from nmt.objectives.reward import Reward, candidate_matches, first_counts
from nmt.search import SearchConfig, beam_search
from nmt.search.trace import trace_search
from tests.conftest import random_batch

EOS = 3


@pytest.fixture(
    params=[SearchConfig(beam_size=4, n_best=4), SearchConfig(beam_size=4, n_best=4, max_ratio=0, max_extra=5)]
)
def found(tiny_model, request):
    """A model's search, with long and with short hypotheses, over references that it half finds: (trace, batch, first
    hypotheses, references)."""
    model = tiny_model(vocabulary=13, seed=2, scale=1.5).double()
    batch = random_batch(24, 13, 9, seed=3)
    hypotheses = beam_search(model, batch.source, batch.source_lengths, request.param)
    for row in range(0, 24, 2):
        tokens = hypotheses[row][row % 4].tokens[:8]
        batch.target[row] = 0
        batch.target[row, : len(tokens) + 1] = torch.tensor([*tokens, EOS])
        batch.target_lengths[row] = len(tokens) + 1
    limits = torch.tensor([request.param.max_length(int(length)) for length in batch.source_lengths])
    with torch.no_grad():
        trace = trace_search(model, model.encode(batch.source, batch.source_lengths), limits, 4, 9)
    references = [row[: length - 1].tolist() for row, length in zip(batch.target, batch.target_lengths, strict=True)]
    return trace, batch, [h[0].tokens for h in hypotheses], references


def text(rows):
    return [" ".join(f"w{token}" for token in row) for row in rows]


def first_values(trace, values):
    """The values of what the search ranks first."""
    best, value = None, None
    for number, (step, part) in enumerate(zip(trace.steps, values, strict=True)):
        width = trace.selected(number)
        ranked = step.candidates.scores[:, :width] / (number + 1)
        ranked = ranked.masked_fill(~step.ended[:, :width], -torch.inf)
        top, place = ranked.max(dim=1)
        mine = part.gather(1, place.unsqueeze(1)).squeeze(1)
        better = torch.ones_like(top, dtype=torch.bool) if best is None else top > best
        best = top if best is None else torch.where(better, top, best)
        value = mine if value is None else torch.where(better, mine, value)
    return value


def test_the_values_of_the_first_hypotheses_have_corpus_bleu_as_their_mean(found):
    trace, batch, hypotheses, references = found
    worth, figures = Reward(RewardConfig(memory=0.0))(trace, batch, EOS)
    expected = BLEU(tokenize="none", smooth_method="none").corpus_score(text(hypotheses), [text(references)])
    assert expected.score > 5 and (expected.bp < 1) == (len(trace.steps) == 5)
    assert figures["corpus_bleu"].item() == pytest.approx(expected.score / 100, abs=1e-6)
    assert figures["corpus_length"].item() == pytest.approx(expected.sys_len / expected.ref_len)
    assert first_values(trace, worth.values).mean().item() == pytest.approx(expected.score / 100, abs=1e-6)
    assert worth.sentences.sum().item() == pytest.approx(1.0)


@pytest.mark.parametrize("longer", [False, True])
def test_a_value_is_the_derivative_of_corpus_bleu(found, longer):
    """By finite differences of BLEU's definition, with a corpus that is too short and one that is too long."""
    trace, batch, _, _ = found
    reward = Reward(RewardConfig(memory=0.5))
    reward.corpus[8 if longer else 9] = 10_000  # words of before
    worth, _ = reward(trace, batch, EOS)
    matched, total, length, wanted = reward.corpus[:4], reward.corpus[4:8], reward.corpus[8], reward.corpus[9]
    assert (length > wanted) == longer

    def bleu(matched, total, length, wanted):
        brevity = min(0.0, float(1 - wanted / length))
        return float((matched / total).log().mean().add(brevity).exp())

    scorer = PrefixBLEU(batch.target, batch.target_lengths - 1, EOS)
    checked = 0
    before, move = bleu(matched, total, length, wanted), 1e-6
    for step, matches, values in zip(trace.steps, candidate_matches(trace, scorer), worth.values, strict=True):
        counts = scorer.finished(matches)
        for row in range(0, 24, 3):
            for place in range(values.shape[1]):
                if not step.ended[row, place]:
                    continue
                checked += 1
                after = bleu(
                    matched + move * counts.matched[row, place],
                    total + move * counts.total[row, place],
                    length + move * counts.length[row, place],
                    wanted + move * scorer.lengths[row],
                )
                change = (after - before) / move * 24
                assert values[row, place].item() == pytest.approx(before + change, abs=1e-4)
    assert checked > 5


def test_the_corpus_is_a_decaying_sum_that_a_checkpoint_keeps(found):
    trace, batch, _, _ = found
    reward, again = Reward(RewardConfig(memory=0.5)), Reward(RewardConfig(memory=0.5))
    reward(trace, batch, EOS)
    scorer = PrefixBLEU(batch.target, batch.target_lengths - 1, EOS)
    once = first_counts(trace, scorer, candidate_matches(trace, scorer)).sum(dim=0)
    assert reward.corpus[:9].tolist() == pytest.approx(once.tolist())
    again.load_state_dict(reward.state_dict())
    again(trace, batch, EOS)
    assert again.corpus[:9].tolist() == pytest.approx((1.5 * once).tolist())


def test_a_word_weighs_alike_in_short_and_long_sentences(found):
    trace, batch, _, _ = found
    worth, _ = Reward(RewardConfig())(trace, batch, EOS)
    assert worth.sentences.unique().numel() == worth.steps.unique().numel() == 1
    sentence, _ = Reward(RewardConfig(bleu="sentence"))(trace, batch, EOS)
    assert sentence.sentences.tolist() == pytest.approx([1 / 24] * 24)
    steps = torch.stack([(step.candidates.scores > -torch.inf).any(dim=1) for step in trace.steps]).sum(dim=0)
    assert sentence.steps.equal(steps)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"bleu": "chrf"}, "bleu is 'chrf'; choose corpus or sentence"), ({"unit": "char"}, "choose word or piece"),
     ({"memory": 1.0}, "memory is 1.0")],
)  # fmt: skip
def test_impossible_settings_are_refused(options, words):
    from nmt.errors import UserError

    with pytest.raises(UserError, match=words):
        RewardConfig(**options)
