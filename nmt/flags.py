"""Dataclasses and signatures become flags (jsonargparse); its messages become one line in the user's terms."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any, TypeVar

from nmt.errors import UserError, hint

_Config = TypeVar("_Config")


def make_parser(verb: str, description: str, usage: str | None = None) -> Any:
    """A jsonargparse parser that turns dataclasses and signatures into flags.

    Args:
        verb: for messages.
        description: what the verb does.
        usage: stands in for the list of all flags in the first line of the help.
    """
    import jsonargparse

    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    # Abbreviations would let a mistyped flag pass for another one.
    return jsonargparse.ArgumentParser(
        prog=f"nmt {verb}", description=description, usage=usage, exit_on_error=False, allow_abbrev=False
    )


def parse(parser: Any, words: Sequence[str]) -> Any:
    """Parses and instantiates.

    Raises:
        UserError: an unknown flag or key (with the closest known one), a missing or impossible value.
    """
    import argparse

    try:
        return parser.instantiate(parser.parse_args(list(words)))
    except (argparse.ArgumentError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(_explain(str(error), _flags(parser))) from None


def take(chosen: Any, kind: type[_Config]) -> _Config:
    """The dataclass whose fields are flags of their own among what was parsed."""
    return kind(**{field.name: getattr(chosen, field.name) for field in dataclasses.fields(kind)})  # type: ignore[arg-type]


def _flags(parser: Any) -> set[str]:
    return {
        option.removeprefix("--")
        for action in parser._actions
        for option in action.option_strings
        if option.startswith("--")
    }


def _explain(message: str, flags: set[str]) -> str:
    """jsonargparse's message as one line in the user's terms, with a did-you-mean for an unknown flag."""
    message = " ".join(message.split())
    if found := re.search(r"unrecognized arguments: (.*)", message, re.IGNORECASE):
        word = found[1].split()[0].split("=")[0]
        if word.startswith("-"):
            meant = hint(word.lstrip("-"), flags).replace(" '", " '--")
            return f"unknown flag {word}.{meant} --help lists all"
        return f"'{found[1]}' is one argument too many; --help tells what is expected"
    if found := re.search(r"arguments are required: (.*)", message):
        return f"missing: {found[1]}; --help tells what is expected"
    if found := re.search(r"argument (\S+): (.*)", message):
        return f"{found[1]}: {found[2]}; --help tells what is expected"
    if found := re.search(r'Parser key "([^"]+)": Unable to load', message):
        return f"{found[1]} is a section; give one of its keys, such as {_first_below(found[1], flags)}"
    if found := re.search(r'Parser key "([^"]+)": (.*?)\.? Got value: ?(.*)', message):
        key, expected, value = found.groups()
        return f"{key} is {value or 'empty'}; {_plain_type(expected)}"
    return message


def _first_below(section: str, flags: set[str]) -> str:
    return min((f"--{flag}" for flag in flags if flag.startswith(section + ".")), default="--help lists them")


def _plain_type(expected: str) -> str:
    """ "Expected a typing.Literal['gru', 'lstm']" in words."""
    if choices := re.search(r"Literal\[(.*)\]", expected):
        return "choose " + " or ".join(choices[1].replace("'", "").split(", "))
    names = {
        "int": "a whole number",
        "float": "a number",
        "bool": "true or false",
        "str": "a text",
        "tuple": "a list",
        "list": "a list",
    }
    if kind := re.search(r"<class '(\w+)'>", expected):
        return f"give {names.get(kind[1], kind[1])}"
    return expected[:1].lower() + expected[1:]
