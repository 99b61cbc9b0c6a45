"""Second derivatives, forward mode, vmap and compiled graphs of the operators."""

import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from nmt.topk import screening, soft_topk, sorted_soft_topk

each_way = pytest.mark.usefixtures("each_way")
INF = math.inf
OPERATORS = [soft_topk, sorted_soft_topk]


def _randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _check_all_orders(function, inputs):
    assert gradgradcheck(function, inputs, atol=1e-4, rtol=1e-4)
    assert gradcheck(function, inputs, check_forward_ad=True, check_batched_grad=True)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("n, k", [(2, 1), (4, 4), (6, 3), (7, 6)])
@pytest.mark.parametrize("T", [0.3, 1.0, 10.0])
@pytest.mark.parametrize("largest", [True, False])
def test_second_derivatives_and_forward_mode(operator, n, k, T, largest):
    x = _randn(2, n).requires_grad_()
    one = torch.tensor(T, dtype=torch.float64, requires_grad=True)
    each = (T * (1 + _randn(2, seed=1).abs())).requires_grad_()
    for temperature in (one, each):
        _check_all_orders(lambda x, t: operator(x, k, t, largest=largest), (x, temperature))


@each_way
@pytest.mark.parametrize("k", [[0.4, 2.5, 5.7], 2.3, 3.0])
def test_derivatives_of_k(k):
    x = _randn(3, 6).requires_grad_()
    T = torch.tensor([0.4, 1.0, 5.0], dtype=torch.float64, requires_grad=True)
    _check_all_orders(soft_topk, (x, torch.tensor(k, dtype=torch.float64, requires_grad=True), T))


@each_way
@pytest.mark.parametrize("operator", OPERATORS)
def test_masks_missing_candidates_and_ties(operator):
    x = _randn(3, 5)
    x[0, 2] = -INF
    x[1, 2:] = -INF
    x[2, 1] = x[2, 0]
    finite = x.isfinite()
    T = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    _check_all_orders(lambda v, t: operator(x.masked_scatter(finite, v), 3, t), (x[finite].clone().requires_grad_(), T))


@each_way
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("n", [6, 300])
def test_hard_rows_have_finite_derivatives(operator, n):
    x = torch.linspace(3, -3, n, dtype=torch.float64).repeat(5, 1)
    x[1, 0] = -INF
    x[2, 2:] = -INF
    x[3, 0], x[3, 1], x[3, -1] = 1e30, 1e300, -1e300
    x.requires_grad_()
    T = torch.tensor([1e-9, 1e-9, 0.7, 1e-3, 4e-4], dtype=torch.float64, requires_grad=True)
    A = operator(x, 3, T)
    first = torch.autograd.grad(A, (x, T), _randn(*A.shape), create_graph=True)
    second = torch.autograd.grad([part.sin().sum() for part in first], (x, T))
    assert all(bool(part.isfinite().all()) for part in (*first, *second))
    assert bool((second[0][:2] == 0).all())
    _, tangent = torch.func.jvp(lambda x, T: operator(x, 3, T), (x.detach(), T.detach()), (_randn(5, n), _randn(5)))
    assert bool(tangent.isfinite().all())


@each_way
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("n, T", [(6, 0.4), (9, 1e-3), (400, 0.02), (400, 0.2), (400, 50.0)])
def test_the_differentiable_backward_equals_the_lean_one(operator, n, T):
    # Hard, screened, widened and nearly uniform rows.
    x = (3 * _randn(3, n, seed=n)).requires_grad_()
    t = torch.tensor(T, dtype=torch.float64, requires_grad=True)
    A = operator(x, 3, t)
    g = _randn(*A.shape, seed=4)
    lean = torch.autograd.grad(A, (x, t), g, retain_graph=True)
    for a, b in zip(lean, torch.autograd.grad(A, (x, t), g, create_graph=True), strict=True):
        torch.testing.assert_close(b.detach(), a, rtol=1e-9, atol=1e-11 / T)


def test_a_fractional_k_at_a_hard_row_keeps_its_derivative(operator=soft_topk):
    x = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64, requires_grad=True)
    k = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    (to_k,) = torch.autograd.grad(operator(x, k, 1e-4)[1], k, create_graph=True)
    assert float(to_k) == pytest.approx(1.0)


@each_way
@pytest.mark.parametrize("operator", OPERATORS)
def test_third_derivatives(operator):
    x = _randn(5).requires_grad_()
    g = _randn(*operator(x, 2, 0.7).shape, seed=3)

    def second(x):
        (first,) = torch.autograd.grad(operator(x, 2, 0.7), x, g, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x, create_graph=True)[0]

    assert gradcheck(second, (x,))


@each_way
@pytest.mark.parametrize("operator", OPERATORS)
def test_hessians_of_all_modes_agree(operator):
    x = _randn(5)
    g = _randn(*operator(x, 2, 0.7).shape, seed=3)

    def loss(x):
        return (g * operator(x, 2, 0.7)).sum()

    wanted = torch.autograd.functional.hessian(loss, x)
    jacfwd, jacrev = torch.func.jacfwd, torch.func.jacrev
    for outer, inner in ((jacfwd, jacrev), (jacrev, jacfwd), (jacrev, jacrev)):
        torch.testing.assert_close(outer(inner(loss))(x), wanted, rtol=1e-9, atol=1e-12)
    with pytest.raises(RuntimeError, match="forward mode over forward mode"):
        jacfwd(jacfwd(loss))(x)
    assert float(wanted.abs().max()) > 0.01


@each_way
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("n", [7, 300])
def test_vmap(operator, n):
    x, T = _randn(4, n, 3), torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)
    x[2, 1, 0] = -INF
    map_all = torch.func.vmap(lambda x, t: operator(x, 2, t), in_dims=(2, 0))
    expected = torch.stack([operator(x[:, :, i].contiguous(), 2, T[i]) for i in range(3)])
    assert torch.equal(map_all(x, T), expected)
    # Temperatures alone, one value a row, and nested maps.
    alone = torch.func.vmap(lambda t: operator(x[:, :, 0], 2, t))(T)
    assert torch.equal(alone, torch.stack([operator(x[:, :, 0], 2, t) for t in T]))
    both = torch.func.vmap(torch.func.vmap(lambda x, t: operator(x, 2, t)), in_dims=(2, None))
    rows = torch.tensor([0.2, 1.0, 3.0, 0.5], dtype=torch.float64)
    assert torch.equal(both(x, rows)[1], operator(x[:, :, 1].contiguous(), 2, rows))


@each_way
@pytest.mark.parametrize("operator", OPERATORS)
def test_gradients_through_vmap_and_vmap_of_gradients(operator):
    x = _randn(4, 6).requires_grad_()
    g = _randn(*operator(x[0], 2, 0.5).shape)

    def loss(x):
        return (g * operator(x, 2, 0.5)).sum()

    (expected,) = torch.autograd.grad(sum(loss(row) for row in x), x)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss))(x), expected)
    torch.testing.assert_close(torch.func.grad(lambda x: torch.func.vmap(loss)(x).sum())(x), expected)
    torch.testing.assert_close(torch.autograd.grad(torch.func.vmap(loss)(x).sum(), x)[0], expected)


@each_way
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("n", [5, 300])
def test_batched_gradients(operator, n):
    x = _randn(2, n).requires_grad_()
    A = operator(x, 2, 0.1)
    g = _randn(3, *A.shape)
    (batched,) = torch.autograd.grad(A, x, g, is_grads_batched=True, retain_graph=True)
    single = torch.stack([torch.autograd.grad(A, x, part, retain_graph=True)[0] for part in g])
    torch.testing.assert_close(batched, single)


@each_way
def test_k_under_vmap():
    x, k = _randn(3, 6), torch.tensor([1.0, 2.5, 6.0], dtype=torch.float64)
    mapped = torch.func.vmap(lambda x, k: soft_topk(x, k, 0.3))(x, k)
    assert torch.equal(mapped, soft_topk(x, k, 0.3))
    with pytest.raises(ValueError, match="not 7.0"):
        torch.func.vmap(lambda x, k: soft_topk(x, k, 0.3))(x, k + 1)


@each_way
@pytest.mark.parametrize("operator", OPERATORS)
def test_a_compiled_graph_without_breaks(operator):
    def loss(x, t):
        A = operator(2 * x, 2, t)
        return (A * torch.arange(A.numel(), dtype=A.dtype).view(A.shape)).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for n in (6, 200):
        x = _randn(3, n).requires_grad_()
        for t in (torch.tensor(0.4, dtype=torch.float64, requires_grad=True), torch.tensor([0.1, 2.0, 0.3]).double()):
            inputs = (x, t) if t.requires_grad else (x,)
            ours = torch.autograd.grad(compiled(x, t), inputs)
            for a, b in zip(ours, torch.autograd.grad(loss(x, t), inputs), strict=True):
                assert torch.equal(a, b)
    torch.testing.assert_close(torch.compile(operator, fullgraph=True, backend="eager")(x, 2, 0.3), operator(x, 2, 0.3))


def test_custom_operations_are_well_formed():
    from nmt.topk import compiled

    one = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    x = _randn(2, 5).requires_grad_()
    torch.library.opcheck(compiled.plain, (x, one + 1, one, [2], True))
    torch.library.opcheck(compiled.ranked, (x, 2, one, [2], False))


@each_way
@pytest.mark.parametrize("operator", OPERATORS)
def test_the_first_order_backward_stays_on_the_candidates(operator, monkeypatch):
    import nmt.topk.plain as plain
    import nmt.topk.sorted as ranked

    def refuse(*_):
        raise AssertionError("a pass over all candidates")

    monkeypatch.setattr(plain, "pull_plain", refuse)
    monkeypatch.setattr(ranked, "pull_sorted", refuse)
    x = (4 * _randn(2, 500)).requires_grad_()
    assert screening._ALL < 500
    operator(x, 2, 0.1).square().sum().backward()
    with pytest.raises(AssertionError, match="a pass over all"):
        torch.autograd.grad(operator(x, 2, 0.1).square().sum(), x, create_graph=True)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("n", [20, 300])
def test_derivatives_in_lower_precision(operator, dtype, tolerance, n):
    x = _randn(3, n).to(dtype)
    shape = operator(x, 3, 0.3).shape
    g, dx = _randn(*shape, seed=1).to(dtype), _randn(3, n, seed=2).to(dtype)

    def all_of(x, g, dx):
        x = x.clone().requires_grad_()
        (first,) = torch.autograd.grad(operator(x, 3, 0.3), x, g, create_graph=True)
        (second,) = torch.autograd.grad(first, x, dx)
        return first.detach(), second, torch.func.jvp(lambda x: operator(x, 3, 0.3), (x.detach(),), (dx,))[1]

    for a, b in zip(all_of(x, g, dx), all_of(x.double(), g.double(), dx.double()), strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=tolerance * float(b.abs().max()))


@each_way
@pytest.mark.parametrize("operator", OPERATORS)
def test_operators_on_other_functional_paths(operator):
    # No gradient wanted, a gradient for the temperature alone, and an output that the loss does not use.
    x, t = _randn(2, 6), torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    assert operator(x, 2, 0.4).grad_fn is None
    (to_t,) = torch.autograd.grad(operator(x, 2, t).square().sum(), t)
    step = 1e-6
    ends = [float(operator(x, 2, 0.4 + s).square().sum()) for s in (step, -step)]
    assert float(to_t) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-6)
    y = _randn(2, 6).requires_grad_()
    (unused,) = torch.autograd.grad((0 * operator(y, 2, 0.4)).sum() + y.sum(), y)
    assert torch.equal(unused, torch.ones_like(y))
