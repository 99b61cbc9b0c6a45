"""A trained model as people use it: lines in, lines out."""

import dataclasses
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch

from nmt.batching import evaluation_batches
from nmt.checkpoint import Checkpoint, load_checkpoint
from nmt.errors import UserError, did_you_mean
from nmt.models import Narrowed, Seq2Seq, decoding_form
from nmt.search import Constraints, Demand, Hypothesis, SearchConfig, beam_search
from nmt.shortlist import Shortlist
from nmt.translation import NOTHING, Translation
from nmt.translation import replace_unknown as spell_unknown
from nmt.vocabulary import BOS, EOS, PAD, UNK
from nmt.wishes import Wish, demand_of, warn_unmet

logger = logging.getLogger(__name__)


@dataclass
class LengthLimit:
    """What happens to a source line of more pieces than the model can be asked for."""

    max_pieces: int = 256
    """The most SentencePiece pieces of a source line."""
    too_long: Literal["truncate", "empty"] = "truncate"
    """truncate: translate the first max_pieces pieces; empty: leave the output line empty. Either is
    reported with the line's number."""

    def __post_init__(self) -> None:
        if self.max_pieces < 1:
            raise UserError(f"max_pieces is {self.max_pieces}; give at least 1")
        if self.too_long not in ("truncate", "empty"):
            raise UserError(f"too_long is '{self.too_long}'; choose truncate or empty")


def search_ids(
    model: Seq2Seq,
    sources: Sequence[Sequence[int]],
    config: SearchConfig,
    *,
    batch_tokens: int = 4096,
    attention: bool = False,
    demands: Sequence[Demand] | None = None,
    pieces: Sequence[str] = (),
    numbers: Sequence[int] | None = None,
    shortlist: Shortlist | None = None,
) -> list[list[Hypothesis]]:
    """Searches for every source (ids without EOS), sorted into batches inside, returned in order.

    Args:
        model: in evaluation mode.
        sources: none empty.
        config: the search.
        batch_tokens: most source tokens of a batch, padding counted (a longer sentence goes alone).
        attention: whether hypotheses carry attention.
        demands: on each source's hypotheses.
        pieces: the target vocabulary, for the demands; see `Constraints`.
        numbers: of the sources in the whole text, which decide what is drawn; 0, 1, ... by default.
        shortlist: candidates of the output layer; a batch with demands goes without.
    """
    if not sources:
        return []
    if batch_tokens < 1:
        raise UserError(f"batch_tokens is {batch_tokens}; give at least 1")
    device = next(model.parameters()).device
    lengths = [len(source) + 1 for source in sources]
    results: list[list[Hypothesis]] = [[] for _ in sources]
    for rows in evaluation_batches(lengths, max(batch_tokens, max(lengths))):
        longest = max(lengths[row] for row in rows)
        block = torch.full((len(rows), longest), PAD)
        for place, row in enumerate(rows):
            block[place, : lengths[row]] = torch.tensor([*sources[row], EOS])
        constraints = None
        if demands is not None and any(demands[row] != Demand() for row in rows):
            never = (model.padding, model.bos)
            constraints = Constraints([demands[row] for row in rows], pieces, eos=model.eos, never=never)
        searched, candidates = model, None
        if shortlist is not None and constraints is None:
            candidates, allowed = shortlist.candidates([sources[row] for row in rows])
            searched = Narrowed(model, candidates.to(device), allowed.to(device))
        found = beam_search(
            searched,
            block.to(device),
            torch.tensor([lengths[row] for row in rows]),
            config,
            attention=attention,
            constraints=constraints,
            numbers=[int(row) if numbers is None else numbers[row] for row in rows],
        )
        for row, hypotheses in zip(rows, found, strict=True):
            if not hypotheses:
                raise UserError(
                    "The model's probabilities are not numbers; its training diverged or its file is damaged. "
                    "Take an earlier checkpoint."
                )
            if candidates is not None:
                spelt = [candidates[hypothesis.tokens].tolist() for hypothesis in hypotheses]
                pairs = zip(hypotheses, spelt, strict=True)
                hypotheses = [dataclasses.replace(hypothesis, tokens=tokens) for hypothesis, tokens in pairs]
            results[row] = hypotheses
    return results


class Translator:
    """Translates lines with one model."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.model = checkpoint.model.eval()
        self.decoder = decoding_form(self.model)
        self.source_vocabulary = checkpoint.source_vocabulary
        self.target_vocabulary = checkpoint.target_vocabulary
        special = (PAD, UNK, BOS, EOS)
        names = self.target_vocabulary.pieces(range(len(self.target_vocabulary)))
        self._unknown = names[UNK]
        self._pieces = ["" if number in special else name for number, name in enumerate(names)]

    def translate(self, lines: Sequence[str], **options: Any) -> list[str]:
        """The best translation of each line; a blank line gives an empty one.

        Args:
            lines: any number, in any order.
            options: as for `search`.
        """
        return [found[0].text for found in self.search(lines, **options)]

    def search(
        self,
        lines: Sequence[str],
        *,
        config: SearchConfig | None = None,
        limit: LengthLimit | None = None,
        batch_tokens: int = 4096,
        attention: bool = False,
        replace_unknown: bool = False,
        wishes: Sequence[Wish] | None = None,
        shortlist: Shortlist | None = None,
        first_line: int = 1,
        **options: Any,
    ) -> list[list[Translation]]:
        """The n best translations of each line, best first.

        Args:
            lines: any number.
            config: the search; `options` are its fields (`beam_size=10`, `n_best=3`) on top of it.
            limit: what happens to long lines.
            batch_tokens: most source tokens of a batch, padding counted.
            attention: whether the attention matrices are returned.
            replace_unknown: whether a word with an unknown piece becomes the source word that it looked at.
            wishes: for each line, how its translation begins, what it holds and what it does not.
            shortlist: which pieces a source piece can ask for; the output layer is computed for these alone, and
                scores are normalised over them. Lines of a batch with wishes go without.
            first_line: number of the first line, for messages and for what is drawn.

        Raises:
            UserError: an unknown or impossible option, or a wish that cannot be met.
        """
        config = _override(config or SearchConfig(), options)
        limit = limit or LengthLimit()
        if isinstance(lines, str):
            raise UserError("translate takes a list of lines, not one string; give [line].")
        encoded = self.source_vocabulary.encode(lines)
        kept: list[int] = []
        for place, ids in enumerate(encoded):
            if len(ids) > limit.max_pieces:
                what = "translated up to there" if limit.too_long == "truncate" else "left empty"
                logger.warning(
                    "line %d has %d pieces, more than max_pieces %d: %s",
                    first_line + place,
                    len(ids),
                    limit.max_pieces,
                    what,
                )
                encoded[place] = ids[: limit.max_pieces] if limit.too_long == "truncate" else []
            if encoded[place] and lines[place].strip():
                kept.append(place)
        demands = None
        if wishes is not None:
            if len(wishes) != len(lines):
                raise UserError(f"{len(wishes):,} wishes for {len(lines):,} lines; give one a line")
            demands = [demand_of(wishes[place], self.target_vocabulary, first_line + place) for place in kept]
        found = search_ids(
            self.decoder,
            [encoded[place] for place in kept],
            config,
            batch_tokens=batch_tokens,
            attention=attention or replace_unknown,
            demands=demands,
            pieces=self._pieces,
            numbers=[first_line + place for place in kept],
            shortlist=shortlist,
        )
        results = [[NOTHING] for _ in lines]
        for number, (place, hypotheses) in enumerate(zip(kept, found, strict=True)):
            source_pieces = [*self.source_vocabulary.pieces(encoded[place]), "</s>"]
            results[place] = [self._translation(hypothesis, source_pieces) for hypothesis in hypotheses]
            if replace_unknown:
                surfaces = [*self.source_vocabulary.surfaces(lines[place])[: len(source_pieces) - 1], "</s>"]
                results[place] = [self._without_unknown(one, surfaces, attention) for one in results[place]]
            if demands is not None:
                warn_unmet(demands[number], hypotheses[0].tokens, self._pieces, first_line + place)
        return results

    def stream(self, lines: Iterable[str], *, chunk: int = 2048, **options: Any) -> Iterator[str]:
        """Translates any number of lines in constant memory, `chunk` lines at a time, in order."""
        iterator, first = iter(lines), 1
        while block := list(islice(iterator, chunk)):
            yield from self.translate(block, first_line=first, **options)
            first += len(block)

    def _translation(self, hypothesis: Hypothesis, source_pieces: list[str]) -> Translation:
        return Translation(
            text=self.target_vocabulary.decode(hypothesis.tokens),
            score=hypothesis.score,
            log_probability=hypothesis.log_probability,
            source_pieces=source_pieces,
            pieces=[*self.target_vocabulary.pieces(hypothesis.tokens), "</s>"],
            token_scores=hypothesis.token_log_probabilities,
            attention=hypothesis.attention,
        )

    def _without_unknown(self, translation: Translation, source: list[str], attention: bool) -> Translation:
        assert translation.attention is not None
        unknown = [piece == self._unknown for piece in translation.pieces]
        text = translation.text
        if any(unknown):
            text = spell_unknown(translation.pieces, unknown, source, translation.attention)
        return dataclasses.replace(translation, text=text, attention=translation.attention if attention else None)


def load(path: str | Path, device: str = "auto") -> Translator:
    """Loads a model file, or that of a run's folder.

    Args:
        path: `model.safetensors` or the folder it lies in.
        device: "auto" (a GPU when there is one), "cpu", "cuda", "cuda:1".

    Raises:
        UserError: no such model, a damaged one, or no such device.
    """
    return Translator(load_checkpoint(path, resolve_device(device)))


def resolve_device(name: str) -> torch.device:
    """The device of that name; "auto" is the first GPU, or else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        cause = str(error).splitlines()[0]
        raise UserError(f"device '{name}' cannot be used ({cause}); give auto or cpu.") from None
    return device


def _override(config: SearchConfig, options: dict[str, Any]) -> SearchConfig:
    known = [field.name for field in dataclasses.fields(config)]
    for name in options:
        if name not in known:
            raise UserError(f"Unknown option '{name}'.{did_you_mean(name, known)} The search knows {', '.join(known)}.")
    return dataclasses.replace(config, **options)
