"""Recurrent cells of which the products are there; as torch.nn.GRUCell and LSTMCell define them."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nmt.models.elementary import fast_tanh, tanh_


def run_cell(inputs: Tensor, recurrent: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """One step of a cell.

    Args:
        inputs, recurrent: (..., gates * hidden), what the input and the state give, biases added.
        state: (hidden state,) of a GRU, or (hidden state, cell) of an LSTM, (..., hidden) each.

    Returns:
        the new state.
    """
    inputs, recurrent = inputs.to(state[0].dtype), recurrent.to(state[0].dtype)  # autocast may have changed one
    if len(state) == 1:
        if torch.is_grad_enabled():
            return (_GRU.apply(inputs, recurrent, state[0]),)
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
        of_inputs, of_recurrent: where these gradients go.

    Returns:
        the gradient of the state, but for what comes through `recurrent`.
    """
    hidden = state.shape[-1]
    reset, keep = gates.chunk(2, dim=-1)
    of_state = grad * keep
    of_reset, of_keep, of_new = of_inputs.chunk(3, dim=-1)
    torch.sub(grad, of_state, out=of_new)
    of_new.addcmul_(of_new * new, new, value=-1)
    torch.mul(of_new, fed, out=of_reset)
    torch.sub(state, new, out=of_keep).mul_(grad)
    of_inputs[..., : 2 * hidden] *= torch.addcmul(gates, gates, gates, value=-1)
    of_recurrent.copy_(of_inputs)
    of_recurrent[..., 2 * hidden :] *= reset
    return of_state


class _GRU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, recurrent: Tensor, state: Tensor) -> Tensor:
        result, gates, new = run_gru_cell(inputs, recurrent, state)
        ctx.save_for_backward(recurrent, state, gates, new)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        recurrent, state, gates, new = ctx.saved_tensors
        of_inputs, of_recurrent = torch.empty_like(recurrent), torch.empty_like(recurrent)
        fed = recurrent[..., 2 * state.shape[-1] :]
        return of_inputs, of_recurrent, differentiate_gru_cell(grad, fed, state, gates, new, of_inputs, of_recurrent)
