"""Processes that translate blocks of one text side by side, each with a model of its own."""

import multiprocessing
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType

from nmt.errors import UserError
from nmt.files.blocks import Block, Blocks
from nmt.files.job import Job
from nmt.pool import end_with_parent, submit
from nmt.translator import Translator


class Workers:
    """A context: what is still at work when it is left is stopped."""

    def __init__(self, job: Job, processes: int) -> None:
        """Processes start when there are blocks for them.

        Args:
            job: what each does.
            processes: how many.
        """
        self._processes = processes
        self._before = set(multiprocessing.active_children())
        self._pool = ProcessPoolExecutor(
            processes, multiprocessing.get_context("spawn"), initializer=_begin, initargs=(job,)
        )

    def __enter__(self) -> "Workers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            for child in set(multiprocessing.active_children()) - self._before:
                child.terminate()
        self._pool.shutdown(cancel_futures=True)

    def results(self, blocks: Blocks) -> Iterator[tuple[Block, bytes]]:
        """Each block with what it becomes, in order; at most twice as many are under way as there are processes.

        Raises:
            UserError: of the text or of a worker, or a worker died; the blocks before it have come.
        """
        pending: deque[tuple[Block, Future[bytes]]] = deque()
        error: UserError | None = None
        ended = False
        while True:
            # While an answer is pending, nobody waits for a pipe.
            while not ended and len(pending) < 2 * self._processes and (not pending or blocks.ready()):
                try:
                    block = next(blocks, None)
                except UserError as found:
                    error, block = found, None
                ended = block is None
                if block is not None:
                    pending.append((block, self._submit(block)))
            if not pending:
                break
            block, future = pending.popleft()
            try:
                content = future.result()
            except BrokenProcessPool:
                raise UserError(_DIED) from None
            yield block, content
        if error is not None:
            raise error

    def _submit(self, block: Block) -> "Future[bytes]":
        try:
            return submit(self._pool, _render, block)
        except BrokenProcessPool:
            raise UserError(_DIED) from None


_DIED = "a worker process died, perhaps for want of memory; give fewer --processes, or a smaller --batch_tokens"

_job: Job
_translator: Translator | None = None


def _begin(job: Job) -> None:
    """In a worker: what it is to do. The model is loaded with the first block, whose error finds its way back."""
    global _job
    import torch

    _job = job
    torch.set_num_threads(1)
    end_with_parent()


def _render(block: Block) -> bytes:
    global _translator
    if _translator is None:
        _translator = _job.load()
    return _job.render(_translator, block)
