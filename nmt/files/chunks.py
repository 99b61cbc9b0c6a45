"""Lines, or what stands beside them, as many at a time as are there."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from nmt.errors import UserError
from nmt.files.pipe import Pipe, open_pipe
from nmt.lines import iterate_lines, told

Item = TypeVar("Item")


def chunks(items: Iterator[Item], size: int, ready: Callable[[], bool] = lambda: True) -> Iterator[list[Item]]:
    """Lists of 1 to `size` items, in order.

    Args:
        items: any number.
        size: most items of a list.
        ready: whether the next item, or the end, would come without waiting; a list that holds something does not wait.

    Raises:
        UserError: whatever the items raise, after those before it have come.
        ValueError: the size is no size.
    """
    if size < 1:
        raise ValueError(f"size is {size}; give at least 1")
    failure: UserError | None = None
    ended = False
    while not ended:
        found: list[Item] = []
        while len(found) < size and (not found or ready()):
            try:
                found.append(next(items))
            except StopIteration:
                ended = True
                break
            except UserError as error:
                failure, ended = error, True
                break
        if found:
            yield found
    if failure is not None:
        raise failure


def open_lines(path: str | Path) -> tuple[Iterator[str], Callable[[], bool]]:
    """The lines of a file or a pipe, and whether the next would come without waiting, for `chunks`.

    Raises:
        UserError: a pipe cannot be opened; what is wrong with a file comes with its lines.
    """
    with told(str(path)):
        pipe: Pipe | None = open_pipe(path)
    if pipe is None:
        return iterate_lines(path), lambda: True
    return iterate_lines(pipe), pipe.ready
