"""The processes that train one model together: who they are, and where they meet.

A launcher (`nmt.runs.launcher`, torchrun or srun) tells each process its place by environment variables. They meet for
the preparation, at each update and at each validation, and nowhere else; each meeting is a method of `World`, and all
processes have to come to it in the same order.
"""

import contextlib
import logging
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn

from nmt.errors import LostError, ToldError, UserError

logger = logging.getLogger(__name__)

PATIENCE = timedelta(minutes=30)
"""How long a process waits for the others at a meeting. One that was killed is noticed at once."""
PREPARATION = timedelta(days=7)
"""How long the others wait until the first process has trained the vocabulary and encoded the corpus."""
FAREWELL = timedelta(seconds=10)
"""How long the first process waits, having failed, until the others know."""
PARENT = "NMT_LAUNCHER"
"""The variable that holds the number of the process of `nmt.runs.launcher`."""

_joined: list["World"] = []


@dataclass
class World:
    """All processes of a run, as one of them sees them.

    Attributes:
        rank: this process among all, from 0. Process 0 writes the files and the log.
        size: how many there are.
        local_rank, local_size: the same among those of this host.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    _store: Any = field(default=None, repr=False)
    _prepared: int = field(default=0, repr=False)

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files and the log."""
        return self.rank == 0

    @property
    def orphaned(self) -> bool:
        """Whether the launcher of these processes was killed, so that nobody looks after them."""
        return PARENT in os.environ and os.getppid() != int(os.environ[PARENT])

    @contextlib.contextmanager
    def prepare(self) -> Iterator[None]:
        """Process 0 goes through the block first, the others when it has succeeded: they find what it has cached.

        Raises:
            ToldError: it has failed, and has said why.
            LostError: it is gone.
        """
        if self.size == 1:
            yield
            return
        self._prepared += 1
        key = f"prepared {self._prepared}"
        if not self.is_first:
            with _meeting(self):
                self._store.wait([key], PREPARATION)
                done = self._store.get(key) == b"done"
                if not done:
                    self._store.set(f"{key}, heard {self.rank}", "")
            if not done:
                raise ToldError("process 0 could not prepare the run")
            yield
            return
        try:
            yield
        except Exception:
            self._store.set(key, "failed")
            # With this process the store may end.
            with contextlib.suppress(RuntimeError):
                self._store.wait([f"{key}, heard {rank}" for rank in range(1, self.size)], FAREWELL)
            raise
        self._store.set(key, "done")

    def gather(self, value: Any) -> list[Any]:
        """What each process gives, of any kind that can be pickled, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with _meeting(self):
            distributed.all_gather_object(values, value)
        return values

    def agree(self, *wishes: bool) -> list[bool]:
        """Which of some wishes any process has."""
        if self.size == 1:
            return list(wishes)
        # On the CPU whatever the device, so that no GPU is waited for.
        counts = torch.tensor(wishes, dtype=torch.int64)
        with _meeting(self):
            distributed.all_reduce(counts)
        return (counts > 0).tolist()

    def sum(self, tensor: Tensor) -> None:
        """Sums a tensor up over all processes, in place."""
        if self.size > 1:
            with _meeting(self):
                distributed.all_reduce(tensor)

    def barrier(self) -> None:
        """Waits until all are here."""
        self.agree(False)

    def copy_from_first(self, module: nn.Module) -> None:
        """Gives all processes the parameters and buffers of process 0."""
        if self.size > 1:
            with _meeting(self):
                for tensor in module.state_dict().values():
                    distributed.broadcast(tensor, 0)

    def error(self, message: str) -> UserError:
        """A mistake that all processes see at once: one of them tells it."""
        return UserError(message) if self.is_first else ToldError(message)


def read_world(environment: Mapping[str, str] = os.environ) -> World:
    """The place of this process, from the variables of torchrun or, without them, of srun; otherwise it is alone.

    The variables of a SLURM job that were not set by srun do not count: a batch script is one process, whatever it
    has reserved.

    Raises:
        UserError: some of them are missing or no numbers.
    """
    names = ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"]
    if "RANK" not in environment or "WORLD_SIZE" not in environment:
        if int(environment.get("SLURM_STEP_NUM_TASKS", "1")) == 1:
            return World()
        names = ["SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"]
    missing = [name for name in names if name not in environment]
    if missing:
        raise UserError(
            f"{names[0]} and {names[1]} are set, but not {' and '.join(missing)}; start the processes by torchrun or "
            "srun"
        )
    try:
        rank, size, local_rank = (int(environment[name]) for name in names[:3])
        here = environment[names[3]]
        if names[3].startswith("SLURM"):
            here = _tasks_of_node(here, int(environment.get("SLURM_NODEID", "0")))
        return World(rank, size, local_rank, int(here))
    except ValueError:
        told = ", ".join(f"{name}={environment[name]}" for name in names)
        raise UserError(f"{told}: not the numbers of a process; start the processes by torchrun or srun") from None


def join_world(accelerator: str) -> World:
    """Joins the processes that were started together; once a process.

    Args:
        accelerator: "cuda" or "cpu".

    Raises:
        UserError: as `read_world`, or the first process cannot be reached.
    """
    if _joined:
        return _joined[0]
    world = read_world()
    # Lightning's loggers ask these, and would else guess from variables that another launcher may have left.
    from lightning_utilities.core import rank_zero as utilities
    from pytorch_lightning.utilities import rank_zero as lightning

    for module in (utilities, lightning):
        setattr(module.rank_zero_only, "rank", world.rank)  # noqa: B010
    if world.size > 1:
        address, port = _meeting_point(os.environ)
        try:
            # torchrun keeps the store itself; process 0 does without it.
            hosts = world.is_first and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
            tcp = distributed.TCPStore(address, port, world.size, hosts, PATIENCE, wait_for_workers=False)
            restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            world._store = distributed.PrefixStore(f"nmt {restart}", tcp)
            distributed.init_process_group(
                "cpu:gloo,cuda:nccl" if accelerator == "cuda" else "gloo",
                store=distributed.PrefixStore("group", world._store),
                rank=world.rank,
                world_size=world.size,
                timeout=PATIENCE,
            )
            world.barrier()
        except (RuntimeError, OSError) as error:
            raise UserError(
                f"process {world.rank} of {world.size} does not reach the others by {address}, port {port} "
                f"({_first_line(error)}); see MASTER_ADDR, MASTER_PORT and, with several networks, GLOO_SOCKET_IFNAME "
                "and NCCL_SOCKET_IFNAME"
            ) from None
        if not world.is_first:
            logging.getLogger().setLevel(logging.ERROR)
            warnings.filterwarnings("ignore")
        _joined.append(world)
    return world


@contextlib.contextmanager
def _meeting(world: World) -> Iterator[None]:
    """Turns what the transport says when a process is gone into one line."""
    try:
        yield
    except RuntimeError as error:
        raise LostError(
            f"process {world.rank} of {world.size} lost the others ({_first_line(error)}); see what the first of them "
            "that ended says; the run goes on from its last checkpoint by --resume"
        ) from None


def _meeting_point(environment: Mapping[str, str]) -> tuple[str, int]:
    """Address and port of process 0."""
    from lightning_fabric.plugins.environments import SLURMEnvironment

    address, port = environment.get("MASTER_ADDR"), environment.get("MASTER_PORT")
    if address is None and "SLURM_STEP_NODELIST" in environment:
        address = SLURMEnvironment.resolve_root_node_address(environment["SLURM_STEP_NODELIST"])
    if port is None and "SLURM_JOB_ID" in environment:
        # The same number everywhere, and another one for each job of a host.
        port = str(15_000 + int(environment["SLURM_JOB_ID"]) % 10_000)
    if address is None or port is None or not port.isdecimal():
        raise UserError(
            f"MASTER_ADDR is {address} and MASTER_PORT is {port}; give the address and a free port of process 0"
        )
    return address, int(port)


def _tasks_of_node(text: str, node: int) -> str:
    """SLURM's counts of tasks, such as "4(x2),3", for the node of that number."""
    counts: list[str] = []
    for part in text.split(","):
        count, _, times = part.partition("(x")
        counts += [count] * int(times.rstrip(")") or 1)
    return counts[node] if node < len(counts) else ""


def _first_line(error: BaseException) -> str:
    """What a transport says, without the place in its source and without advice."""
    line = re.sub(r"^\[\S+:\d+\] ", "", str(error).split("\n")[0])
    return " ".join(line.split(". ")[0].split())[:160]
