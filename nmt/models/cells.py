"""Recurrent cells of which the products are there; as torch.nn.GRUCell and LSTMCell define them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


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
        return _run_gru(inputs, recurrent, state[0], fast_tanh)[:1]
    entering, forget, proposal, leaving = (inputs + recurrent).chunk(4, dim=-1)
    tanh = torch.tanh if torch.is_grad_enabled() else fast_tanh
    cell = torch.sigmoid(forget) * state[1] + torch.sigmoid(entering) * tanh(proposal)
    return torch.sigmoid(leaving) * tanh(cell), cell


def fast_tanh(x: Tensor) -> Tensor:
    """tanh x = 2 sigmoid(2 x) - 1, to 1e-7 and without a gradient: torch's tanh is MKL's, which is six times slower on
    a processor that is not Intel's."""
    return (2 * x).sigmoid_().mul_(2).sub_(1)


def _run_gru(
    inputs: Tensor, recurrent: Tensor, state: Tensor, tanh: Callable[[Tensor], Tensor] = torch.tanh_
) -> tuple[Tensor, Tensor, Tensor]:
    """The new state, the gates "reset" and "keep" side by side, and the proposal."""
    hidden = state.shape[-1]
    gates = (inputs[..., : 2 * hidden] + recurrent[..., : 2 * hidden]).sigmoid_()
    reset, keep = gates.chunk(2, dim=-1)
    new = torch.addcmul(inputs[..., 2 * hidden :], reset, recurrent[..., 2 * hidden :])
    new = tanh(new)
    return torch.lerp(new, state, keep), gates, new


class _GRU(torch.autograd.Function):
    """With z the gate "keep", r "reset", n the proposal and c what the state gives to it before r:

        h = n + z (s - n)    dn = (1 - z) (1 - n^2) dh    dz = z (1 - z) (s - n) dh    dr = r (1 - r) c dn

    as gradients of what sigmoid and tanh take. Torch's own operations fill and join a tensor for each part.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, recurrent: Tensor, state: Tensor) -> Tensor:
        result, gates, new = _run_gru(inputs, recurrent, state)
        ctx.save_for_backward(recurrent, state, gates, new)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        recurrent, state, gates, new = ctx.saved_tensors
        hidden = state.shape[-1]
        reset, keep = gates.chunk(2, dim=-1)
        of_state = grad * keep
        of_inputs = torch.empty_like(recurrent)
        of_reset, of_keep, of_new = of_inputs.chunk(3, dim=-1)
        torch.sub(grad, of_state, out=of_new)
        of_new.addcmul_(of_new * new, new, value=-1)
        torch.mul(of_new, recurrent[..., 2 * hidden :], out=of_reset)
        torch.sub(state, new, out=of_keep).mul_(grad)
        of_inputs[..., : 2 * hidden] *= torch.addcmul(gates, gates, gates, value=-1)
        of_recurrent = of_inputs.clone()
        of_recurrent[..., 2 * hidden :] *= reset
        return of_inputs, of_recurrent, of_state
