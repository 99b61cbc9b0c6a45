"""Settings that a checkpoint keeps as objects of configuration libraries, read without these: each class and function
is replaced by a stand-in that keeps what it was given and does nothing."""

import argparse
from pathlib import Path
from typing import Any

from nmt.errors import UserError

# Packages whose objects settings and training statistics are made of. Nothing of them is imported.
_PACKAGES = ("omegaconf", "fairseq", "typing", "numpy")
# What omegaconf keeps as the types of its values.
_TYPES = tuple(f"builtins.{name}" for name in ("bool", "bytes", "dict", "float", "int", "list", "str", "tuple"))


class StandIn:
    """What stands in for an object: the arguments that it was made of and its state."""

    arguments: tuple[Any, ...]
    state: Any

    def __new__(cls, *arguments: Any) -> "StandIn":
        made = super().__new__(cls)
        made.arguments, made.state = arguments, None
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state


def stand_ins(path: Path) -> list[Any]:
    """What `read_checkpoint` may meet in a file besides tensors and plain values: argparse.Namespace, and the stand-in
    for each name of the packages above that the file asks for. A file of another format than torch's present one asks
    for none."""
    import torch

    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # whatever is wrong with the file, reading it tells
        names = []
    found: list[Any] = [argparse.Namespace]
    for name in names:
        if name.partition(".")[0] in _PACKAGES or name in _TYPES:
            found.append((StandIn, name))
        elif name == "collections.defaultdict":
            found.append((_dictionary, name))
    return found


def _dictionary(*_: Any) -> dict[Any, Any]:
    return {}


def plain(value: Any) -> Any:
    """Settings as dictionaries, lists and values.

    Raises:
        UserError: they are nested without an end.
    """
    try:
        return _plain(value)
    except RecursionError:
        raise UserError("The settings of the checkpoint are nested without an end; it is damaged.") from None


def _plain(value: Any) -> Any:
    if isinstance(value, argparse.Namespace):
        value = vars(value)
    if isinstance(value, StandIn):
        # A container of omegaconf has its content, a leaf its value; an enum was made of its own.
        state = value.state if isinstance(value.state, dict) else {}
        for part in ("_content", "_val"):
            if part in state:
                return _plain(state[part])
        return _plain(value.arguments[0]) if value.arguments else None
    if isinstance(value, dict):
        return {str(name): _plain(one) for name, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value
