"""Makes the files of a corpus as its card says; `nmt corpus get` calls it."""

import dataclasses
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nmt.corpus import Card, file_checksum
from nmt.corpus.reader import files_of
from nmt.errors import UserError, did_you_mean
from nmt.fetch.split import Pair
from nmt.lines import atomic_path, read_parallel, write_lines
from nmt.options import build_config

logger = logging.getLogger(__name__)

KINDS = ("files", "hub", "libreoffice_help", "reverse")
_RECORD = "fetched.json"


@dataclass
class NothingToFetch:
    """Options of `fetch: {kind: files}`: there are none."""


@dataclass(frozen=True)
class FetchReport:
    """What a fetch did.

    Attributes:
        card: name of the card.
        directory: where the files lie.
        splits: pairs in each split.
        dropped: pairs left out, by reason.
        details: versions or sources of what was fetched.
        seconds: wall time.
        fetched: False when the files were there already.
    """

    card: str
    directory: Path
    splits: Mapping[str, int]
    dropped: Mapping[str, int] = field(default_factory=dict)
    details: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    fetched: bool = True

    def __str__(self) -> str:
        counts = ", ".join(f"{split} {count:,}" for split, count in self.splits.items())
        verb = f"fetched in {self.seconds:.1f} s" if self.fetched else "there already"
        lines = [f"{self.card}: {verb}, pairs: {counts} ({self.directory})"]
        if self.details:
            lines.append("  from " + ", ".join(f"{key} {value}" for key, value in self.details.items()))
        if self.dropped:
            reasons = (f"{count:,} {why}" for why, count in self.dropped.items())
            lines.append("  left out: " + ", ".join(reasons))
        return "\n".join(lines)


def fetch(card: Card, directory: str | Path | None = None, force: bool = False) -> FetchReport:
    """Makes the files of all splits in the corpus folder.

    The folder's `fetched.json` records options, counts and checksums. When it agrees with card and files,
    nothing is done; files that somebody else put there are used as they are.

    Args:
        card: the card, whose `fetch.kind` is one of `KINDS`.
        directory: another corpus folder than the card's.
        force: fetch again, over whatever lies there.

    Raises:
        UserError: unknown kind or option, the source cannot be reached, or only some files are there.
    """
    started = time.perf_counter()
    if directory is not None:
        card = dataclasses.replace(card, directory=Path(directory))
    kind, options = _options(card)
    if kind != "files":
        _check_plain(card)
    present = None if force and kind != "files" else _present(card, kind)
    if present is not None:
        return present
    if kind == "files":
        if not _files(card):
            raise UserError(
                f"Card {card.name} fetches nothing: its splits are read from the hub or from sacreBLEU's cache when "
                "they are asked for, and downloaded then"
            )
        missing = [str(path) for path in map(card.directory.joinpath, _files(card)) if not path.exists()]
        raise UserError(f"Card {card.name} fetches nothing; put these files there yourself: {', '.join(missing)}")
    parts, dropped, details = _make(kind, options, card)
    files: dict[str, dict[str, Any]] = {}
    for split, spec in card.splits.items():
        if split not in parts:
            raise UserError(f"Card {card.name}: fetch makes {', '.join(parts)}, but not the split {split!r}.")
        for side, name in enumerate((spec["source"], spec["target"])):
            write_lines(card.directory / name, (pair[side] for pair in parts[split]))
            files[name] = {"lines": len(parts[split]), "sha256": file_checksum(card.directory / name)}
    record = {"card": card.name, "fetch": card.fetch, "files": files, "dropped": dropped, "details": details}
    with atomic_path(card.directory / _RECORD) as temporary:
        temporary.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    counts = {split: len(parts[split]) for split in card.splits}
    return FetchReport(card.name, card.directory, counts, dropped, details, time.perf_counter() - started)


def _options(card: Card) -> tuple[str, Any]:
    """The kind of fetch and its options as a dataclass, checked."""
    options = dict(card.fetch)
    kind = options.pop("kind", None)
    if kind not in KINDS:
        raise UserError(f"Card {card.name}: fetch.kind is {kind!r}; known are {', '.join(KINDS)}."
                        + did_you_mean(str(kind), KINDS))  # fmt: skip
    config: type[Any]
    if kind == "libreoffice_help":
        from nmt.fetch.libreoffice import LibreofficeHelp

        config = LibreofficeHelp
    elif kind == "reverse":
        from nmt.fetch.reverse import Reverse

        config = Reverse
    elif kind == "hub":
        from nmt.fetch.hub import HubSplits

        config = HubSplits
    else:
        config = NothingToFetch
    return kind, build_config(config, options, f"Card {card.name}, fetch")


def _make(kind: str, options: Any, card: Card) -> tuple[dict[str, list[Pair]], dict[str, int], dict[str, str]]:
    """The pairs of each split, the number dropped for each reason, and where they come from."""
    languages = card.languages["source"], card.languages["target"]
    if kind == "libreoffice_help":
        from nmt.fetch.libreoffice import fetch_libreoffice

        return fetch_libreoffice(options, *languages)
    if kind == "reverse":
        from nmt.fetch.reverse import generate_reverse

        return generate_reverse(options), {}, {}
    from nmt.fetch.hub import fetch_hub

    return fetch_hub(options, languages, card.directory, card.name)


def _check_plain(card: Card) -> None:
    for split, spec in card.splits.items():
        if "source" not in spec:
            raise UserError(
                f"Card {card.name}, split {split}: what is fetched is written as two plain files, so the "
                "split must read {source: FILE, target: FILE}."
            )


def _present(card: Card, kind: str) -> FetchReport | None:
    """The report on files that are there already, or None when they must be made."""
    names = _files(card)
    there = [name for name in names if (card.directory / name).exists()]
    record = _read_record(card.directory / _RECORD)
    if record is not None:
        if record["fetch"] != card.fetch or there != names or not _untouched(card.directory, record["files"], names):
            logger.info("%s: card or files changed since the last fetch; fetching again", card.name)
            return None
        counts = {split: record["files"][spec["source"]]["lines"] for split, spec in card.splits.items()}
        return FetchReport(card.name, card.directory, counts, record["dropped"], record["details"], fetched=False)
    if there and there == names:
        logger.info("%s: the files in %s were put there by hand; using them", card.name, card.directory)
        counts = {split: _count(card, split) for split in card.splits}
        return FetchReport(card.name, card.directory, counts, fetched=False)
    if there and kind != "files":
        missing = [name for name in names if name not in there]
        raise UserError(
            f"{card.directory} holds {', '.join(there)} but not {', '.join(missing)}, and no record of a "
            "fetch; add the missing files, or fetch all again with --force (which overwrites them)."
        )
    return None


def _files(card: Card) -> list[str]:
    return sorted({file for spec in card.splits.values() for file in files_of(spec)})


def _untouched(directory: Path, files: Mapping[str, Any], names: Sequence[str]) -> bool:
    return all(files.get(name, {}).get("sha256") == file_checksum(directory / name) for name in names)


def _count(card: Card, split: str) -> int:
    spec = card.splits[split]
    if "source" in spec:
        return len(read_parallel(card.directory / spec["source"], card.directory / spec["target"])[0])
    return len(card.read(split))


def _read_record(path: Path) -> dict[str, Any] | None:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    keys = {"fetch", "files", "dropped", "details"}
    return record if isinstance(record, dict) and keys <= set(record) else None
