"""Layers for the many steps of a pass: the values and gradients of the layers themselves."""

import pytest
import torch
from torch import nn

from nmt.models.steps import StepLinear, for_steps


def unroll(step, x):
    """Steps of different numbers of rows, each reading the one before."""
    total = x.new_zeros(())
    for rows in (5, 3, 4):
        x = torch.tanh(step(x))
        x = torch.cat([x, x])[:rows]
        total = total + x.square().sum()
    return total


@pytest.mark.parametrize("bias", [False, True])
def test_gradients_are_those_of_the_layer(bias):
    torch.manual_seed(0)
    layer, x = nn.Linear(4, 4, bias=bias).double(), torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    wanted = [x, *layer.parameters()]
    mine, theirs = unroll(StepLinear(layer.weight, layer.bias), x), unroll(layer, x)
    torch.testing.assert_close(mine, theirs)
    # A pass for the inputs alone leaves nothing behind; one that comes again finds what the first found.
    torch.testing.assert_close(*(torch.autograd.grad(each, x, retain_graph=True) for each in (mine, theirs)))
    expected = torch.autograd.grad(theirs, wanted)
    for _ in range(2):
        torch.testing.assert_close(
            torch.autograd.grad(2 * mine, wanted, retain_graph=True), tuple(2 * e for e in expected)
        )


def test_weights_that_are_used_beside_the_steps_have_both_gradients():
    torch.manual_seed(0)
    layer, x = nn.Linear(4, 4).double(), torch.randn(3, 4, dtype=torch.float64)

    def total(used):
        return used(x).sin().sum() + (used.weight @ x.t()).cos().sum() + used.bias.exp().sum()

    wanted = list(layer.parameters())
    expected = torch.autograd.grad(total(layer), wanted)
    torch.testing.assert_close(torch.autograd.grad(total(StepLinear(layer.weight, layer.bias)), wanted), expected)


@pytest.mark.parametrize("kind", [nn.GRUCell, nn.LSTMCell])
def test_cells_are_those_of_torch(kind):
    torch.manual_seed(0)
    parts = nn.ModuleDict({"first": kind(3, 4), "more": nn.ModuleList([kind(4, 4)]), "kept": nn.Tanh()}).double()
    form = for_steps(parts)
    assert form["kept"] is parts["kept"] and isinstance(parts["first"], kind), "the module itself stays"
    state = torch.randn(2, 5, 4, dtype=torch.float64, requires_grad=True)
    x = torch.randn(3, 5, 3, dtype=torch.float64, requires_grad=True)

    def unroll_cells(cells):
        first = second = tuple(state) if kind is nn.LSTMCell else state[0]
        total = x.new_zeros(())
        for step in x:
            first = cells["first"](step, first)
            second = cells["more"][0](first[0] if kind is nn.LSTMCell else first, second)
            total = total + (second[0] if kind is nn.LSTMCell else second).sin().sum()
        return total

    wanted = [x, state, *parts.parameters()]
    mine, theirs = unroll_cells(form), unroll_cells(parts)
    torch.testing.assert_close(mine, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(each, wanted) for each in (mine, theirs)))


def test_a_layer_that_no_step_used_has_no_gradient():
    layer, x = nn.Linear(2, 2), torch.ones(1, 2, requires_grad=True)
    StepLinear(layer.weight, layer.bias)
    x.sum().backward()
    assert layer.weight.grad is None


def test_frozen_weights_and_no_grad():
    layer, x = nn.Linear(2, 2).requires_grad_(False), torch.ones(1, 2, requires_grad=True)
    StepLinear(layer.weight, layer.bias)(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.weight.sum(0, keepdim=True))
    with torch.no_grad():
        assert torch.equal(StepLinear(layer.weight, layer.bias)(x), layer(x))


def test_half_precision_gives_gradients_of_the_weights_precision():
    torch.manual_seed(0)
    layer, x = nn.Linear(4, 4), torch.randn(3, 4)
    expected = torch.autograd.grad(unroll(layer, x), list(layer.parameters()))
    with torch.autocast("cpu", torch.bfloat16):
        step = StepLinear(layer.weight, layer.bias)
        assert step(x).dtype == torch.bfloat16
        unroll(step, x).float().backward()
    for parameter, grad in zip(layer.parameters(), expected, strict=True):
        assert parameter.grad.dtype == torch.float32
        assert (parameter.grad - grad).norm() < 0.02 * grad.norm()
