"""The flags of verbs that compute here or on a cluster."""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nmt.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from nmt.cluster import Cluster

_ENGINES = ("local", "ray")


def add_engine_flags(add: Callable[..., Any], processes: str) -> None:
    """Adds --engine, --address and --processes, whose help is given."""
    add("--processes", type=int, default=None, help=f"{processes}. By default 1; of engine ray as many as fit")
    add("--engine", default="local", help="local: this machine's processes; ray: actors of a Ray cluster (extra "
        "cluster). The output is the same")  # fmt: skip
    add("--address", default=None, help="of the Ray cluster, HOST:PORT, or auto on its machines; by default "
        "RAY_ADDRESS, or else one of this machine alone, which ends with the command")  # fmt: skip


def check_engine(chosen: Any) -> None:
    """Refuses impossible values, and puts 1 for processes where the engine is local.

    Raises:
        UserError: names the value.
    """
    if chosen.engine not in _ENGINES:
        raise UserError(
            f"engine is '{chosen.engine}'; choose {' or '.join(_ENGINES)}.{did_you_mean(chosen.engine, _ENGINES)}"
        )
    if chosen.address is not None and chosen.engine != "ray":
        raise UserError(f"address is {chosen.address}, but engine is {chosen.engine}; give --engine ray")
    if chosen.processes is None and chosen.engine == "local":
        chosen.processes = 1
    if chosen.processes is not None and chosen.processes < 1:
        raise UserError(f"processes is {chosen.processes}; give at least 1")


def open_cluster(chosen: Any) -> "Cluster":
    """The cluster that the flags describe; of the flags, `threads` and `device` may be missing."""
    from nmt.cluster import Cluster

    return Cluster(
        chosen.address or os.environ.get("RAY_ADDRESS") or None,
        chosen.processes,
        getattr(chosen, "threads", 0) or 1,
        int(getattr(chosen, "device", "cpu") == "cuda"),
    )
