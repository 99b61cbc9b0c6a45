"""Lack of memory, as the user's mistake."""

import contextlib
from collections.abc import Callable, Iterator

import torch

from nmt.errors import UserError


@contextlib.contextmanager
def shortage_told(what: Callable[[], str]) -> Iterator[None]:
    """Tells what was computed when memory, of the machine or of a GPU, did not suffice.

    Args:
        what: says what, and what would need less.

    Raises:
        UserError: instead of the error of the allocator.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_shortage(error):
            raise
        raise UserError(f"memory is full: {what()}") from None


def is_shortage(error: Exception) -> bool:
    """Whether an error is that of an allocator that has no more."""
    from pytorch_lightning.utilities.memory import is_out_of_cpu_memory

    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or is_out_of_cpu_memory(error)
