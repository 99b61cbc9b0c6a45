"""Dataclasses of options from the mappings of a YAML file."""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from nmt.errors import UserError, did_you_mean

_Config = TypeVar("_Config")


def build_config(kind: type[_Config], values: Any, where: str) -> _Config:
    """Makes a dataclass from a mapping of YAML.

    Raises:
        UserError: not a mapping, an unknown or missing key, or a value of another kind than the default's.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{where}: expected a mapping of options, found {values!r}.")
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for key, value in values.items():
        if key not in fields:
            public = [name for name in fields if name != "directory"]
            raise UserError(f"{where}: unknown key {key!r}; known are {', '.join(public)}."
                            + did_you_mean(str(key), public))  # fmt: skip
        if not _fits(value, str(fields[key].type)):
            raise UserError(f"{where}: {key} is {value!r}; expected {_words(fields[key].type)}.")
    for key, known in fields.items():
        required = known.default is dataclasses.MISSING and known.default_factory is dataclasses.MISSING
        if required and key not in values:
            raise UserError(f"{where}: the key {key!r} is missing.")
    return kind(**values)


def override(config: _Config, options: Mapping[str, Any], who: str) -> _Config:
    """The dataclass with some fields changed by name.

    Raises:
        UserError: an option that is no field; `who` is said to know the others.
    """
    known = [field.name for field in dataclasses.fields(config)]  # type: ignore[arg-type]
    for name in options:
        if name not in known:
            raise UserError(f"Unknown option '{name}'.{did_you_mean(name, known)} {who} knows {', '.join(known)}.")
    return dataclasses.replace(config, **options)  # type: ignore[type-var]


def _words(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)


def _fits(value: Any, annotation: str) -> bool:
    if value is None:
        return "None" in annotation
    # True is an int to Python; a user who writes `dev: yes` did not mean 1.
    if "'bool'" in annotation:
        return isinstance(value, bool)
    if isinstance(value, bool):
        return "dict" not in annotation and not any(w in annotation for w in ("int", "float", "str", "list"))
    kinds = {"dict": dict, "list": list, "str": str, "float": (int, float), "int": int}
    outer = annotation.split("[")[0] if annotation.startswith(("dict", "list")) else annotation
    wanted = [kind for word, kind in kinds.items() if word in outer]
    return not wanted or any(isinstance(value, kind) for kind in wanted)  # type: ignore[arg-type]
