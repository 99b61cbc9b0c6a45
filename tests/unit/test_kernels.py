"""Numbers of rows that come again, and layers that are given them: the same results, few kernels."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from nmt.models import RNNsearchConfig, decoding_form, make_recurrent, quantize
from nmt.models.int8 import Int8Linear
from nmt.models.kernels import (
    RowLinear,
    by_rows,
    has_kernels,
    pad_rows,
    row_linear,
    sum_of_outer_products,
    whole_rows,
    whole_rows_within,
)
from nmt.models.recurrence import run_gru
from nmt.models.steps import StepLinear
from tests import ROOT


def test_there_are_few_numbers_of_rows_and_little_is_added():
    counts = range(10_000)
    whole = sorted({whole_rows(count) for count in counts})
    assert whole[:18] == [*range(17), 32] and len(whole) < 80
    for count in counts:
        assert whole_rows(count) == next(each for each in whole if each >= count)
        assert count <= 128 or whole_rows(count) <= count * 9 / 8
    assert all(whole_rows_within(count) == max(each for each in whole if each <= count) for count in range(0, 9000, 7))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_numbers_have_kernels(dtype):
    x = torch.zeros(3, 2)
    assert has_kernels(x.to(dtype)) and not has_kernels(x) and not has_kernels(x.double())
    with torch.autocast("cpu", dtype):
        assert has_kernels(x)
        with torch.autocast("cpu", enabled=False):
            assert not has_kernels(x)


def test_padding_is_zeros_behind_the_rows():
    rows = torch.randn(17, 3)
    padded = pad_rows(rows)
    assert padded.shape == (32, 3) and torch.equal(padded[:17], rows) and not padded[17:].any()
    assert pad_rows(rows[:16]).data_ptr() == rows.data_ptr(), "a whole number is not copied"


@pytest.mark.parametrize("shape", [(1,), (17,), (40,), (5, 7), (3, 4, 5), (0,)])
def test_a_layer_by_rows_is_the_layer(shape):
    torch.manual_seed(0)
    seen = []

    class Seen(nn.Linear):
        def forward(self, inputs):
            seen.append(len(inputs))
            return super().forward(inputs)

    layer, x = Seen(6, 4), torch.randn(*shape, 6, requires_grad=True)
    wanted = [x, *layer.parameters()]
    expected = nn.functional.linear(x, layer.weight, layer.bias)
    assert torch.equal(by_rows(layer, x), expected), "of wide numbers nothing is changed"
    factor = torch.randn_like(expected)
    with torch.autocast("cpu", torch.bfloat16):
        found = by_rows(layer, x)
    assert found.shape == expected.shape and found.dtype == torch.bfloat16
    assert seen == [shape[0], whole_rows(expected[..., 0].numel())]
    torch.testing.assert_close(found.float(), expected, rtol=0.02, atol=0.02)
    mine = torch.autograd.grad((found * factor).sum(), wanted)
    theirs = torch.autograd.grad((expected * factor).sum(), wanted)
    for own, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(own, other, rtol=0.02, atol=0.02 * float(other.abs().amax()) if shape != (0,) else 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sum_of_outer_products(dtype):
    torch.manual_seed(0)
    left, right = torch.randn(37, 3), torch.randn(37, 5)
    found = sum_of_outer_products(left.to(dtype), right.to(dtype))
    torch.testing.assert_close(found.float(), left.T @ right, rtol=0.02, atol=0.05 if dtype == torch.bfloat16 else 1e-5)


def test_a_layer_for_results_shares_its_weights():
    layer = nn.Linear(3, 2)
    shared = row_linear(layer.weight, layer.bias)
    assert isinstance(shared, RowLinear) and not any(one.requires_grad for one in shared.parameters())
    assert shared.weight.data_ptr() == layer.weight.data_ptr() and shared.bias.data_ptr() == layer.bias.data_ptr()
    x = torch.randn(20, 3)
    assert torch.equal(shared(x), layer(x))
    assert row_linear(layer.weight, None).bias is None


@pytest.mark.parametrize("count", [20, 33])
def test_recurrent_layers_and_their_gradients_are_those_of_float32(count):
    torch.manual_seed(count)
    gru, step = nn.GRU(8, 12, bidirectional=True, batch_first=True), nn.Linear(24, 5)
    lengths = torch.randint(1, 7, (count,)).clamp_min(1)
    values = torch.randn(count, 7, 8)
    wanted = [*gru.parameters(), *step.parameters()]

    def grads(narrow):
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            outputs, _ = run_gru(gru, pack_padded_sequence(values, lengths, batch_first=True, enforce_sorted=False))
            read = StepLinear(step.weight, step.bias)(outputs.data)
            return torch.autograd.grad(read.float().square().sum(), wanted)

    for mine, theirs in zip(grads(True), grads(False), strict=True):
        assert mine.dtype == torch.float32 and (mine - theirs).norm() < 0.03 * theirs.norm()


def decode_shapes(quantized: bool) -> str:
    """A program that decodes batches of all sizes and prints the numbers of rows for which oneDNN compiled."""
    return f"""
import torch
from nmt.models import RNNsearchConfig, decoding_form, make_recurrent, quantize
torch.set_num_threads(1)
model = decoding_form(make_recurrent(RNNsearchConfig(hidden=16, embedding=16), 20, 20).eval())
model = quantize(model) if {quantized} else model.bfloat16()
with torch.inference_mode():
    for rows in range(1, 140):
        source = torch.full((rows, 3), 5)
        memory = model.encode(source, torch.full((rows,), 3))
        model.advance(model.embed(source[:, :1]), model.start(memory), memory)
"""


@pytest.mark.parametrize("quantized", [True, False])
def test_decoding_compiles_few_kernels(quantized):
    environment = {**os.environ, "ONEDNN_VERBOSE": "profile_create", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "4096"}
    done = subprocess.run(
        [sys.executable, "-c", decode_shapes(quantized)], capture_output=True, text=True, cwd=ROOT, env=environment
    )
    assert done.returncode == 0, done.stderr
    made = [line for line in done.stdout.splitlines() if "cache_miss" in line and "matmul" in line]
    rows = {int(line.split(",")[-2].split("x")[0]) for line in made if line.split(",")[-2].count("x") == 2}
    if not rows:
        pytest.skip("oneDNN does not multiply such numbers on this processor")
    # Encoder: rows and three times as many. 139 numbers of rows without rounding.
    assert rows <= {whole_rows(count) for count in range(1, 3 * 140)} and len(rows) < 45, sorted(rows)


def test_an_int8_layer_gives_as_many_rows_as_it_gets():
    torch.manual_seed(0)
    form = decoding_form(make_recurrent(RNNsearchConfig(hidden=16, embedding=16), 20, 20).eval())
    layer = quantize(form).output
    assert isinstance(layer, Int8Linear)
    x = torch.randn(40, layer.weight.shape[1])
    together = layer(x)
    assert together.shape == (40, 20)
    for count in range(1, 40):
        assert torch.equal(layer(x[:count]), together[:count]), "to the last bit"
