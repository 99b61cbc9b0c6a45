"""An exported model as people use it: lines in, lines out."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from nmt.errors import UserError
from nmt.options import override
from nmt.runner.beam import Hypothesis, beam_search
from nmt.runner.folder import Exported, read_folder
from nmt.runner.graphs import Graphs
from nmt.runner.settings import Settings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Translation:
    """One hypothesis for one line.

    Attributes:
        text: detokenised.
        score: the log-probability after length normalisation.
        log_probability: in nats, the end of the sentence counted.
        tokens: target ids, the end of the sentence not among them.
    """

    text: str
    score: float
    log_probability: float
    tokens: list[int]


class Runner:
    """Translates lines with an exported model."""

    def __init__(self, exported: Exported, threads: int = 0) -> None:
        """Opens graphs and vocabularies; see `load`."""
        from sentencepiece import SentencePieceProcessor

        self.settings, self.languages = exported.settings, exported.languages
        self._special = exported.special
        files = exported.files
        self._graphs = Graphs(files["encoder"], files["step"], threads)
        self._source, self._target = (SentencePieceProcessor(model_proto=files[side]) for side in ("source", "target"))

    def translate(self, lines: Sequence[str], **options: Any) -> list[str]:
        """The best translation of each line; a blank line gives an empty one.

        Args:
            lines: any number, in any order.
            options: as for `search`.
        """
        return [found[0].text for found in self.search(lines, **options)]

    def search(self, lines: Sequence[str], *, first_line: int = 1, **options: Any) -> list[list[Translation]]:
        """The n best translations of each line, best first.

        Args:
            lines: any number.
            first_line: number of the first line, for messages.
            options: fields of `Settings` (`beam_size=10`, `n_best=3`) on top of those of the folder.

        Raises:
            UserError: an unknown or impossible option, or a model that gives no numbers.
        """
        settings = override(self.settings, options, "The runner")
        if isinstance(lines, str):
            raise UserError("translate takes a list of lines, not one string; give [line].")
        sources = [
            self._cut(ids, settings, first_line + place) if line.strip() else []
            for place, (line, ids) in enumerate(
                zip(lines, self._source.encode(list(lines), out_type=int, num_threads=1), strict=True)
            )
        ]
        results = [[Translation("", 0.0, 0.0, [])] for _ in lines]
        kept = [place for place, ids in enumerate(sources) if ids]
        for batch in _batches([len(sources[place]) + 1 for place in kept], settings.batch_tokens):
            places = [kept[number] for number in batch]
            for place, found in zip(places, self._search([sources[place] for place in places], settings), strict=True):
                results[place] = [
                    # A vocabulary that spells unknown characters as bytes can spell a line end, too.
                    Translation(
                        self._target.decode(one.tokens).replace("\n", " "), one.score, one.log_probability, one.tokens
                    )
                    for one in found
                ]
        return results

    def stream(self, lines: Iterable[str], *, chunk: int = 2048, **options: Any) -> Iterator[str]:
        """Translates any number of lines in constant memory, `chunk` lines at a time, in order."""
        iterator, first = iter(lines), 1
        while block := list(islice(iterator, chunk)):
            yield from self.translate(block, first_line=first, **options)
            first += len(block)

    def _cut(self, ids: list[int], settings: Settings, number: int) -> list[int]:
        """At most max_pieces of a line."""
        if len(ids) <= settings.max_pieces:
            return ids
        cut = settings.too_long == "truncate"
        logger.warning(
            "line %d has %d pieces, more than max_pieces %d: %s",
            number,
            len(ids),
            settings.max_pieces,
            "translated up to there" if cut else "left empty",
        )
        return ids[: settings.max_pieces] if cut else []

    def _search(self, sources: list[list[int]], settings: Settings) -> list[list[Hypothesis]]:
        """The hypotheses of sources (ids without EOS), one batch, longest first."""
        lengths = np.array([len(ids) + 1 for ids in sources])
        block = np.full((len(sources), int(lengths.max())), self._special.pad, dtype=np.int64)
        for row, ids in enumerate(sources):
            block[row, : len(ids) + 1] = [*ids, self._special.eos]
        results = beam_search(self._graphs, block, lengths, settings, self._special)
        if not all(results):
            raise UserError(
                "The model's probabilities are not numbers; its training diverged. Export an earlier checkpoint."
            )
        return results


def load(folder: str | Path, threads: int = 0) -> Runner:
    """Opens the folder of an exported model.

    Args:
        folder: what `nmt export` wrote.
        threads: on the CPU; 0 is onnxruntime's own choice.

    Raises:
        UserError: no such folder, a damaged one, or onnxruntime is missing.
    """
    if threads < 0:
        raise UserError(f"threads is {threads}; give at least 0")
    return Runner(read_folder(folder), threads)


def _batches(lengths: list[int], budget: int) -> Iterator[list[int]]:
    """Rows of sources of so many tokens, longest first, as many a batch as fit beside the longest."""
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    while order:
        rows = max(1, budget // lengths[order[0]])
        yield order[:rows]
        order = order[rows:]
