"""Dropout against what it promises: the share, the expectation, the gradient, the seed."""

import pytest
import torch

from nmt.models.dropout import Dropout


@pytest.mark.parametrize("p", [0.05, 0.3, 0.5, 0.95])
def test_share_and_expectation(p):
    torch.manual_seed(0)
    inputs = torch.full((1001, 501), 2.0, requires_grad=True)
    found = Dropout(p)(inputs)
    zero = found == 0
    assert zero.double().mean().item() == pytest.approx(p, abs=5 * (p * (1 - p) / inputs.numel()) ** 0.5)
    torch.testing.assert_close(found[~zero], torch.full_like(found[~zero], 2 / (1 - p)))
    found.sum().backward()
    torch.testing.assert_close(inputs.grad, found.detach() / 2)
    # Neighbours come from the same 64 bits; they know nothing of each other.
    for step in (1, 2, 3, 4):
        both = (zero.flatten()[step:] & zero.flatten()[:-step]).double().mean().item()
        assert both == pytest.approx(p * p, abs=5 * (p * p / inputs.numel()) ** 0.5)


def test_seed_and_modes():
    layer, inputs = Dropout(0.5), torch.ones(3, 7)
    torch.manual_seed(1)
    first, second = layer(inputs), layer(inputs)
    torch.manual_seed(1)
    assert torch.equal(first, layer(inputs)) and not torch.equal(first, second)
    assert torch.equal(layer.eval()(inputs), inputs) and torch.equal(Dropout(0.0)(inputs), inputs)
    assert Dropout(0.5)(inputs.double()).dtype == torch.float64 and Dropout(0.5)(inputs[:0]).shape == (0, 7)


def test_near_the_ends_the_share_is_still_right():
    torch.manual_seed(0)
    inputs = torch.ones(1_000_000)
    assert (Dropout(1e-3)(inputs) == 0).double().mean().item() == pytest.approx(1e-3, abs=2e-4)
    assert (Dropout(0.999)(inputs) == 0).double().mean().item() == pytest.approx(0.999, abs=2e-4)
