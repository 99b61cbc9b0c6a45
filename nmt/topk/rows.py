"""Rows under the transforms of `torch.func`, and the gradient of one value shared by all rows."""

import inspect
from typing import Any

import torch
from torch import Tensor

# Beyond it a difference of scores is hard at any temperature, and its square is still finite.
FAR = 1e150


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


def map_rows(
    operator: type[torch.autograd.Function], size: int, in_dims: tuple[Any, ...], arguments: tuple[Any, ...]
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """The vmap rule of an operator (rows, k, temperature, shape, largest, ..., kept): all instances as rows of one
    call.
    """
    rows, k, temperature, shape, *others, _ = arguments
    flat, count = fold_rows(rows, in_dims[0], size)
    k, temperature = (
        fold_values(value, dim, size, count) for value, dim in zip((k, temperature), in_dims[1:3], strict=True)
    )
    results = operator.apply(flat, k, temperature, (size, *shape), *others, [])
    return tuple(part.view(size, count, *part.shape[1:]) for part in results), (0,) * len(results)


def with_signature(operator: type[torch.autograd.Function]) -> type[torch.autograd.Function]:
    """Keeps the signature of `forward`, which `apply` makes out anew at each call: a tenth of a small one."""
    operator.forward.__signature__ = inspect.signature(operator.forward)  # type: ignore[attr-defined]
    return operator


def column(value: float | Tensor, x: Tensor) -> Tensor:
    """A number, a 0-d tensor or one value a row as float64 of shape (rows, 1), with its graph."""
    tensor = torch.as_tensor(value, dtype=torch.float64, device=x.device)
    return tensor.reshape(-1, 1).expand(x.shape[0], 1)


def as_column(value: float | Tensor) -> float | Tensor:
    """One value a row as (rows, 1); numbers and 0-d tensors as they are."""
    return value.unsqueeze(1) if isinstance(value, Tensor) and value.dim() else value


def total(gradients: Tensor, value: float | Tensor) -> Tensor | None:
    """Gradients (rows,) of a value as its own gradient: None of a number, the sum of what all rows share."""
    if not isinstance(value, Tensor):
        return None
    return gradients if value.dim() else gradients.sum()


def is_plain(grad: Tensor, kept: list[Any]) -> bool:
    """Whether the lean backward may write in place: no graph of the backward is wanted, and no transform is at work."""
    if torch.is_grad_enabled() or not kept:
        return False
    # Of `is_grads_batched`; the test has no public face, and without it nothing is vectorised.
    tests: list[Any] = [getattr(torch._C._functorch, f"is_{kind}batchedtensor", None) for kind in ("", "legacy_")]
    return not any(test(grad) for test in tests if test)


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


def narrow(order: Tensor, best: Tensor, tail: Tensor, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """The first `width` of the best candidates as a sparse result: positions, weights, and the sums of all others.

    Args:
        order: (rows, C) positions.
        best: (rows, C, ...) their weights.
        tail: (rows, ...) sums of the weights outside of them.
        width: at most C.
        dtype: of the result's weights and sums.
    """
    tail = tail + best[:, width:].sum(1)
    # Copies: forward mode takes no view of something that stays inside.
    return order[:, :width].clone(), best[:, :width].to(dtype, copy=True).contiguous(), tail.to(dtype)
