"""The traced search against the decoder's, its replay against plain decoding, its losses against slow references."""

import math
from dataclasses import replace

import pytest
import torch
from sacrebleu.metrics.bleu import BLEU
from torch.nn.utils.rnn import pad_sequence

from nmt.errors import UserError
from nmt.objectives import (
    CrossEntropy,
    CrossEntropyConfig,
    MinRisk,
    MinRiskConfig,
    SoftBeam,
    SoftBeamConfig,
    TemperatureConfig,
)
from nmt.objectives.likelihood import weighted_log_likelihood
from nmt.objectives.objective import shares, shifted
from nmt.objectives.traced import candidate_values, cumulate, pool
from nmt.objectives.words import Words
from nmt.search import SearchConfig, SoftSearchConfig, beam_search
from nmt.search.replay import replay
from nmt.search.trace import trace_search
from nmt.text.batching import Batch
from nmt.text.tokens import Cut, TokenList
from nmt.text.vocabulary import SentencePiece, VocabularyConfig
from nmt.topk import hard_topk, sorted_soft_topk
from nmt.topk.rivals import OPERATORS
from tests.conftest import random_batch
from tests.unit.test_objectives import NAMES, check_gradient
from tests.unit.test_prefix_bleu import within_reach
from tests.unit.test_soft_bleu import sacre

EOS = 3
SPM = SentencePiece.train(["a small text"] * 4, VocabularyConfig(size=20)).model


@pytest.fixture
def model(tiny_model):
    return tiny_model(vocabulary=13, seed=0, scale=1.5).double()


@pytest.fixture
def batch(model):
    """References of which some are what the search finds, so that the beam holds them."""
    batch = random_batch(6, 13, 7, seed=3)
    found = beam_search(model, batch.source, batch.source_lengths, SearchConfig(beam_size=4, n_best=4))
    for row in range(3):
        tokens = found[row][row].tokens[:6]
        batch.target[row] = 0
        batch.target[row, : len(tokens) + 1] = torch.tensor([*tokens, EOS])
        batch.target_lengths[row] = len(tokens) + 1
    return batch


def limits_of(batch):
    return torch.tensor([SearchConfig().max_length(int(length)) for length in batch.source_lengths])


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_the_trace_has_the_decoders_hypotheses(model, batch, alpha):
    config = SearchConfig(beam_size=4, n_best=3, alpha=alpha)
    found = beam_search(model, batch.source, batch.source_lengths, config)
    with torch.no_grad():
        memory = model.encode(batch.source, batch.source_lengths)
        trace = trace_search(model, memory, limits_of(batch), 4, 9, alpha=alpha, n_best=3)
        _, scores = cumulate(trace)
        ranked, bleu = pool(trace, scores, candidate_values(trace, batch, EOS))
    for row, hypotheses in enumerate(found):
        best = ranked[row].topk(3)
        assert best.values.tolist() == pytest.approx([h.score for h in hypotheses], abs=1e-9)
        reference = batch.target[row, : batch.target_lengths[row] - 1].tolist()
        expected = [sacre(h.tokens, reference) for h in hypotheses]
        assert bleu[row][best.indices].tolist() == pytest.approx(expected, abs=1e-6)


def test_a_sentence_leaves_no_trace_in_another(model, batch):
    """Alone, a sentence has the candidates that it has in the batch; once done it has none."""
    memory = model.encode(batch.source, batch.source_lengths)
    limits = torch.tensor([3, 12, 5, 12, 4, 12])
    together = trace_search(model, memory, limits, 4, 9)
    assert (
        len({sum((s.candidates.scores[row] > -torch.inf).any().item() for s in together.steps) for row in range(6)}) > 1
    )
    for row in range(6):
        length = batch.source_lengths[row : row + 1]
        alone = trace_search(
            model, model.encode(batch.source[row : row + 1, : int(length)], length), limits[row : row + 1], 4, 9
        )
        for number, step in enumerate(together.steps):
            scores = step.candidates.scores[row]
            if number >= len(alone.steps):
                assert (scores == -torch.inf).all() and not step.ended[row].any()
                continue
            torch.testing.assert_close(scores, alone.steps[number].candidates.scores[0])
            there = scores > -torch.inf
            assert step.candidates.tokens[row][there].equal(alone.steps[number].candidates.tokens[0][there])


@pytest.mark.parametrize("tolerance", [0.0, 0.7])
def test_a_replay_gives_the_log_probabilities_of_the_search_and_of_the_references(model, batch, tolerance):
    memory = model.encode(batch.source, batch.source_lengths)
    trace = trace_search(model, memory, limits_of(batch), 4, 9)
    generator = torch.Generator().manual_seed(1)
    there = [step.candidates.scores > -torch.inf for step in trace.steps]
    weights = [torch.rand(t.shape, generator=generator, dtype=torch.float64) * t for t in there]
    played = replay(model, memory, trace, weights, batch.target, batch.target_lengths, tolerance)
    logits = model.project(played.features)
    value, found = weighted_log_likelihood(logits, played.rows, played.tokens, played.weights)
    heavy = [weight > tolerance for weight in weights]
    expected = torch.cat([step.log_probability[h] for step, h in zip(trace.steps, heavy, strict=True)])
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(played.weights, torch.cat([w[h] for w, h in zip(weights, heavy, strict=True)]))
    assert value.item() == pytest.approx((played.weights * expected).sum().item())
    inside = batch.target != model.padding
    assert (played.gold >= 0).equal(inside)
    forced = model.project(model.teacher_force(shifted(model, batch.target), memory))
    torch.testing.assert_close(logits[played.gold[inside]], forced[inside])
    # What the beam held of the references was not decoded twice, and nothing without need.
    prefixes = sum(len(set(row.tolist())) for row in played.gold) - 3  # -1 stands in all rows but some
    assert len(logits) < sum(t.shape[0] * 4 for t in there) + prefixes
    if tolerance:
        every = replay(model, memory, trace, weights, batch.target, batch.target_lengths)
        assert len(logits) < len(every.features)


@pytest.mark.parametrize("tolerance", [0.0, 0.7, 2.0])
def test_only_the_references_asked_for_are_decoded(model, batch, tolerance):
    memory = model.encode(batch.source, batch.source_lengths)
    trace = trace_search(model, memory, limits_of(batch), 4, 9)
    weights = [torch.ones_like(step.log_probability) * (step.candidates.scores > -torch.inf) for step in trace.steps]
    led = torch.tensor([True, False, False, True, False, True])
    every = replay(model, memory, trace, weights, batch.target, batch.target_lengths, tolerance)
    some = replay(model, memory, trace, weights, batch.target, batch.target_lengths, tolerance, led)
    assert some.held.equal(every.held) and some.held[:3].any()
    inside = batch.target != model.padding
    assert (some.gold >= 0).equal(inside & led.unsqueeze(1))
    chosen = some.gold >= 0
    torch.testing.assert_close(some.features[some.gold[chosen]], every.features[every.gold[chosen]])
    torch.testing.assert_close(some.features[some.rows], every.features[every.rows])
    saved = (inside & ~led.unsqueeze(1) & ~every.held).sum() if tolerance < 1 else (inside & ~led.unsqueeze(1)).sum()
    assert len(every.features) - len(some.features) == saved > 0


def slow_search(model, source, limit, k, size):
    """Beam search for one sentence with Python lists: for each step the candidates (score, prefix, ended), best first;
    the first k that go on are the next beam. It stops when nothing open can become the best any more."""
    memory = model.encode(source, torch.tensor([source.shape[1]]))
    beam = [(0.0, [], model.start(memory))]
    steps, best = [], -math.inf
    for step in range(limit):
        found = []
        for score, prefix, state in beam:
            read = torch.tensor([[prefix[-1] if prefix else model.bos]])
            logits, after = model.step(model.embed(read), state, memory)
            log_p = logits[0, 0].log_softmax(0).tolist()
            allowed = (
                [EOS] if step + 1 == limit else [v for v in range(len(log_p)) if v not in (model.padding, model.bos)]
            )
            found += [(score + log_p[v], prefix, v, after) for v in allowed]
        found = sorted(found, key=lambda c: -c[0])[:size]
        steps.append([(score, prefix if v == EOS else [*prefix, v], v == EOS) for score, prefix, v, _ in found])
        best = max([best, *(score / (step + 1) for score, _, v, _ in found[:k] if v == EOS)])
        beam = [(score, [*prefix, v], after) for score, prefix, v, after in found[:k] if v != EOS]
        if not beam or max(score for score, _, _ in beam) / limit <= best:
            return steps
    return steps


def slow_loss(steps, reference, k, temperature, operator, risk_weight):
    """reachable_bleu and the risk of one sentence from their definitions; the operator alone is shared."""
    reached, pool_ = 0.0, []
    for number, step in enumerate(steps):
        width = min(k, len(step))
        x = torch.tensor([score for score, _, _ in step], dtype=torch.float64)
        kept = operator(x, width, temperature).tolist()
        values = [sacre(prefix, reference) if ended else within_reach(prefix, reference) for _, prefix, ended in step]
        reached += sum(a * v for a, v in zip(kept, values, strict=True))
        pool_ += [(s / (number + 1), v) for (s, _, e), v in zip(step[:k], values, strict=False) if e]
    weights = torch.tensor([10 * score for score, _ in pool_], dtype=torch.float64).softmax(0).tolist()
    risk = 1 - sum(w * v for w, (_, v) in zip(weights, pool_, strict=True))
    return 1 - reached / len(steps) + risk_weight * risk


def only_hard(scores, k, temperature):
    """(C,): all slots weigh alike."""
    return hard_topk(scores, k).sum(dim=-1)


@pytest.mark.parametrize("risk", [0.0, 0.7])
@pytest.mark.parametrize("operator", ["soft", "sorted", "hard"])
def test_reachable_bleu_equals_a_slow_reference_sentence_by_sentence(model, batch, operator, risk):
    from nmt.topk import soft_topk

    fast = {"soft": soft_topk, "sorted": sorted_soft_topk, "hard": only_hard}[operator]
    slow = {
        "soft": lambda x, k, t: soft_topk(x, k, t) / k,
        "sorted": lambda x, k, t: sorted_soft_topk(x, k, t) @ (0.8 * x[:k]).softmax(0),
        "hard": lambda x, k, t: torch.zeros_like(x).index_fill_(0, x.topk(k).indices, 1 / k),
    }[operator]
    search = SoftSearchConfig(beam_size=3, candidates=8, temperature=0.4)
    config = SoftBeamConfig(search=search, risk=risk, sharpness=0.8, cross_entropy=0.0, overrun=4)
    with torch.no_grad():
        expected = 0.0
        for row in range(6):
            source = batch.source[row : row + 1, : batch.source_lengths[row]]
            reference = batch.target[row, : batch.target_lengths[row] - 1].tolist()
            steps = slow_search(model, source, len(reference) + 1 + 4, 3, 8)
            expected += slow_loss(steps, reference, 3, 0.4, slow, risk) / 6
    found = SoftBeam(config, fast)(model, batch)
    assert found.value.item() == pytest.approx(expected, abs=1e-6)
    assert 0 < found.figures["reached_bleu"].item() < 1


def test_minimum_risk_equals_a_slow_reference(model, batch):
    config = MinRiskConfig(beam_size=3, sharpness=10.0, cross_entropy=0.0, overrun=4)
    with torch.no_grad():
        expected = 0.0
        for row in range(6):
            source = batch.source[row : row + 1, : batch.source_lengths[row]]
            reference = batch.target[row, : batch.target_lengths[row] - 1].tolist()
            steps = slow_search(model, source, len(reference) + 1 + 4, 3, 3)
            expected += slow_loss(steps, reference, 3, 1.0, lambda x, k, t: x * 0, 1.0) / 6 - 1 / 6
    assert MinRisk(config)(model, batch).value.item() == pytest.approx(expected, abs=1e-6)


def three_best(model, batch):
    return beam_search(model, batch.source, batch.source_lengths, SearchConfig(beam_size=4, n_best=3, alpha=1.0))


@torch.no_grad()
def pooled(model, batch, words=None, together=False):
    """Scores and values of what the traced search finds, which is what `three_best` finds."""
    memory = model.encode(batch.source, batch.source_lengths)
    trace = trace_search(model, memory, limits_of(batch), 4, 9, alpha=1.0, n_best=3)
    return pool(trace, cumulate(trace)[1], candidate_values(trace, batch, EOS, words, together=together))


def test_words_are_what_counts_where_they_are_told(model, batch):
    """Thirteen pieces, of which some go on with a word: what ended has the BLEU of its words."""
    tokens = ["<pad>", "<unk>", "<s>", "</s>", "▁a", "b", "▁ab", "▁", "a", ".", "▁b", "ba", "▁c"]
    words = Words(TokenList.build(tokens, Cut("sentencepiece", model=SPM)))
    found = three_best(model, batch)
    ranked, bleu = pooled(model, batch, words)
    others = 0
    for row, hypotheses in enumerate(found):
        best = ranked[row].topk(3)
        reference = batch.target[row, : batch.target_lengths[row] - 1].tolist()
        expected = [word_bleu(words, h.tokens, reference) for h in hypotheses]
        assert bleu[row][best.indices].tolist() == pytest.approx(expected, abs=1e-6)
        others += expected != pytest.approx([sacre(h.tokens, reference) for h in hypotheses], abs=1e-6)
    assert others > 2
    settings = MinRiskConfig(beam_size=3, sharpness=10.0, cross_entropy=0.0)
    told, plain = (MinRisk(settings, each)(model, batch).figures["first_bleu"].item() for each in (words, None))
    assert told != pytest.approx(plain, abs=1e-4)


def test_words_are_counted_through_a_search(model, batch):
    """References that begin like what is found and are longer, so that brevity tells."""
    tokens = ["<pad>", "<unk>", "<s>", "</s>", "▁a", "b", "▁ab", "▁", "a", ".", "▁b", "ba", "▁c"]
    words = Words(TokenList.build(tokens, Cut("sentencepiece", model=SPM)), 0.0, "words")
    found = three_best(model, batch)
    references = [[*hypotheses[-1].tokens, *[4, 5, 5, 9, 6, 5] * 2] for hypotheses in found]
    target = pad_sequence([torch.tensor([*reference, EOS]) for reference in references], batch_first=True)
    batch = replace(batch, target=target, target_lengths=(target > 0).sum(dim=1))
    ranked, bleu = pooled(model, batch, words)
    others = 0
    for row, hypotheses in enumerate(found):
        plain = [sacre(h.tokens, references[row]) for h in hypotheses]
        ratios = [brevity_ratio(words, h.tokens, references[row]) for h in hypotheses]
        expected = [value * ratio for value, ratio in zip(plain, ratios, strict=True)]
        assert bleu[row][ranked[row].topk(3).indices].tolist() == pytest.approx(expected, abs=1e-6)
        others += expected != pytest.approx(plain, abs=1e-6)
    assert others > 2


def test_what_a_hypothesis_is_worth_to_the_batch(model, batch):
    """sacreBLEU's corpus BLEU with each hypothesis in place of its sentence's best."""
    found = three_best(model, batch)
    references = [batch.target[row, : batch.target_lengths[row] - 1].tolist() for row in range(6)]
    ranked, bleu = pooled(model, batch, together=True)
    _, alone = pooled(model, batch)
    first = [hypotheses[0].tokens for hypotheses in found]
    whole = corpus_bleu(first, references)
    assert whole > 0.1
    for row, hypotheses in enumerate(found):
        best = ranked[row].topk(3).indices
        with_each = [corpus_bleu([*first[:row], h.tokens, *first[row + 1 :]], references) for h in hypotheses]
        expected = [whole + 6 * (value - whole) for value in with_each]
        assert bleu[row][best].tolist() == pytest.approx(expected, abs=1e-5)
        assert alone[row][best].tolist() != pytest.approx(expected, abs=1e-3)


def corpus_bleu(hypotheses, references):
    """Of ids, as sacreBLEU has it."""
    texts = [[" ".join(f"w{token}" for token in row) for row in rows] for rows in (hypotheses, references)]
    metric = BLEU(tokenize="none", force=True, smooth_method="add-k", smooth_value=1)
    return metric.corpus_score(texts[0], [texts[1]]).score / 100


@pytest.mark.parametrize("spelt", [False, True])
def test_alone_in_its_batch_a_hypothesis_is_worth_its_own_bleu(model, batch, spelt):
    tokens = ["<pad>", "<unk>", "<s>", "</s>", "▁a", "b", "▁ab", "▁", "a", ".", "▁b", "ba", "▁c"]
    words = Words(TokenList.build(tokens, Cut("sentencepiece", model=SPM)), 0.4, "words") if spelt else None
    alone = replace(batch, source=batch.source[:1], source_lengths=batch.source_lengths[:1], indices=[0])
    alone = replace(alone, target=batch.target[:1], target_lengths=batch.target_lengths[:1])
    with torch.no_grad():
        memory = model.encode(alone.source, alone.source_lengths)
        trace = trace_search(model, memory, limits_of(alone), 3, 6, alpha=1.0, n_best=2)
        worth = [candidate_values(trace, alone, EOS, words, together=together) for together in (False, True)]
    assert len(worth[0]) > 3
    for own, within in zip(*worth, strict=True):
        torch.testing.assert_close(own, within)


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("spelt", [False, True])
def test_what_is_expected_is_less_than_what_is_within_reach(model, batch, together, spelt):
    tokens = ["<pad>", "<unk>", "<s>", "</s>", "▁a", "b", "▁ab", "▁", "a", ".", "▁b", "ba", "▁c"]
    words = Words(TokenList.build(tokens, Cut("sentencepiece", model=SPM)), 0.4, "words") if spelt else None
    with torch.no_grad():
        memory = model.encode(batch.source, batch.source_lengths)
        trace = trace_search(model, memory, limits_of(batch), 3, 6)
        best, expected = (
            candidate_values(trace, batch, EOS, words, together=together, sober=sober) for sober in (False, True)
        )
    less = 0
    for step, high, low in zip(trace.steps, best, expected, strict=True):
        there = step.candidates.scores > -torch.inf
        assert torch.equal(high[step.ended], low[step.ended])
        assert (low <= high + 1e-6)[there].all()
        less += int((low < high - 1e-3)[there].sum())
    assert less > 20
    loss = SoftBeam(SoftBeamConfig(future="expected"))(model, batch)
    loss.value.backward()
    assert loss.figures["reached_bleu"] < SoftBeam(SoftBeamConfig())(model, batch).figures["reached_bleu"]


def test_objectives_by_the_bleu_of_the_batch(model, batch):
    objectives = [MinRisk(MinRiskConfig(beam_size=2, bleu="batch")), SoftBeam(SoftBeamConfig(bleu="batch"))]
    found = [objective(model, batch) for objective in objectives]
    with torch.no_grad():
        memory = model.encode(batch.source, batch.source_lengths)
        trace = trace_search(model, memory, batch.target_lengths + 5, 2, 8)
        _, scores = cumulate(trace)
        ranked, _ = pool(trace, scores, candidate_values(trace, batch, EOS))
        hypotheses = pool_tokens(trace)
    references = [batch.target[row, : batch.target_lengths[row] - 1].tolist() for row in range(6)]
    whole = corpus_bleu([hypotheses[row][best] for row, best in enumerate(ranked.argmax(dim=1).tolist())], references)
    for loss in found:
        assert loss.figures["first_bleu"].item() == pytest.approx(whole, abs=1e-5)
        loss.value.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def pool_tokens(trace):
    """Of each sentence, the ids of each hypothesis of `pool`; those of what has not ended tell nothing."""
    rows = trace.steps[0].ended.shape[0]
    found, prefixes = [[] for _ in range(rows)], [[[]] for _ in range(rows)]
    for number, step in enumerate(trace.steps):
        width = trace.selected(number)
        for row in range(rows):
            slots, tokens = (each[row, :width].tolist() for each in (step.candidates.slots, step.candidates.tokens))
            before = prefixes[row]
            found[row] += [before[slot] for slot in slots]
            prefixes[row] = [[*before[slot], token] for slot, token in zip(slots, tokens, strict=True)]
    return found


def brevity_ratio(words, hypothesis, reference):
    """The brevity penalty of words over that of pieces."""
    if not words.split(hypothesis):
        return 0.0
    of_pieces = len(reference) / len(hypothesis)
    of_words = len(words.split(reference)) / len(words.split(hypothesis))
    return math.exp(min(0, 1 - of_words) - min(0, 1 - of_pieces))


def word_bleu(words, hypothesis, reference):
    # An unknown piece is a word that equals none.
    mine = [word or b"mine" for word in words.split(hypothesis)]
    return sacre(mine, [word or b"theirs" for word in words.split(reference)])


def objective_of(name, **options):
    if name == "min_risk":
        return MinRisk(MinRiskConfig(beam_size=3, label_smoothing=0.1, tolerance=0.0, cross_entropy=0.3))
    search = SoftSearchConfig(beam_size=3, candidates=8, temperature=0.4)
    return SoftBeam(SoftBeamConfig(search=search, tolerance=0.0, cross_entropy=0.3, **options))


@pytest.mark.parametrize("name", ["min_risk", "reachable_bleu"])
def test_the_gradient_of_a_replay_is_that_of_the_whole_search(model, batch, name):
    check_gradient(model, objective_of(name), batch, NAMES)


def test_minimum_risk_alone_is_the_limit_of_a_soft_beam_that_only_has_its_risk(model, batch):
    """A hard top-k has no gradient: what is left is the risk."""
    search = SoftSearchConfig(beam_size=4, candidates=4)
    config = SoftBeamConfig(search=search, risk=1.0, tolerance=0.0, cross_entropy=0.2)
    gradients = []
    for objective in (
        SoftBeam(config, only_hard),
        MinRisk(MinRiskConfig(beam_size=4, tolerance=0.0, cross_entropy=0.2)),
    ):
        model.zero_grad()
        objective(model, batch).value.backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    torch.testing.assert_close(*gradients)


def test_light_prefixes_are_left_out_and_the_gradient_hardly_moves(model, batch):
    gradients, decoded = [], []
    for tolerance in (0.0, 0.02):
        search = SoftSearchConfig(beam_size=3, candidates=8, temperature=0.4)
        objective = SoftBeam(SoftBeamConfig(search=search, tolerance=tolerance, cross_entropy=0.0))
        model.zero_grad()
        found = objective(model, batch)
        found.value.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        decoded.append(found.figures["prefixes"].item())
    exact, light = gradients
    assert decoded[1] < decoded[0]
    assert torch.linalg.norm(light - exact) < 0.1 * torch.linalg.norm(exact)


@pytest.mark.parametrize("tolerance", [0.0, 0.05])
def test_where_all_is_worth_as_much_nothing_but_the_references_is_decoded(model, batch, tolerance):
    """The weights are rounding, then, and a share of the largest would be, too."""
    never = 12
    with torch.no_grad():
        for special in (EOS, never):
            model.output.bias[special] = -80.0
    batch.target[(batch.target != 0) & (batch.target != EOS)] = never
    search = SoftSearchConfig(beam_size=2, candidates=6)
    found = SoftBeam(SoftBeamConfig(search=search, tolerance=tolerance))(model, batch, 1)
    assert float(found.figures["gradient_reach"]) < 1e-12
    assert float(found.figures["prefixes"]) == pytest.approx(1.0)


def test_a_learned_temperature_has_its_gradient(model, batch):
    learned = objective_of("reachable_bleu", temperature=TemperatureConfig(schedule="learned")).double()
    (parameter,) = learned.parameters()
    (slope,) = torch.autograd.grad(learned(model, batch).value, parameter)
    values = []
    with torch.no_grad():
        for move in (1e-6, -2e-6):
            parameter += move
            with torch.enable_grad():
                values.append(learned(model, batch).value.item())
    assert slope.item() == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-5) and abs(slope.item()) > 1e-5


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_cross_entropy_is_that_of_a_share_of_the_references(model, batch, share):
    plain = SoftBeamConfig(cross_entropy=0.0, references=share)
    mixed = SoftBeamConfig(cross_entropy=0.4, references=share, label_smoothing=0.2)
    torch.manual_seed(3)
    chosen = torch.randperm(6) < max(1, 6 * share)
    rows = [part[chosen] for part in (batch.source, batch.source_lengths, batch.target, batch.target_lengths)]
    expected = CrossEntropy(CrossEntropyConfig(label_smoothing=0.2))(model, Batch(*rows, [])).value
    torch.manual_seed(3)
    without = SoftBeam(plain)(model, batch)
    torch.manual_seed(3)
    found = SoftBeam(mixed)(model, batch)
    got = torch.autograd.grad(found.value - without.value, model.output.weight)[0]
    torch.testing.assert_close(got, torch.autograd.grad(0.4 * expected, model.output.weight)[0])
    assert found.value.item() - without.value.item() == pytest.approx(0.4 * expected.item())


def test_the_divergence_is_the_mean_kl_from_the_start_over_the_prefixes_that_are_decoded(model, tiny_model, batch):
    """Nothing of a hard top-k without its risk has weight: they are those of the references."""
    start = tiny_model(vocabulary=13, seed=4, dropout=0.5).double()
    near, plain = (SoftBeam(SoftBeamConfig(risk=0.0, divergence=weight), only_hard) for weight in (0.7, 0.0))
    near.stay_near(start)
    near.train()
    apart = []
    with torch.no_grad():
        for row in range(len(batch.source)):
            source = batch.source[row : row + 1, : batch.source_lengths[row]], batch.source_lengths[row : row + 1]
            tokens = shifted(model, batch.target[row : row + 1, : batch.target_lengths[row]])
            q, p = (
                each.project(each.teacher_force(tokens, each.encode(*source)))[0].log_softmax(dim=1)
                for each in (model, start.eval())
            )
            apart += (p.exp() * (p - q)).sum(dim=1).tolist()
    expected = sum(apart) / len(apart)
    assert expected > 0.01
    found = near(model, batch)
    assert found.figures["divergence"].item() == pytest.approx(expected)
    assert found.value.item() - plain(model, batch).value.item() == pytest.approx(0.7 * expected)


def test_the_divergence_has_its_gradient_and_the_start_has_none(model, batch):
    near = objective_of("reachable_bleu", divergence=0.7)
    # Weights that are rounding errors come and go, and with them the prefixes of the mean.
    near.config.tolerance = 1e-6
    with pytest.raises(UserError, match=r"call stay_near\(model\) first"):
        near(model, batch)
    near.stay_near(model)
    assert near(model, batch).figures["divergence"].item() == pytest.approx(0.0, abs=1e-9)
    with torch.no_grad():
        model.output.weight.mul_(1.1)
    check_gradient(model, near, batch, NAMES)
    assert all(p.grad is None and not p.requires_grad for p in near.parameters())


@pytest.mark.parametrize(("dropout", "locked"), [(0.0, False), (0.3, False), (0.3, True)])
def test_what_steps_alike_is_read_once(tiny_model, dropout, locked, monkeypatch):
    model = tiny_model(vocabulary=13, seed=2, dropout=dropout, locked=locked).train()
    calls, encode = [], model.encode
    monkeypatch.setattr(model, "encode", lambda *inputs: calls.append(model.training) or encode(*inputs))
    SoftBeam(SoftBeamConfig())(model, random_batch(6, 13, 7, seed=3)).value.backward()
    assert calls == ([False, True] if dropout and not locked else [True])


@pytest.mark.parametrize("name", ["min_risk", "reachable_bleu"])
def test_with_locked_dropout_the_replay_runs_the_network_of_the_search(tiny_model, name):
    """The whole loss, search included, is then the function of one network: finite differences agree."""
    model = tiny_model(vocabulary=13, seed=2, scale=1.5, dropout=0.3, locked=True).double().train()
    check_gradient(model, objective_of(name), random_batch(6, 13, 7, seed=3), NAMES)


def test_dropout_is_off_in_the_search_and_on_in_the_replay(tiny_model):
    model = tiny_model(vocabulary=13, seed=2, dropout=0.3).train()
    batch = random_batch(6, 13, 7, seed=3)
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model.zero_grad()
        loss = MinRisk(MinRiskConfig(cross_entropy=0.0))(model, batch)
        loss.value.backward()
        found.append((loss.value.item(), model.output.weight.grad.clone()))
    assert model.training
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-6)
    assert not torch.allclose(found[0][1], found[1][1])


@pytest.mark.parametrize(
    ("options", "words"),
    [({"beam_size": 1}, "beam_size is 1"), ({"n_best": 0}, "n_best is 0"), ({"sharpness": -1}, "sharpness is -1"),
     ({"label_smoothing": 1.0}, "label_smoothing is 1.0")],
)  # fmt: skip
def test_impossible_settings_are_refused(options, words):
    from nmt.errors import UserError

    with pytest.raises(UserError, match=words):
        MinRiskConfig(**options)


def test_without_sharpness_all_that_is_there_weighs_alike(model, batch):
    """The limit; what is not there has no weight."""
    scores = torch.tensor([[-1.0, -3.0, -torch.inf], [-2.0, -torch.inf, -torch.inf]], requires_grad=True)
    found = shares(scores, 0.0)
    assert found.tolist() == [[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]
    assert torch.isfinite(torch.autograd.grad(found[:, 0].sum(), scores)[0]).all()

    def risk(sharpness):
        return MinRisk(MinRiskConfig(sharpness=sharpness, cross_entropy=0.0))(model, batch).value

    torch.testing.assert_close(risk(0.0), risk(1e-9), rtol=0, atol=1e-7)


def test_a_search_leaves_the_modes_of_a_model_as_they_were(tiny_model, monkeypatch):
    model, batch = tiny_model(vocabulary=15, dropout=0.5).train(), random_batch(4, 15, 6)
    model.encoder.eval()
    before = [part.training for part in model.modules()]
    objective = MinRisk(MinRiskConfig())
    objective(model, batch)
    assert [part.training for part in model.modules()] == before
    monkeypatch.setattr(type(model), "advance", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        objective(model, batch)
    assert [part.training for part in model.modules()] == before


def test_the_start_has_no_dropout(tiny_model):
    """A model that is built is in training mode."""
    model, batch = tiny_model(vocabulary=15, dropout=0.5, scale=1.5).double().train(), random_batch(4, 15, 6)
    objective = SoftBeam(SoftBeamConfig(divergence=1.0))
    objective.stay_near(model)
    assert not any(part.training for part in objective.anchor.modules())
    objective.train()
    assert not any(part.training for part in objective.anchor.modules())
    assert objective(model.eval(), batch).figures["divergence"].item() == pytest.approx(0.0, abs=1e-12)
    assert objective(model.train(), batch).figures["divergence"].item() > 1e-3


@pytest.mark.parametrize("name", OPERATORS)
def test_every_operator_trains(model, batch, name):
    search = SoftSearchConfig(beam_size=3, candidates=8, temperature=0.4)
    losses = ["reachable_bleu"] + ["expected_bleu", "token", "gold_in_beam"] * OPERATORS[name].ranked
    for loss in losses:
        objective = SoftBeam(SoftBeamConfig(loss=loss, search=search, operator=name, risk=0.0, cross_entropy=0.0))
        torch.manual_seed(0)
        model.zero_grad()
        objective(model, batch).value.backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
        assert torch.isfinite(gradient).all() and gradient.norm() > 1e-6, loss


def test_an_operator_that_does_not_sort_fits_reachable_bleu_alone():
    from nmt.errors import UserError

    assert SoftBeam(SoftBeamConfig(operator="soft_topk")).operator is OPERATORS["soft_topk"].operator
    with pytest.raises(UserError, match="'soft_topk', which does not sort.*needs one of sorted_soft_topk"):
        SoftBeamConfig(loss="token", operator="soft_topk")
    with pytest.raises(UserError, match="Did you mean 'soft_topk'"):
        SoftBeamConfig(operator="soft_topkk")
