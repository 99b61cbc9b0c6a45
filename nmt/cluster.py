"""A Ray cluster: a function over the parts of something, by Ray Data; what comes back has the order of the parts.

A task on this machine reads the parts, an actor for each share of the cluster computes what they become, and the parts
flow from one to the other as rows with their number. Ray Data keeps the order, holds the reader back when the actors
fall behind, so that memory does not grow with the text, and replaces an actor that died, which does its part again: the
function has to give the same for the same part. Nothing is written but by the caller, on this machine.
"""

import contextlib
import logging
import os
import pickle
import socket
import sys
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from nmt.errors import UserError

if TYPE_CHECKING:
    import pyarrow
    from ray.data import DataContext, Dataset

logger = logging.getLogger(__name__)

_Part = TypeVar("_Part")
_Result = TypeVar("_Result")

_VARIABLES = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # What its daemons tell would be printed to standard output, where translations may go.
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    # A thread that is late would start a cluster of its own.
    "RAY_ENABLE_AUTO_CONNECT": "0",
    # Of a cluster that starts here: its actors are the command, and not to wait for everything else (Ray's is 15).
    "RAY_worker_niceness": "0",
}
_PATIENCE = 10.0
"""Seconds until a machine that does not answer is not there."""
_ATTEMPTS = 4
"""Deaths of an actor at one part after which it is the part's fault."""


class Cluster:
    """A context: a cluster that is there, or one of this machine alone that ends with the context."""

    def __init__(self, address: str | None = None, actors: int | None = None, threads: int = 1, gpus: int = 0) -> None:
        """Notes what is wanted.

        Args:
            address: HOST:PORT of the head of a cluster that this machine belongs to, or "auto" for the one that was
                started here; None, or Ray's word for it, "local": a new one.
            actors: processes that compute; None: as many as the cluster has room for.
            threads: CPUs of each.
            gpus: GPUs of each.
        """
        self._address = None if address == "local" else address
        self._actors, self._threads, self._gpus = actors, threads, gpus
        self._begun: list[Generator[Any, None, None]] = []

    def __enter__(self) -> "Cluster":
        """Connects, or starts.

        Raises:
            UserError: ray is not installed, there is no such cluster, or it has no room for an actor.
        """
        if self._address is not None and self._address.startswith("ray://"):
            raise UserError(
                f"address is {self._address}, but the text is read and written by a machine of the cluster: call this "
                "there, with --address auto"
            )
        for name, value in _VARIABLES.items():
            os.environ.setdefault(name, value)
        try:
            import ray
            import ray.data
        except ImportError:
            raise UserError("engine ray is not installed; pip install 'nmt[cluster]'") from None
        _hush()
        if self._address is not None and self._address != "auto":
            _reach(self._address)
        here: dict[str, Any] = {"include_dashboard": False}
        if self._actors is not None:
            here.update(num_cpus=self._actors * self._threads)
        try:
            with _silent():
                ray.init(
                    self._address or "local",
                    log_to_driver=False,
                    logging_level=logging.CRITICAL,
                    **({} if self._address else here),
                )
        except Exception as error:
            # Whatever it is: a daemon that is late, on a machine with much to do, is a bare Exception to Ray.
            where = "was found" if self._address == "auto" else f"answers at {self._address}"
            what = f"no Ray cluster {where}" if self._address else "Ray cannot start here"
            remedy = "start one by ray start --head, or give its address" if self._address else "give --engine local"
            raise UserError(f"{what} ({_cause(error)}); {remedy}") from None
        try:
            self._actors = self._place(ray.nodes())
        except BaseException:
            ray.shutdown()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import ray

        # After an error or an interruption: what still runs is stopped while there is somebody to tell.
        for rows in self._begun:
            rows.close()
        ray.shutdown()

    def map_in_order(self, function: Callable[[_Part], _Result], parts: Iterable[_Part]) -> Iterator[_Result]:
        """What the parts become, in order; as `nmt.pool.map_in_order`.

        Args:
            function: pickled once an actor.
            parts: all of them are put into Ray's store of objects, which writes to the disk what it has no room for.

        Raises:
            UserError: of the function, or an actor died again and again; what the parts before become has come.
        """
        import ray

        held = [ray.put(part) for part in parts]
        return self.map_source(function, _Held(held)) if held else iter(())

    def map_source(
        self, function: Callable[[_Part], _Result], source: Callable[[], Iterable[_Part]]
    ) -> Iterator[_Result]:
        """What the parts become that a function gives one by one on this machine, in another process; in order.

        Args:
            function: pickled once an actor.
            source: gives the same parts when it is called again, which it is when its process died.

        Raises:
            UserError: of the function or the source, or an actor died again and again; what the parts before become
                has come.
        """
        rows = self._rows(function, source)
        self._begun.append(rows)
        with _explained():
            for expected, row in enumerate(rows):
                assert row["number"] == expected, f"part {row['number']} came instead of {expected}"
                for message in row["told"]:
                    logger.warning("%s", message)
                if row["error"] is not None:
                    raise UserError(row["error"])
                yield pickle.loads(row["part"])

    def _rows(self, function: Callable[[Any], Any], source: Callable[[], Iterable[Any]]) -> Generator[Any, None, None]:
        from ray.data import ActorPoolStrategy, DataContext, read_datasource

        with DataContext.current(_context()), warnings.catch_warnings():
            # How often a part is tried has no other name yet.
            warnings.simplefilter("ignore", DeprecationWarning)
            dataset: Dataset = read_datasource(_datasource(source), num_cpus=0, override_num_blocks=1)
            dataset = dataset.map_batches(
                _Actor,
                fn_constructor_args=(function,),
                batch_size=None,
                batch_format="pyarrow",
                compute=ActorPoolStrategy(size=self._actors, max_tasks_in_flight_per_actor=2),
                num_cpus=self._threads,
                num_gpus=self._gpus,
                max_task_retries=_ATTEMPTS - 1,
            )
        batches: Iterable[Any] = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
        for batch in batches:
            yield from batch.to_pylist()

    def _place(self, nodes: list[dict[str, Any]]) -> int:
        """How many actors there will be.

        Raises:
            UserError: no machine has room for one.
        """
        found = [node["Resources"] for node in nodes if node["Alive"]]
        wanted = {"CPU": self._threads, "GPU": self._gpus}
        room = sum(min(int(node.get(name, 0) // count) for name, count in wanted.items() if count) for node in found)
        each = f"{self._threads} CPU{'s' * (self._threads > 1)}" + " and a GPU" * (self._gpus > 0)
        if not room:
            raise UserError(f"no machine of the Ray cluster has {each} for an actor; give fewer --threads, or add one")
        actors = self._actors or room
        logger.info("Ray: %d machine(s) with room for %d actor(s) of %s; %d start", len(found), room, each, actors)
        return actors


class _Held:
    """Parts that are in the store of objects."""

    def __init__(self, parts: list[Any]) -> None:
        self._parts = parts

    def __call__(self) -> Iterator[Any]:
        import ray

        for part in self._parts:
            yield ray.get(part)


class _Actor:
    """In an actor: the function, and rows of parts in, rows of results out."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function

    def __call__(self, rows: "pyarrow.Table") -> "pyarrow.Table":
        return _table([self._changed(row) for row in rows.to_pylist()])

    def _changed(self, row: dict[str, Any]) -> dict[str, Any]:
        if row["error"] is not None:
            return row
        with _listening() as told:
            try:
                part, error = pickle.dumps(self._function(pickle.loads(row["part"]))), None
            except UserError as found:
                part, error = None, str(found)
        return {"number": row["number"], "part": part, "error": error, "told": told}


def _datasource(source: Callable[[], Iterable[Any]]) -> Any:
    """What Ray Data reads: one task, on this machine, whose rows are blocks of their own."""
    from ray.data import Datasource, ReadTask
    from ray.data.block import BlockMetadata

    def read() -> "Iterator[pyarrow.Table]":
        number = 0
        try:
            for part in source():
                yield _table([{"number": number, "part": pickle.dumps(part), "error": None, "told": []}])
                number += 1
        except UserError as error:
            yield _table([{"number": number, "part": None, "error": str(error), "told": []}])

    class Source(Datasource):
        supports_distributed_reads = False

        def estimate_inmemory_data_size(self) -> int | None:
            return None

        def get_read_tasks(self, parallelism: int, *args: Any, **options: Any) -> list[ReadTask]:
            unknown = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
            return [ReadTask(read, unknown)]

    return Source()


def _table(rows: list[dict[str, Any]]) -> "pyarrow.Table":
    import pyarrow as pa

    columns = {"number": pa.int64(), "part": pa.large_binary(), "error": pa.string(), "told": pa.list_(pa.string())}
    return pa.Table.from_pylist(rows, pa.schema(columns))


def _context() -> "DataContext":
    from ray.data import DataContext

    context = DataContext.get_current().copy()
    context.execution_options.preserve_order = True
    # A row is a block: it goes to an actor, and comes from it, as soon as it is there.
    context.target_max_block_size = 1
    # A block of a large model may take longer than half an hour.
    context.execution_no_progress_timeout_s = -1
    context.enable_progress_bars = context.print_on_execution_start = False
    return context


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Errors of Ray as the user's; those of the function are ours and keep their stack trace."""
    from ray.exceptions import RayError, RayTaskError

    try:
        yield
    except RayError as error:
        if isinstance(error, RayTaskError):
            raise
        raise UserError(
            f"an actor died {_ATTEMPTS} times in a row, perhaps for want of memory ({type(error).__name__}: "
            f"{_cause(error)}); give fewer --processes, or a smaller --batch_tokens"
        ) from None


def _cause(error: Exception) -> str:
    """The first line of what an error says, or its kind."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".:") if lines else type(error).__name__


class _Listener(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.told: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.told.append(record.getMessage())


@contextlib.contextmanager
def _listening() -> Iterator[list[str]]:
    """Collects our warnings, which are told where the user is."""
    listener = _Listener()
    logging.getLogger("nmt").addHandler(listener)
    try:
        yield listener.told
    finally:
        logging.getLogger("nmt").removeHandler(listener)


def _reach(address: str) -> None:
    """Looks whether anything listens there, for Ray would try for minutes.

    Raises:
        UserError: it is no address, or nothing does.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(f"address is {address}; give HOST:PORT of the head of a Ray cluster, or auto on its machines")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE).close()
    except (OSError, OverflowError, UnicodeError) as error:
        cause = getattr(error, "strerror", None) or error
        raise UserError(
            f"no Ray cluster answers at {address} ({cause}); start one by ray start --head, or give its address"
        ) from None


def _hush() -> None:
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # Of fewer parts than actors, say, which a short text has.
    warnings.filterwarnings("ignore", module=r"ray\.")


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Nothing on standard error, where Ray would tell that it is told to be quiet."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()
            kept = os.dup(2)
            stack.callback(os.close, kept)
            stack.callback(os.dup2, kept, 2)
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), 2)
        yield
