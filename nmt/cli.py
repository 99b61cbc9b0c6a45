"""The command line: `nmt VERB`. A verb's module is imported when the verb is called, not before."""

import contextlib
import dataclasses
import errno
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, NoReturn, TextIO, TypeVar

from nmt import __version__
from nmt.config_file import hint
from nmt.errors import UserError, did_you_mean

_Config = TypeVar("_Config")

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""No more can be written: the user's disk, quota or limit, not a bug."""

VERBS = {
    "train": "train a model from a configuration",
    "translate": "translate a file, or standard input",
    "evaluate": "BLEU and chrF of translations, or of a model",
    "corpus": "fetch or describe the corpus of a card",
    "plot": "attention, soft beam or learning curves as a picture",
}


def main(words: Sequence[str] | None = None) -> None:
    """Runs a command line and exits: 0 when done, 2 for a mistake of the user, 130 when interrupted."""
    words = list(sys.argv[1:] if words is None else words)
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)
    for noisy in ("jsonargparse", "matplotlib", "datasets", "httpx", "fsspec"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        sys.exit(_run(words))
    except UserError as error:
        _refuse(str(error))
    except BrokenPipeError:
        # The reader of our output left; there is nobody to tell.
        _silence(sys.stdout)
        sys.exit(1)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        _silence(sys.stdout)
        name = f"{error.filename}: " if error.filename else ""
        _refuse(f"{name}{error.strerror}; make room or write elsewhere, what was there before is untouched")
    except KeyboardInterrupt:
        print("nmt: interrupted", file=sys.stderr)  # noqa: T201
        sys.exit(130)


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_usage())  # noqa: T201
        return 0
    if words[0] == "--version":
        print(f"nmt {__version__}")  # noqa: T201
        return 0
    verb, rest = words[0], words[1:]
    if verb not in VERBS:
        raise UserError(f"there is no verb '{verb}'.{did_you_mean(verb, VERBS)} Verbs: {', '.join(VERBS)}.")
    command: Callable[[list[str]], int | None] = import_module(f"nmt.commands.{verb}").main
    return command(rest) or 0


def _silence(stream: TextIO) -> None:
    """Python must not try to write again at exit what could not be written."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _usage() -> str:
    lines = [f"  {verb:<10} {text}" for verb, text in VERBS.items()]
    title = ["usage: nmt VERB ...", "", "Neural machine translation in which beam search is trained.", ""]
    return "\n".join([*title, *lines, "", "nmt VERB --help tells more; nmt --version tells the version."])


def _refuse(message: str) -> NoReturn:
    print(f"nmt: {' '.join(message.split())}", file=sys.stderr)  # noqa: T201
    sys.exit(2)


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
    names = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text", "tuple": "a list"}
    if kind := re.search(r"<class '(\w+)'>", expected):
        return f"give {names.get(kind[1], kind[1])}"
    return expected[:1].lower() + expected[1:]
