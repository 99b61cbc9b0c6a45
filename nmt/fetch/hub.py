"""Copies splits of a Hugging Face data set into plain text files."""

from dataclasses import dataclass, field
from pathlib import Path

from nmt.corpus.hub import read_hub
from nmt.corpus.reader import pick_columns
from nmt.errors import UserError
from nmt.fetch.split import Pair


@dataclass
class HubSplits:
    """Options of `fetch: {kind: hub}`.

    Attributes:
        hub: name of the data set.
        config: its configuration, for data sets with several.
        revision: commit or tag.
        splits: the data set's own name for each split of the card.
        columns: names of the source's and the target's column, by default the language codes.
        translation: name of the field that holds a text for each language code.
    """

    hub: str
    config: str | None = None
    revision: str | None = None
    splits: dict[str, str] = field(default_factory=lambda: {"train": "train", "dev": "validation", "test": "test"})
    columns: list[str] | None = None
    translation: str | None = None

    def __post_init__(self) -> None:
        if self.columns is not None and len(self.columns) != 2:
            raise UserError(f"fetch.columns is {self.columns!r}; give two, the source's and the target's.")


def fetch_hub(
    options: HubSplits, languages: tuple[str, str], directory: Path, name: str
) -> tuple[dict[str, list[Pair]], dict[str, int], dict[str, str]]:
    """Reads all splits; a folder of the data set's name in `directory` comes before the hub.

    Returns:
        The pairs of each split, the number of pairs dropped (the blank ones), and where they come from.

    Raises:
        UserError: the data set cannot be reached or lacks a split or column.
    """
    spec = {key: value for key in ("columns", "translation") if (value := getattr(options, key)) is not None}
    local = directory / options.hub
    parts: dict[str, list[Pair]] = {}
    for split, theirs in options.splits.items():
        name_or_folder = str(local) if local.is_dir() else options.hub
        rows = read_hub(name_or_folder, theirs, config=options.config, revision=options.revision, place=local)
        parts[split] = list(pick_columns(rows, spec, languages, f"{name}/{split}"))
    dropped = sum(not (s.strip() and t.strip()) for s, t in parts.get("train", []))
    if dropped:
        parts["train"] = [(s, t) for s, t in parts["train"] if s.strip() and t.strip()]
    return parts, {"empty": dropped} if dropped else {}, {options.hub: options.revision or "newest revision"}
