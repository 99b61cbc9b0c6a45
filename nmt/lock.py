"""A folder that one process at a time writes to: who holds it is known by a lock that ends with its process."""

import contextlib
import errno
import json
import logging
import os
import socket
import time
from pathlib import Path
from typing import Any, BinaryIO

from nmt.errors import UserError
from nmt.manifest import now

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

NAME = ".lock"
PATIENCE = 1.0
"""Seconds for which a holder may have the lock and not yet have said who it is."""


def lock_file(file: int | BinaryIO) -> None:
    """Takes the kernel's lock on an open file; it is let go when the file is closed, or the process ends.

    Raises:
        BlockingIOError: another process has it.
        OSError: there are no locks, of the file system or of the operating system.
    """
    if fcntl is None:
        raise OSError(errno.ENOLCK, "the operating system has no flock")
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


class FolderLock:
    """The lock of a folder; as a context it lets go of what was taken in it.

    It is the kernel's lock on a file of the folder (flock), which tells who has it and is removed with it. Nothing
    depends on whether the file is there: a process that was killed, or whose host was switched off, has left the file
    but not the lock. On NFS the lock is the server's, so that all hosts see it.

    Where a file system, or the operating system, has no locks there is a warning and no lock.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.path = self.folder / NAME
        self._file: BinaryIO | None = None

    @property
    def held(self) -> bool:
        """Whether this process has it."""
        return self._file is not None

    def acquire(self) -> None:
        """Takes the lock, if this process has not got it.

        Raises:
            UserError: another process has it, or the folder cannot be written to.
        """
        if self._file is not None:
            return
        until = time.monotonic() + PATIENCE
        while self._file is None:
            try:
                # For writing: NFS gives no other file an exclusive lock. What is in it stays until we know.
                file = open(self.path, "a+b", buffering=0)  # noqa: SIM115
            except OSError as error:
                raise UserError(f"{self.folder} cannot be written to ({error.strerror}); give another --run") from None
            try:
                lock_file(file)
                # The one who had it before may have removed the file since we opened it.
                if _is(file, self.path):
                    self._file = file
            except BlockingIOError:
                holder = _read(file)
                if holder is not None or time.monotonic() > until:
                    raise UserError(self._taken(holder)) from None
                time.sleep(0.02)
            except OSError as error:
                self.path.unlink(missing_ok=True)
                logger.warning(
                    "%s is where there are no locks (%s); see to it that no other nmt train writes there",
                    self.folder,
                    error.strerror,
                )
                return
            finally:
                if file is not self._file:
                    file.close()
        self._sign(self._file)

    def release(self) -> None:
        """Lets go of the lock, if this process has it, and removes the file."""
        if self._file is None:
            return
        with self._file as file, contextlib.suppress(OSError):
            # Not that of another run, where the folder was removed and made anew.
            if _is(file, self.path):
                self.path.unlink()
        self._file = None

    def __enter__(self) -> "FolderLock":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _sign(self, file: BinaryIO) -> None:
        left, host = _read(file), socket.gethostname()
        if left is not None and left["host"] != host:
            logger.warning(
                "%s was left without an end by process %s on %s; if that is still at work, the two hosts do not see "
                "each other's locks: stop it",
                *(self.folder, left["pid"], left["host"]),
            )
        try:
            file.truncate(0)
            file.write(json.dumps({"pid": os.getpid(), "host": host, "since": now()}).encode())
            # Another host reads it from the disk.
            os.fsync(file.fileno())
        except OSError as error:
            self.release()
            raise UserError(f"{self.path} cannot be written: {error.strerror}.") from None

    def _taken(self, holder: dict[str, Any] | None) -> str:
        who, stop = "another process", ""
        if holder is not None:
            who = f"process {holder['pid']} on {holder['host']} (since {holder['since']})"
            stop = f" or stop it (kill {holder['pid']})"
        return f"{self.folder} is in use by {who}; wait until that has ended{stop}, or give another --run"


def _is(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _read(file: BinaryIO) -> dict[str, Any] | None:
    """Who has signed the file, or None."""
    try:
        file.seek(0)
        found = json.loads(file.read())
        return found if isinstance(found, dict) and {"pid", "host", "since"} <= set(found) else None
    except (OSError, ValueError):
        return None
