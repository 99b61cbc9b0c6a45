"""Attention: additive (Bahdanau, Cho, Bengio, ICLR 2015, section 3.1) and by products ("general" and "dot" of Luong,
Pham, Manning, EMNLP 2015, section 3.1).

The additive one is made of powers. tanh(q + k) is 1 - 2 / (1 + exp(2 q) exp(2 k)): one exponential a source position
and one a slot, instead of a tanh for each pair. Its constant part drops out of the softmax.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nmt.models.normed import normed_linear

# exp(2 x) of it is near the end of float32; tanh is 1 long before.
FAR = 43.0


def powers(x: Tensor) -> Tensor:
    """exp(2 x), float32 at least."""
    return (2 * x.to(torch.promote_types(x.dtype, torch.float32)).clamp(-FAR, FAR)).exp()


class AdditiveAttention(nn.Module):
    """energy(q, k) = v . tanh(W q + U k); of the keys U k the caller keeps the powers, one set a sentence."""

    def __init__(self, query: int, value: int, hidden: int, *, normed: bool = False) -> None:
        """`normed`: whether what the query and the value give is normalised."""
        super().__init__()
        linear: Any = normed_linear if normed else nn.Linear
        self.query = linear(query, hidden, bias=False)
        self.key = linear(value, hidden)
        self.energy = nn.Linear(hidden, 1, bias=False)

    def keys(self, values: Tensor) -> Tensor:
        """exp(2 keys) (batch, source length, hidden) of values (batch, source length, value)."""
        return powers(self.key(values))

    def forward(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Reads the values once for each slot, without a copy of them for each slot.

        Args:
            query: (batch, slots, query).
            keys: (batch, source length, hidden), powers.
            values: (batch, source length, value).
            mask: (batch, source length), true where there is a source token.

        Returns:
            context (batch, slots, value) and attention (batch, slots, source length).
        """
        energy = _Energies.apply(self.query(query), keys, self.energy.weight.squeeze(0))
        return average(energy, values, mask)


class _Energies(torch.autograd.Function):
    """-2 v . u with u = 1 / (1 + exp(2 q) exp(2 k)), for each slot and source position.

    The terms u, (batch, slots, source length, hidden), are what costs: they are made in one buffer, in the query's
    precision, and once more for the backward pass. Kept, they would take more memory than all else that a step of a
    decoder keeps, and no less time, since memory that is new has to be mapped. Backward, with g the gradient, sum over
    positions of g u and g u^2 give

        in q: 4 v sum (g u - g u^2)    in exp(2 k): 2 v sum over slots of exp(2 q) g u^2    in v: -2 sum g u
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, keys: Tensor, weight: Tensor) -> Tensor:
        asked = powers(query)
        terms = _terms(keys, asked, query.dtype)
        ctx.dtype = query.dtype
        ctx.save_for_backward(keys, asked, weight)
        return terms @ (-2 * weight).to(terms.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        keys, asked, weight = ctx.saved_tensors
        terms = _terms(keys, asked, ctx.dtype)
        g = grad.to(terms.dtype).unsqueeze(2)
        squares = terms * terms
        once, twice = ((g @ each).squeeze(2).to(asked.dtype) for each in (terms, squares))
        of_query = 4 * weight * (once - twice)
        of_keys = squares.mul_(g.squeeze(2).unsqueeze(3)).to(asked.dtype).mul_((2 * weight * asked).unsqueeze(2))
        of_keys = of_keys.squeeze(1) if of_keys.shape[1] == 1 else of_keys.sum(dim=1)
        return of_query.to(terms.dtype), of_keys, (-2 * once.sum(dim=(0, 1))).to(weight.dtype)


def _terms(keys: Tensor, asked: Tensor, dtype: torch.dtype) -> Tensor:
    """u, of the powers of keys and queries."""
    # Slot by slot into one buffer would save memory; a (batch, slots, source, hidden) sum is faster.
    return torch.addcmul(keys.new_ones(()), keys.unsqueeze(1), asked.unsqueeze(2)).reciprocal_().to(dtype)


class ProductAttention(nn.Module):
    """energy(q, v) = q . W v, where W may be left out; shapes are those of `AdditiveAttention`, with keys as wide as
    the query."""

    def __init__(self, query: int, value: int, *, learned: bool) -> None:
        super().__init__()
        self.key = nn.Linear(value, query, bias=False) if learned else nn.Identity()

    def keys(self, values: Tensor) -> Tensor:
        """Keys (batch, source length, query) of values (batch, source length, value)."""
        return self.key(values)

    def forward(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return average(torch.bmm(query, keys.transpose(1, 2)), values, mask)


def average(energy: Tensor, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Context and attention of energies (batch, slots, source length)."""
    attention = energy.masked_fill(~mask.unsqueeze(1), -torch.inf).softmax(dim=2)
    return torch.bmm(attention.to(values.dtype), values), attention
