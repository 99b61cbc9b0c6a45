"""`python -m nmt.runner FOLDER [INPUT] [-o OUTPUT]`: N lines in, N lines out; an open pipe is answered line by line."""

import argparse
import dataclasses
import errno
import logging
import os
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn, get_args

from nmt.errors import UserError
from nmt.files.chunks import chunks, open_lines
from nmt.files.output import open_output
from nmt.runner.runner import Runner, load
from nmt.runner.settings import Settings

_BUFFER = 2048
"""Most lines that are sorted into batches, and written, together."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help tells what is expected")


def main(words: Sequence[str] | None = None) -> int:
    """Runs a command line; 0 when done, 2 for a mistake of the user, 1 when the reader of the output left."""
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)
    try:
        chosen = vars(_parser().parse_args(words))
        folder, source, target, threads = (chosen.pop(name) for name in ("folder", "input", "output", "threads"))
        if chosen.get("n_best", 1) > 1:
            raise UserError("one line is written a line; n_best is for nmt.runner.load(...).search(lines, n_best=...)")
        if "-" not in (source, target) and os.path.realpath(source) == os.path.realpath(target):
            raise UserError(f"input and output are both {source}; give another output")
        chosen["n_best"] = 1
        _translate(load(folder, threads), source, target, chosen)
    except UserError as error:
        sys.stderr.write(f"nmt.runner: {' '.join(str(error).split())}\n")
        return 2
    except BrokenPipeError:
        _silence()
        return 1
    except OSError as error:
        if error.errno not in _FULL:
            raise
        _silence()
        sys.stderr.write(f"nmt.runner: {error.strerror}; make room or write elsewhere\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("nmt.runner: interrupted\n")
        return 130
    return 0


def _translate(runner: Runner, source: str, target: str, settings: dict[str, Any]) -> None:
    """As many lines at a time as are there; each block is written at once."""
    lines, ready = open_lines(source)
    last = 0
    with open_output(target, None) as output:
        for block in chunks(lines, _BUFFER, ready):
            found = runner.translate(block, first_line=last + 1, **settings)
            last += len(block)
            output.write("".join(f"{line}\n" for line in found).encode("utf-8"), last, "")


def _silence() -> None:
    """Python must not try to write again at exit what could not be written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m nmt.runner",
        description="Translates a text file line by line with an exported model.",
        epilog="What is not given is as the model was exported.",
        allow_abbrev=False,
    )
    parser.add_argument("folder", help="what nmt export wrote")
    parser.add_argument("input", nargs="?", default="-", help="text file, plain or .gz; - is standard input")
    parser.add_argument("-o", "--output", default="-", help="text file; - is standard output")
    parser.add_argument("--threads", type=int, default=0, help="threads on the CPU; 0: onnxruntime's own choice")
    described = dict(re.findall(r"^ +(\w+): (.*)$", Settings.__doc__ or "", re.MULTILINE))
    for field in dataclasses.fields(Settings):
        parser.add_argument(
            f"--{field.name}",
            type=type(field.default),
            choices=get_args(field.type) or None,
            default=argparse.SUPPRESS,
            help=described.get(field.name),
        )
    return parser


if __name__ == "__main__":
    sys.exit(main())
