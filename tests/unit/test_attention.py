"""Additive attention by powers against its definition by tanh."""

import pytest
import torch

from nmt.models import attention
from nmt.models.attention import AdditiveAttention, StepAttention


def by_definition(layer, query, values, mask):
    keys = layer.key(values)
    energy = layer.energy(torch.tanh(layer.query(query).unsqueeze(2) + keys.unsqueeze(1))).squeeze(3)
    attention = energy.masked_fill(~mask.unsqueeze(1), -torch.inf).softmax(2)
    return attention @ values, attention


@pytest.fixture(params=[1, 50, 110, 2**19])
def block(request, monkeypatch):
    """Terms that are there at once, of two sentences with three slots of 7 * 5."""
    monkeypatch.setitem(attention._TERMS, "cpu", request.param)


@pytest.mark.parametrize("size", [1.0, 20.0])
@pytest.mark.parametrize("slots", [1, 3])
def test_attention_and_gradients_are_those_of_the_definition(block, slots, size):
    torch.manual_seed(0)
    layer = AdditiveAttention(4, 6, 5).double()
    query = (size * torch.randn(2, slots, 4, dtype=torch.float64)).requires_grad_()
    values = (size * torch.randn(2, 7, 6, dtype=torch.float64)).requires_grad_()
    mask = torch.arange(7) < torch.tensor([[7], [4]])
    mine = layer(query, layer.keys(values), values, mask)
    theirs = by_definition(layer, query, values, mask)
    torch.testing.assert_close(mine, theirs)
    wanted = [query, values, *layer.parameters()]
    weights = [torch.randn_like(part) for part in theirs]
    torch.testing.assert_close(*(torch.autograd.grad(each, wanted, weights) for each in (mine, theirs)))


def test_what_is_far_from_zero_has_no_nan():
    layer = AdditiveAttention(1, 1, 1)
    for parameter in layer.parameters():
        parameter.data.fill_(1.0)
    query = torch.tensor([[[-1e4], [0.0], [1e4]]], requires_grad=True)
    values = torch.tensor([[[-30.0], [-3.0], [0.5], [30.0]]], requires_grad=True)
    mask = torch.ones(1, 4, dtype=torch.bool)
    context, attention = layer(query, layer.keys(values), values, mask)
    context.sum().backward()
    assert all(part.grad.isfinite().all() for part in (query, values, *layer.parameters()))
    torch.testing.assert_close(attention[0, 1], torch.tanh(values[0, :, 0].detach() + 1).softmax(0))
    torch.testing.assert_close(attention[0, [0, 2]], torch.full((2, 4), 0.25))


def unroll(attend, keys, queries, values, mask):
    """Steps of fewer and fewer sentences and of several slots, each asking with what the last one found."""
    total, found = 0.0, torch.zeros(3, 1)
    for number, query in enumerate(queries):
        context, weights = attend(query + found[: len(query)].mean(), keys, values, mask)
        found = context.flatten(1)
        total = total + context.sin().sum() + (number * weights.square()).sum()
    return total


def test_steps_have_the_values_and_gradients_of_the_layer(block):
    torch.manual_seed(0)
    layer = AdditiveAttention(4, 6, 5).double()
    queries = [torch.randn(rows, slots, 4, dtype=torch.float64, requires_grad=True) for rows, slots in
               ((3, 1), (3, 2), (2, 3), (1, 1))]  # fmt: skip
    values = torch.randn(3, 7, 6, dtype=torch.float64, requires_grad=True)
    mask = torch.arange(7) < torch.tensor([[7], [4], [5]])

    def definition(query, keys, values, mask):
        return by_definition(layer, query, values[: len(query)], mask[: len(query)])

    keys = layer.keys(values)
    mine = unroll(StepAttention(layer), keys, queries, values, mask)
    plain = unroll(layer, keys, queries, values, mask)
    theirs = unroll(definition, None, queries, values, mask)
    torch.testing.assert_close(mine, theirs)
    wanted = [*queries, values, *layer.parameters()]
    expected = torch.autograd.grad(theirs, wanted)
    torch.testing.assert_close(torch.autograd.grad(plain, wanted, retain_graph=True), expected)
    # A pass for the queries alone leaves nothing behind; one that comes again finds what the first found.
    torch.testing.assert_close(torch.autograd.grad(mine, queries, retain_graph=True), expected[: len(queries)])
    for _ in range(2):
        torch.testing.assert_close(torch.autograd.grad(mine, wanted, retain_graph=True), expected)


def test_steps_of_another_memory_do_not_mix_with_those_of_the_first():
    torch.manual_seed(0)
    layer, mask = AdditiveAttention(4, 6, 5).double(), torch.ones(2, 3, dtype=torch.bool)
    query = torch.randn(2, 1, 4, dtype=torch.float64)
    memories = [torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    totals = [
        sum(attend(query, layer.keys(values), values, mask)[0].sin().sum() for values in memories)
        for attend in (StepAttention(layer), layer)
    ]
    torch.testing.assert_close(*(torch.autograd.grad(total, memories) for total in totals))


@pytest.mark.parametrize("steps", [False, True])
def test_half_precision_is_near(steps):
    torch.manual_seed(0)
    layer = AdditiveAttention(16, 24, 20)
    attend = StepAttention(layer) if steps else layer
    query, values = torch.randn(2, 3, 16), torch.randn(2, 7, 24)
    mask = torch.arange(7) < torch.tensor([[7], [4]])
    expected, _ = by_definition(layer, query, values, mask)
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = attend(query, layer.keys(values), values, mask)
        found.float().sum().backward()
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=0.03)
    assert layer.key.weight.grad.dtype == torch.float32


def test_no_term_of_a_pair_is_kept_for_the_backward_pass():
    layer = AdditiveAttention(16, 24, 20)
    query, values = torch.randn(2, 3, 16, requires_grad=True), torch.randn(2, 7, 24, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda x: x):
        layer(query, layer.keys(values), values, torch.ones(2, 7, dtype=torch.bool))
    assert kept and max(kept) < 2 * 3 * 7 * 20
