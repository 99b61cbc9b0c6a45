"""Starts the processes of a run on this host and looks after them.

Each is `nmt train` with the same words and the environment that torchrun would give it, so that there is one way into
a run, however it was started. This process trains nothing: what becomes of the others is then told by one that cannot
be lost with them.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from types import FrameType

from nmt.errors import EXIT_PREEMPTED, LostError
from nmt.runs.world import PARENT

GRACE = 10.0
"""Seconds that the others have to end by themselves when one has ended badly."""


def launch(words: Sequence[str], processes: int, program: Sequence[str] = ("-m", "nmt", "train")) -> int:
    """Runs `nmt train` in several processes of this host.

    SIGTERM and Ctrl-C are passed on. When one process ends badly, the others end, too.

    Args:
        words: behind `nmt train`.
        processes: how many.
        program: what Python runs with the words.

    Returns:
        The exit code: 0, or that of the first process that ended otherwise.

    Raises:
        LostError: a process was killed.
    """
    from torch.distributed import TCPStore

    # The store is kept here: its port is then free for certain, and it outlives each process.
    store = TCPStore("127.0.0.1", 0, processes, is_master=True, wait_for_workers=False)
    common = {
        **os.environ,
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        PARENT: str(os.getpid()),
        # Of a process that is gone, torch's stack traces tell nothing that our line does not.
        "TORCH_CPP_LOG_LEVEL": os.environ.get("TORCH_CPP_LOG_LEVEL", "ERROR"),
    }
    children: list[subprocess.Popen[bytes]] = []
    passed: list[int] = []
    with _passed_on(children, passed):
        for rank in range(processes):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            # A session of its own: the terminal's Ctrl-C reaches it once, from here.
            command = [sys.executable, *program, *words]
            children.append(subprocess.Popen(command, env=common | place, start_new_session=True))
        try:
            codes = _wait(children)
        finally:
            for child in children:
                child.kill()
                child.wait()
    killed = [(rank, -code) for rank, code in codes if code < 0]
    if killed and not passed:
        rank, number = killed[0]
        raise LostError(
            f"process {rank} of {processes} was killed ({signal.Signals(number).name}; the kernel kills so when memory "
            "is full); all have ended, and the run goes on from its last checkpoint by --resume"
        )
    failed = [code for _, code in codes if code]
    if not failed:
        return 0
    if EXIT_PREEMPTED in failed:
        return EXIT_PREEMPTED
    return failed[0] if failed[0] > 0 else 128 - failed[0]


def _wait(children: Sequence["subprocess.Popen[bytes]"]) -> list[tuple[int, int]]:
    """Rank and exit code of the processes, in the order they ended; those that had to be killed for it left out."""
    codes: list[tuple[int, int]] = []
    deadline: float | None = None
    while len(codes) < len(children):
        seen = {rank for rank, _ in codes}
        for rank, child in enumerate(children):
            if rank not in seen and child.poll() is not None:
                codes.append((rank, child.returncode))
                if child.returncode and deadline is None:
                    deadline = time.monotonic() + GRACE
        if deadline is not None and time.monotonic() > deadline:
            break
        time.sleep(0.05)
    return codes


@contextlib.contextmanager
def _passed_on(children: Sequence["subprocess.Popen[bytes]"], passed: list[int]) -> Iterator[None]:
    """SIGTERM and SIGINT go to the children; their numbers are noted."""

    def pass_on(number: int, _: FrameType | None) -> None:
        passed.append(number)
        for child in children:
            child.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
