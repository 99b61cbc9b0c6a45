"""The operators as opaque operations of a `torch.compile` graph.

The solvers loop until they have converged and widen their screen where a bound fails, which no graph can hold.
So each operator is one operation there, and its backward another that solves again: only the arguments are kept.
Second derivatives, forward mode and vmap are for eager execution.
"""

from typing import Any

import torch
from torch import Tensor


@torch.library.custom_op("nmt_topk::plain", mutates_args=())
def plain(scores: Tensor, k: Tensor, temperature: Tensor, largest: bool) -> Tensor:
    """`soft_topk` for a graph; k and the temperature are float64 of shape () or scores.shape[:-1]."""
    # The operators import this module.
    from nmt.topk.plain import soft_topk

    return soft_topk(scores.detach(), k.detach(), temperature.detach(), largest=largest)


@plain.register_fake
def _(scores: Tensor, k: Tensor, temperature: Tensor, largest: bool) -> Tensor:
    return scores.new_empty(scores.shape)


@torch.library.custom_op("nmt_topk::plain_backward", mutates_args=())
def plain_backward(
    grad: Tensor, scores: Tensor, k: Tensor, temperature: Tensor, largest: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients by the scores, k and the temperature."""
    from nmt.topk.plain import soft_topk

    with torch.enable_grad():
        x, slots, t = (value.detach().requires_grad_() for value in (scores, k, temperature))
        to_x, to_k, to_t = torch.autograd.grad(soft_topk(x, slots, t, largest=largest), (x, slots, t), grad)
    return to_x, to_k, to_t


@plain_backward.register_fake
def _(grad: Tensor, scores: Tensor, k: Tensor, temperature: Tensor, largest: bool) -> tuple[Tensor, Tensor, Tensor]:
    return scores.new_empty(scores.shape), torch.empty_like(k), torch.empty_like(temperature)


def _keep_plain(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.largest = inputs
    ctx.save_for_backward(*tensors)


def _pull_plain(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return (*plain_backward(grad, *ctx.saved_tensors, ctx.largest), None)


plain.register_autograd(_pull_plain, setup_context=_keep_plain)


@torch.library.custom_op("nmt_topk::ranked", mutates_args=())
def ranked(scores: Tensor, k: int, temperature: Tensor, largest: bool) -> Tensor:
    """`sorted_soft_topk` for a graph."""
    from nmt.topk.sorted import sorted_soft_topk

    return sorted_soft_topk(scores.detach(), k, temperature.detach(), largest=largest)


@ranked.register_fake
def _(scores: Tensor, k: int, temperature: Tensor, largest: bool) -> Tensor:
    return scores.new_empty((*scores.shape, k))


@torch.library.custom_op("nmt_topk::ranked_backward", mutates_args=())
def ranked_backward(grad: Tensor, scores: Tensor, k: int, temperature: Tensor, largest: bool) -> tuple[Tensor, Tensor]:
    """The gradients by the scores and the temperature."""
    from nmt.topk.sorted import sorted_soft_topk

    with torch.enable_grad():
        x, t = (value.detach().requires_grad_() for value in (scores, temperature))
        to_x, to_t = torch.autograd.grad(sorted_soft_topk(x, k, t, largest=largest), (x, t), grad)
    return to_x, to_t


@ranked_backward.register_fake
def _(grad: Tensor, scores: Tensor, k: int, temperature: Tensor, largest: bool) -> tuple[Tensor, Tensor]:
    return scores.new_empty(scores.shape), torch.empty_like(temperature)


def _keep_ranked(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    scores, ctx.k, temperature, ctx.largest = inputs
    ctx.save_for_backward(scores, temperature)


def _pull_ranked(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    scores, temperature = ctx.saved_tensors
    to_x, to_t = ranked_backward(grad, scores, ctx.k, temperature, ctx.largest)
    return to_x, None, to_t, None


ranked.register_autograd(_pull_ranked, setup_context=_keep_ranked)
