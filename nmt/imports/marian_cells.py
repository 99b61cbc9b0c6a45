"""Marian's recurrent cells and encoder as those of torch.

Its matrices multiply from the right, its GRU has the gates "reset" and "keep" in one and the proposal in another, and
its LSTM has the gates "forget", "entering", proposal and "leaving". The layers of its encoder are two stacks that
never see each other; those of torch see both directions, so that the other's part has zeros for weights.
"""

import torch
from torch import Tensor

from nmt.imports.recurrent import Weights
from nmt.models import RNNsearchConfig

# Where torch's gates of an LSTM are in Marian's.
_LSTM = (1, 0, 2, 3)


def take_cell(weights: Weights, name: str, config: RNNsearchConfig, *, final: bool = False) -> dict[str, Tensor]:
    """A cell by the names of torch; of one with layer normalisation also the scales, `gamma_ih` and `gamma_hh`.

    Args:
        weights: of the model.
        name: of the cell there.
        config: of the model.
        final: whether the bias of a GRU's proposal is inside the reset gate, as it is in the cell behind the attention.
    """

    def take(*parts: str) -> Tensor:
        """Side by side, gates in the order of torch."""
        whole = torch.cat([weights.take(f"{name}_{part}").view(-1, size) for part, size in sizes(parts)], dim=1)
        if config.cell == "gru":
            return whole
        gates = whole.chunk(4, dim=1)
        return torch.cat([gates[gate] for gate in _LSTM], dim=1)

    def sizes(parts: tuple[str, ...]) -> list[tuple[str, int]]:
        return [(part, weights[f"{name}_{part}"].shape[-1]) for part in parts]

    gru = config.cell == "gru"
    inputs, states = (take(part, f"{part}x") if gru else take(part) for part in ("W", "U"))
    bias = (take("b", "bx") if gru else take("b")).flatten()
    outside, inside = bias, torch.zeros_like(bias)
    if final and gru:
        gates = 2 * config.hidden
        outside, inside = bias.clone(), inside.clone()
        outside[gates:], inside[gates:] = 0.0, bias[gates:]
    found = {"weight_ih": inputs.T, "weight_hh": states.T, "bias_ih": outside, "bias_hh": inside}
    if config.layer_normalization:
        found |= {"gamma_ih": take("gamma1").flatten(), "gamma_hh": take("gamma2").flatten()}
    return found


_NORMED = {"weight": "0.weight", "gamma": "1.weight", "bias": "1.bias"}
_SIDES = {"ih": "inputs", "hh": "states"}


def name_cell(cell: dict[str, Tensor], ours: str, suffix: str = "") -> dict[str, Tensor]:
    """What `take_cell` gave by the names of ours, with a suffix where torch has one."""
    named = {}
    for name, value in cell.items():
        part, side = name.split("_")
        full = f"{ours}.{_SIDES[side]}.{_NORMED[part]}" if "gamma_ih" in cell else f"{ours}.{name}{suffix}"
        named[full] = value.contiguous()
    return named


def take_encoder(weights: Weights, config: RNNsearchConfig, alternating: bool) -> dict[str, Tensor]:
    """The encoder by the names of ours."""
    found: dict[str, Tensor] = {}
    for layer in range(config.encoder_layers):
        for stack, name in enumerate(("encoder_bi", "encoder_bi_r")):
            cell = take_cell(weights, name if layer == 0 else f"{name}_l{layer + 1}_cell1", config)
            if layer:
                below = [torch.zeros_like(cell["weight_ih"]), torch.zeros_like(cell["weight_ih"])]
                below[_direction(stack, layer - 1, alternating)] = cell["weight_ih"]
                cell["weight_ih"] = torch.cat(below, dim=1)
            direction = _direction(stack, layer, alternating)
            ours = f"encoder.cells.{2 * layer + direction}" if config.layer_normalization else "encoder"
            found |= name_cell(cell, ours, f"_l{layer}" + "_reverse" * direction)
    return found


def context_rows(matrix: Tensor, config: RNNsearchConfig, alternating: bool) -> Tensor:
    """A matrix that multiplies what the encoder gives, (values, ...), with its rows in the order of ours, the forward
    direction in front; there the first stack is in front."""
    if _direction(0, config.encoder_layers - 1, alternating) == 0:
        return matrix
    return torch.cat(matrix.chunk(2)[::-1])


def _direction(stack: int, layer: int, alternating: bool) -> int:
    """In which a layer of a stack reads: 0 forwards, 1 backwards."""
    return stack ^ (layer % 2) if alternating else stack
