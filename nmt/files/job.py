"""What a process has to know to translate blocks of a text; a worker gets it whole."""

import dataclasses
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nmt.checkpoint import find_model
from nmt.files.blocks import Block, Blocks, SourceText
from nmt.files.formats import Format
from nmt.loading import load
from nmt.translator import Translator


@dataclass(frozen=True)
class Job:
    """Models, search and format.

    Attributes:
        model, ensemble, device, dtype, int8, shortlist: as for `nmt.load`.
        options: as for `Translator.search`: config, limit, batch_tokens, replace_unknown.
        format: of what is written.
    """

    model: str
    ensemble: tuple[str, ...] = ()
    device: str = "auto"
    dtype: str = "float32"
    int8: bool = False
    shortlist: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    format: Format = field(default_factory=Format)

    def load(self) -> Translator:
        """The models, for translating alone.

        Raises:
            UserError: see `nmt.load`.
        """
        translator = load(
            self.model,
            self.device,
            ensemble=self.ensemble,
            dtype=self.dtype,  # type: ignore[arg-type]
            int8=self.int8,
            shortlist=self.shortlist,
        )
        return translator.keep_decoder_alone()

    def checksums(self) -> dict[str, str]:
        """The sha256 of each model file and of the shortlist, by the paths given.

        Raises:
            UserError: there is none.
        """
        found = {path: checksum(path) for path in (self.model, *self.ensemble)}
        return found if self.shortlist is None else {**found, self.shortlist: _sha256(self.shortlist)}

    def render(self, translator: Translator, block: Block) -> bytes:
        """A block translated and written out.

        Raises:
            UserError: see `Translator.search`.
        """
        found = translator.search(
            block.lines,
            wishes=block.wishes,
            first_line=block.first,
            attention=self.format.reads_attention,
            **self.options,
        )
        numbered = enumerate(zip(block.lines, found, strict=True), start=block.first)
        return "".join(self.format.render(number, *pair) for number, pair in numbered).encode("utf-8")

    def results(self, translator: Translator, blocks: Blocks) -> Iterator[tuple[Block, bytes]]:
        """Each block with what it becomes."""
        for block in blocks:
            yield block, self.render(translator, block)

    def settings(self, text: SourceText, buffer: int) -> dict[str, Any]:
        """What decides the bytes of the output, as plain values; the models by their checksums.

        Args:
            text: what is translated; its files count by their names, for their content is checked as it is read.
            buffer: lines of a block. In another block a line is batched with others, which moves the last digits.
        """
        return {
            **{name: path if path == "-" else os.path.realpath(path) for name, path in text.paths.items()},
            "model": checksum(self.model),
            "ensemble": [checksum(path) for path in self.ensemble],
            "dtype": "int8" if self.int8 else self.dtype,
            "shortlist": None if self.shortlist is None else _sha256(self.shortlist),
            "format": self.format.name,
            "alignment": self.format.alignment,
            "attention": self.format.attention,
            "buffer": buffer,
            **_plain(self.options),
        }


def checksum(model: str) -> str:
    """The sha256 of a model file.

    Raises:
        UserError: there is none.
    """
    return _sha256(find_model(model))


def _sha256(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _plain(options: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in options.items():
        result.update(dataclasses.asdict(value) if dataclasses.is_dataclass(value) else {name: value})  # type: ignore[arg-type]
    return result
