"""What the benchmark of the top-k operators measures: the scores, and one row of its table for each operator.

Beside the operators of the package and its rivals stand two yardsticks (`torch.topk` and a copy of the scores), what
public code does instead (bisection; Sinkhorn iterations outside the log domain) and, where it is installed, torchsort.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from nmt.topk import (
    sinkhorn_topk,
    soft_topk,
    sorted_sinkhorn_topk,
    sorted_soft_topk,
    sparse_soft_topk,
    sparse_sorted_soft_topk,
    use_kernels,
)
from nmt.topk.rivals import OPERATORS, perturbed_topk

ITERATIONS = 200
SAMPLES = 500


def make_scores(kind: str, rows: int, n: int, seed: int = 0) -> Tensor:
    """Scores (rows, n) in float32.

    `normal`: standard normal. `beam`: like the continuations of the k slots of a beam, cumulative log-probabilities in
    nats: most spread normally around -26 with a standard deviation of 3 in -49..-8, the best twelve at -8 minus
    cumulated gaps of 0.2 to 0.5, the positions permuted in each row.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, n, generator=generator)
    if kind == "normal":
        return x
    gaps = 0.2 + 0.3 * torch.rand(rows, min(12, n), generator=generator)
    gaps[:, 0] = 0
    best = -8 - gaps.cumsum(1)
    # The twelve stay the best.
    x = torch.minimum((3 * x - 26).clamp_(-49, -8), best[:, -1:])
    x[:, : best.shape[1]] = best
    return x.gather(1, torch.rand(rows, n, generator=generator).argsort(1))


@dataclass(frozen=True)
class Row:
    """An operator as it is measured.

    Attributes:
        name: as the table shows it and `--only` takes it.
        call: (scores (rows, n), k, temperature) -> the differentiable parts of the result, weights (rows, n or C[, k])
            first; None where a package is missing.
        ours: stands for the package's own operator; else a yardstick or a rival.
        ranked: one column a rank.
        sums: the weights are to sum to k, each column to 1; what lies outside a sparse result is its second part.
        words: (k, backward) -> float64 numbers that a call needs for each score, at most about so many.
        work: (rows, n) -> proportional to the time of a call.
        square: the numbers are needed for each pair of scores of a row.
        note: (rows, n) -> what the table says beside it.
        graph: what is timed is the replay of a CUDA graph of the call, which leaves out the time of the host.
    """

    name: str
    call: Callable[[Tensor, int, float], tuple[Tensor, ...]] | None
    ours: bool = False
    ranked: bool = False
    sums: bool = True
    words: Callable[[int, bool], float] = lambda k, backward: 12.0 + 8 * backward
    work: Callable[[int, int], float] = lambda rows, n: float(n)
    square: bool = False
    note: Callable[[int, int], str] = lambda rows, n: ""
    graph: bool = False

    def bytes(self, rows: int, n: int, k: int, backward: bool) -> float:
        """What a call takes beside its scores, at most about so much."""
        return 8 * self.words(k, backward) * rows * n * (n if self.square else 1)

    def off(self, parts: tuple[Tensor, ...], k: int) -> float | None:
        """How far the sum of a row's weights is from k, or that of a column from 1, at worst."""
        if not self.sums:
            return None
        totals = parts[0].sum(1, dtype=torch.float64)
        for tail in parts[1:]:
            totals = totals + tail
        return float((totals - (1 if self.ranked else k)).abs().max())


def make_rows(limit: float, device: str = "cpu") -> list[Row]:
    """All rows; `limit`, in bytes, is what the samples of the perturbed operator may take."""
    rows = [
        Row("torch.topk", lambda x, k, T: (x.topk(k, dim=-1).values,), sums=False),
        Row("copy", lambda x, k, T: (x * 1.0,), sums=False, note=lambda rows, n: "one read and write of the scores"),
        Row("sparse_soft_topk", lambda x, k, T: sparse_soft_topk(x, k, T)[1:], ours=True),
        Row("soft_topk", _alone(soft_topk), ours=True),
        Row("sparse_sorted_soft_topk", lambda x, k, T: sparse_sorted_soft_topk(x, k, T)[1:], True, True, words=_ranks),
        Row("sorted_soft_topk", _alone(sorted_soft_topk), True, True, words=_ranks),
        Row("bisection", lambda x, k, T: (_Bisection.apply(x, k, T, 40),), note=lambda rows, n: "40 steps"),
        Row(
            "sinkhorn_exp_domain",
            _alone(sinkhorn_exp_domain),
            words=lambda k, backward: 8.0 + backward * ITERATIONS * 1.6,
            note=lambda rows, n: f"{ITERATIONS} iterations, unrolled",
        ),
        Row("sinkhorn_topk_kkt", _alone(partial(sinkhorn_topk, backward="kkt")), note=_iterations),
        Row(
            "sinkhorn_converged",
            _alone(partial(sinkhorn_topk, backward="kkt", iterations=2000, tolerance=1e-6)),
            note=lambda rows, n: "until the sums are within 1e-6; at most 2,000 iterations",
        ),
        Row(
            "sinkhorn_2_iterations",
            _alone(partial(sinkhorn_topk, backward="kkt", iterations=2)),
            note=lambda rows, n: "exact only where T is large",
        ),
        Row(
            "sorted_sinkhorn_topk_kkt",
            _alone(partial(sorted_sinkhorn_topk, backward="kkt")),
            ranked=True,
            words=_ranks,
            note=_iterations,
        ),
    ]
    ours = [_by_kernels(row, device) for row in rows if row.ours]
    if device == "cuda":
        ours += [replace(row, name=f"{row.name}_graph", graph=True, note=_replayed) for row in (rows[0], *ours)]
    rows = [replace(row, call=_switched(row, False)) if row.ours else row for row in rows]
    rows[6:6] = ours
    known = {row.name for row in rows}
    for name, guarantee in OPERATORS.items():
        if name not in known:
            needs = _CLASSES.get(guarantee.memory, {"words": _ranks})
            rows.append(Row(name, _alone(guarantee.operator), ranked=guarantee.ranked, **needs))
    rows = [_perturbed(row, limit) if row.name == "perturbed_topk" else row for row in rows]
    return [*rows, Row("torchsort.soft_rank", _torchsort(), sums=False, note=lambda rows, n: "ranks, no selection")]


def _alone(operator: Callable[..., Tensor]) -> Callable[[Tensor, int, float], tuple[Tensor, ...]]:
    return lambda x, k, T: (operator(x, k, T),)


def _by_kernels(row: Row, device: str) -> Row:
    """The same by the compiled kernels."""
    there = find_spec("triton" if device == "cuda" else "numba")
    return replace(row, name=f"{row.name}_kernels", call=_switched(row, True) if there else None)


def _switched(row: Row, kernels: bool) -> Callable[[Tensor, int, float], tuple[Tensor, ...]]:
    """With the kernels on or off; a backward is that of its forward."""
    call = row.call
    assert call is not None

    def switched(x: Tensor, k: int, T: float) -> tuple[Tensor, ...]:
        with use_kernels(kernels):
            return call(x, k, T)

    return switched


def _replayed(rows: int, n: int) -> str:
    return "a CUDA graph, replayed"


def _iterations(rows: int, n: int) -> str:
    return f"{ITERATIONS} iterations"


def _ranks(k: int, backward: bool) -> float:
    return (5.0 + 3 * backward) * (k + 1)


def _unrolled(anchors: int, k: int, backward: bool) -> float:
    """Of iterations that autograd differentiates: each keeps its plan, its masses and a mask."""
    return 10.0 * (anchors + 1) + backward * ITERATIONS * 3.5 * (anchors + 1)


def _unrolled_ranks(k: int, backward: bool) -> float:
    return _unrolled(k, k, backward)


def _pairs(rows: int, n: int) -> float:
    return float(n * n)


# What an operator of the table needs, by the memory that it states; others are taken for one result a rank.
_CLASSES: dict[str, dict[str, Any]] = {
    "O(n)": {},
    "O(n i)": {"words": partial(_unrolled, 1), "note": lambda rows, n: f"{ITERATIONS} iterations, unrolled"},
    "O(n k i)": {"words": _unrolled_ranks, "note": lambda rows, n: f"{ITERATIONS} iterations, unrolled"},
    "O(n^2)": {"words": lambda k, backward: 3.0, "square": True, "work": _pairs},
    "O(n^2 i)": {
        "words": lambda k, backward: 4.0 + 204 * backward,
        "square": True,
        "work": _pairs,
        "note": lambda rows, n: "100 iterations, unrolled",
    },
}


def _perturbed(row: Row, limit: float) -> Row:
    """Keeps the samples, of which each takes a copy of the scores, within the limit."""
    words = 3  # noise, noisy scores, indicators

    def samples(rows: int, n: int) -> int:
        return max(1, min(SAMPLES, int(limit / (8 * words * rows * n))))

    return Row(
        row.name,
        lambda x, k, T: (perturbed_topk(x, k, T, samples=samples(*x.shape)),),
        words=lambda k, backward: words,
        work=lambda rows, n: float(n * samples(rows, n)),
        note=lambda rows, n: f"{samples(rows, n)} samples",
    )


def _torchsort() -> Callable[[Tensor, int, float], tuple[Tensor, ...]] | None:
    if find_spec("torchsort") is None:
        return None
    import torchsort

    return lambda x, k, T: (torchsort.soft_rank(x, regularization_strength=T),)


class _Bisection(torch.autograd.Function):
    """sigmoid((x - tau) / T), tau halved between bounds; the gradient by the implicit function theorem."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, k: int, T: float, steps: int) -> Tensor:
        margin = T * torch.tensor(float(x.shape[-1])).log().item()
        low, high = x.amin(-1, keepdim=True) - margin, x.amax(-1, keepdim=True) + margin
        for _ in range(steps):
            tau = (low + high) / 2
            many = ((x - tau) / T).sigmoid().sum(-1, keepdim=True) > k
            low, high = torch.where(many, tau, low), torch.where(many, high, tau)
        weights = ((x - (low + high) / 2) / T).sigmoid()
        ctx.T = T
        ctx.save_for_backward(weights)
        return weights

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (weights,) = ctx.saved_tensors
        w = weights * (1 - weights)
        mean = (w * grad).sum(-1, keepdim=True) / w.sum(-1, keepdim=True).clamp(min=1e-30)
        return w * (grad - mean) / ctx.T, None, None, None


def sinkhorn_exp_domain(x: Tensor, k: int, T: float, iterations: int = ITERATIONS) -> Tensor:
    """The plain operator (rows, n) by Sinkhorn iterations on the kernel itself, in the dtype of the scores.

    The cost is the raw (x - y)^2 with eps = 2 T; each candidate's cheaper anchor costs 0, without which the kernel of
    far candidates would be 0 / 0.
    """
    x = x - x.detach().amax(-1, keepdim=True)
    cost = torch.stack(((x - 1).square(), x.square()), -1)
    kernel = (-(cost - cost.amin(-1, keepdim=True)) / (2 * T)).exp()
    target = torch.tensor([k, x.shape[-1] - k], dtype=x.dtype, device=x.device).unsqueeze(-1)
    v = torch.ones_like(target).expand(len(x), 2, 1)
    for _ in range(iterations):
        u = 1 / (kernel @ v)
        v = target / (kernel.mT @ u)
    return (kernel * v.mT / (kernel @ v))[..., 0]
