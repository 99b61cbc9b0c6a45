"""The corpus card: one YAML file that says what a corpus is, where it comes from and how to read it."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nmt.corpus.filter import Filter
from nmt.corpus.reader import check_spec, files_of, iterate_spec
from nmt.errors import UserError, did_you_mean
from nmt.options import build_config
from nmt.text.pairs import Bitext, Pair, Pairs


@dataclass
class Card:
    """A corpus card; the fields are those of the YAML file (data/README.md explains them).

    Attributes:
        name: short name, that of the file without `.yaml` when not given.
        languages: {"source": code, "target": code}.
        splits: reader specification of each split, or a list of them.
        description: what the text is.
        licence: under what terms it may be used.
        homepage: where it comes from.
        fetch: how `nmt corpus get` makes the files: `kind` and its options.
        filter: which pairs of `train` are used.
        checksums: sha256 of files, by their name in `splits`.
        directory: the folder that relative names start from.
    """

    name: str
    languages: dict[str, str]
    splits: dict[str, Any]
    description: str = ""
    licence: str = ""
    homepage: str = ""
    fetch: dict[str, Any] = field(default_factory=lambda: {"kind": "files"})
    filter: Filter = field(default_factory=Filter)
    checksums: dict[str, str] = field(default_factory=dict)
    directory: Path = Path()

    def __post_init__(self) -> None:
        _check_languages(self.languages, self.name)
        for split, spec in self.splits.items():
            # dev and test stay as they are, so that scores compare; extra test sets may be named test_*.
            if split not in ("train", "dev", "test") and not str(split).startswith("test_"):
                hint = did_you_mean(str(split), ["train", "dev", "test"])
                raise UserError(f"Card {self.name}: unknown split {split!r}; use train, dev, test or test_*.{hint}")
            check_spec(spec, f"Card {self.name}, split {split}")

    def read(
        self,
        split: str,
        source_language: str | None = None,
        target_language: str | None = None,
        *,
        filtered: bool = True,
    ) -> Pairs:
        """Reads a split into memory, in the card's direction or the other one.

        Args:
            split: a name in `splits`.
            source_language: one of the card's two languages, the card's source by default.
            target_language: the other one.
            filtered: whether the card's filter is applied to `train`.

        Raises:
            UserError: no such split or language; the split was not fetched; a file is damaged or has the
                wrong checksum; the sides have different numbers of lines.
        """
        return self.bitext(split, source_language, target_language, filtered=filtered).held()

    def bitext(
        self,
        split: str,
        source_language: str | None = None,
        target_language: str | None = None,
        *,
        filtered: bool = True,
        streaming: bool = False,
    ) -> Bitext:
        """A split to be read pair by pair, as many times as one likes.

        Args:
            split, source_language, target_language, filtered: as of `read`.
            streaming: whether a data set of the hub is read from there, instead of being downloaded first.

        Raises:
            UserError: as `read`; what is wrong with the text is told when it is read.
        """
        if split not in self.splits:
            raise UserError(
                f"Card {self.name} has no split {split!r}; it has {', '.join(self.splits)}."
                + did_you_mean(split, self.splits)
            )
        swapped = self._is_swapped(source_language, target_language)
        spec, name = self.splits[split], f"{self.name}/{split}"
        self._check_files(spec, name)
        languages = self.languages["source"], self.languages["target"]
        others: list[Pairs] = []
        sifted = filtered and split == "train"
        if sifted and self.filter.overlap:
            others = [self.read(other) for other in self.splits if other != "train"]

        def read(dropped: Counter[str]) -> Iterator[Pair]:
            pairs = iterate_spec(spec, self.directory, languages, name, streaming)
            return self.filter.sift(pairs, languages, others, dropped) if sifted else pairs

        bitext = Bitext(read, name, *languages)
        return bitext.swapped() if swapped else bitext

    def _is_swapped(self, source_language: str | None, target_language: str | None) -> bool:
        first, second = self.languages["source"], self.languages["target"]
        for language in (source_language, target_language):
            if language not in (None, first, second):
                raise UserError(f"Card {self.name} holds {first} and {second}, not {language!r}.")
        if source_language is not None and source_language == target_language:
            raise UserError(f"Source and target language are both {source_language!r}; card {self.name} "
                            f"holds {first} and {second}.")  # fmt: skip
        return source_language == second or target_language == first

    def _check_files(self, spec: Any, name: str) -> None:
        for file in files_of(spec):
            path = self.directory / file
            if not path.exists():
                if self.fetch.get("kind") == "files":
                    raise UserError(f"{name}: {path} does not exist; put the file there or correct the card.")
                raise UserError(f"{name}: {path} is not there yet; run: nmt corpus get {self.name}")
            wanted = self.checksums.get(file)
            if wanted is not None and wanted != (found := file_checksum(path)):
                raise UserError(
                    f"{path} has sha256 {found}, the card says {wanted}: another file than the one meant. "
                    f"Get it again (nmt corpus get {self.name} --force) or correct `checksums` in the card."
                )


def load_card(path_or_name: str | Path, directory: str | Path | None = None) -> Card:
    """Loads a corpus card.

    Args:
        path_or_name: a YAML file, or the name of a card in data/ of the current folder or of the sources.
        directory: where the corpus lies; by default the folder beside the card that is named like it.

    Raises:
        UserError: no such card, not YAML, an unknown key or a value of the wrong kind.
    """
    import yaml

    path = _find_card(path_or_name)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a corpus card: it must be a mapping with `languages` and `splits`.")
    content = {"name": path.stem, **content}
    if "directory" in content:
        raise UserError(f"{path}: `directory` does not belong in a card; give it where the card is used.")
    if "filter" in content:
        content["filter"] = build_config(Filter, content["filter"], f"{path}, filter")
    content["directory"] = Path(directory) if directory is not None else path.parent / path.stem
    return build_config(Card, content, str(path))


def card_names() -> list[str]:
    """The names of the cards in data/ of the current folder and of the sources."""
    return sorted({path.stem for folder in _card_folders() for path in folder.glob("*.yaml")})


def file_checksum(path: Path) -> str:
    """The sha256 (hexadecimal) of a file."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _check_languages(languages: Mapping[str, Any], name: str) -> None:
    if set(languages) != {"source", "target"}:
        raise UserError(f"Card {name}: languages must be {{source: CODE, target: CODE}}, not {dict(languages)}.")
    for role, code in languages.items():
        if not isinstance(code, str) or not code:
            # YAML reads a bare `no` as false.
            raise UserError(f"Card {name}: languages.{role} is {code!r}; write the code in quotes.")
    if languages["source"] == languages["target"]:
        raise UserError(f"Card {name}: both languages are {languages['source']!r}; they must differ.")


def _card_folders() -> list[Path]:
    return [Path("data"), Path(__file__).resolve().parents[2] / "data"]


def _find_card(path_or_name: str | Path) -> Path:
    path, name = Path(path_or_name), str(path_or_name)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        if path.is_file():
            return path
        raise UserError(f"The corpus card {path} does not exist; the current folder is {Path.cwd()}.")
    for folder in _card_folders():
        if "/" not in name and (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    known = card_names()
    raise UserError(
        f"There is no corpus card {name!r}; known are {', '.join(known) or 'none'}, or give a YAML file."
        + did_you_mean(name, known)
    )
