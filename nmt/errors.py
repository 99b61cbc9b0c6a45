"""The exceptions that are meant for the user rather than for the developer."""

import difflib
import re
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake of the user: the message names the cause, the value and the remedy.

    The command line prints it as one line and exits with code 2; any other exception is a bug of
    ours and keeps its stack trace.
    """


class ToldError(UserError):
    """A mistake that another process of the run tells; this one ends with the same code and says nothing."""


class LostError(Exception):
    """A process of the run is gone: nobody's mistake and no bug of ours. The command line prints it as one line and
    exits with code 1."""


class PreemptedError(Exception):
    """A run was asked to make room (SIGTERM) and has saved its state. The command line prints it as one line and exits
    with code 75."""


EXIT_PREEMPTED = 75
"""EX_TEMPFAIL of sysexits.h: try again later."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Returns " Did you mean 'x'?" for the closest of `known`, or "" when none is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""


def hint(word: str, known: set[str]) -> str:
    """A did-you-mean for a dotted key, or for the end of one: `hiden` is meant for model.hidden."""
    by_end: dict[str, str] = {}
    for key in sorted(known, key=lambda key: key.count(".")):
        by_end.setdefault(key.rpartition(".")[2], key)
    siblings = [key for key in sorted(known) if key.rpartition(".")[0] == word.rpartition(".")[0]]
    if found := did_you_mean(word, siblings) or did_you_mean(word, sorted(known)):
        return found
    end = did_you_mean(word.rpartition(".")[2], by_end)
    return re.sub(r"'(.*)'", lambda found: f"'{by_end[found[1]]}'", end)
