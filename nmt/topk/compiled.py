"""The operators as opaque operations of a `torch.compile` graph.

The solvers loop until they have converged and widen their screen where a bound fails, which no graph can hold.
So each operator is one operation there, and its backward another that solves again: only the arguments are kept.
Second derivatives, forward mode and vmap are for eager execution.

Shapes: rows (rows, n); k and the temperature float64 of shape () or (rows,); `shape`, the leading shape of the
scores, and `largest` name what is refused.
"""

from typing import Any

import torch
from torch import Tensor


@torch.library.custom_op("nmt_topk::plain", mutates_args=())
def plain(rows: Tensor, k: Tensor, temperature: Tensor, shape: list[int], largest: bool) -> Tensor:
    """The weights (rows, n) of `soft_topk`."""
    # The operators import this module.
    from nmt.topk.plain import run

    return run(rows, k, temperature, torch.Size(shape), largest)[0][0]


@plain.register_fake
def _(rows: Tensor, k: Tensor, temperature: Tensor, shape: list[int], largest: bool) -> Tensor:
    return torch.empty_like(rows)


@torch.library.custom_op("nmt_topk::plain_backward", mutates_args=())
def plain_backward(grad: Tensor, rows: Tensor, k: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients by the rows, k and the temperature."""
    from nmt.topk.plain import pull_dense, run

    solved = run(rows, k, temperature, rows.shape[:1], True)[1]
    to_rows, to_k, to_t = pull_dense(grad, rows, temperature, solved, True)
    return to_rows, to_k if k.dim() else to_k.sum(), to_t if temperature.dim() else to_t.sum()


@plain_backward.register_fake
def _(grad: Tensor, rows: Tensor, k: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(rows), torch.empty_like(k), torch.empty_like(temperature)


def _keep_plain(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])


def _pull_plain(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return (*plain_backward(grad, *ctx.saved_tensors), None, None)


plain.register_autograd(_pull_plain, setup_context=_keep_plain)


@torch.library.custom_op("nmt_topk::ranked", mutates_args=())
def ranked(rows: Tensor, k: int, temperature: Tensor, shape: list[int], largest: bool) -> Tensor:
    """The weights (rows, n, k) of `sorted_soft_topk`."""
    from nmt.topk.sorted import run

    return run(rows, k, temperature, torch.Size(shape), largest)[0][0]


@ranked.register_fake
def _(rows: Tensor, k: int, temperature: Tensor, shape: list[int], largest: bool) -> Tensor:
    return rows.new_empty((*rows.shape, k))


@torch.library.custom_op("nmt_topk::ranked_backward", mutates_args=())
def ranked_backward(grad: Tensor, rows: Tensor, k: int, temperature: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients by the rows and the temperature."""
    from nmt.topk.sorted import pull_dense, run

    solved = run(rows, k, temperature, rows.shape[:1], True)[1]
    to_rows, to_t = pull_dense(grad, rows, temperature, solved, True)
    return to_rows, to_t if temperature.dim() else to_t.sum()


@ranked_backward.register_fake
def _(grad: Tensor, rows: Tensor, k: int, temperature: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(rows), torch.empty_like(temperature)


def _keep_ranked(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    rows, ctx.k, temperature, _, _ = inputs
    ctx.save_for_backward(rows, temperature)


def _pull_ranked(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    rows, temperature = ctx.saved_tensors
    to_rows, to_t = ranked_backward(grad, rows, ctx.k, temperature)
    return to_rows, None, to_t, None, None


ranked.register_autograd(_pull_ranked, setup_context=_keep_ranked)
