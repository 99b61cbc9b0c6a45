"""Differentiable top-k operators; imports torch and nothing else of this package."""

from nmt.topk.hard import hard_topk
from nmt.topk.plain import soft_topk
from nmt.topk.sinkhorn import sinkhorn_topk, sorted_sinkhorn_topk
from nmt.topk.sorted import sorted_soft_topk

__all__ = ["hard_topk", "sinkhorn_topk", "soft_topk", "sorted_sinkhorn_topk", "sorted_soft_topk"]
