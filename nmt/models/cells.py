"""Recurrent cells of which the products are there; as torch.nn.GRUCell and LSTMCell define them."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nmt.compilation import region
from nmt.models.elementary import fast_tanh, tanh_


def run_cell(inputs: Tensor, recurrent: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """One step of a cell.

    Args:
        inputs, recurrent: (..., gates * hidden), what the input and the state give, biases added.
        state: (hidden state,) of a GRU, or (hidden state, cell) of an LSTM, (..., hidden) each.

    Returns:
        the new state.
    """
    if len(state) == 1 and torch.is_grad_enabled():
        return (_GRU.apply(inputs, recurrent, state[0]),)
    inputs, recurrent = inputs.to(state[0].dtype), recurrent.to(state[0].dtype)  # autocast may have changed one
    if len(state) == 1:
        return run_gru_cell(inputs, recurrent, state[0])[:1]
    entering, forget, proposal, leaving = (inputs + recurrent).chunk(4, dim=-1)
    tanh = torch.tanh if torch.is_grad_enabled() else fast_tanh
    cell = torch.sigmoid(forget) * state[1] + torch.sigmoid(entering) * tanh(proposal)
    return torch.sigmoid(leaving) * tanh(cell), cell


def run_gru_cell(
    inputs: Tensor, recurrent: Tensor, state: Tensor, out: tuple[Tensor | None, ...] = (None, None, None)
) -> tuple[Tensor, Tensor, Tensor]:
    """The new state, the gates "reset" and "keep" side by side, and the proposal; of `out`, where given."""
    hidden = state.shape[-1]
    result, gates, new = out
    gates = torch.add(inputs[..., : 2 * hidden], recurrent[..., : 2 * hidden], out=gates).sigmoid_()
    reset, keep = gates.chunk(2, dim=-1)
    new = tanh_(torch.addcmul(inputs[..., 2 * hidden :], reset, recurrent[..., 2 * hidden :], out=new))
    return torch.lerp(new, state, keep, out=result), gates, new


def differentiate_gru_cell(
    grad: Tensor, fed: Tensor, state: Tensor, gates: Tensor, new: Tensor, of_inputs: Tensor, of_recurrent: Tensor
) -> Tensor:
    """Gradients of `run_gru_cell`. With z the gate "keep", r "reset", n the proposal and c (`fed`) what the state gives
    to it before r:

        h = n + z (s - n)    dn = (1 - z) (1 - n^2) dh    dz = z (1 - z) (s - n) dh    dr = r (1 - r) c dn

    as gradients of what sigmoid and tanh take. Torch's own operations fill and join a tensor for each part.

    Args:
        of_inputs, of_recurrent: where these gradients go; they may be narrower.

    Returns:
        the gradient of the state, but for what comes through `recurrent`.
    """
    compiling = torch.compiler.is_compiling()
    reset, keep = gates.chunk(2, dim=-1)
    fed = fed.to(state.dtype)
    of_state = grad * keep
    parts: tuple[Tensor | None, ...] = (None, None, None)
    if of_inputs.dtype == state.dtype and not compiling:  # at once in their places
        parts = of_inputs.chunk(3, dim=-1)
    slopes = torch.addcmul(gates, gates, gates, value=-1).chunk(2, dim=-1)
    of_new = torch.sub(grad, of_state, out=parts[2])
    of_new.addcmul_(of_new * new, new, value=-1)
    of_reset = torch.mul(of_new, fed, out=parts[0]).mul_(slopes[0])
    of_keep = torch.sub(state, new, out=parts[1]).mul_(grad).mul_(slopes[1])
    if compiling:  # one loop over each result
        of_inputs.copy_(torch.cat([of_reset, of_keep, of_new], dim=-1))
        of_recurrent.copy_(torch.cat([of_reset, of_keep, of_new * reset], dim=-1))
        return of_state
    if parts[0] is None:
        for part, place in zip((of_reset, of_keep, of_new), of_inputs.chunk(3, dim=-1), strict=True):
            place.copy_(part)
    for part, place in zip((of_reset, of_keep, of_new * reset), of_recurrent.chunk(3, dim=-1), strict=True):
        place.copy_(part)
    return of_state


@region
def _move(inputs: Tensor, recurrent: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return run_gru_cell(inputs.to(state.dtype), recurrent.to(state.dtype), state)


@region
def _move_back(
    grad: Tensor, recurrent: Tensor, state: Tensor, gates: Tensor, new: Tensor, of_inputs: Tensor, of_recurrent: Tensor
) -> Tensor:
    """Writes to the last two."""
    fed = recurrent[..., 2 * state.shape[-1] :]
    return differentiate_gru_cell(grad, fed, state, gates, new, of_inputs, of_recurrent)


class _GRU(torch.autograd.Function):
    """Of what the input and the state give in the precision of autocast."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, recurrent: Tensor, state: Tensor) -> Tensor:
        result, gates, new = _move(inputs, recurrent, state)
        ctx.kind = inputs.dtype
        ctx.save_for_backward(recurrent, state, gates, new)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        recurrent, state, gates, new = ctx.saved_tensors
        of_inputs, of_recurrent = torch.empty_like(recurrent, dtype=ctx.kind), torch.empty_like(recurrent)
        return of_inputs, of_recurrent, _move_back(grad, recurrent, state, gates, new, of_inputs, of_recurrent)
