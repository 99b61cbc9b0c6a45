"""Low-rank adapters (LoRA; Hu et al., ICLR 2022) in a model of transformers, made by peft: beside a layer W stands
alpha / rank * B A, and B and A alone are trained. They live as long as a run; a model file has their sum with W."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from nmt.errors import UserError, did_you_mean
from nmt.freezing import matches
from nmt.models import Pretrained

_QUERIES_AND_VALUES = ("q_proj", "v_proj", "q", "v", "query", "value")


@dataclass
class LoraConfig:
    """Adapters instead of all weights, in a model of transformers that the run begins with."""

    rank: int = 0
    """Rows of A; 0: no adapters, the model itself is trained."""
    alpha: float = 16.0
    """What an adapter is multiplied by is alpha / rank."""
    dropout: float = 0.0
    """Share of an adapter's inputs that is set to zero in training."""
    targets: list[str] = field(default_factory=list)
    """Linear layers that get one, by patterns of their names (*.self_attn.q_proj, *.fc1); none: the queries and values
    of all attentions, as in the paper."""

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise UserError(f"lora.rank is {self.rank}; give 1 or more (8), or 0 for none")
        if not 0 < self.alpha < math.inf:
            raise UserError(f"lora.alpha is {self.alpha}; give a positive number (16)")
        if not 0 <= self.dropout < 1:
            raise UserError(f"lora.dropout is {self.dropout}; give a share from 0 up to, not including, 1")
        if not all(self.targets):
            raise UserError("lora.targets has an empty pattern; give names of layers (*.q_proj), or leave it out")


def add_adapters(model: nn.Module, config: LoraConfig, seed: int) -> list[str]:
    """Adds adapters, which give nothing before the first update, and freezes all else.

    Args:
        model: changed in place.
        config: which; nothing happens where its rank is 0.
        seed: of A; B is zero.

    Returns:
        the names of the layers.

    Raises:
        UserError: peft is missing, the model is not of transformers, or a pattern stands for no layer.
    """
    if config.rank == 0:
        return []
    if not isinstance(model, Pretrained):
        raise UserError(
            f"lora.rank is {config.rank}, but {type(model).__name__} is no model of transformers: most weights of a "
            "recurrent model are those of cells, which have no adapters; leave it out, and choose what is trained by "
            "trainer.freeze"
        )
    try:
        import peft
    except ImportError as error:
        raise UserError(
            f"lora.rank is {config.rank}, which needs the extra lora ({error}); install it (pip install -e .[lora])"
        ) from None
    names = _chosen(model, config)
    torch.manual_seed(seed)
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=[name.removeprefix("network.") for name in names],
    )
    model.requires_grad_(False)
    peft.inject_adapter_in_model(settings, model.network)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(_is_adapter(name))
    return names


def plain_state(model: nn.Module) -> dict[str, Tensor]:
    """The state of a model as if it had never had adapters: they are added to their layers' weights."""
    layers: dict[str, Any] = {name: part for name, part in model.named_modules() if hasattr(part, "lora_A")}
    state = model.state_dict()
    if not layers:
        return state
    plain = {}
    for name, tensor in state.items():
        layer, base, rest = name.rpartition(".base_layer.")
        if not base:
            if not _is_adapter(name):
                plain[name] = tensor
        elif rest == "weight":
            with torch.no_grad():
                added = sum(layers[layer].get_delta_weight(which) for which in layers[layer].active_adapters)
            plain[f"{layer}.{rest}"] = tensor + added
        else:
            plain[f"{layer}.{rest}"] = tensor
    return plain


def _chosen(model: Pretrained, config: LoraConfig) -> list[str]:
    # What the output layer shares with embeddings would not be shared any more.
    head = model.network.get_output_embeddings()
    layers = [name for name, part in model.named_modules() if type(part) is nn.Linear and part is not head]
    if not config.targets:
        found = [name for name in layers if name.rpartition(".")[2] in _QUERIES_AND_VALUES]
        if not found:
            raise UserError(
                f"{type(model.network).__name__} has no layers called {', '.join(_QUERIES_AND_VALUES)}; give "
                f"lora.targets, of {_kinds(layers)}"
            )
        return found
    for pattern in config.targets:
        if not any(matches(name, pattern) for name in layers):
            kinds = list(dict.fromkeys(name.rpartition(".")[2] for name in layers))
            raise UserError(
                f"lora.targets has '{pattern}', and no linear layer but the output is called so."
                f"{did_you_mean(pattern.rpartition('.')[2], kinds)} They are {_kinds(layers)}"
            )
    return [name for name in layers if any(matches(name, pattern) for pattern in config.targets)]


def _kinds(layers: list[str]) -> str:
    """Names without the numbers of the layers, each once."""
    plain = (".".join("*" if part.isdigit() else part for part in name.split(".")) for name in layers)
    return ", ".join(dict.fromkeys(plain))


def _is_adapter(name: str) -> bool:
    return ".lora_" in name
