"""Weighted sums of log-probabilities, by logits and by the output layer, against torch's own operations."""

import pytest
import torch
from torch import nn

from nmt.objectives import likelihood
from nmt.objectives.likelihood import token_log_likelihood, weighted_log_likelihood

ROWS = torch.tensor([4, 0, 3, 3, 0, 0])  # out of order, the third twice, the second never
TOKENS = torch.tensor([0, 1, 6, 6, 1, 2])


class Head:
    """What of a model is asked: its features are the inputs of its output layer."""

    def __init__(self, layer, told=True):
        self.project, self.output_layer = layer, layer if told else None

    def output_inputs(self, features):
        return features


def plain_likelihood(logits, rows, tokens, weights, uniform):
    log_p = logits.log_softmax(1)
    value = (weights * log_p[rows, tokens]).sum()
    return value if uniform is None else value + (uniform * log_p.mean(1)).sum(), log_p[rows, tokens].detach()


def test_weighted_log_likelihood_is_that_of_torch():
    torch.manual_seed(0)
    logits = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    asked = ROWS, TOKENS, torch.randn(6, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    value, log_probability = weighted_log_likelihood(logits, *asked)
    expected, known = plain_likelihood(logits, *asked)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(log_probability, known)
    torch.testing.assert_close(torch.autograd.grad(2 * value, logits), torch.autograd.grad(2 * expected, logits))


@pytest.fixture(params=[1, 2, 3, 5, 100])
def block(request, monkeypatch):
    """Rows that are worked on at once, of five, where the vocabulary has seven tokens."""
    monkeypatch.setitem(likelihood._LOGITS, "cpu", (7 * request.param, 7 * request.param))
    monkeypatch.setitem(likelihood._POWERS, "cpu", 7 * (request.param // 2))


@pytest.mark.parametrize("spread", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_likelihood_of_the_layer_is_that_of_its_logits(block, bias, spread):
    torch.manual_seed(0)
    layer = nn.Linear(3, 7, bias=bias).double()
    features = (10 * torch.randn(5, 3, dtype=torch.float64)).requires_grad_()
    uniform = torch.randn(5, dtype=torch.float64) if spread else None
    asked = ROWS, TOKENS, torch.randn(6, dtype=torch.float64), uniform
    wanted = [features, *layer.parameters()]
    value, log_probability = token_log_likelihood(Head(layer), features, *asked)
    expected, known = plain_likelihood(layer(features), *asked)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(log_probability, known)
    mine = torch.autograd.grad(2 * value, wanted)
    torch.testing.assert_close(mine, torch.autograd.grad(2 * expected, wanted))
    other, _ = token_log_likelihood(Head(layer, told=False), features, *asked)
    torch.testing.assert_close(mine, torch.autograd.grad(2 * other, wanted))


def test_no_gradient_is_made_where_none_is_wanted(monkeypatch):
    torch.manual_seed(0)
    layer = nn.Linear(3, 7)
    asked = ROWS, TOKENS, torch.randn(6), None
    features = torch.randn(5, 3, requires_grad=True)
    expected = token_log_likelihood(Head(layer), features, *asked)[0]
    products = []
    add_product = likelihood._add_product
    monkeypatch.setattr(likelihood, "_add_product", lambda *parts: (products.append(parts), add_product(*parts)))
    with torch.no_grad():
        torch.testing.assert_close(token_log_likelihood(Head(layer), features, *asked)[0], expected.detach())
    layer.requires_grad_(False)
    value, _ = token_log_likelihood(Head(layer), features, *asked)
    assert not products
    torch.testing.assert_close(torch.autograd.grad(value, features), torch.autograd.grad(expected, features))


def test_a_layer_that_something_was_added_to_is_asked_as_a_whole():
    class Doubled(nn.Linear):
        def forward(self, inputs):
            return 2 * super().forward(inputs)

    layer, features, asked = Doubled(3, 7), torch.randn(5, 3), (ROWS, TOKENS, torch.ones(6), torch.ones(5))
    expected, _ = plain_likelihood(layer(features), *asked)
    torch.testing.assert_close(token_log_likelihood(Head(layer), features, *asked)[0], expected)


@pytest.mark.parametrize("rows_at_once", [1000, 20, 37])
def test_half_precision_is_near_and_sums_in_float32(rows_at_once, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setitem(likelihood._LOGITS, "cpu", (50 * rows_at_once, 50 * rows_at_once))
    layer, features = nn.Linear(32, 50), torch.randn(40, 32, requires_grad=True)
    rows, tokens = torch.arange(40), torch.randint(0, 50, (40,))
    asked = rows, tokens, torch.ones(40), torch.full((40,), 0.1)
    wanted = [features, *layer.parameters()]
    expected, known = plain_likelihood(layer(features), *asked)
    with torch.autocast("cpu", torch.bfloat16):
        value, log_probability = token_log_likelihood(Head(layer), features, *asked)
    assert value.dtype == log_probability.dtype == torch.float32
    torch.testing.assert_close(value, expected, rtol=5e-3, atol=0)
    torch.testing.assert_close(log_probability, known, rtol=0, atol=0.05)
    for mine, theirs in zip(torch.autograd.grad(value, wanted), torch.autograd.grad(expected, wanted), strict=True):
        assert mine.dtype == torch.float32
        assert (mine - theirs).norm() < 0.02 * theirs.norm()
    assert not torch.equal(value, expected)  # or nothing was rounded


def test_in_float16_what_weighs_little_keeps_its_gradient():
    """A loss is a mean over thousands of tokens, and its scale comes after this."""
    torch.manual_seed(0)
    layer, features = nn.Linear(32, 500), torch.randn(40, 32)
    asked = torch.arange(40), torch.randint(0, 500, (40,)), torch.full((40,), 1e-7), None
    (expected,) = torch.autograd.grad(plain_likelihood(layer(features), *asked)[0], layer.weight)
    with torch.autocast("cpu", torch.float16):
        value, _ = token_log_likelihood(Head(layer), features, *asked)
    (found,) = torch.autograd.grad(value, layer.weight)
    others = torch.ones(500, dtype=torch.bool).index_fill(0, asked[1], False)
    assert (found - expected)[others].norm() < 0.01 * expected[others].norm()


def test_logits_far_from_zero_lose_nothing():
    layer = nn.Linear(1, 3, bias=False)
    layer.weight.data = torch.tensor([[1e4], [1e4 - 1], [-1e4]])
    value, _ = token_log_likelihood(Head(layer), torch.ones(1, 1), torch.tensor([0]), torch.tensor([1]), torch.ones(1))
    assert value.item() == pytest.approx(-1 - torch.tensor(-1.0).exp().log1p().item(), abs=1e-6)
