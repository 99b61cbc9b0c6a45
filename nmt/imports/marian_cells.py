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


def take_cell(
    weights: Weights, name: str, ours: str, config: RNNsearchConfig, *, final: bool = False, suffix: str = ""
) -> dict[str, Tensor]:
    """A cell by the names of ours.

    Args:
        weights: of the model.
        name: of the cell there.
        ours: before the names of its weights here.
        config: of the model.
        final: whether the bias of a GRU's proposal is inside the reset gate, as it is in the cell behind the attention.
        suffix: behind the names of its weights here.
    """
    if config.cell == "lstm":
        whole = (weights.take(f"{name}_{part}").chunk(4, dim=1) for part in ("W", "U", "b"))
        inputs, states, bias = (torch.cat([gates[gate] for gate in _LSTM], dim=1) for gates in whole)
        biases = bias.flatten(), torch.zeros_like(bias.flatten())
    else:
        inputs, states = (
            torch.cat([weights.take(f"{name}_{part}"), weights.take(f"{name}_{part}x")], dim=1) for part in ("W", "U")
        )
        gates, proposal = (weights.take(f"{name}_{part}").flatten() for part in ("b", "bx"))
        nothing = torch.zeros_like(proposal)
        outside, inside = (nothing, proposal) if final else (proposal, nothing)
        biases = torch.cat([gates, outside]), torch.cat([torch.zeros_like(gates), inside])
    found = {"weight_ih": inputs.T, "weight_hh": states.T, "bias_ih": biases[0], "bias_hh": biases[1]}
    return {f"{ours}.{part}{suffix}": value.contiguous() for part, value in found.items()}


def take_encoder(weights: Weights, config: RNNsearchConfig, alternating: bool) -> dict[str, Tensor]:
    """The encoder by the names of ours."""
    found: dict[str, Tensor] = {}
    for layer in range(config.encoder_layers):
        for stack, name in enumerate(("encoder_bi", "encoder_bi_r")):
            cell = name if layer == 0 else f"{name}_l{layer + 1}_cell1"
            suffix = f"_l{layer}" + ("_reverse" if _direction(stack, layer, alternating) else "")
            found |= take_cell(weights, cell, "encoder", config, suffix=suffix)
            if layer:
                own = found[f"encoder.weight_ih{suffix}"]
                below = [torch.zeros_like(own), torch.zeros_like(own)]
                below[_direction(stack, layer - 1, alternating)] = own
                found[f"encoder.weight_ih{suffix}"] = torch.cat(below, dim=1)
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
