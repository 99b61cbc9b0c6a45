"""How far a file is, on a terminal."""

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO


@contextlib.contextmanager
def show_progress(source: str | Path, output: str | Path) -> Iterator[Callable[[int, int], None]]:
    """Lends a function that is told (bytes read, lines written), and draws a bar on standard error.

    Nothing is drawn where standard error is no terminal, where the source is no file, so that its size is not known,
    and where the output itself goes to the terminal.

    Args:
        source: the file that is read.
        output: what is written; - is standard output.
    """
    drawn_over = str(output) == "-" and sys.stdout.isatty()
    if not sys.stderr.isatty() or drawn_over or str(source) == "-" or not os.path.isfile(source):
        yield lambda position, lines: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (BarColumn(), DownloadColumn(), TextColumn("{task.fields[lines]:,} lines"), TimeElapsedColumn())
    bar = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True, redirect_stdout=False)
    task = bar.add_task("", total=os.path.getsize(source), lines=0)
    # Log lines go through the standard error that the bar puts in place, or they would stand within it.
    handlers = [
        handler
        for handler in logging.getLogger().handlers
        if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stderr
    ]
    before = sys.stderr
    with bar:
        _redirect(handlers, sys.stderr)
        try:
            yield lambda position, lines: bar.update(task, completed=position, lines=lines)
        finally:
            _redirect(handlers, before)


def _redirect(handlers: list[logging.StreamHandler[TextIO]], stream: TextIO) -> None:
    for handler in handlers:
        handler.setStream(stream)
