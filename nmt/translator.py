"""A trained model as people use it: lines in, lines out."""

import dataclasses
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

from nmt.checkpoint import Checkpoint
from nmt.decoding import search_ids
from nmt.errors import UserError
from nmt.models import decoding_form, quantize
from nmt.options import override
from nmt.search import Hypothesis, SearchConfig
from nmt.shortlist import Shortlist
from nmt.translation import NOTHING, Translation
from nmt.translation import replace_unknown as spell_unknown
from nmt.wishes import Wish, demand_of, warn_unmet

logger = logging.getLogger(__name__)


@dataclass
class LengthLimit:
    """What happens to a source line of more pieces than the model can be asked for, or has positions for."""

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

    def cut(self, ids: list[int], positions: int | None, line: int, *, cut: str, emptied: str) -> list[int]:
        """What is read of a source line; a longer one is told about.

        Args:
            ids: its pieces, without EOS.
            positions: the most that the model has positions for, see `Seq2Seq.most_pieces`.
            line: its number.
            cut, emptied: what is told to become of it.
        """
        most, name = self.max_pieces, "max_pieces"
        if positions is not None and positions < most:
            most, name = positions, "the model has positions for,"
        if len(ids) <= most:
            return ids
        truncate = self.too_long == "truncate"
        told = cut if truncate else emptied
        logger.warning("line %d has %d pieces, more than %s %d: %s", line, len(ids), name, most, told)
        return ids[:most] if truncate else []


class Translator:
    """Translates lines with one model, or with several as one.

    Attributes:
        checkpoint, model, source_vocabulary, target_vocabulary: what was loaded.
        decoder: the form of the model that searches.
        shortlist: which pieces a source piece can ask for, or None. With one, the output layer is computed for these
            alone; scores are nearly those over all pieces, or, without its remainder, those among these. Lines of a
            batch with wishes go without.
    """

    def __init__(self, checkpoint: Checkpoint, *, int8: bool = False, shortlist: Shortlist | None = None) -> None:
        self.checkpoint = checkpoint
        self.model = checkpoint.model.eval()
        decoder = decoding_form(self.model)
        self.decoder = quantize(decoder) if int8 else decoder
        self.shortlist = shortlist
        self.source_vocabulary = checkpoint.source_vocabulary
        self.target_vocabulary = checkpoint.target_vocabulary
        special = self.target_vocabulary.special
        names = self.target_vocabulary.pieces(range(len(self.target_vocabulary)))
        self._unknown = names[special.unknown] if special.unknown < len(names) else None
        self._pieces = ["" if number in special else name for number, name in enumerate(names)]

    def keep_decoder_alone(self) -> "Translator":
        """Lets go of the model as it was loaded, whose weights the decoder has in a form of its own: `model` and that
        of `checkpoint` are from now on the decoder. For programs that only translate, and want the memory."""
        self.model = self.decoder
        self.checkpoint = dataclasses.replace(self.checkpoint, model=self.decoder)
        return self

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
        batch_tokens: int = 2048,
        attention: bool = False,
        replace_unknown: bool = False,
        wishes: Sequence[Wish] | None = None,
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
            first_line: number of the first line, for messages and for what is drawn.

        Raises:
            UserError: an unknown or impossible option, or a wish that cannot be met.
        """
        config = override(config or SearchConfig(), options, "The search")
        limit = limit or LengthLimit()
        if isinstance(lines, str):
            raise UserError("translate takes a list of lines, not one string; give [line].")
        encoded = self.source_vocabulary.encode(lines)
        positions = self.decoder.most_pieces
        kept: list[int] = []
        for place, ids in enumerate(encoded):
            encoded[place] = limit.cut(
                ids, positions, first_line + place, cut="translated up to there", emptied="left empty"
            )
            if encoded[place] and lines[place].strip():
                kept.append(place)
        demands = None
        if wishes is not None:
            if len(wishes) != len(lines):
                raise UserError(f"{len(wishes):,} wishes for {len(lines):,} lines; give one a line")
            most = self.decoder.most_tokens
            demands = [demand_of(wishes[place], self.target_vocabulary, first_line + place, most) for place in kept]
        found = search_ids(
            self.decoder,
            [encoded[place] for place in kept],
            config,
            batch_tokens=batch_tokens,
            attention=attention or replace_unknown,
            demands=demands,
            pieces=self._pieces,
            numbers=[first_line + place for place in kept],
            shortlist=self.shortlist,
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

    def score(
        self,
        sources: Sequence[str],
        targets: Sequence[str],
        *,
        pieces: Sequence[Sequence[str] | None] | None = None,
        config: SearchConfig | None = None,
        limit: LengthLimit | None = None,
        batch_tokens: int = 2048,
        attention: bool = False,
        first_line: int = 1,
        numbers: Sequence[int] | None = None,
        **options: Any,
    ) -> list[Translation]:
        """What the model makes of translations that are there: forced decoding.

        The text of a translation is cut into pieces anew, and not always into those that the search wrote: it may have
        spelt a word otherwise. Its own score comes out for its own pieces alone, so give these beside the text. The
        source is read as the search reads it, cut by `limit`, too; a target has no limit but the positions of the
        decoder, where it has some (`Seq2Seq.most_tokens`): a longer one has no score, which is NaN and is told.

        A blank target is scored as an empty translation (the end of the sentence at once). A blank source never reaches
        the model: an empty target has log-probability 0 there, and anything else has none, which is NaN.

        Args:
            sources: any number of lines.
            targets: their translations.
            pieces: for each translation None, or `Translation.pieces` of a search; they stand for the text.
            config: normalisation, alpha and coverage of the score; `options` are its fields on top of it.
            limit: what happens to long sources. Those that it leaves empty count as blank.
            batch_tokens: most tokens of a batch on the longer side, padding counted.
            attention: whether the attention matrices are returned.
            first_line: number of the first line, for messages.
            numbers: of all lines, where they do not follow each other.

        Returns:
            A translation a pair, with the score that the search would have given it; its text is the target.

        Raises:
            UserError: numbers of lines that differ, an unknown option, or pieces that the vocabulary lacks.
        """
        from nmt.scoring import score_lines

        return score_lines(
            self,
            sources,
            targets,
            pieces,
            override(config or SearchConfig(), options, "The search"),
            limit or LengthLimit(),
            batch_tokens=batch_tokens,
            attention=attention,
            numbers=range(first_line, first_line + len(sources)) if numbers is None else numbers,
        )

    def stream(self, lines: Iterable[str], *, chunk: int = 2048, **options: Any) -> Iterator[str]:
        """The best translation of any number of lines in constant memory, `chunk` lines at a time, in order.

        Args:
            lines, chunk, options: as for `stream_search`.
        """
        for found in self.stream_search(lines, chunk=chunk, **options):
            yield found[0].text

    def stream_search(
        self,
        lines: Iterable[str],
        *,
        chunk: int = 2048,
        wishes: Iterable[Wish] | None = None,
        first_line: int = 1,
        **options: Any,
    ) -> Iterator[list[Translation]]:
        """The n best translations of any number of lines in constant memory, in order.

        Args:
            lines: any number; they are taken `chunk` at a time.
            chunk: lines that are sorted into batches together.
            wishes: one for each line, taken beside them.
            first_line: number of the first line.
            options: as for `search`.

        Raises:
            UserError: as `search`; or fewer wishes than lines.
        """
        if chunk < 1:
            raise UserError(f"chunk is {chunk}; give at least 1")
        iterator, wanted = iter(lines), None if wishes is None else iter(wishes)
        while block := list(islice(iterator, chunk)):
            beside = None if wanted is None else list(islice(wanted, len(block)))
            yield from self.search(block, wishes=beside, first_line=first_line, **options)
            first_line += len(block)

    def _translation(self, hypothesis: Hypothesis, source_pieces: list[str]) -> Translation:
        return Translation(
            # A vocabulary that spells unknown characters as bytes can spell a line end, too; a line stays one.
            text=self.target_vocabulary.decode(hypothesis.tokens).replace("\n", " "),
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
