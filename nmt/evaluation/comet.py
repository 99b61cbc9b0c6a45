"""COMET through its own command line, `comet-score`, which lives in an environment of its own.

The package unbabel-comet pins old versions of libraries that nmt uses (jsonargparse 3.13.1, numpy below 2), so that the
two cannot be installed together. Written after the source of unbabel-comet 2.2.7 and tested against a stand-in that
behaves like it, not against a real model.
"""

import json
import logging
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nmt.errors import UserError
from nmt.lines import write_lines

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CometConfig:
    """How COMET is called.

    Attributes:
        command: name or path of `comet-score`; words after it are passed on ("comet-score --gpus 0 --batch_size 8").
        model: name on the Hugging Face hub, or path of a checkpoint.
    """

    command: str = "comet-score"
    model: str = "Unbabel/wmt22-comet-da"

    @property
    def signature(self) -> str:
        return f"model:{self.model}|nrefs:1"


def comet_scores(
    systems: Sequence[Sequence[str]], source: Sequence[str], reference: Sequence[str], config: CometConfig
) -> list[list[float]]:
    """COMET of every line of every system; a system's score is their mean.

    Args:
        systems: a list of lines a system, each as long as `source`.
        source: what was translated.
        reference: one reference.
        config: command and model.

    Raises:
        UserError: there is no such command, it fails, or writes something else than expected.
    """
    with tempfile.TemporaryDirectory(prefix="nmt-comet-") as name:
        folder = Path(name)
        files = [folder / f"system{number}" for number in range(len(systems))]
        for path, lines in zip([folder / "source", folder / "reference", *files], [source, reference, *systems],
                               strict=True):  # fmt: skip
            # COMET ends lines at a bare carriage return, too; line i would no longer be sentence i.
            write_lines(path, (line.replace("\r", " ") for line in lines))
        words = ["-s", folder / "source", "-r", folder / "reference", "--model", config.model, "--quiet"]
        words += ["--only_system", "--to_json", folder / "scores.json", "-t", *files]
        _call(config, [str(word) for word in words])
        try:
            by_file = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
            by_name = {Path(file).name: rows for file, rows in by_file.items()}
            scores = [[float(row["COMET"]) for row in by_name[path.name]] for path in files]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"'{config.command}' wrote no scores that can be read ({type(error).__name__}: {error}); unbabel-comet "
                "2.2 is expected."
            ) from None
    for lines, values in zip(systems, scores, strict=True):
        if len(lines) != len(values):
            raise UserError(f"'{config.command}' scored {len(values):,} lines of {len(lines):,}.")
    return scores


def find_command(config: CometConfig) -> list[str]:
    """The words that start COMET.

    Raises:
        UserError: there is no such command.
    """
    try:
        words = shlex.split(config.command)
    except ValueError as error:
        raise UserError(f"comet_command is {config.command!r}: {error}.") from None
    if not words:
        raise UserError("comet_command is empty; give the name or path of comet-score.")
    if shutil.which(words[0]) is None:
        raise UserError(
            f"there is no command '{words[0]}'; COMET needs an environment of its own: pipx install unbabel-comet, or "
            "python -m venv comet && comet/bin/pip install unbabel-comet and then --comet_command comet/bin/comet-score"
        )
    return words


def _call(config: CometConfig, words: list[str]) -> None:
    start = find_command(config)
    logger.info("COMET by %s (a model that is not at hand is downloaded)", config.model)
    try:
        done = subprocess.run([*start, *words], capture_output=True, text=True, errors="replace")
    except OSError as error:
        raise UserError(f"'{start[0]}' cannot be run: {error.strerror}; try {start[0]} --help") from None
    if done.returncode:
        told = [line.strip() for line in (done.stdout + "\n" + done.stderr).splitlines() if line.strip()]
        raise UserError(
            f"'{config.command}' failed with code {done.returncode}: {told[-1] if told else 'it says nothing'}"
        )
