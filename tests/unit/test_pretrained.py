"""Encoder-decoders of transformers as our models: small seeded ones, beside what transformers makes of them."""

import copy
import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from nmt.errors import UserError
from nmt.models import Ensemble, Pretrained, PretrainedConfig, RNNsearchConfig
from nmt.objectives import (
    BSO,
    BSOConfig,
    CrossEntropy,
    CrossEntropyConfig,
    MinRisk,
    MinRiskConfig,
    SoftBeam,
    SoftBeamConfig,
)
from nmt.search import SearchConfig, forced_search
from nmt.search.soft import SoftSearchConfig, soft_beam_search
from nmt.text.batching import Batch, pad
from nmt.text.vocabulary import VocabularyConfig
from nmt.translator import LengthLimit, Translator
from nmt.tree import leaves
from nmt.wishes import Wish
from tests.unit.pretrained import INPUTS, KINDS, OTHERS, SIZE, Case, framed, make_case, model_of, sources, targets
from tests.unit.test_search import hard_steps

LIMIT = 30


@pytest.fixture(scope="module", params=(*KINDS, *OTHERS))
def case(request: Any, tmp_path_factory: Any) -> Case:
    return make_case(request.param, tmp_path_factory.mktemp("models") / request.param)


def test_log_probabilities_are_those_of_transformers(case: Case) -> None:
    model = model_of(case)
    target, lengths = targets(case)
    found = forced_search(model, *sources(case), target, lengths, SearchConfig())
    read = torch.cat([torch.tensor(model.config.start).expand(INPUTS, -1), target[:, :-1]], dim=1)
    with torch.no_grad():
        logits = case.network(**framed(case), decoder_input_ids=read).logits
    wanted = logits[:, len(model.config.start) - 1 :].log_softmax(dim=2).gather(2, target.unsqueeze(2)).squeeze(2)
    for one, row, length in zip(found, wanted, lengths.tolist(), strict=True):
        torch.testing.assert_close(torch.tensor(one.token_log_probabilities), row[:length], atol=1e-4, rtol=1e-4)


def test_greedy_search_finds_what_generate_finds(case: Case) -> None:
    model = model_of(case)
    ours = Translator(case.checkpoint).search(case.lines, beam_size=1, max_ratio=0, max_extra=LIMIT)
    start = model.config.start
    written = case.network.generate(
        **framed(case),
        num_beams=1,
        do_sample=False,
        max_new_tokens=LIMIT,
        # What is forced is given instead: it must not be chosen again.
        decoder_input_ids=torch.tensor(start).expand(INPUTS, -1),
        forced_bos_token_id=None,
        suppress_tokens=sorted({model.padding, model.bos} - {model.eos}),
    )
    found = set()
    for mine, row in zip(ours, written[:, len(start) :].tolist(), strict=True):
        kept = row[: row.index(model.eos)] if model.eos in row else row[: LIMIT - 1]
        assert mine[0].text == case.tokenizer.decode(kept, skip_special_tokens=True)
        found.add(mine[0].text)
    assert len(found) > INPUTS // 4


def test_a_source_beyond_the_positions_is_cut_there(case: Case, caplog: Any) -> None:
    """Those that are as long as the model can read are not; an ensemble reads what all of its models can."""
    most = model_of(case).most_pieces
    words = case.lines[0].split()[:1] * 200
    if most is None:
        assert case.kind == "t5"
        return
    with pytest.raises(UserError, match="positions for"):
        model_of(case).encode(torch.full((1, most + 2), 7), torch.tensor([most + 2]))
    lines = [case.lines[0], " ".join(words), "", " ".join(words[:most]), " ".join(words[: most + 1])]
    both = dataclasses.replace(case.checkpoint, model=Ensemble([case.checkpoint.model] * 2))
    for translator in (Translator(case.checkpoint), Translator(both)):
        caplog.clear()
        found = translator.search(lines, max_ratio=0, max_extra=LIMIT, first_line=7)
        told = [f"line {n} has {size} pieces, more than the model has positions for, {most}: " for n, size in
                ((8, 200), (11, most + 1))]  # fmt: skip
        assert caplog.messages == [f"{one}translated up to there" for one in told]
        assert len(found) == len(lines) and found[2][0].text == ""
        assert found[1][0].source_pieces == found[3][0].source_pieces == found[4][0].source_pieces
        assert [one[0].score for one in found[3:]] == pytest.approx([found[1][0].score] * 2, abs=1e-4)
        assert len(found[3][0].source_pieces) == most + 1
        caplog.clear()
        scored = translator.score(lines, [case.lines[1]] * 5, first_line=7)
        assert caplog.messages == [f"{one}the source is read up to there" for one in told]
        assert [one.score for one in scored[3:]] == pytest.approx([scored[1].score] * 2, abs=1e-4)
        assert translator.translate(lines, max_ratio=0, max_extra=LIMIT, limit=LengthLimit(too_long="empty"))[1] == ""


def test_a_translation_ends_at_the_positions(case: Case, caplog: Any) -> None:
    """One that is as long as the model can write is found and scored; a longer one is not searched for, and has no
    score."""
    most, word = model_of(case).most_tokens, case.lines[0].split()[0]
    if most is None:
        assert case.kind == "t5"
        return
    both = dataclasses.replace(case.checkpoint, model=Ensemble([case.checkpoint.model] * 2))
    wishes = [Wish(prefix=" ".join([word] * size)) for size in (most, most - 1, 1)] + [Wish(include=(word,) * most)]
    for translator in (Translator(case.checkpoint), Translator(both)):
        caplog.clear()
        found = [one[0] for one in translator.search(case.lines[:1] * 4, wishes=wishes, beam_size=1, max_extra=1000)]
        told = [f"line 1: its prefix has {most} pieces, more than the model has positions for, {most - 1}: kept up to"]
        assert [one for one in caplog.messages if "prefix" in one] == [f"{told[0]} there"]
        assert found[0].text == found[1].text == wishes[1].prefix
        assert len(found[1].pieces) == most and all(len(one.pieces) <= most for one in found)
        caplog.clear()
        scored = translator.score(case.lines[:1] * 3, [wish.prefix for wish in wishes[:3]], first_line=7)
        assert caplog.messages == [f"line 7: the translation has {most} pieces, more than the model has positions for, "
                                   f"{most - 1}: not scored"]  # fmt: skip
        assert math.isnan(scored[0].score) and scored[1].score == pytest.approx(found[1].score, abs=1e-4)
    memory = model_of(case).encode(*sources(case, 1))
    with torch.no_grad():
        assert len(list(soft_beam_search(model_of(case), memory, 1, 1000, SoftSearchConfig(beam_size=2)))) == most
    with pytest.raises(UserError, match="a translation has"):
        model_of(case).teacher_force(torch.full((1, most + 1), 7), memory)


@pytest.mark.parametrize("case", ["marian", "m2m100"], indirect=True)
@pytest.mark.parametrize(
    "objective",
    [
        SoftBeam(SoftBeamConfig(search=SoftSearchConfig(beam_size=2, candidates=6))),
        SoftBeam(SoftBeamConfig(loss="expected_bleu", search=SoftSearchConfig(beam_size=2, candidates=6))),
        BSO(BSOConfig(beam_size=2)),
        MinRisk(MinRiskConfig(beam_size=2)),
    ],
    ids=["reachable_bleu", "expected_bleu", "bso", "min_risk"],
)
def test_training_goes_up_to_the_positions(case: Case, objective: Any) -> None:
    """A reference as long as the decoder allows leaves the searches no room for more."""
    model = copy.deepcopy(model_of(case)).train()
    target, lengths = targets(case, 6)
    source = pad([[7, 8]] * 6, model.padding, model.eos)
    model.config.network["max_position_embeddings"] = int(lengths.max()) + model.forced
    objective(model, Batch(*source, target, lengths, list(range(6))), 0).value.backward()


def test_roberta_counts_positions_from_behind_padding() -> None:
    """All that it says it can read and write, it can."""
    import transformers

    ids = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    sizes = {
        "vocab_size": SIZE, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
        "max_position_embeddings": 20, "hidden_size": 16,
    }  # fmt: skip
    parts = [transformers.RobertaConfig(**sizes, **ids) for _ in range(2)]
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(*parts, **ids, decoder_start_token_id=0)
    model = Pretrained(PretrainedConfig(config.to_dict(), [0], 1, 2, [0], [2]), SIZE, SIZE).eval()
    assert (model.most_pieces, model.most_tokens) == (16, 18)
    memory = model.encode(torch.full((1, 17), 7), torch.tensor([17]))
    model.teacher_force(torch.full((1, 18), 7), memory)
    for act in (lambda: model.encode(torch.full((1, 18), 7), torch.tensor([18])),
                lambda: model.teacher_force(torch.full((1, 19), 7), memory)):  # fmt: skip
        with pytest.raises(UserError, match="positions for 18 alone"):
            act()


def test_the_soft_search_becomes_the_hard_one(case: Case) -> None:
    """Token for token, and its mixed caches those of the slots that were selected."""
    model = model_of(case)
    config = SoftSearchConfig(beam_size=3, candidates=12, temperature=1e-7)
    with torch.no_grad():
        memory = model.encode(*sources(case))
        soft = soft_beam_search(model, memory, INPUTS, 8, config)
        for (selection, beam), step in zip(hard_steps(model, memory, INPUTS, 8, 3), soft, strict=True):
            chosen = step.selection.weights.argmax(dim=1)
            assert torch.equal(step.selection.candidates.tokens.gather(1, chosen), selection.tokens)
            assert torch.equal(step.selection.candidates.slots.gather(1, chosen), selection.parents)
            torch.testing.assert_close(step.after.scores, beam.scores, atol=1e-4, rtol=1e-5)
            for part, whole in zip(leaves(step.after.state), leaves(beam.state), strict=True):
                torch.testing.assert_close(part, whole, atol=1e-4, rtol=1e-4)


def test_gradient_through_the_cache(case: Case, monkeypatch: Any) -> None:
    """Of the scores of a soft search, against finite differences in float64, along a direction of all weights."""
    from transformers.models.t5.modeling_t5 import T5LayerNorm

    def norm(self: Any, hidden: torch.Tensor) -> torch.Tensor:
        """T5's own computes the variance in float32 whatever the weights are."""
        return self.weight * hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)

    monkeypatch.setattr(T5LayerNorm, "forward", norm)
    model = copy.deepcopy(model_of(case)).double()
    source, lengths = sources(case)
    weights = [one for one in model.parameters() if one.requires_grad]

    def value(damping: float) -> torch.Tensor:
        config = SoftSearchConfig(beam_size=2, candidates=6, temperature=1.0, damping=damping)
        steps = list(soft_beam_search(model, model.encode(source, lengths), INPUTS, 3, config))
        return steps[-1].after.scores.sum()

    generator = torch.Generator().manual_seed(5)
    ways = [torch.randn(one.shape, generator=generator, dtype=one.dtype) for one in weights]
    for one, way in zip(weights, ways, strict=True):
        # Marian begins with padding, whose embedding has no gradient in torch.
        if len(one) == SIZE:
            way[model.padding] = 0.0

    def slope(damping: float) -> float:
        grads = torch.autograd.grad(value(damping), weights, allow_unused=True)
        return sum(float((way * grad).sum()) for way, grad in zip(ways, grads, strict=True) if grad is not None)

    def moved(distance: float) -> float:
        with torch.no_grad():
            for one, way in zip(weights, ways, strict=True):
                one.add_(way, alpha=distance)
            found = float(value(1.0))
            for one, way in zip(weights, ways, strict=True):
                one.add_(way, alpha=-distance)
        return found

    step = 1e-8
    whole = slope(1.0)
    assert (moved(step) - moved(-step)) / (2 * step) == pytest.approx(whole, rel=1e-5)
    # A part of it comes through the mixed caches and embeddings.
    assert slope(0.0) != pytest.approx(whole, rel=1e-3)


@pytest.mark.parametrize("case", KINDS, indirect=True)
@pytest.mark.parametrize(
    "objective",
    [
        CrossEntropy(CrossEntropyConfig()),
        SoftBeam(SoftBeamConfig(search=SoftSearchConfig(beam_size=2, candidates=6))),
        SoftBeam(SoftBeamConfig(loss="token", search=SoftSearchConfig(beam_size=2, candidates=6))),
    ],
    ids=["cross_entropy", "reachable_bleu", "token"],
)
def test_an_update_lowers_the_loss_on_its_batch(case: Case, objective: Any) -> None:
    model = copy.deepcopy(model_of(case)).train()
    batch = Batch(*sources(case, 6), *targets(case, 6), list(range(6)))
    before = {name: one.clone() for name, one in model.state_dict().items()}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    nll = []
    for update in range(4):
        torch.manual_seed(1)
        loss = objective(model, batch, update)
        optimizer.zero_grad()
        loss.value.backward()
        optimizer.step()
        nll.append(float(loss.figures["nll"]))
    assert any(not torch.equal(before[name], one) for name, one in model.state_dict().items())
    assert nll[-1] < nll[0]


def test_a_run_keeps_the_tokenizer_and_the_settings(case: Case, tmp_path: Path) -> None:
    from nmt.runs.data_module import choose_vocabularies
    from nmt.runs.transfer import shape_of, transfer
    from nmt.text.pairs import Pairs

    found = case.checkpoint
    both = found.source_vocabulary, found.target_vocabulary
    with pytest.raises(UserError, match="renew is target, but the loaded model is of transformers and keeps its tok"):
        choose_vocabularies(Pairs(["a"], ["a"], "x"), VocabularyConfig(renew="target"), 1, tmp_path, both)
    with pytest.raises(UserError, match="model.hidden is 3, but the loaded model is of transformers"):
        shape_of(found, RNNsearchConfig(hidden=3))
    done = transfer(found, copy.deepcopy(found), "m")
    assert done.loaded and not (done.reset or done.ignored or done.rows)
    lines = list(done.lines())
    assert lines[0].startswith("loaded all weights and vocabularies of m: ")
    assert (
        lines[1].endswith("ignored: data.vocabulary but for sampling and sampled and section model") and len(lines) == 2
    )
