"""English-French text from the help pages of LibreOffice, as Debian and Ubuntu package them."""

import io
import logging
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

from nmt.errors import UserError
from nmt.fetch.split import Limits, Pair, clean_pairs, split_pairs

logger = logging.getLogger(__name__)

_ALTERNATIVES = (
    "Other corpora: --corpus reverse (needs nothing), --corpus multi30k_en-de (from the Hugging Face hub), "
    "or your own two text files."
)
_BLOCKS = frozenset(["p", "h", "h1", "h2", "h3", "h4", "h5", "h6"])
# Program text, pictures and the page that a user meets without scripts hold no sentences.
_SKIPPED_CLASSES = ("code", "image", "youtube")
_SKIPPED_TAGS = frozenset(["pre", "script", "style"])
_SENTENCE_END = re.compile(r"""(?<=[.!?])\s+(?=["«(]?\s?[A-ZÀ-ÝŒ0-9=])""")


@dataclass
class LibreofficeHelp:
    """Options of `fetch: {kind: libreoffice_help}`.

    Attributes:
        packages: Debian package of each language code of the card.
        dev: pairs in dev.
        test: pairs in test.
        min_words: fewest words on either side.
        max_words: most words on either side.
        max_ratio: most words of one side for a word of the other.
    """

    packages: dict[str, str] = field(
        default_factory=lambda: {"en": "libreoffice-help-en-us", "fr": "libreoffice-help-fr"}
    )
    dev: int = 500
    test: int = 500
    min_words: int = 3
    max_words: int = 50
    max_ratio: float = 3.0


def fetch_libreoffice(
    options: LibreofficeHelp, source_language: str, target_language: str
) -> tuple[dict[str, list[Pair]], dict[str, int], dict[str, str]]:
    """Downloads both help packages and makes a split bitext of them.

    Returns:
        The pairs of each split, the number dropped for each reason, and the versions of the packages.

    Raises:
        UserError: a language has no package, there is no apt-get, or a download fails.
    """
    for language in (source_language, target_language):
        if language not in options.packages:
            raise UserError(
                f"fetch.packages names no package for the language {language!r}; it has "
                f"{', '.join(sorted(options.packages))}."
            )
    with tempfile.TemporaryDirectory(prefix="nmt-fetch-") as name:
        work = Path(name)
        packages = [options.packages[source_language], options.packages[target_language]]
        archives = download_packages(packages, work)
        trees = [unpack(archive, work / f"tree{i}") for i, archive in enumerate(archives)]
        pairs, dropped = pair_trees(help_root(trees[0]), help_root(trees[1]))
    named = [archive.name.replace("%3a", ":").split("_") for archive in archives]
    versions = {package: version for package, version, *_ in named}
    parts, more_dropped = split_help(pairs, options)
    return parts, dropped | more_dropped, versions


def split_help(pairs: Sequence[Pair], options: LibreofficeHelp) -> tuple[dict[str, list[Pair]], dict[str, int]]:
    """Filters aligned pairs and splits them; see `nmt.fetch.split`."""
    limits = Limits(options.min_words, options.max_words, options.max_ratio)
    kept, dropped = clean_pairs([sentence for pair in pairs for sentence in pair_sentences(*pair)], limits)
    train, dev, test = split_pairs(kept, options.dev, options.test)
    return {"train": train, "dev": dev, "test": test}, dropped


def pair_sentences(source: str, target: str) -> list[Pair]:
    """Cuts a paragraph into pairs of sentences when both sides have equally many, of similar lengths."""
    pairs = (
        list(zip(sources, targets, strict=True))
        if (len(sources := _SENTENCE_END.split(source)) == len(targets := _SENTENCE_END.split(target)))
        else []
    )
    # A sentence cut elsewhere by the translator shows in the lengths; then the paragraph stays whole.
    similar = all(max(len(a), len(b)) <= 2 * min(len(a), len(b)) + 10 for a, b in pairs)
    return pairs if pairs and similar else [(source, target)]


def download_packages(packages: Sequence[str], work: Path) -> list[Path]:
    """Downloads Debian packages without root and without touching the system's package lists.

    Returns:
        The `.deb` files, in the order of `packages`.

    Raises:
        UserError: apt-get is missing or fails.
    """
    if shutil.which("apt-get") is None:
        raise UserError(f"This corpus comes from Debian packages, but there is no apt-get. {_ALTERNATIVES}")
    for folder in ("lists/partial", "cache/archives/partial", "packages"):
        (work / folder).mkdir(parents=True)
    options = {
        "Dir::State::Lists": work / "lists",
        "Dir::Cache": work / "cache",
        "Acquire::Languages": "none",
        "Acquire::Retries": "2",
        "Acquire::http::Timeout": "20",
        "Acquire::https::Timeout": "20",
    }
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        # The sandbox user could not write into our private folder.
        options["APT::Sandbox::User"] = "root"
    command = ["apt-get", "-qq"] + [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
    logger.info("Downloading %s", " and ".join(packages))
    updated = _run([*command, "update"], work / "packages")
    downloaded = _run([*command, "download", *packages], work / "packages")
    archives = [next(iter((work / "packages").glob(f"{package}_*.deb")), None) for package in packages]
    found = [archive for archive in archives if archive is not None]
    if len(found) < len(packages):
        said = [line for line in (updated + downloaded).splitlines() if line.startswith(("E:", "W:"))]
        raise UserError(
            f"apt-get could not download {' and '.join(packages)}: {' '.join(said[:3]) or 'no reason'}. "
            f"It needs a Debian or Ubuntu mirror within reach. {_ALTERNATIVES}"
        )
    return found


def _run(command: Sequence[str], folder: Path) -> str:
    try:
        done = subprocess.run(
            command, cwd=folder, env={**os.environ, "LC_ALL": "C"}, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=600, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return "E: no answer within 600 s\n"
    return done.stdout.decode("utf-8", errors="replace")


def unpack(archive: Path, folder: Path) -> Path:
    """Unpacks the files of a Debian package into `folder`, with dpkg-deb or without.

    Raises:
        UserError: the package is damaged, or packed in a way that only dpkg-deb can read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if shutil.which("dpkg-deb"):
        said = _run(["dpkg-deb", "-x", str(archive), str(folder)], folder)
        if any(folder.iterdir()):
            return folder
        raise UserError(f"dpkg-deb cannot unpack {archive.name}: {said.strip()}. Fetch it again.")
    try:
        with tarfile.open(fileobj=io.BytesIO(_data_member(archive.read_bytes()))) as tar:
            tar.extractall(folder, filter="data")
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise UserError(f"{archive.name} cannot be unpacked here ({error}); install dpkg-deb.") from None
    return folder


def _data_member(package: bytes) -> bytes:
    """The member `data.tar.*` of a package: an `ar` archive with headers of 60 bytes."""
    position = 8
    while package.startswith(b"!<arch>\n") and position + 60 <= len(package):
        name, size = package[position : position + 16].strip(), int(package[position + 48 : position + 58])
        if name.startswith(b"data.tar"):
            return package[position + 60 : position + 60 + size]
        position += 60 + size + size % 2
    raise ValueError("no data.tar inside")


def help_root(tree: Path) -> Path:
    """The folder `text` of the only language in an unpacked package."""
    for text in sorted(tree.glob("usr/share/libreoffice/help/*/text")):
        return text
    raise UserError(f"The package has no help pages in usr/share/libreoffice/help. {_ALTERNATIVES}")


def pair_trees(source: Path, target: Path) -> tuple[list[Pair], dict[str, int]]:
    """Pairs the paragraphs of two trees of pages by the page's relative path and the paragraph's id.

    An id that a page holds several times (embedded parts) pairs in order, if both pages hold it equally
    often.

    Returns:
        The pairs, by path and place, and the number of paragraphs of the source without a partner by reason.
    """
    pairs: list[Pair] = []
    dropped: Counter[str] = Counter()
    for page in sorted(source.rglob("*.html")):
        partner = target / page.relative_to(source)
        source_parts = read_page(page)
        if not partner.exists():
            dropped["page missing"] += sum(map(len, source_parts.values()))
            continue
        target_parts = read_page(partner)
        for key, lines in source_parts.items():
            others = target_parts.get(key, [])
            if len(lines) == len(others):
                pairs += zip(lines, others, strict=True)
            else:
                dropped["paragraph missing"] += len(lines)
    return pairs, dict(dropped)


def read_page(page: Path) -> Mapping[str, list[str]]:
    """The texts of a help page by the id of the paragraph or heading, entities decoded, spaces collapsed."""
    parser = _PageParser()
    parser.feed(page.read_text(encoding="utf-8", errors="replace"))
    parser.close()
    return parser.parts


class _PageParser(HTMLParser):
    """Collects the text of the blocks that have an id `par_id...` or `hd_id...`."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: dict[str, list[str]] = defaultdict(list)
        self._open: list[tuple[str, str, list[str]]] = []
        self._muted: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {key: value or "" for key, value in attrs}
        if self._muted:
            if tag == self._muted[-1]:
                self._muted.append(tag)
            return
        kind = attributes.get("class", "")
        # A key has one name on macOS and one elsewhere; the page shows either, the text would hold both.
        if tag in _SKIPPED_TAGS or (tag == "span" and kind == "MAC"):
            self._muted.append(tag)
        elif tag in _BLOCKS:
            key = attributes.get("id", "")
            wanted = key.startswith(("par_id", "hd_id")) and not kind.startswith(_SKIPPED_CLASSES)
            # Blocks without an id are noted too, so that their text goes to nobody.
            self._open.append((tag, key if wanted and "code" not in kind else "", []))
        elif tag == "br" and self._open:
            self._open[-1][2].append(" ")

    def handle_endtag(self, tag: str) -> None:
        if self._muted:
            if tag == self._muted[-1]:
                self._muted.pop()
            return
        if self._open and tag == self._open[-1][0]:
            _, key, texts = self._open.pop()
            if key:
                self.parts[key].append(" ".join("".join(texts).split()))

    def handle_data(self, data: str) -> None:
        if self._open and not self._muted:
            self._open[-1][2].append(data)
