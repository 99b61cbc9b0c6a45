"""Trees of tensors: what a decoder carries from step to step and what an encoder leaves behind.

A tree is a tensor or a (named) tuple of trees. Every tensor of a state leads with `(batch, slots)`, every
tensor of a memory with `(batch,)`; nothing else is assumed, so a recurrent state and a key-value cache
are treated alike.
"""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

Tree = TypeVar("Tree", bound=Any)


def map_tree(function: Callable[..., Tensor], tree: Tree, *others: Tree) -> Tree:
    """Applies `function` leaf by leaf to trees of one shape."""
    if isinstance(tree, Tensor):
        return function(tree, *others)  # type: ignore[return-value]
    parts = [map_tree(function, *branch) for branch in zip(tree, *others, strict=True)]
    return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)


def leaves(tree: Any) -> Iterator[Tensor]:
    """The tensors of a tree."""
    if isinstance(tree, Tensor):
        yield tree
    else:
        for branch in tree:
            yield from leaves(branch)


def take_rows(tree: Tree, rows: Tensor) -> Tree:
    """Keeps the sentences `rows` (kept,) of the batch dimension."""
    return map_tree(lambda leaf: leaf.index_select(0, rows), tree)


def first_rows(tree: Tree, rows: int) -> Tree:
    """The first `rows` of the batch dimension."""
    return map_tree(lambda leaf: leaf if len(leaf) == rows else leaf[:rows], tree)


def take_slots(tree: Tree, parents: Tensor) -> Tree:
    """Re-parents a state by indices: slot m of the result is slot `parents[b, m]` of sentence b.

    Args:
        tree: leaves (batch, slots, ...).
        parents: (batch, new slots), integers.
    """
    rows = torch.arange(parents.shape[0], device=parents.device).unsqueeze(1)
    return map_tree(lambda leaf: leaf[rows, parents], tree)


def mix_slots(tree: Tree, weights: Tensor) -> Tree:
    """Re-parents a state by weights: slot m of the result is sum over l of weights[b, m, l] * slot l.

    Args:
        tree: leaves (batch, slots, ...), floating point.
        weights: (batch, new slots, slots).
    """

    def mix(leaf: Tensor) -> Tensor:
        mixed = torch.bmm(weights.to(leaf.dtype), leaf.reshape(*leaf.shape[:2], -1))
        return mixed.view(*mixed.shape[:2], *leaf.shape[2:])

    return map_tree(mix, tree)


def product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right of batches of matrices, in float32 at least, whatever the precision of what surrounds it.

    For what a search counts and sums up (scores, shares, matches): rounded to 8 bits at every step it would be off by
    more than two candidates differ.
    """
    wide = torch.promote_types(left.dtype, torch.float32)
    with torch.autocast(left.device.type, enabled=False):
        return torch.bmm(left.to(wide), right.to(wide))


def join_slots(first: Tree, second: Tree) -> Tree:
    """Puts the slots of `second` behind those of `first`."""
    return map_tree(lambda a, b: torch.cat([a, b], dim=1), first, second)


def split_slots(tree: Tree, at: int) -> tuple[Tree, Tree]:
    """The inverse of `join_slots`: slots before `at`, and the others."""
    return map_tree(lambda leaf: leaf[:, :at], tree), map_tree(lambda leaf: leaf[:, at:], tree)


def where_rows(rows: Tensor, chosen: Tree, otherwise: Tree) -> Tree:
    """Takes `chosen` for the sentences where `rows` (batch,) is true, `otherwise` elsewhere."""

    def pick(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(rows.view(-1, *[1] * (a.dim() - 1)), a, b)

    return map_tree(pick, chosen, otherwise)
