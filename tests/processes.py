"""Runs of several processes in the tests: forked, for to import everything again would take most of their time."""

import logging
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from nmt.config import TrainConfig
from nmt.config_file import write_config
from nmt.runs.journal import read_journal


def free_port(address: str = "127.0.0.1") -> int:
    with socket.socket() as found:
        found.bind((address, 0))
        return found.getsockname()[1]


class Process:
    """`nmt WORDS` in a fork of this process, with an environment; what it says goes to a file."""

    def __init__(self, words: Sequence[str], environment: dict[str, str], log: Path) -> None:
        self.log = log
        self.pid = os.fork()
        if self.pid:
            return
        code = 70
        try:
            os.setsid()
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 1)
            os.dup2(output, 2)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
            for handler in list(logging.getLogger().handlers):
                logging.getLogger().removeHandler(handler)
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
            os.environ.update(environment)
            from nmt.cli import main

            main(list(words))
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def wait(self, seconds: float = 120) -> int:
        """The exit code, negative for a signal."""
        # Not `monotonic`, which a test may replace: then so many looks, not seconds, would be waited for.
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.02)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        raise AssertionError(f"still there after {seconds} s:\n{self.text}")

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    @property
    def text(self) -> str:
        return self.log.read_text()


def start(words: Sequence[str], size: int, folder: Path, variables: Callable[[int], dict[str, str]]) -> list[Process]:
    """`size` processes of one run."""
    folder.mkdir(parents=True, exist_ok=True)
    return [Process(words, variables(rank), folder / f"log.{rank}") for rank in range(size)]


def torchrun_variables(size: int) -> Callable[[int], dict[str, str]]:
    """What torchrun sets for processes of one host."""
    port = str(free_port())
    common = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return lambda rank: {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}


def srun_variables(size: int) -> Callable[[int], dict[str, str]]:
    """What srun sets for tasks of one host."""
    common = {
        **{"SLURM_JOB_ID": "1", "SLURM_NTASKS": str(size), "SLURM_STEP_NUM_TASKS": str(size), "SLURM_NODEID": "0"},
        **{"SLURM_STEP_TASKS_PER_NODE": str(size), "SLURM_STEP_NODELIST": "127.0.0.1"},
        "MASTER_PORT": str(free_port()),
    }
    return lambda rank: {**common, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}


def train_words(config: TrainConfig, folder: Path) -> list[str]:
    """The command line of a configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    write_config(folder / "config.yaml", config)
    return ["train", "--config", str(folder / "config.yaml")]


def wait_for_update(run: Path, update: int, processes: Sequence["Process | subprocess.Popen"]) -> None:
    """Until the journal of a run tells of an update."""
    for _ in range(3000):
        if any(report["step"] >= update for report in read_journal(run / "metrics.jsonl")):
            return
        time.sleep(0.02)
    raise AssertionError("\n".join(str(getattr(process, "text", "")) for process in processes))
