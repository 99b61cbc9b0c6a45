"""The state of a run, which `--resume` goes on from: tensors and plain values in one file, of which a whole one is
always there.

A state is written beside the last one, brought to the disk, and renamed. The last one stays as the previous one, for
what no care of ours prevents: a disk that forgets, a copy that was cut off.
"""

import logging
import os
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins import TorchCheckpointIO

from nmt.checkpoint import NAME
from nmt.errors import UserError
from nmt.lines import atomic_path

logger = logging.getLogger(__name__)

PREVIOUS = "previous.ckpt"
DAMAGED = "damaged.ckpt"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a state beside the last one and renames it: a full disk leaves the last one whole."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with atomic_path(path) as temporary:
            try:
                torch.save(checkpoint, temporary)
            except RuntimeError as error:
                # torch's zip writer hides the operating system's error behind a position in its own source.
                raise OSError("the disk may be full; make room, the last good checkpoint stays") from error
            _set_aside(Path(path))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: Any = None) -> dict[str, Any]:
        return read_state(path)


def read_state(path: str | Path, mmap: bool = False) -> dict[str, Any]:
    """The content of a last.ckpt.

    Args:
        path: the file.
        mmap: whether tensors stay on the disk until they are read.

    Raises:
        UserError: it is truncated, not ours, or holds anything but tensors and plain values.
    """
    try:
        # Nothing in a checkpoint may run: tensors and plain values only.
        with warnings.catch_warnings(action="ignore"):
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        if not isinstance(state, dict) or not {"state_dict", "vocabularies", "run"} <= set(state):
            raise ValueError("it lacks the state of a run")
    except PermissionError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    except Exception as error:
        raise _damaged(path, error) from None
    return state


def check_state(path: str | Path) -> int:
    """Looks a state through, checksums too, at which torch does not look.

    Returns:
        The updates that it has behind it.

    Raises:
        UserError: as `read_state`, or a bit has changed.
    """
    state = read_state(path, mmap=True)
    try:
        with zipfile.ZipFile(path) as archive:
            wrong = archive.testzip()
        if wrong is not None:
            raise ValueError(f"the checksum of {wrong} is another")
    except Exception as error:
        raise _damaged(path, error) from None
    return int(state["global_step"])


def mend_state(last: Path) -> None:
    """Puts the previous state in the place of the last one, when that is damaged or missing.

    Raises:
        UserError: neither is whole.
    """
    previous, damaged = last.with_name(PREVIOUS), last.with_name(DAMAGED)
    try:
        check_state(last)
    except UserError:
        if not previous.exists():
            raise
        step = check_state(previous)
        what = "is missing"
        if last.exists():
            os.replace(last, damaged)
            what = f"is damaged (now {DAMAGED})"
        os.replace(previous, last)
        logger.warning("%s %s; the run goes on from the state before it, update %d", last, what, step)


def _set_aside(last: Path) -> None:
    """Calls the last state the previous one, too, until the new one takes its name."""
    previous = last.with_name(PREVIOUS)
    link = last.with_name(f".{PREVIOUS}.{os.getpid()}.tmp")
    if not last.exists():
        return
    try:
        os.link(last, link)
        os.replace(link, previous)
    except OSError:
        # A file system without links. For a moment there is no last state; mend_state knows.
        os.replace(last, previous)
    finally:
        # Of two names of one file, replace leaves both.
        link.unlink(missing_ok=True)


def _damaged(path: str | Path, error: Exception) -> UserError:
    cause = " ".join(str(error).split())[:160]
    return UserError(
        f"{path} is damaged or not the checkpoint of a run ({cause}). The best model so far is in {NAME} beside "
        "it; begin a new run --from it."
    )
