"""A function over the parts of something in several processes; what comes back has the order of the parts."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from typing import Any, TypeVar

from nmt.errors import UserError

_Part = TypeVar("_Part")
_Result = TypeVar("_Result")

Spread = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]
"""What computes a function over parts somewhere and gives the results in the order of the parts."""


def map_in_order(function: Callable[[_Part], _Result], parts: Iterable[_Part], processes: int = 1) -> Iterator[_Result]:
    """What the parts become, in order.

    Args:
        function: with several processes it is pickled once a process, and its results once a part.
        parts: at most twice as many as there are processes are under way.
        processes: 1 calls the function here.

    Raises:
        UserError: a process died.
    """
    if processes == 1:
        yield from map(function, parts)
        return
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(
        processes, multiprocessing.get_context("spawn"), initializer=_begin, initargs=(function,)
    )
    rest = iter(parts)
    try:
        pending = deque(submit(pool, _call, part) for part in islice(rest, 2 * processes))
        while pending:
            yield pending.popleft().result()
            pending.extend(submit(pool, _call, part) for part in islice(rest, 1))
    except BrokenProcessPool:
        raise UserError("a worker process died, perhaps for want of memory; give fewer --processes") from None
    except BaseException:
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def submit(pool: ProcessPoolExecutor, function: Callable[..., Any], part: Any) -> "Future[Any]":
    """Hands a part to the pool, whose processes, if they start now, do not hear Ctrl-C."""
    # A worker inherits the mask: an interruption is for this process, which stops its workers itself.
    # (Where the tracker of multiprocessing is not running yet, it would start now and clear the mask.)
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return pool.submit(function, part)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_function: Callable[[Any], Any] | None = None


def _begin(function: Callable[[Any], Any]) -> None:
    """In a worker: what it calls, which need not come with every part."""
    global _function
    _function = function
    end_with_parent()


def end_with_parent() -> None:
    """Makes a worker end when its parent does."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        # A parent that was killed stops nobody.
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _call(part: Any) -> Any:
    assert _function is not None
    return _function(part)
