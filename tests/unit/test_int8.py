"""Layers of 8 bits: the arithmetic by its definition, and results that do not depend on the rows beside them."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from nmt.errors import UserError
from nmt.models import FusedRNNsearch, Narrowed, decoding_form, int8, quantize
from nmt.models.int8 import Int8Linear, Int8Recurrent, take_outputs
from nmt.search import SearchConfig, beam_search
from nmt.tree import leaves
from tests import ROOT
from tests.conftest import random_batch
from tests.unit.test_fused import SHAPES


class Bounded(nn.Module):
    """Two layers and a list; of the inputs of some it is known how large they can be."""

    def __init__(self):
        super().__init__()
        self.bounds = {"first": 1.0, "listed": 2.0}
        self.first, self.second = nn.Linear(40, 30), nn.Linear(40, 30, bias=False)
        self.listed = nn.ModuleList([nn.Linear(40, 30)])


def by_definition(layer, x, bound, levels):
    """Weights rounded by the largest of an output, inputs by the bound or the largest of a row, in float64."""
    weight, x = layer.weight.double(), x.double()
    unit = weight.abs().amax(1, keepdim=True) / 127
    step = (x.abs().amax(-1, keepdim=True) if bound is None else torch.tensor(bound)) / levels
    whole = ((x / step + 0.5).floor() * step) @ ((weight / unit).round() * unit).T
    return whole if layer.bias is None else whole + layer.bias.double()


@pytest.mark.parametrize("name", ["first", "second", "listed"])
def test_a_layer_is_its_definition(name):
    torch.manual_seed(1)
    module = Bounded()
    rounded, layer = quantize(module), getattr(module, name)
    found = getattr(rounded, name)
    layer, found = (layer[0], found[0]) if name == "listed" else (layer, found)
    assert isinstance(found, Int8Linear) and isinstance(layer, nn.Linear), "the module itself stays"
    bound = module.bounds.get(name)
    assert found.bound == bound
    x = torch.rand(3, 7, 40) * 2 * (bound or 5.0) - (bound or 5.0)
    x[0, 0] = 0.0
    x[0, 1, 0] = bound or 9.0
    expected = by_definition(layer, x, bound, found.levels)
    torch.testing.assert_close(found(x).double(), torch.nan_to_num(expected, nan=0.0), atol=1e-5, rtol=1e-5)
    assert 1e-4 < float((found(x) - layer(x)).detach()[1:].abs().max()) < 0.1, "rounded, and the same layer"


@pytest.mark.parametrize("bound", [None, 1.0])
def test_a_row_alone_is_the_row_among_others(bound):
    torch.manual_seed(2)
    layer = quantize(nn.Sequential(nn.Linear(64, 333)))[0]
    layer.bound = bound
    x = torch.rand(150, 64) * 2 - 1
    x[7] *= 1e-6 if bound is None else 1.0
    whole = layer(x)
    for rows in ([0], [7], [3, 7, 149], list(range(40, 120))):
        assert torch.equal(layer(x[rows]), whole[rows])
    assert torch.equal(take_outputs(layer, torch.tensor([3, 0, 332]))(x), whole[:, [3, 0, 332]])


def test_weights_that_stay_are_shared(tiny_model):
    """Of what is only looked up there is one copy in memory."""
    model = FusedRNNsearch(tiny_model())
    rounded = quantize(model)
    one, other = (form.source_embedding.weight.data_ptr() for form in (rounded, model))
    assert one == other
    assert isinstance(model.output, nn.Linear), "the model itself stays"


def test_the_table_is_narrow_and_what_it_gives_is_not(tiny_model):
    form = decoding_form(tiny_model())
    form.table.data[0, 0] = 1e6
    rounded, tokens = quantize(form), torch.arange(12).view(3, 4)
    assert form.table.dtype == torch.float32 and rounded.table.dtype == torch.float16
    assert rounded.embed(tokens).dtype == torch.float32
    torch.testing.assert_close(rounded.embed(tokens)[0, 1:], form.embed(tokens)[0, 1:], rtol=2**-11, atol=0.0)
    assert rounded.embed(tokens)[0, 0, 0] == torch.finfo(torch.float16).max, "no sum with it is infinite"


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
@pytest.mark.parametrize("layers", [1, 2])
def test_recurrent_layers(kind, layers):
    torch.manual_seed(3)
    # A CPU's vectors divide 32: what is left over at the end of a tensor is rounded otherwise.
    layer = kind(20, 32, num_layers=layers, bidirectional=True, batch_first=True)
    rounded = Int8Recurrent(layer)
    x, lengths = torch.randn(5, 9, 20), torch.tensor([4, 9, 1, 9, 6])
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    with torch.no_grad():
        (outputs, final), (expected, last) = rounded(packed), layer(packed)
    for part, whole in zip(leaves(final), leaves(last), strict=True):
        torch.testing.assert_close(part, whole, atol=0.03, rtol=0)
    outputs, expected = (pad_packed_sequence(one, batch_first=True)[0] for one in (outputs, expected))
    torch.testing.assert_close(outputs, expected, atol=0.03, rtol=0)
    for row, length in enumerate(lengths.tolist()):
        with torch.no_grad():
            alone, own = rounded(pack_padded_sequence(x[row : row + 1], lengths[row : row + 1], batch_first=True))
        assert torch.equal(alone.data, outputs[row, :length])
        for part, whole in zip(leaves(own), leaves(final), strict=True):
            assert torch.equal(part, whole[:, row : row + 1])


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"cell": "lstm", "encoder_layers": 2, "decoder_layers": 3, "readout": "tanh"},
        {"decoder_layers": 3, "upper": "skip", "bridge": "mean"},
        {"decoder": "luong", "input_feeding": True, "decoder_layers": 2, "readout": "tanh"},
        {"decoder": "luong", "cell": "lstm", "attention": "general", "bridge": "linear", "output_size": 6},
    ],
)
def test_a_search_does_not_depend_on_the_batch(tiny_model, shape):
    model = quantize(decoding_form(tiny_model(vocabulary=30, seed=1, **shape)))
    assert not any(isinstance(part, (nn.Linear, nn.GRU, nn.LSTM)) for part in model.modules())
    batch = random_batch(20, 30, 12, seed=5)
    together = beam_search(model, batch.source, batch.source_lengths, SearchConfig(4))
    for row, length in enumerate(batch.source_lengths.tolist()):
        (alone,) = beam_search(model, batch.source[row : row + 1, :length], torch.tensor([length]), SearchConfig(4))
        assert alone[0].tokens == together[row][0].tokens
        assert alone[0].score == pytest.approx(together[row][0].score, abs=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_no_input_exceeds_its_bound(tiny_model, shape):
    model = tiny_model(vocabulary=30, seed=1, **shape)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embedding" not in name and parameter is not model.output.weight:
                parameter.normal_(std=3.0)  # states at the ends of their range
    model = quantize(decoding_form(model))
    largest = {}

    def look(layer, inputs):
        largest[layer] = max(largest.get(layer, 0.0), inputs[0].abs().max().item())

    bounded = [part for part in model.modules() if isinstance(part, Int8Linear) and part.bound is not None]
    for part in bounded:
        part.register_forward_pre_hook(look)
    batch = random_batch(20, 30, 12, seed=5)
    beam_search(model, batch.source, batch.source_lengths, SearchConfig(4))
    assert set(largest) == set(bounded) and bounded
    assert all(most <= layer.bound for layer, most in largest.items())
    assert max(most / layer.bound for layer, most in largest.items()) > 0.8


def test_candidates_of_the_output_layer(tiny_model):
    model = quantize(FusedRNNsearch(tiny_model(vocabulary=30, seed=1)))
    batch = random_batch(4, 30, 12, seed=5)
    candidates = torch.tensor([0, 1, 2, 3, 7, 8, 20])
    narrow = Narrowed(model, candidates, torch.ones(4, 7, dtype=torch.bool))
    memory = narrow.encode(batch.source, batch.source_lengths)
    first = narrow.advance(narrow.embed(torch.full((4, 1), 2)), narrow.start(memory), memory)
    whole = model.advance(model.embed(torch.full((4, 1), 2)), model.start(memory.memory), memory.memory)
    expected = model.project(whole.features)[..., candidates]
    assert torch.equal(narrow.project(first.features), expected)


def test_processors_that_add_in_16_bits():
    """There 127 levels overflow; the first processors with AVX2 are such, and any other can be told to be one."""
    code = (
        "import torch; from nmt.models import int8; layer = torch.nn.Linear(64, 50); torch.manual_seed(0)\n"
        "x = torch.rand(9, 64) * 2 - 1; found = int8.quantize(torch.nn.Sequential(layer))(x)\n"
        "print(int8._levels(), float((found - layer(x)).abs().max()))"
    )
    variables = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=variables)
    levels, error = done.stdout.split()
    assert int(levels) in (63, 127) and 1e-4 < float(error) < 0.05, done.stderr


def test_a_torch_without_it_is_told(monkeypatch):
    def absent(*_):
        raise RuntimeError("no kernel found\nstack")

    monkeypatch.setattr(int8, "_product", absent)
    int8._levels.cache_clear()
    try:
        with pytest.raises(UserError, match=r"int8 is not there in this torch \(no kernel found\); leave it out"):
            quantize(nn.Linear(3, 3))
        monkeypatch.setattr(int8, "_product", lambda inputs, *_: inputs.float())
        with pytest.raises(UserError, match="does not compute right on this processor"):
            quantize(nn.Linear(3, 3))
    finally:
        int8._levels.cache_clear()
