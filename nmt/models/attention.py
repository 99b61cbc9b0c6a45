"""Attention: additive (Bahdanau, Cho, Bengio, ICLR 2015, section 3.1) and by products ("general" and "dot" of Luong,
Pham, Manning, EMNLP 2015, section 3.1).

The additive one is made of powers. tanh(q + k) is 1 - 2 / (1 + exp(2 q) exp(2 k)): one exponential a source position
and one a slot, instead of a tanh for each pair. Its constant part drops out of the softmax.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nmt.compilation import region
from nmt.models.kernels import by_rows
from nmt.models.normed import normed_linear
from nmt.models.steps import step_form
from nmt.tree import first_rows

# exp(2 x) of it is near the end of float32; tanh is 1 long before.
FAR = 43.0
# Terms that are there at once.
_TERMS = {"cpu": 2**19, "cuda": 2**28}


def powers(x: Tensor) -> Tensor:
    """exp(2 x), float32 at least."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide.clamp(-FAR, FAR) * (2 / math.log(2))).exp2()


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
        return powers(by_rows(self.key, values))

    def forward(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Reads the values once for each slot, without a copy of them for each slot.

        Args:
            query: (batch, slots, query).
            keys: (batch, source length, hidden), powers.
            values: (batch, source length, value).
            mask: (batch, source length), true where there is a source token.
                These three may be of more sentences than the query: it asks for the first ones.

        Returns:
            context (batch, slots, value) and attention (batch, slots, source length).
        """
        keys, values, mask = first_rows((keys, values, mask), len(query))
        energy = _Energies.apply(self.query(query), keys, self.energy.weight.squeeze(0))
        return average(energy, values, mask)

    def for_steps(self) -> "StepAttention":
        """A form of it for the steps of one forward pass."""
        return StepAttention(self)


class StepAttention:
    """An `AdditiveAttention` that the steps of a recurrence share: what they have to say to the gradient of the keys is
    summed up in place, and the gradient of the values is one product over all steps."""

    def __init__(self, layer: AdditiveAttention) -> None:
        self._query = step_form(layer.query)
        self._weight = layer.energy.weight.squeeze(0)
        self._given: tuple[Tensor, Tensor] | None = None

    def __call__(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """What `AdditiveAttention` gives."""
        if self._given is None or keys is not self._given[0] or values is not self._given[1]:
            self._given = keys, values
            self._sums = _Sums()
            self._keys, self._values = _SharedMemory.apply(self._sums, keys, values)
        query = self._query(query)
        return _Attend.apply(self._sums, query, self._keys, self._values, mask[: len(query)], self._weight)


class _Sums:
    """What the backward passes of steps leave for that of the memory.

    Attributes:
        keys: (batch, source length, hidden), see `_energies_backward`.
        weight: v.
        steps: attention and gradients of the context, (rows, slots, ...) each.
    """

    def __init__(self) -> None:
        self._of_pass, self.keys, self.weight = -1, None, None
        self.steps: list[tuple[Tensor, Tensor]] = []

    keys: Tensor | None
    weight: Tensor | None

    def renew(self) -> None:
        """Forgets what is of another pass: one that asked for no gradient of the memory has left it."""
        now = torch._C._current_graph_task_id()
        if now != self._of_pass:
            self._of_pass, self.keys, self.weight, self.steps = now, None, None, []


class _SharedMemory(torch.autograd.Function):
    """Keys and values as they are; see `nmt.models.steps._Shared`."""

    @staticmethod
    def forward(ctx: Any, sums: _Sums, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.sums, ctx.like = sums, values
        return keys.view_as(keys), values.view_as(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_keys: Tensor | None, of_values: Tensor | None) -> tuple[Tensor | None, ...]:
        sums: _Sums = ctx.sums
        sums.renew()
        if sums.keys is not None and sums.weight is not None:
            of_keys = sums.keys.mul_(2 * sums.weight)
        if sums.steps and ctx.needs_input_grad[2]:
            rows, length = ctx.like.shape[:2]
            slots = [attention.shape[1] for attention, _ in sums.steps]
            shares = ctx.like.new_zeros(rows, sum(slots), length)
            contexts = ctx.like.new_zeros(rows, sum(slots), ctx.like.shape[2])
            for part, whole in zip(zip(*sums.steps, strict=True), (shares, contexts), strict=True):
                for step, place in zip(part, whole.split(slots, dim=1), strict=True):
                    place[: len(step)] = step
            of_values = torch.bmm(shares.transpose(1, 2), contexts)
        sums.keys, sums.steps = None, []
        return None, of_keys, of_values


class _Attend(torch.autograd.Function):
    """`AdditiveAttention.forward` of a query that has gone through its layer, in the precision of the memory."""

    @staticmethod
    def forward(
        ctx: Any, sums: _Sums, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.sums, ctx.dtype = sums, query.dtype
        with torch.autocast(keys.device.type, enabled=False):
            asked, energy = _ask(query, keys[: len(query)], weight)
            context, attention = average(energy, values[: len(query)], mask)
        ctx.save_for_backward(asked, keys, values, attention, weight)
        return context, attention

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_context: Tensor | None, of_attention: Tensor | None) -> tuple[Tensor | None, ...]:
        asked, keys, values, attention, weight = ctx.saved_tensors
        sums: _Sums = ctx.sums
        sums.renew()
        if of_context is not None:
            sums.steps.append((attention, of_context))
            through = torch.bmm(of_context, values[: len(asked)].transpose(1, 2))
            of_attention = through if of_attention is None else through + of_attention
        if of_attention is None:
            return None, None, None, None, None, None
        if sums.keys is None:
            sums.keys, sums.weight = torch.zeros_like(keys), weight
        rows = slice(len(asked))
        of_energy = attention * (of_attention - (attention * of_attention).sum(dim=2, keepdim=True))
        of_query, of_weight = _ask_backward(of_energy, asked, keys[rows], weight, sums.keys[rows])
        return None, of_query.to(ctx.dtype), None, None, None, of_weight


class _Energies(torch.autograd.Function):
    """-2 v . u with u = 1 / (1 + exp(2 q) exp(2 k)), for each slot and source position.

    The terms u, (batch, slots, source length, hidden), are what costs: they are made in a buffer that a CPU's cache
    holds, block by block, and once more for the backward pass. There, with g the gradient, the sums of g u and g u^2
    over positions give

        in q: 4 v sum (g u - g u^2)    in exp(2 k): 2 v sum over slots of exp(2 q) g u^2    in v: -2 sum g u
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, keys: Tensor, weight: Tensor) -> Tensor:
        ctx.dtype = query.dtype
        with torch.autocast(keys.device.type, enabled=False):
            asked, energies = _ask(query, keys, weight)
        ctx.save_for_backward(keys, asked, weight)
        return energies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        keys, asked, weight = ctx.saved_tensors
        of_keys = torch.zeros_like(keys)
        of_query, of_weight = _ask_backward(grad, asked, keys, weight, of_keys)
        return of_query.to(ctx.dtype), of_keys.mul_(2 * weight), of_weight


@region
def _ask(query: Tensor, keys: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The powers of the queries, and the energies."""
    asked = powers(query)
    return asked, _energies(asked, keys, weight)


def _energies(asked: Tensor, keys: Tensor, weight: Tensor) -> Tensor:
    """(batch, slots, source length), of the powers of queries and keys."""
    weight = -2 * weight.to(asked.dtype)
    if torch.compiler.is_compiling():  # there are no terms at once
        return (_terms(asked, keys) * weight).sum(dim=3)
    result = asked.new_empty(*asked.shape[:2], keys.shape[1])
    for place, terms, _ in _blocks(asked, keys):
        result[place] = terms @ weight
    return result


def _energies_backward(
    grad: Tensor, asked: Tensor, keys: Tensor, weight: Tensor, of_keys: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients in the queries and in v; what the one in the keys' powers is 2 v times is added to `of_keys`."""
    grad = grad.to(asked.dtype)
    if torch.compiler.is_compiling():
        terms = _terms(asked, keys)
        weighed = terms * grad.unsqueeze(3)
        squares = weighed * terms
        once, twice = weighed.sum(dim=2), squares.sum(dim=2)
        of_keys += (squares * asked.unsqueeze(2)).sum(dim=1)
    else:
        once, twice = torch.empty_like(asked), torch.empty_like(asked)
        for place, terms, spare in _blocks(asked, keys, 1):
            g = grad[place].unsqueeze(2)
            squares = torch.mul(terms, terms, out=spare)
            once[place], twice[place] = (g @ terms).squeeze(2), (g @ squares).squeeze(2)
            squares.mul_(g.transpose(2, 3))
            if squares.shape[1] == 1:
                of_keys[place[0]].addcmul_(squares.squeeze(1), asked[place])
            else:
                of_keys[place[0]] += squares.mul_(asked[place].unsqueeze(2)).sum(dim=1)
    of_weight = -2 * once.sum(dim=(0, 1)).to(weight.dtype)
    return once.sub_(twice).mul_(4 * weight), of_weight


_ask_backward = region(_energies_backward)


def _terms(asked: Tensor, keys: Tensor, out: Tensor | None = None) -> Tensor:
    """u, of some slots and all source positions."""
    return torch.addcmul(keys.new_ones(()), keys.unsqueeze(1), asked.unsqueeze(2), out=out).reciprocal_()


def _blocks(asked: Tensor, keys: Tensor, spare: int = 0) -> Iterator[tuple[tuple[slice, slice], Tensor, Tensor]]:
    """Which sentences and slots, their terms u, and `spare` buffers of that size, block by block."""
    size = keys.shape[1] * keys.shape[2]
    pairs = max(1, _TERMS.get(keys.device.type, _TERMS["cuda"]) // max(size, 1))
    slots = min(asked.shape[1], pairs)
    rows = min(asked.shape[0], max(1, pairs // max(slots, 1)))
    buffer = asked.new_empty(1 + spare, rows * slots, *keys.shape[1:])
    for row in range(0, asked.shape[0], max(rows, 1)):
        for slot in range(0, asked.shape[1], max(slots, 1)):
            place = slice(row, row + rows), slice(slot, slot + slots)
            some = asked[place]
            terms, *others = (part[: some.shape[0] * some.shape[1]].unflatten(0, some.shape[:2]) for part in buffer)
            yield place, _terms(some, keys[place[0]], terms), others[0] if others else terms


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
