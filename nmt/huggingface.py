"""transformers, imported when it is needed, without its progress bars and remarks."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nmt.errors import UserError


@contextmanager
def library(what: str) -> Iterator[Any]:
    """Lends the package transformers, which says errors alone meanwhile; TRANSFORMERS_VERBOSITY in the environment
    makes it say more.

    Args:
        what: what needs it, for the message.

    Raises:
        UserError: the extra `hf` is not installed.
    """
    try:
        import transformers
        from transformers.utils import logging
    except ImportError as error:
        raise UserError(f"{what} needs the extra hf ({error}); install it (pip install -e .[hf])") from None
    said, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    if "TRANSFORMERS_VERBOSITY" not in os.environ:
        logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield transformers
    finally:
        # The process may use transformers for its own ends, too.
        logging.set_verbosity(said)
        if bars:
            logging.enable_progress_bar()


def cause_of(error: Exception) -> str:
    """What transformers says of a mistake, on one line and not too long."""
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:300]} ..."
