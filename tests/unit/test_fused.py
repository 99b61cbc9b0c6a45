"""The form of a model that decodes: the same function as the model itself."""

import pytest
import torch

from nmt.models import Ensemble, Fused, FusedRNNsearch, decoding_form
from nmt.search import SearchConfig, beam_search
from nmt.search.peaks import largest, log_normaliser
from tests.conftest import random_batch

SHAPES = [
    {},
    {"cell": "lstm", "encoder_layers": 2, "decoder_layers": 3},
    {"decoder_layers": 2, "readout": "tanh", "dropout": 0.3},
    {"tied_embeddings": "all", "locked": True, "dropout": 0.3},
    {"cell": "lstm", "decoder_layers": 3, "upper": "skip", "bridge": "mean"},
    {"decoder_layers": 2, "upper": "last", "attention_hidden": 13},
]
LUONG = [
    {"attention": "dot", "bridge": "layers", "encoder_hidden": 5, "readout": "tanh"},
    {"attention": "general", "input_feeding": True, "bridge": "zero", "cell": "lstm", "decoder_layers": 2},
    {"input_feeding": True, "attention_hidden": 7, "bridge": "relu", "encoder_hidden": 5, "readout": "linear"},
    {"bridge": "linear", "cell": "lstm", "encoder_layers": 2, "decoder_layers": 2, "readout": "tanh", "output_size": 6},
    {
        "bridge": "mean",
        "input_feeding": True,
        "source_end": False,
        "dropout": 0.3,
        "tied_embeddings": "output",
        "output_size": 8,
    },
    {
        "bridge": "last",
        "bidirectional": False,
        "input_feeding": True,
        "attention": "general",
        "readout": "tanh",
        "decoder_layers": 3,
    },
]
SHAPES += [{"decoder": "luong", **shape} for shape in LUONG]


@pytest.mark.parametrize("shape", SHAPES)
def test_every_step_is_the_models(tiny_model, shape):
    model = tiny_model(vocabulary=25, seed=3, **shape).double()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() < 2:  # biases begin as zeros, which would hide one that is left out
                parameter.normal_(std=0.5)
    fused = decoding_form(model)
    assert isinstance(fused, Fused)
    batch = random_batch(8, 25, 9)
    with torch.no_grad():
        memories = model.encode(batch.source, batch.source_lengths), fused.encode(batch.source, batch.source_lengths)
        states = model.start(memories[0]), fused.start(memories[1])
        for step in range(6):
            tokens = torch.randint(4, 25, (8, 1 if step == 0 else 3))
            one, two = (
                m.advance(m.embed(tokens), state, memory)
                for m, state, memory in zip((model, fused), states, memories, strict=True)
            )
            # The attention is float32 there, whatever the model.
            torch.testing.assert_close(two.attention.double(), one.attention, atol=1e-6, rtol=0)
            logits = model.project(one.features), fused.project(two.features)
            torch.testing.assert_close(logits[1], logits[0], atol=1e-5, rtol=1e-5)
            widen = torch.zeros(8, 3, dtype=torch.long)
            rows = torch.arange(8).unsqueeze(1)
            states = tuple(
                tuple(tuple(part[rows, widen if step == 0 else torch.arange(3)] for part in layer) for layer in new)
                for new in (one.state, two.state)
            )


@pytest.mark.parametrize("shape", SHAPES)
def test_the_search_finds_the_same(tiny_model, shape):
    model = tiny_model(vocabulary=30, seed=1, **shape)
    batch = random_batch(30, 30, 12, seed=5)
    config = SearchConfig(4, n_best=3)
    expected = beam_search(model, batch.source, batch.source_lengths, config, attention=True)
    for form in (decoding_form(model), decoding_form(Ensemble([model, model]))):
        found = beam_search(form, batch.source, batch.source_lengths, config, attention=True)
        for one, other in zip(found, expected, strict=True):
            assert [h.tokens for h in one] == [h.tokens for h in other]
            assert [h.score for h in one] == pytest.approx([h.score for h in other], abs=1e-5)
            torch.testing.assert_close(one[0].attention, other[0].attention, atol=1e-5, rtol=0)


def test_attention_holds_at_the_ends_of_the_tanh(tiny_model):
    model = tiny_model(vocabulary=25, seed=3)
    with torch.no_grad():
        model.attention.query.weight.mul_(200)
        model.attention.key.weight.mul_(200)
    batch = random_batch(8, 25, 9)
    fused = FusedRNNsearch(model)
    with torch.no_grad():
        memory, other = (m.encode(batch.source, batch.source_lengths) for m in (model, fused))
        assert memory.keys.abs().max() > 43
        tokens = torch.full((8, 1), 5)
        one = model.advance(model.embed(tokens), model.start(memory), memory)
        two = fused.advance(fused.embed(tokens), fused.start(other), other)
    assert torch.isfinite(two.attention).all()
    torch.testing.assert_close(two.attention.sum(2), torch.ones(8, 1))
    # A query and a key that are both beyond 43 and cancel are all that may differ.
    torch.testing.assert_close(two.attention, one.attention, atol=1e-5, rtol=0)


def test_the_form_leaves_the_model_as_it_was(tiny_model):
    model = tiny_model(vocabulary=25, seed=3)
    model.train()
    fused = FusedRNNsearch(model)
    assert not any(part.training for part in fused.modules()) and all(part.training for part in model.modules())
    assert not any(weight.requires_grad for weight in fused.parameters())
    assert all(weight.requires_grad for weight in model.parameters())
    # No second copy of what is large and stays as it is.
    assert fused.source_embedding.weight.data_ptr() == model.source_embedding.weight.data_ptr()
    assert fused.output.weight.data_ptr() == model.output.weight.data_ptr()


@pytest.mark.parametrize("vocabulary", [5, 100, 1023, 1024, 8000, 8011, 33_001])
@pytest.mark.parametrize("size", [1, 5, 13, 70])
@pytest.mark.parametrize("without", [[0, 2, 3], [2, 4], []])
def test_largest_entries(vocabulary, size, without):
    torch.manual_seed(vocabulary)
    logits, offsets = torch.randn(7, 3, vocabulary), torch.randn(7, 3)
    logits[0, 0, -1] = 50.0
    logits[1, 1, torch.randperm(vocabulary)[: vocabulary // 2]] = -torch.inf
    logits[2, :, without] = 60.0
    offsets[3, 1] = offsets[4, :2] = -torch.inf
    every = (logits + offsets.unsqueeze(2)).index_fill(2, torch.tensor(without, dtype=torch.long), -torch.inf)
    expected = every.flatten(1).topk(min(size, 3 * vocabulary), dim=1).values
    slots, tokens = largest(logits, offsets, size, without)
    assert slots.shape == tokens.shape == expected.shape
    values = every[torch.arange(7).unsqueeze(1), slots, tokens]
    torch.testing.assert_close(values, expected, rtol=0, atol=0)
    for row, there in enumerate(values > -torch.inf):
        found = list(zip(slots[row, there].tolist(), tokens[row, there].tolist(), strict=True))
        assert len(set(found)) == len(found)


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (1.0, -95.0), (1.0, 87.0), (1000.0, 0.0)])
def test_log_normaliser(scale, shift):
    torch.manual_seed(0)
    logits = torch.randn(5, 40, 900) * scale
    logits[3:] += shift
    expected = logits.double().logsumexp(2)
    torch.testing.assert_close(log_normaliser(logits).double(), expected, atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(log_normaliser(logits.requires_grad_()).double(), expected, atol=1e-5, rtol=1e-6)
    assert log_normaliser(logits).requires_grad
    assert log_normaliser(torch.zeros(0, 2, 9)).shape == (0, 2)
    assert log_normaliser(torch.full((1, 1, 4), -torch.inf)).item() == -torch.inf


def test_mixed_precision_is_close(tiny_model):
    model = tiny_model(vocabulary=30, seed=1)
    batch = random_batch(30, 30, 12, seed=5)
    config = SearchConfig(1)
    expected = beam_search(model, batch.source, batch.source_lengths, config)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = beam_search(FusedRNNsearch(model), batch.source, batch.source_lengths, config)
    same = sum(one[0].tokens[:3] == other[0].tokens[:3] for one, other in zip(found, expected, strict=True))
    assert same > 20
