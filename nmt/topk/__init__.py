"""Differentiable top-k operators; imports torch and nothing else of this package."""

from nmt.topk.fast import use_kernels
from nmt.topk.hard import hard_topk
from nmt.topk.module import SoftTopK
from nmt.topk.plain import soft_topk
from nmt.topk.schedules import Constant, Exponential, Learned, Linear, Schedule
from nmt.topk.sinkhorn import sinkhorn_topk, sorted_sinkhorn_topk
from nmt.topk.softness import Report, report
from nmt.topk.sorted import sorted_soft_topk
from nmt.topk.sparse import SparseTopk, sparse_soft_topk, sparse_sorted_soft_topk

__all__ = [
    "Constant",
    "Exponential",
    "Learned",
    "Linear",
    "Report",
    "Schedule",
    "SoftTopK",
    "SparseTopk",
    "hard_topk",
    "report",
    "sinkhorn_topk",
    "soft_topk",
    "sorted_sinkhorn_topk",
    "sorted_soft_topk",
    "sparse_soft_topk",
    "sparse_sorted_soft_topk",
    "use_kernels",
]
