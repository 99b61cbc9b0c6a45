"""Other differentiable top-k operators, under one signature: (scores, k, temperature) -> weights.

`OPERATORS` says what each guarantees, ours beside them; a test holds every entry true, 'no' by a counterexample.
Imported by nothing else of this package.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from nmt.topk.plain import soft_topk
from nmt.topk.rivals.continuous_beam import soft_k_argmax
from nmt.topk.rivals.lap_sum import lap_sum
from nmt.topk.rivals.neural_sort import neural_sort
from nmt.topk.rivals.perturbed import perturbed_topk
from nmt.topk.rivals.relax_subsample import relax_subsample
from nmt.topk.rivals.sinkhorn_sort import sinkhorn_rank_topk, sinkhorn_ranks, sinkhorn_sort
from nmt.topk.rivals.soft_sort import soft_sort
from nmt.topk.rivals.sparse_topk import sparse_topk
from nmt.topk.rivals.straight_through import straight_through
from nmt.topk.rivals.successive_softmax import successive_softmax
from nmt.topk.sinkhorn import sinkhorn_topk, sorted_sinkhorn_topk
from nmt.topk.sorted import sorted_soft_topk


@dataclass(frozen=True)
class Guarantee:
    """What an operator promises for finite scores and any temperature.

    Attributes:
        operator: (scores (..., n), k, temperature) -> (..., n), or (..., n, k) if ranked.
        ranked: one column a rank; the columns then sum to 1 wherever the whole sums to k.
        sums: the weights sum to k, and each column to 1.
        bounded: no candidate weighs more than 1 in all.
        exact: as T -> 0 the weights are those of the hard selection, for distinct scores.
        equivariant: permuting the scores permutes the weights.
        deterministic: two calls agree.
        cost: time of the forward, n candidates, k slots, s samples, i iterations.
        memory: of the forward with what the backward keeps.
    """

    operator: Callable[..., Tensor]
    ranked: bool
    sums: bool
    bounded: bool
    exact: bool
    equivariant: bool
    deterministic: bool
    cost: str
    memory: str


def _row(operator: Callable[..., Tensor], ranked: bool, properties: str, cost: str, memory: str) -> Guarantee:
    sums, bounded, exact, equivariant, deterministic = (mark == "+" for mark in properties.split())
    return Guarantee(operator, ranked, sums, bounded, exact, equivariant, deterministic, cost, memory)


# Properties in the order of the fields: sums, bounded, exact, equivariant, deterministic.
OPERATORS: dict[str, Guarantee] = {
    "soft_topk": _row(soft_topk, False, "+ + + + +", "O(n + i k), soft rows O(n i)", "O(n)"),
    "sorted_soft_topk": _row(sorted_soft_topk, True, "+ + + + +", "O(n k + i k^3), soft rows O(i n k^2)", "O(n k)"),
    "sinkhorn_topk": _row(sinkhorn_topk, False, "- + - + +", "O(n i)", "O(n i)"),
    "sorted_sinkhorn_topk": _row(sorted_sinkhorn_topk, True, "- + - + +", "O(n k i)", "O(n k i)"),
    "neural_sort": _row(neural_sort, True, "+ - + + +", "O(n^2)", "O(n^2)"),
    "soft_sort": _row(soft_sort, True, "+ - + + +", "O(n k)", "O(n k)"),
    "sinkhorn_sort": _row(sinkhorn_sort, True, "+ - - + +", "O(n^2 i)", "O(n^2 i)"),
    "sinkhorn_rank_topk": _row(sinkhorn_rank_topk, False, "- + - + +", "O(n i)", "O(n i)"),
    "relax_subsample": _row(relax_subsample, False, "+ - - - -", "O(n k)", "O(n k)"),
    "successive_softmax": _row(successive_softmax, True, "+ - + + +", "O(n k)", "O(n k)"),
    "soft_k_argmax": _row(soft_k_argmax, True, "+ - + + +", "O(n k)", "O(n k)"),
    "lap_sum": _row(lap_sum, False, "+ + + + +", "O(n log n)", "O(n)"),
    "perturbed_topk": _row(perturbed_topk, False, "+ + + - -", "O(s n)", "O(s n)"),
    "sparse_topk": _row(sparse_topk, False, "+ + + + +", "O(n i)", "O(n)"),
    "straight_through": _row(straight_through, False, "+ + + - +", "O(n k)", "O(n k)"),
}

__all__ = [
    "OPERATORS",
    "Guarantee",
    "lap_sum",
    "neural_sort",
    "perturbed_topk",
    "relax_subsample",
    "sinkhorn_rank_topk",
    "sinkhorn_ranks",
    "sinkhorn_sort",
    "soft_k_argmax",
    "soft_sort",
    "sparse_topk",
    "straight_through",
    "successive_softmax",
]
