"""The sparse result, the report, the layer and the schedules."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from nmt.topk import (
    Constant,
    Exponential,
    Learned,
    Linear,
    SoftTopK,
    report,
    soft_topk,
    sorted_soft_topk,
    sparse_soft_topk,
    sparse_sorted_soft_topk,
)

pytestmark = pytest.mark.usefixtures("each_way")
PAIRS = [(soft_topk, sparse_soft_topk), (sorted_soft_topk, sparse_sorted_soft_topk)]


def _randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("dense, sparse", PAIRS)
@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("T", [0.05, 5.0])
def test_sparse_is_the_dense_result_at_the_best(dense, sparse, largest, T):
    x = _randn(2, 3, 90)
    x[0, 0, 5] = -math.inf if largest else math.inf
    whole, part = dense(x, 3, T, largest=largest), sparse(x, 3, T, largest=largest, width=10)
    assert part.indices.shape == (2, 3, 10)
    assert torch.equal(part.indices, x.argsort(dim=-1, descending=largest)[..., :10])
    other = part.dense(90)
    kept = other != 0
    assert torch.equal(other[kept], whole[kept])
    # Dropping the tail moves a row by the tail mass; at T = 5 it is most of it.
    dim = -1 if dense is soft_topk else -2
    torch.testing.assert_close((whole - other).abs().sum(dim), part.tail_mass, rtol=1e-9, atol=1e-15)
    torch.testing.assert_close(part.weights.sum(dim) + part.tail_mass, whole.sum(dim))
    assert float(part.tail_mass.sum()) > (1 if T == 5 else 0)


@pytest.mark.parametrize("dense, sparse", PAIRS)
def test_sparse_is_differentiable(dense, sparse):
    x = _randn(2, 9).requires_grad_()
    T = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x, t: sparse(x, 2, t, width=4)[1:], (x, T))
    full = sparse(x, 2, T, width=9)
    assert bool((full.tail_mass == 0).all())
    torch.testing.assert_close(full.dense(9), dense(x, 2, T))


def test_width():
    x = _randn(50)
    assert sparse_soft_topk(x, 2, 0.3).indices.shape == (32,)
    assert sparse_sorted_soft_topk(x, 5, 0.3).weights.shape == (32, 5)
    assert sparse_soft_topk(x[:6], 2, 0.3).indices.shape == (6,)
    assert sparse_soft_topk(x, torch.tensor(2.5), 0.3, width=7).weights.shape == (7,)
    with pytest.raises(ValueError, match="k a tensor: give the number of candidates"):
        sparse_soft_topk(x, torch.tensor(2.5), 0.3)
    for width in (0, 51, 2.0, True):
        with pytest.raises(ValueError, match="width must be an int in 1..50"):
            sparse_soft_topk(x, 2, 0.3, width=width)


def test_the_tail_of_half_precision_is_summed_in_more():
    # 4,000 weights of 2 / 4096: in bfloat16 the sum would stop growing at 0.25.
    part = sparse_soft_topk(torch.zeros(4096, dtype=torch.bfloat16), 2, 1.0, width=96)
    assert part.tail_mass.dtype == torch.bfloat16
    assert float(part.tail_mass) == pytest.approx(4000 / 2048, rel=0.01)


@pytest.mark.parametrize("ranked", [False, True])
@pytest.mark.parametrize("n", [20, 400])
def test_report(ranked, n):
    x, T = 2 * _randn(2, 2, n), torch.tensor([[1e-6, 0.1], [0.5, 100.0]], dtype=torch.float64)
    found = report(x, 3, T, ranked=ranked, width=12)
    operator, sparse = PAIRS[ranked]
    A = operator(x, 3, T).reshape(2, 2, -1)
    torch.testing.assert_close(found.softness, (A * (1 - A)).sum(-1), rtol=1e-10, atol=1e-12)
    tail = sparse(x, 3, T, width=12).tail_mass
    torch.testing.assert_close(found.tail_mass, tail.sum(-1) if ranked else tail, rtol=1e-9, atol=1e-12)
    assert float(found.softness[0, 0]) < 1e-6 < 2 < float(found.softness[1, 1])
    assert 1 <= found.iterations < 60
    # One call of the solver at an easy temperature, and never more than a few steps.
    assert report(x[0, 0], 3, 0.1, ranked=ranked).iterations <= 12


def test_report_of_a_fractional_k():
    x = _randn(3, 9)
    k = torch.tensor([0.5, 2.0, 9.0], dtype=torch.float64)
    found = report(x, k, 0.4, width=9)
    A = soft_topk(x, k, 0.4)
    torch.testing.assert_close(found.softness, (A * (1 - A)).sum(-1))
    assert float(found.softness[2]) == 0 and bool((found.tail_mass == 0).all())


def test_schedules_by_hand():
    assert [Constant(0.3)(u) for u in (0, 10**6)] == [0.3, 0.3]
    assert [Linear(1.0, 0.2, 10)(u) for u in (0, 5, 10, 99)] == pytest.approx([1.0, 0.6, 0.2, 0.2])
    assert [Exponential(1.0, 0.01, 10)(u) for u in (0, 5, 10, 99)] == pytest.approx([1.0, 0.1, 0.01, 0.01])
    learned = Learned(0.25)
    assert float(learned()) == pytest.approx(0.25)
    assert [name for name, _ in learned.named_parameters()] == ["log_temperature"]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Constant(0), "temperature must be finite and > 0, not 0"),
        (lambda: Linear(1, -1, 5), "end must be finite and > 0, not -1"),
        (lambda: Exponential(math.inf, 1, 5), "start must be finite"),
        (lambda: Linear(1, 1, 0), "updates must be >= 1, not 0"),
        (lambda: Learned(0), "initial must be finite"),
        (lambda: SoftTopK(0, 1.0), "k must be an int >= 1, not 0"),
        (lambda: SoftTopK(2, 0.0), "temperature must be finite"),
        (lambda: SoftTopK(2, Constant(1), learned=True), "choose one of them"),
    ],
)
def test_what_a_layer_refuses(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("sorted, operator", [(False, soft_topk), (True, sorted_soft_topk)])
@pytest.mark.parametrize("largest", [True, False])
def test_layer(sorted, operator, largest):
    x = _randn(2, 7)
    layer = SoftTopK(3, 0.4, sorted=sorted, largest=largest)
    assert torch.equal(layer(x), operator(x, 3, 0.4, largest=largest))
    assert not list(layer.parameters())
    annealed = SoftTopK(3, Linear(1.0, 0.1, 10), sorted=sorted, largest=largest)
    assert torch.equal(annealed(x, 5), operator(x, 3, 0.55, largest=largest))
    assert "Linear(start=1.0" in repr(annealed) and "k=3" in repr(annealed)


@pytest.mark.parametrize("sorted", [False, True])
def test_a_learned_temperature_finds_the_one_that_made_the_weights(sorted):
    x = _randn(8, 6)
    wanted = SoftTopK(2, 0.3, sorted=sorted)(x)
    layer = SoftTopK(2, 1.5, sorted=sorted, learned=True)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    for _ in range(120):
        optimizer.zero_grad()
        (layer(x) - wanted).square().sum().backward()
        optimizer.step()
    assert float(layer.temperature()) == pytest.approx(0.3, rel=0.05)
    again = SoftTopK(2, 9.0, sorted=sorted, learned=True)
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again(x), layer(x))
