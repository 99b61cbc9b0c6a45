"""Rows under the transforms of `torch.func`, and the gradient of one value shared by all rows."""

from typing import Any

import torch
from torch import Tensor


def fold_rows(rows: Tensor, dim: int | None, size: int) -> tuple[Tensor, int]:
    """(rows, n) with a mapped dimension of `size` as (size * rows, n), and the number of rows of one instance."""
    rows = rows.expand(size, *rows.shape) if dim is None else rows.movedim(dim, 0)
    return rows.reshape(-1, rows.shape[2]).contiguous(), rows.shape[1]


def fold_values(value: float | Tensor, dim: int | None, size: int, count: int) -> float | Tensor:
    """A number, or a tensor of shape () or (count,) with a mapped dimension, as one value a folded row."""
    if not isinstance(value, Tensor) or (dim is None and value.dim() == 0):
        return value
    value = value.expand(size, *value.shape) if dim is None else value.movedim(dim, 0)
    return (value.unsqueeze(1).expand(size, count) if value.dim() == 1 else value).reshape(-1)


def total(gradients: Tensor, value: float | Tensor) -> Tensor | None:
    """Gradients (rows,) of a value as its own gradient: None of a number, the sum of what all rows share."""
    if not isinstance(value, Tensor):
        return None
    return gradients if value.dim() else gradients.sum()


def refuse_nested_forward() -> None:
    """Raises in a forward derivative of a forward derivative: PyTorch gives 0 there for any custom function.

    Raises:
        RuntimeError: always in such a case.
    """
    # The stack of transforms has no public face; without it, nothing is refused.
    stack: list[Any] = getattr(torch._C._functorch, "get_interpreter_stack", list)() or []
    if sum("Jvp" in str(interpreter.key()) for interpreter in stack) > 1:
        raise RuntimeError(
            "forward mode over forward mode is not supported: use torch.func.jacfwd(torch.func.jacrev(f))"
        )
