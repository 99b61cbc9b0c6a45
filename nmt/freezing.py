"""Parameters that a run leaves as they are, by patterns of their names."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from nmt.errors import UserError, did_you_mean


def freeze(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Has parameters take no gradient, and so neither an update, weight decay, nor a share of the gradient's norm.

    Args:
        model: changed in place.
        patterns: of names, with `*`, which also stands for dots, `?` and `[...]`; the name of a module stands for all
            that is in it. What several names share is frozen by any of them.

    Returns:
        the names of what the patterns have frozen.

    Raises:
        UserError: a pattern stands for nothing, or nothing is left to train.
    """
    names = dict(model.named_parameters(remove_duplicate=False))
    chosen = []
    for pattern in patterns:
        found = [name for name in names if matches(name, pattern)]
        if not found:
            modules = sorted({name.rpartition(".")[0] for name in names})
            top = list(dict.fromkeys(name.partition(".")[0] for name in names))
            suggestion = did_you_mean(pattern.strip("*."), [*top, *modules])
            raise UserError(
                f"trainer.freeze has '{pattern}', and no parameter is called so.{suggestion} The modules are "
                f"{', '.join(top if len(top) > 1 else modules[:40])}"
            )
        chosen += found
    for name in chosen:
        names[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in names.values()):
        raise UserError(f"trainer.freeze is {', '.join(patterns)}: all is frozen; leave something to train")
    return sorted(set(chosen))


def group_of(name: str) -> str:
    """The module that a parameter is told under: its own, but no deeper than a list of layers, and three names."""
    parts = name.split(".")[:-1]
    numbered = next((place for place, part in enumerate(parts) if part.isdigit()), len(parts))
    return ".".join(parts[:numbered][:3]) or name


def tell_frozen(model: nn.Module) -> str:
    """The modules with parameters that are not trained, in words."""
    groups: dict[str, set[bool]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(group_of(name), set()).add(parameter.requires_grad)
    return ", ".join(
        f"{group} (in part)" if True in kinds else group for group, kinds in groups.items() if False in kinds
    )


def matches(name: str, pattern: str) -> bool:
    """Whether a pattern stands for a dotted name, or for a module that it is in."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """How many numbers are trained, and how many there are in all."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, trained in sizes if trained), sum(size for size, _ in sizes)
