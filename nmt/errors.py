"""The one exception that is meant for the user rather than for the developer."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake of the user: the message names the cause, the value and the remedy.

    The command line prints it as one line and exits with code 2; any other exception is a bug of
    ours and keeps its stack trace.
    """


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Returns " Did you mean 'x'?" for the closest of `known`, or "" when none is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""
