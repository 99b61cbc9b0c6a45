"""The folder of an exported model: graphs, SentencePiece models, and what describes them. Nothing in it can run."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nmt.errors import UserError
from nmt.runner.settings import Settings

FORMAT = 1
CONFIG = "config.json"
PARTS = ("encoder", "step", "source", "target")
"""Graph of the encoder, graph of a step of the decoder, SentencePiece models of source and target."""


@dataclass(frozen=True)
class Special:
    """Ids that have a meaning, of source and target alike."""

    pad: int
    unk: int
    bos: int
    eos: int


@dataclass(frozen=True)
class Exported:
    """What a folder holds.

    Attributes:
        files: the content of each of PARTS.
        special: the special ids.
        settings: how it translates unless told otherwise.
        languages: {"source": ..., "target": ...}, as far as known.
    """

    files: dict[str, bytes]
    special: Special
    settings: Settings
    languages: dict[str, str]


def describe(names: dict[str, str], exported: Exported, version: str) -> dict[str, Any]:
    """The content of config.json.

    Args:
        names: the file of each of PARTS; source and target may share one.
        exported: what is written.
        version: of the nmt that wrote it.
    """
    return {
        "format": FORMAT,
        "nmt": version,
        "runtime": "onnx",
        "languages": exported.languages,
        "special": dataclasses.asdict(exported.special),
        "settings": dataclasses.asdict(exported.settings),
        "files": {
            part: {"name": names[part], "sha256": hashlib.sha256(exported.files[part]).hexdigest()} for part in PARTS
        },
    }


def read_folder(folder: str | Path) -> Exported:
    """Reads the folder and holds each file against its checksum.

    Raises:
        UserError: it is no folder of ours, of another format, or damaged.
    """
    folder = Path(folder)
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give a folder that nmt export wrote.") from None
    except ValueError as error:
        raise _damaged(path, error) from None
    try:
        if config["format"] != FORMAT or config["runtime"] != "onnx":
            raise UserError(
                f"{path} has format {config['format']} for {config['runtime']}, this version reads format {FORMAT} "
                "for onnx; use the version of nmt that wrote it."
            )
        files = {part: _read(folder, config["files"][part]["name"]) for part in PARTS}
        for part in PARTS:
            if hashlib.sha256(files[part]).hexdigest() != config["files"][part]["sha256"]:
                raise UserError(
                    f"{folder / config['files'][part]['name']} is not the file that was exported (its checksum is "
                    "another); copy the folder again."
                )
        special = Special(**{field.name: int(config["special"][field.name]) for field in dataclasses.fields(Special)})
        return Exported(files, special, Settings(**config["settings"]), dict(config["languages"]))
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(path, error) from None


def _read(folder: Path, name: str) -> bytes:
    # A folder from someone else names files in it, and none elsewhere.
    if Path(name).name != name or name in ("", "..") or (folder / name).is_symlink():
        raise UserError(f"{folder / CONFIG} names a file outside of its folder, {name!r}; take another export.")
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise UserError(f"{folder / name} cannot be read ({error.strerror}); copy the folder again.") from None


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} is damaged ({type(error).__name__}: {error}); copy the folder again.")
