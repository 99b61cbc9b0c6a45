"""Translations that are there, scored by a model: lines in, scores out, and the perplexity of a corpus."""

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nmt.errors import UserError
from nmt.models import Seq2Seq
from nmt.search import Hypothesis, SearchConfig, forced_search
from nmt.text.batching import evaluation_batches, pad
from nmt.translation import Translation

if TYPE_CHECKING:
    from nmt.translator import LengthLimit, Translator

logger = logging.getLogger(__name__)


def score_ids(
    model: Seq2Seq,
    sources: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
    config: SearchConfig,
    *,
    batch_tokens: int = 4096,
    attention: bool = False,
) -> list[Hypothesis]:
    """Scores pairs of ids (without EOS), sorted into batches inside, returned in order; see `forced_search`.

    Args:
        model: in evaluation mode.
        sources: none empty.
        targets: as many; an empty one is the end of the sentence at once.
        config: normalisation, alpha and coverage.
        batch_tokens: most tokens of a batch on the longer side, padding counted (a longer pair goes alone).
        attention: whether hypotheses carry attention.

    Raises:
        UserError: probabilities that are not numbers.
    """
    if batch_tokens < 1:
        raise UserError(f"batch_tokens is {batch_tokens}; give at least 1")
    device = next(model.parameters()).device
    longer = [max(len(source), len(target)) for source, target in zip(sources, targets, strict=True)]
    results: dict[int, Hypothesis] = {}
    for rows in evaluation_batches(longer, batch_tokens) if longer else []:
        source, lengths = pad([sources[row] for row in rows], model.padding, model.eos)
        target, target_lengths = pad([targets[row] for row in rows], model.padding, model.eos)
        found = forced_search(
            model, source.to(device), lengths, target.to(device), target_lengths, config, attention=attention
        )
        results.update(zip(map(int, rows), found, strict=True))
    if any(math.isnan(one.log_probability) for one in results.values()):
        raise UserError(
            "The model's probabilities are not numbers; its training diverged or its file is damaged. "
            "Take an earlier checkpoint."
        )
    return [results[row] for row in range(len(longer))]


def score_lines(
    translator: "Translator",
    sources: Sequence[str],
    targets: Sequence[str],
    pieces: Sequence[Sequence[str] | None] | None,
    config: SearchConfig,
    limit: "LengthLimit",
    *,
    batch_tokens: int = 4096,
    attention: bool = False,
    numbers: Sequence[int],
) -> list[Translation]:
    """`Translator.score`, which tells about the arguments."""
    if isinstance(sources, str) or isinstance(targets, str):
        raise UserError("score takes lists of lines, not one string; give [source] and [target].")
    if len(sources) != len(targets):
        raise UserError(
            f"{len(sources):,} sources and {len(targets):,} targets; line i of one must belong to line i of the other."
        )
    if pieces is not None and len(pieces) != len(targets):
        raise UserError(f"{len(pieces):,} lists of pieces for {len(targets):,} targets; give one for each, or None.")
    read = translator.source_vocabulary.encode(sources)
    written = translator.target_vocabulary.encode(targets)
    positions, most = translator.decoder.most_pieces, translator.decoder.most_tokens
    kept = []
    for place, (number, ids) in enumerate(zip(numbers, read, strict=True)):
        read[place] = limit.cut(ids, positions, number, cut="the source is read up to there", emptied="not scored")
        if pieces is not None and (given := pieces[place]) is not None:
            written[place] = _ids(translator, given, number)
        elif not targets[place].strip():
            # As in a source, where characters that SentencePiece knows and Python takes for space make no text.
            written[place] = []
        if most is not None and len(written[place]) >= most:
            told = "line %d: the translation has %d pieces, more than the model has positions for, %d: not scored"
            logger.warning(told, number, len(written[place]), most - 1)
            continue
        if read[place] and sources[place].strip():
            kept.append(place)
    found = score_ids(
        translator.decoder,
        [read[place] for place in kept],
        [written[place] for place in kept],
        config,
        batch_tokens=batch_tokens,
        attention=attention,
    )
    nothing = [math.nan if ids else 0.0 for ids in written]
    results = [Translation(text, score, score, [], []) for text, score in zip(targets, nothing, strict=True)]
    for place, one in zip(kept, found, strict=True):
        results[place] = Translation(
            text=targets[place],
            score=one.score,
            log_probability=one.log_probability,
            source_pieces=[*translator.source_vocabulary.pieces(read[place]), "</s>"],
            pieces=[*translator.target_vocabulary.pieces(one.tokens), "</s>"],
            token_scores=one.token_log_probabilities,
            attention=one.attention,
        )
    return results


def _ids(translator: "Translator", pieces: Sequence[str], line: int) -> list[int]:
    whole = pieces[:-1] if pieces and pieces[-1] == "</s>" else pieces
    special = translator.target_vocabulary.special
    try:
        ids = translator.target_vocabulary.ids(whole)
        for piece, i in zip(whole, ids, strict=True):
            if i in (special.padding, special.bos, special.eos):
                raise ValueError(f"'{piece}' stands inside a translation")
    except ValueError as error:
        raise UserError(f"line {line}: {error}; give pieces that this model's search wrote, or text alone.") from None
    return ids


@dataclass
class Perplexity:
    """Of a corpus, summed up pair by pair: exp(-sum of log p / number of tokens).

    Attributes:
        log_probability: of all pairs, in nats.
        tokens: pieces and ends of sentences.
        pairs: how many counted.
        left_out: pairs without a score, or blank on both sides.
    """

    log_probability: float = 0.0
    tokens: int = 0
    pairs: int = 0
    left_out: int = 0

    def add(self, translations: Iterable[Translation]) -> None:
        """Counts further pairs."""
        for one in translations:
            if not one.pieces:
                self.left_out += 1
                continue
            self.log_probability += one.log_probability
            self.tokens += len(one.pieces)
            self.pairs += 1

    @property
    def value(self) -> float:
        """A piece; NaN for a corpus without one."""
        if not self.tokens:
            return math.nan
        mean = -self.log_probability / self.tokens
        return math.exp(mean) if mean < 700 else math.inf

    def __str__(self) -> str:
        left = f"; {self.left_out:,} blank or too long, left out" if self.left_out else ""
        return (
            f"perplexity {self.value:.4f} a piece, log p {self.log_probability:.2f} of {self.tokens:,} pieces and ends "
            f"in {self.pairs:,} lines{left}"
        )
