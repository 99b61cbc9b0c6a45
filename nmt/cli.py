"""The command line: `nmt VERB`. A verb's module is imported when the verb is called, not before."""

import contextlib
import errno
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import NoReturn, TextIO

from nmt import __version__
from nmt.errors import EXIT_PREEMPTED, LostError, PreemptedError, ToldError, UserError, did_you_mean

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""No more can be written: the user's disk, quota or limit, not a bug."""

VERBS = {
    "train": "train a model from a configuration",
    "translate": "translate a file, or standard input",
    "score": "log-probabilities of translations that are there, and perplexity",
    "average": "the mean of several models' weights",
    "rescore": "choose from n-best lists by models, tuned weights or minimum Bayes risk",
    "import": "take over a model of another toolkit",
    "export": "write a model as ONNX graphs that run without torch, or for transformers",
    "evaluate": "BLEU, chrF, TER or COMET of translations or models, with paired tests",
    "shortlist": "learn which target pieces a source piece can ask for, for faster decoding",
    "corpus": "fetch, check or prepare the corpus of a card",
    "plot": "attention, soft beam or learning curves as a picture",
}


def main(words: Sequence[str] | None = None) -> None:
    """Runs a command line and exits: 0 when done, 1 when a process of the run is lost, 2 for a mistake of the user, 75
    when preempted, 130 when interrupted."""
    words = list(sys.argv[1:] if words is None else words)
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)
    for noisy in ("jsonargparse", "matplotlib", "datasets", "httpx", "fsspec"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        sys.exit(_run(words))
    except ToldError:
        sys.exit(2)
    except UserError as error:
        _refuse(str(error))
    except PreemptedError as error:
        _end(str(error), EXIT_PREEMPTED)
    except LostError as error:
        _end(str(error), 1)
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
        print("nmt: interrupted", file=sys.stderr)
        sys.exit(130)


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_usage())
        return 0
    if words[0] == "--version":
        print(f"nmt {__version__}")
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
    _end(message, 2)


def _end(message: str, code: int) -> NoReturn:
    if message:
        print(f"nmt: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)
