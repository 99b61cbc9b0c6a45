"""Products of narrow numbers on a CPU, where oneDNN compiles a kernel for each number of rows that it meets.

A kernel takes milliseconds and from a third of a MiB to several of memory, and batches of sentences have ever new
numbers of rows. So rows are added, of zeros, up to a number that comes again: from 128 on there are eight of these to a
doubling, and what is added is an eighth at most.
"""

import os
from collections.abc import Callable

import torch
from torch import Tensor, nn

TILE = 16
"""Rows that a processor multiplies at once."""
_NARROW = (torch.bfloat16, torch.float16)


def keep_few_kernels() -> None:
    """Bounds what oneDNN keeps of int8 kernels, in this process and those that it starts: by default 1,024."""
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")


def whole_rows(count: int) -> int:
    """The number of rows, at least `count`, of a kernel that is used again."""
    return -(-count // _step(count - 1)) * _step(count - 1)


def whole_rows_within(count: int) -> int:
    """The largest of these numbers that is no larger than `count`."""
    return count // _step(count) * _step(count)


def _step(count: int) -> int:
    return 1 if count < TILE else max(TILE, 1 << count.bit_length() - 4)


def pad_rows(rows: Tensor) -> Tensor:
    """(rows, n) with zeros behind them up to a whole number of rows."""
    missing = whole_rows(len(rows)) - len(rows)
    return torch.cat([rows, rows.new_zeros(missing, rows.shape[1])]) if missing else rows


def has_kernels(inputs: Tensor) -> bool:
    """Whether a product with these inputs has a kernel for each number of rows."""
    if inputs.device.type != "cpu":
        return False
    narrowed = torch.is_autocast_enabled("cpu")
    return (torch.get_autocast_dtype("cpu") if narrowed else inputs.dtype) in _NARROW


def by_rows(layer: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """What a layer that treats each row by itself makes of (..., inputs)."""
    if not has_kernels(inputs):
        return layer(inputs)
    rows = inputs.flatten(0, -2)
    return layer(pad_rows(rows))[: len(rows)].unflatten(0, inputs.shape[:-1])


class RowLinear(nn.Linear):
    """A linear layer that works `by_rows`."""

    def forward(self, inputs: Tensor) -> Tensor:
        return by_rows(super().forward, inputs)


def row_linear(weight: Tensor, bias: Tensor | None) -> RowLinear:
    """A layer for results alone, of this weight and this bias, in the same memory."""
    layer = RowLinear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return layer


def sum_of_outer_products(left: Tensor, right: Tensor) -> Tensor:
    """left^T right, of (rows, n) and (rows, m)."""
    if has_kernels(left):
        left, right = pad_rows(left), pad_rows(right)
    return left.t() @ right
