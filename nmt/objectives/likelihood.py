"""Weighted sums of log-probabilities, which hold few logits or none for the backward pass."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nmt.compilation import region
from nmt.models.elementary import exp_
from nmt.models.kernels import has_kernels, whole_rows, whole_rows_within
from nmt.models.seq2seq import Seq2Seq

# Logits that are there at once, in float32 or wider and in what is narrower: few, but products want to be large.
_LOGITS = {"cpu": (2**22, 2**23), "cuda": (2**26, 2**26)}
# Those that are exponentiated at once: what a CPU's cache holds.
_POWERS = {"cpu": 2**17, "cuda": 2**26}


class _WeightedLogLikelihood(torch.autograd.Function):
    """sum over q of w_q log p(token_q | row_q) + sum over rows of u_r * mean over v of log p(v | r).

    With z the log-sum-exp and W_r the weights of a row, sum_q w_q x_q + sum_r (u_r mean(x_r) - (W_r + u_r) z_r). Kept
    for the backward pass are the logits, which exist anyway, and z; the gradient is made in one buffer. The chain of
    torch's own operations would keep a second tensor of that size and walk it several times more.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, rows: Tensor, tokens: Tensor, weights: Tensor, uniform: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        x = logits.to(torch.promote_types(logits.dtype, torch.float32))
        z = x.logsumexp(dim=1)
        weights = weights.to(z.dtype)
        total = torch.zeros_like(z).index_add_(0, rows, weights)
        log_probability = x[rows, tokens] - z.index_select(0, rows)
        value = (weights * log_probability).sum()
        if uniform is not None:
            uniform = uniform.to(z.dtype)
            total = total + uniform
            value = value + (uniform * (x.mean(dim=1) - z)).sum()
        ctx.save_for_backward(logits, z, rows, tokens, weights, total, uniform)
        ctx.mark_non_differentiable(log_probability)
        return value, log_probability

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None, None, None]:
        logits, z, rows, tokens, weights, total, uniform = ctx.saved_tensors
        result = (logits - z.unsqueeze(1)).exp_()
        result *= -total.unsqueeze(1)
        if uniform is not None:
            result += (uniform / logits.shape[1]).unsqueeze(1)
        result.index_put_((rows, tokens), weights, accumulate=True)
        result *= grad
        return result.to(logits.dtype), None, None, None, None


def weighted_log_likelihood(
    logits: Tensor, rows: Tensor, tokens: Tensor, weights: Tensor, uniform: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """A weighted sum of log-probabilities, in nats.

    Args:
        logits: (rows, vocabulary).
        rows, tokens, weights: (queries,): log p(token | row) counts `weight` times. Weights carry no gradient.
        uniform: (rows,), weight of the mean of the row's log-probabilities, as label smoothing has it.

    Returns:
        the sum, which carries the gradient, and log p (queries,), which does not.
    """
    return _WeightedLogLikelihood.apply(logits, rows, tokens, weights, uniform)


def token_log_likelihood(
    model: Seq2Seq, features: Tensor, rows: Tensor, tokens: Tensor, weights: Tensor, uniform: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`weighted_log_likelihood` of the logits that `model.project` makes of the features (rows, features).

    Where the model tells its output layer, no more than a few rows of logits are there at any time, and their gradient
    is made beside them: what is kept has the size of the layer and of its inputs.
    """
    layer = model.output_layer
    if type(layer) is not nn.Linear:  # a layer that something was added to is asked as a whole
        return weighted_log_likelihood(model.project(features), rows, tokens, weights, uniform)
    inputs = model.output_inputs(features)
    wanted = torch.is_grad_enabled()
    return _LayerLogLikelihood.apply(inputs, layer.weight, layer.bias, rows, tokens, weights, uniform, wanted)


class _LayerLogLikelihood(torch.autograd.Function):
    """The sum of `_WeightedLogLikelihood` for the logits X V' + b, made block by block with its gradient.

    With P the softmax of a row and c_r = W_r + u_r, the gradients of the sum are

        in X:  -c_r P_r V  + sum over the row's q of w_q V[token_q] + u_r mean(V)
        in V:  -P' (c X)   + w_q X[row_q], added up at token_q      + sum over r of u_r X_r / |V| at every token
        in b:  -P' c       + w_q, added up at token_q               + sum over r of u_r / |V| at every token

    Their first terms alone walk the vocabulary, and P is never divided by its sum: c is.
    """

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        rows: Tensor,
        tokens: Tensor,
        weights: Tensor,
        uniform: Tensor | None,
        wanted: bool,
    ) -> tuple[Tensor, Tensor]:
        device = inputs.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else inputs.dtype
        wide = torch.promote_types(dtype, torch.float32)
        with torch.autocast(device, enabled=False):
            x, v, known = inputs.to(dtype), weight.to(dtype), len(inputs)
            size = max(1, _LOGITS.get(device, _LOGITS["cuda"])[dtype != wide] // len(v))
            if has_kernels(x):
                # Blocks of whole rows. Those that are added weigh nothing.
                size = whole_rows_within(size)
                last = known % size
                x = torch.cat([x, x.new_zeros(whole_rows(last) - last, x.shape[1])])
                if uniform is not None:
                    uniform = torch.cat([uniform, uniform.new_zeros(len(x) - known)])
            b = weight.new_zeros(len(weight), dtype=wide) if bias is None else bias.to(wide)
            weights = weights.to(wide)
            total = torch.zeros(len(x), dtype=wide, device=x.device).index_add_(0, rows, weights)
            if uniform is not None:
                uniform = uniform.to(wide)
                total += uniform
            need_x, need_v, need_b = (wanted and need for need in ctx.needs_input_grad[:3])
            of_x = torch.empty_like(x, dtype=wide) if need_x else None
            of_v = torch.zeros_like(v, dtype=wide) if need_v else None
            of_b = torch.zeros_like(b, dtype=wide) if need_b else None

            order = rows.argsort(stable=True)
            few = max(1, _POWERS.get(device, _POWERS["cuda"]) // len(v))
            normaliser, largest, summed = (torch.empty_like(total) for _ in range(3))
            log_probability = torch.empty_like(weights)
            # Memory that is new has to be mapped, block by block.
            made = x.new_empty(min(size, len(x)), len(v))
            for block, queries in _blocks(rows.index_select(0, order), len(x), size):
                asked = order[queries]
                logits = torch.mm(x[block], v.t(), out=made[: block.stop - block.start])
                own, ids = rows[asked], tokens[asked]
                found = logits[own - block.start, ids].to(wide) + b[ids]
                factor = torch.empty_like(total[block])
                parts = (logits, *(whole[block] for whole in (total, largest, summed)), factor)
                # Of one dtype there are no casts to save: as it is it takes no longer.
                exponentiate = _exponentiate if dtype != wide else _exponentiate.function
                rows_at_once = len(logits) if dtype != wide and _exponentiate.compiles else few
                for part, count, most, sums, share in zip(*(each.split(rows_at_once) for each in parts), strict=True):
                    powers = exponentiate(part, b, count, most, sums, share)
                    if of_b is not None:
                        for some, factors in zip(powers.split(few), share.split(few), strict=True):
                            of_b.addmv_(some.to(wide).t(), factors, alpha=-1)
                powers, factor = logits, factor.unsqueeze(1)
                log_summed = summed[block].log()
                normaliser[block] = largest[block] + log_summed
                log_probability[asked] = (found - largest[own]) - log_summed[own - block.start]
                if of_x is not None:
                    of_x[block] = (powers @ v) * -factor
                if of_v is not None:
                    _add_product(of_v, powers.t(), x[block] * -factor)

            value = (weights * log_probability).sum()
            if of_x is not None:
                of_x.index_add_(0, rows, v.index_select(0, tokens) * weights.unsqueeze(1))
            if of_v is not None:
                of_v.index_add_(0, tokens, x.index_select(0, rows) * weights.unsqueeze(1))
            if of_b is not None:
                of_b.index_add_(0, tokens, weights)
            if uniform is not None:
                mean, spread = v.to(wide).mean(dim=0), uniform / len(v)
                value = value + (uniform * (x.to(wide) @ mean + b.mean() - normaliser)).sum()
                if of_x is not None:
                    of_x.addr_(uniform, mean)
                if of_v is not None:
                    of_v += spread @ x.to(wide)
                if of_b is not None:
                    of_b += spread.sum()
        ctx.save_for_backward(None if of_x is None else of_x[:known], of_v, of_b)
        ctx.dtypes = inputs.dtype, weight.dtype
        ctx.mark_non_differentiable(log_probability)
        return value, log_probability

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        of_inputs, of_weight, of_bias = ctx.saved_tensors
        kinds = ctx.dtypes[0], ctx.dtypes[1], ctx.dtypes[1]
        found = (
            None if each is None else (each * grad).to(kind)
            for each, kind in zip((of_inputs, of_weight, of_bias), kinds, strict=True)
        )
        return *found, None, None, None, None, None


@region
def _exponentiate(
    logits: Tensor, bias: Tensor, count: Tensor, largest: Tensor, summed: Tensor, factor: Tensor
) -> Tensor:
    """exp(x - max x) of the logits x (rows, vocabulary), biases added, in their place; and the same before it was
    rounded, where that is known.

    Args:
        count: c of `_LayerLogLikelihood`, (rows,).
        largest, summed, factor: where the maxima, the sums of the powers, and c divided by these go, (rows,) each.
    """
    powers = logits.add_(bias) if logits.dtype == bias.dtype else logits + bias
    largest.copy_(powers.amax(dim=1))
    summed.copy_(exp_(powers.sub_(largest.unsqueeze(1))).sum(dim=1))
    factor.copy_(count / summed)
    if powers is logits:
        return logits
    logits.copy_(powers)
    return logits if torch.compiler.is_compiling() else powers


def _blocks(rows: Tensor, count: int, size: int) -> Iterator[tuple[slice, slice]]:
    """Of 0 ... count - 1 the rows of a block, and which of the ascending `rows` lie in it."""
    starts = list(range(0, max(count, 1), size))
    bounds = [0, len(rows)]
    if len(starts) > 1:  # a GPU would be waited for
        bounds[1:1] = torch.searchsorted(rows, torch.tensor(starts[1:], device=rows.device)).tolist()
    for start, (first, last) in zip(starts, pairwise(bounds), strict=True):
        yield slice(start, min(start + size, count)), slice(first, last)


def _add_product(result: Tensor, left: Tensor, right: Tensor) -> None:
    """result += left @ right, multiplied in the precision of the left, which may be narrower."""
    if left.dtype == result.dtype:
        result.addmm_(left, right)
    elif left.dtype == torch.float16:
        # What weighs little has no number there, and the scale of the loss comes later.
        largest = right.abs().amax().clamp_min(torch.finfo(right.dtype).tiny)
        result.addcmul_((left @ (right / largest).to(left.dtype)).to(result.dtype), largest)
    else:
        result += left @ right.to(left.dtype)
