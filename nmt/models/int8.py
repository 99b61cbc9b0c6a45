"""Layers that multiply in 8-bit whole numbers, for a CPU that has little memory or time.

Weights are rounded once, each output's by its own largest weight; inputs are rounded when they come: by a bound that
is known beforehand (a recurrent state lies between -1 and 1), or each row by its own largest entry. Products of whole
numbers and their sums are exact. So a row's result does not depend on the rows beside it; a range taken from the whole
batch, as torch's dynamic quantisation has it, would make a translation depend on its neighbours.
"""

import functools
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from nmt.errors import UserError
from nmt.models.frozen import frozen
from nmt.models.kernels import TILE, RowLinear, row_linear, whole_rows
from nmt.models.recurrence import run_steps

_Module = TypeVar("_Module", bound=nn.Module)


def quantize(model: _Module) -> _Module:
    """A copy whose linear layers, and bidirectional GRUs and LSTMs over packed sequences, multiply in int8.

    They hold nearly all of a model's arithmetic; layers of one output stay as they are, and embeddings, which are only
    looked up, are those of the model itself. The table of a decoding form, the largest part of it, is kept in float16.
    An attribute `bounds` of a module says how large the inputs of its layers (by name) can be.

    oneDNN keeps a kernel for each number of rows that it meets, a third of a MiB each; a program that wants the memory
    back calls `nmt.models.kernels.keep_few_kernels` before the first product, as `nmt translate --int8` does.

    Args:
        model: on the CPU, float32, in evaluation mode; it is left as it is.

    Raises:
        UserError: this torch has no int8 arithmetic for this processor.
    """
    _levels()
    model = frozen(model)
    for module in model.modules():
        if isinstance(wide := getattr(module, "table", None), nn.Parameter):
            most = torch.finfo(torch.float16).max
            module.table = nn.Parameter(wide.clamp(-most, most).half(), requires_grad=False)
    _replace(model, {})
    return model


def _replace(module: nn.Module, inherited: dict[str, float]) -> None:
    bounds: dict[str, float] = {**inherited, **getattr(module, "bounds", {})}
    for name, child in module.named_children():
        if isinstance(child, nn.Linear) and type(child) in (nn.Linear, RowLinear):
            # A single output costs nothing, and the additive attention reads the weights of its energy itself.
            if child.out_features > 1:
                setattr(module, name, _rounded(child.weight, child.bias, bounds.get(name)))
        elif isinstance(child, (nn.GRU, nn.LSTM)) and child.bidirectional:
            setattr(module, name, Int8Recurrent(child))
        else:
            # The layers of a list are bounded by what is said of the list.
            listed = {key: bounds[name] for key, _ in child.named_children()} if name in bounds else {}
            _replace(child, listed)


class Int8Linear(nn.Module):
    """x W^T + b with W and x of 8 bits: (..., inputs) to (..., outputs), float32."""

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None, bound: float | None) -> None:
        """Packs the weights.

        Args:
            weight: (outputs, inputs), int8.
            scale: (outputs,), what a unit of each row of the weight stands for.
            bias: (outputs,), or None.
            bound: no input is larger than this, in absolute value; None: each row is scaled by its own largest entry.

        `levels` is the whole number that the bound is rounded to.
        """
        super().__init__()
        self.bound = bound
        self.weight, self.scale, self.bias = weight, scale, torch.zeros(len(weight)) if bias is None else bias
        self._packed = torch.ops.onednn.qlinear_prepack(weight, None)
        self._zeros = torch.zeros(len(weight), dtype=torch.long)
        self.levels = _levels()
        self._middle = torch.tensor(self.levels + 1.5)  # the half: what follows cuts off

    def take_outputs(self, outputs: Tensor) -> "Int8Linear":
        """The layer with the outputs (n,) alone."""
        weight, scale, bias = (part.index_select(0, outputs) for part in (self.weight, self.scale, self.bias))
        return Int8Linear(weight, scale, bias, self.bound)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        if self.bound is not None:
            scaled = torch.add(self._middle, rows, alpha=self.levels / self.bound)
            result = self._multiply(scaled, self.bound / self.levels, self.bias)
        else:
            largest = rows.abs().amax(dim=1, keepdim=True).clamp_min(1e-30)
            scaled = torch.addcmul(self._middle, rows, self.levels / largest)
            result = self._multiply(scaled, 1 / self.levels, None)
            torch.addcmul(self.bias, result, largest, out=result)
        return result.view(*x.shape[:-1], -1)

    def _multiply(self, scaled: Tensor, scale: float, bias: Tensor | None) -> Tensor:
        count, size = scaled.shape
        # Kernels of fewer rows than a tile may round otherwise.
        rounded = torch.zeros(whole_rows(max(TILE, count)), size, dtype=torch.uint8)
        rounded[:count] = scaled
        return _product(rounded, scale, self.levels + 1, self._packed, self.scale, self._zeros, bias)[:count]

    def __deepcopy__(self, memo: dict[int, Any]) -> "Int8Linear":
        # What is packed cannot be copied, and nothing here ever changes.
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return Int8Linear, (self.weight, self.scale, self.bias, self.bound)


class Int8Recurrent(nn.Module):
    """A bidirectional GRU or LSTM over packed sequences; gives what torch's own gives."""

    def __init__(self, layer: nn.GRU | nn.LSTM) -> None:
        """Rounds the weights of all layers and directions."""
        super().__init__()
        self.hidden, self.parts = layer.hidden_size, 2 if isinstance(layer, nn.LSTM) else 1
        names = [f"_l{number}{side}" for number in range(layer.num_layers) for side in ("", "_reverse")]

        def rounded(kind: str, name: str, bound: float | None) -> Int8Linear:
            return _rounded(getattr(layer, f"weight_{kind}{name}"), getattr(layer, f"bias_{kind}{name}", None), bound)

        # A further layer reads states.
        self.inputs = nn.ModuleList(rounded("ih", name, None if name.startswith("_l0") else 1.0) for name in names)
        self.states = nn.ModuleList(rounded("hh", name, 1.0) for name in names)

    def forward(self, packed: PackedSequence) -> tuple[PackedSequence, Tensor | tuple[Tensor, ...]]:
        sizes, values = packed.batch_sizes.tolist(), packed.data
        ends: list[tuple[Tensor, ...]] = []
        for layer in range(0, len(self.inputs), 2):
            forward, end = self._run(layer, values, sizes, range(len(sizes)))
            backward, start = self._run(layer + 1, values, sizes, range(len(sizes) - 1, -1, -1))
            values = torch.cat([forward, backward], dim=1)
            ends += [end, start]
        final = tuple(torch.stack(part) for part in zip(*ends, strict=True))
        if packed.unsorted_indices is not None:
            final = tuple(part.index_select(1, packed.unsorted_indices) for part in final)
        return packed._replace(data=values), final if self.parts > 1 else final[0]

    def _run(self, which: int, values: Tensor, sizes: list[int], steps: range) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Outputs (tokens, hidden) of one direction of one layer and the last state of each sequence."""
        first = tuple(values.new_zeros(sizes[0], self.hidden) for _ in range(self.parts))
        return run_steps(self.inputs[which](values), self.states[which], sizes, steps, first)


def take_outputs(layer: nn.Module, outputs: Tensor) -> nn.Module:
    """A linear layer, of 8 bits or not, with the outputs (n,) alone."""
    if isinstance(layer, Int8Linear):
        return layer.take_outputs(outputs)
    assert isinstance(layer, nn.Linear)
    weight, bias = layer.weight, layer.bias
    return row_linear(weight.index_select(0, outputs), None if bias is None else bias.index_select(0, outputs))


def _rounded(weight: Tensor, bias: Tensor | None, bound: float | None) -> Int8Linear:
    """An int8 layer of weights (outputs, inputs) in float32."""
    weight = weight.detach().float()
    scale = weight.abs().amax(dim=1).clamp_min(1e-30) / 127
    whole = (weight / scale.unsqueeze(1)).round().to(torch.int8)
    return Int8Linear(whole, scale, None if bias is None else bias.detach().float().clone(), bound)


@functools.cache
def _levels() -> int:
    """The largest whole number that an input is rounded to: 127, or 63 on a processor that adds two products of 8
    bits in 16 bits, where those of 127 overflow."""
    try:
        for levels in (127, 63):
            # Sums of either sign that are as large as they can be.
            inputs = torch.tensor([1, 2 * levels + 1], dtype=torch.uint8).view(2, 1).expand(2, 64).contiguous()
            weight = torch.tensor([-127, 127], dtype=torch.int8).view(2, 1).expand(2, 64).contiguous()
            packed, ones, zeros = torch.ops.onednn.qlinear_prepack(weight, None), torch.ones(2), torch.zeros(2)
            found = _product(inputs, 1.0, levels + 1, packed, ones, zeros.long(), None)
            if torch.equal(found, (inputs.float() - (levels + 1)) @ weight.float().T):
                return levels
    except (AttributeError, RuntimeError) as error:
        raise UserError(f"int8 is not there in this torch ({str(error).splitlines()[0]}); leave it out.") from None
    raise UserError("int8 does not compute right on this processor; leave it out.")


def _product(
    inputs: Tensor, scale: float, zero: int, packed: Tensor, scales: Tensor, zeros: Tensor, bias: Tensor | None
) -> Tensor:
    """(inputs - zero) W^T * scale * scales + bias."""
    result: Tensor = torch.ops.onednn.qlinear_pointwise(
        inputs, scale, zero, packed, scales, zeros, bias, 1.0, 0, torch.float32, "none", [], ""
    )
    return result
