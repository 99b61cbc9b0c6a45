"""An output that is not whole yet: OUTPUT.part, and OUTPUT.part.json, which tells how much of it counts."""

import contextlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from nmt.errors import UserError
from nmt.lines import atomic_path
from nmt.lock import lock_file

logger = logging.getLogger(__name__)

_FORMAT = 1


@dataclass(frozen=True)
class Done:
    """What of a part counts.

    Attributes:
        lines: of the source that are translated.
        size: bytes of the part that hold them.
        digest: of what was read for them; see `nmt.files.blocks.Block`.
    """

    lines: int = 0
    size: int = 0
    digest: str = ""


class Part:
    """A file that grows block by block beside the name that it will have, and can be gone on with at any block."""

    def __init__(self, path: str | Path, settings: Mapping[str, Any]) -> None:
        """Names the files; none is touched.

        Args:
            path: the output's name.
            settings: what decides the output's bytes, plain JSON values.
        """
        # Through a link, so that the part lies on the disk where the output will.
        self.output = Path(os.path.realpath(path))
        self.part = self.output.with_name(f"{self.output.name}.part")
        self.note = self.output.with_name(f"{self.output.name}.part.json")
        self.settings = json.loads(json.dumps(settings))
        self.done = Done()
        self._name = str(path)
        self.shown = Path(f"{path}.part") if not os.path.islink(path) else self.part
        self._file: BinaryIO | None = None

    def find(self, resume: bool) -> Done:
        """What of an earlier run counts.

        Args:
            resume: whether it shall be gone on with.

        Raises:
            UserError: there is a part and `resume` is false, it was made with other settings, or it is damaged.
        """
        if self.output.is_dir():
            raise UserError(f"{self._name} cannot be written: it is a folder; give a file")
        begun, settings = self._read()
        if begun.lines == 0:
            # Nothing would be lost: such a note is left where a run was killed before its first block.
            self.done = Done()
            return self.done
        if not resume:
            raise UserError(
                f"{self.shown} holds {begun.lines:,} lines of a run that did not end; go on with it by --resume, or "
                "delete it"
            )
        size = self.part.stat().st_size if self.part.exists() else 0
        if size < begun.size:
            raise UserError(
                f"{self.shown} has {size:,} bytes and {self.note.name} speaks of {begun.size:,}; delete both to begin "
                "anew"
            )
        self._compare(settings)
        self.done = begun
        return begun

    @contextlib.contextmanager
    def writing(self) -> Iterator["Part"]:
        """Opens the part, cut to what counts; at the end gives it its name.

        After an error or an interruption the part stays, if any line is done, and the message tells how to go on.

        Raises:
            UserError: it cannot be written, or someone else is writing it.
        """
        try:
            with self._told():
                self.output.parent.mkdir(parents=True, exist_ok=True)
                self._file = open(self.part, "ab")  # noqa: SIM115
            self._lock()
            with self._told():
                if os.fstat(self._file.fileno()).st_size < self.done.size:
                    raise UserError(f"{self.shown} was changed just now by another process; call again")
                self._file.truncate(self.done.size)
                self._keep(self.done)
        except BaseException:
            self._close()
            raise
        try:
            yield self
            with self._told():
                self._file.close()
                os.replace(self.part, self.output)
                self.note.unlink(missing_ok=True)
        except UserError as error:
            kept = self._leave()
            raise UserError(f"{str(error).rstrip('.')}. {kept}" if kept else str(error)) from None
        except BaseException:
            if kept := self._leave():
                logger.info(kept)
            raise
        finally:
            self._close()

    def write(self, content: bytes, lines: int, digest: str) -> None:
        """Adds what belongs to the source up to line `lines`, on the disk when this returns.

        Raises:
            UserError: the disk is full, or broken.
        """
        assert self._file is not None
        with self._told():
            self._file.write(content)
            self._file.flush()
            os.fsync(self._file.fileno())
            self._keep(Done(lines, self.done.size + len(content), digest))

    def _keep(self, done: Done) -> None:
        note = {"format": _FORMAT, "lines": done.lines, "bytes": done.size, "digest": done.digest}
        with atomic_path(self.note) as temporary:
            temporary.write_text(json.dumps({**note, "settings": self.settings}, indent=1) + "\n", encoding="utf-8")
        self.done = done

    def _read(self) -> tuple[Done, dict[str, Any]]:
        """What the note says."""
        if not self.note.exists():
            if self.part.exists():
                raise UserError(
                    f"{self.shown} is there without {self.note.name}, so it cannot be gone on with; delete it"
                )
            return Done(), {}
        try:
            note = json.loads(self.note.read_text(encoding="utf-8"))
            if note["format"] != _FORMAT:
                raise ValueError(f"format {note['format']}")
            return Done(int(note["lines"]), int(note["bytes"]), str(note["digest"])), dict(note["settings"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.note} is damaged ({error}); delete it and {self.part.name}") from None

    def _compare(self, settings: Mapping[str, Any]) -> None:
        for name in dict.fromkeys([*settings, *self.settings]):
            before, now = settings.get(name), self.settings.get(name)
            if before != now:
                raise UserError(
                    f"{self.shown} was begun with {name} {_spelt(before)} and now it is {_spelt(now)}; go on with the "
                    "same, or delete it to begin anew"
                )

    def _lock(self) -> None:
        assert self._file is not None
        try:
            lock_file(self._file)
        except BlockingIOError:
            self._file.close()
            self._file = None
            raise UserError(f"{self.shown} is being written by another process; wait, or give another output") from None
        except OSError:
            # There are none.
            return

    def _leave(self) -> str:
        """What a failure leaves: nothing, or the lines done and a sentence about them."""
        # An interruption may have come between the note on the disk and ours.
        with contextlib.suppress(UserError):
            self.done, _ = self._read()
        if self.done.lines == 0:
            with contextlib.suppress(OSError):
                self.part.unlink(missing_ok=True)
                self.note.unlink(missing_ok=True)
            return ""
        return f"{self.done.lines:,} lines are kept in {self.shown}; go on with the same command and --resume"

    def _close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(f"{self._name} cannot be written: {error.strerror or error}.") from None


def _spelt(value: Any) -> str:
    return "not given" if value is None else str(value)
