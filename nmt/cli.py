"""The command line: `nmt VERB`. A verb's module is imported when the verb is called, not before."""

import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, NoReturn

from nmt import __version__
from nmt.errors import UserError, did_you_mean

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
        # The reader of our output left; there is nobody to tell. Python must not flush again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
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


def _usage() -> str:
    lines = [f"  {verb:<10} {text}" for verb, text in VERBS.items()]
    return "\n".join(
        ["usage: nmt VERB ...", "", "Neural machine translation in which beam search is trained.", "", *lines, ""]
        + ["nmt VERB --help tells more; nmt --version tells the version."]
    )


def _refuse(message: str) -> NoReturn:
    print(f"nmt: {' '.join(message.split())}", file=sys.stderr)  # noqa: T201
    sys.exit(2)


def make_parser(verb: str, description: str) -> Any:
    """A jsonargparse parser that turns dataclasses and signatures into flags."""
    import jsonargparse

    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    return jsonargparse.ArgumentParser(prog=f"nmt {verb}", description=description, exit_on_error=False)


def parse(parser: Any, words: list[str]) -> Any:
    """Parses and instantiates.

    Raises:
        UserError: an unknown flag or key (with the closest known one), a missing or impossible value.
    """
    import argparse

    try:
        return parser.instantiate(parser.parse_args(words))
    except (argparse.ArgumentError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(_explain(str(error), _flags(parser))) from None


def _flags(parser: Any) -> list[str]:
    return [
        option.removeprefix("--")
        for action in parser._actions
        for option in action.option_strings
        if option.startswith("--")
    ]


def _explain(message: str, flags: list[str]) -> str:
    """jsonargparse's message as one line, with a did-you-mean for an unknown flag or key."""
    message = " ".join(message.split())
    if found := re.search(r"unrecognized arguments: (.*)", message, re.IGNORECASE):
        word = found[1].split()[0].split("=")[0]
        if word.startswith("--"):
            return f"unknown flag {word}.{_hint(word.removeprefix('--'), flags, '--')} --help lists all"
        return f"'{found[1]}' is one argument too many; --help tells what is expected"
    if found := re.search(r"Group '([^']*)' does not accept option '([^']*)'", message):
        key = f"{found[1]}.{found[2]}" if found[1] else found[2]
        return f"unknown key '{key}'.{_hint(key, flags, '')} --help lists all"
    if found := re.search(r"Key '([^']*)' is not expected|does not accept (?:option|nested key) '([^']*)'", message):
        key = found[1] or found[2]
        return f"unknown key '{key}'.{_hint(key, flags, '')} --help lists all"
    return message


def _hint(word: str, flags: list[str], prefix: str) -> str:
    # The last part alone, too: --hiden is meant for --model.hidden.
    by_end = {flag.rsplit(".", 1)[-1]: flag for flag in flags}
    hint = did_you_mean(word, flags) or did_you_mean(word.rsplit(".", 1)[-1], by_end)
    return re.sub(r"'([^']+)'", lambda found: f"'{prefix}{by_end.get(found[1], found[1])}'", hint)
