"""`nmt score`: what a model gives to translations that are there."""

import json
import logging
import math
import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from nmt.errors import UserError, did_you_mean
from nmt.flags import make_parser, parse, take
from nmt.lines import iterate_lines

if TYPE_CHECKING:
    from nmt.scoring import Perplexity
    from nmt.search import SearchConfig
    from nmt.translation import Translation

logger = logging.getLogger(__name__)

FORMATS = ("tsv", "jsonl", "text")
_OF_SCORE = ("normalization", "alpha", "coverage")


def main(words: list[str]) -> None:
    parser = make_parser(
        "score",
        "Scores translations that are there, line by line, by forced decoding; the last line on standard error is the "
        "perplexity of the corpus. A pair with a blank source has no score (nan; null in JSON), or 0 if its target is "
        "blank, too; a blank target is scored as an empty translation.",
        "nmt score MODEL --source FILE --target FILE [-o OUTPUT] [--FLAG VALUE ...]",
    )
    add = parser.add_argument
    add("model", help="model file, or the folder of a run")
    add("--source", required=True, help="text file, plain or .gz; - is standard input")
    add("--target", required=True, help="its translations, line by line")
    add("--jsonl", action="store_true", help="the target is what nmt translate --format jsonl wrote: the first "
        "translation of each line, in the very pieces of the search (as text it may be cut into others)")  # fmt: skip
    add("-o", "--output", default="-", help="a line for each pair; - is standard output")
    add("--format", default="tsv", help="tsv: score, log-probability and number of tokens under a heading; jsonl: the "
        "same with pieces and their log-probabilities; text: the score alone")  # fmt: skip
    add("--ensemble", nargs="+", default=[], help="further models of the same vocabularies, as for nmt translate")
    add("--buffer", type=int, default=2048, help="most lines that are sorted into batches, and written, together; a "
        "pipe has the score of each line as soon as it can")  # fmt: skip
    add("--dtype", default="float32", help="of the weights: float32 or bfloat16; scores stay float32")
    add("--int8", action="store_true", help="on the CPU: multiply in 8 bits")
    add_score_flags(parser)
    chosen = parse(parser, words)
    config = score_config(chosen)
    precision = {"dtype": chosen.dtype, "int8": chosen.int8}
    _check_words(chosen)
    options = {"config": config, "limit": _limit(chosen), "batch_tokens": chosen.batch_tokens}
    _check_lengths(chosen)
    import torch

    from nmt.files.output import open_output
    from nmt.loading import load
    from nmt.models.kernels import keep_few_kernels
    from nmt.scoring import Perplexity

    if chosen.int8:
        keep_few_kernels()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    translator = load(chosen.model, chosen.device, ensemble=chosen.ensemble, **precision).keep_decoder_alone()
    logger.info("score %s", config.formula)
    perplexity = Perplexity()
    blocks = _blocks(chosen)
    with open_output(chosen.output, None) as output:
        last = 0
        for lines in _scored(translator, blocks, chosen.format, options, perplexity):
            last += len(lines)
            output.write("".join(f"{line}\n" for line in lines).encode("utf-8"), last, "")
    logger.info("%s", perplexity)


def add_score_flags(parser: Any) -> None:
    """The flags of a verb that scores: how scores are normalised, and where to compute."""
    from dataclasses import fields

    from nmt.search import SearchConfig
    from nmt.translator import LengthLimit

    parser.add_argument("--device", default="auto", help="auto (a GPU when there is one), cpu, cuda")
    parser.add_argument("--threads", type=int, default=0, help="threads on the CPU; 0: torch's own choice")
    parser.add_argument("--batch_tokens", type=int, default=4096, help="most tokens of a batch on the longer side")
    parser.add_class_arguments(SearchConfig, skip={field.name for field in fields(SearchConfig)} - {*_OF_SCORE})
    parser.add_class_arguments(LengthLimit)


def score_config(chosen: Any) -> "SearchConfig":
    """The score among what was parsed.

    Raises:
        UserError: an impossible value of it, of batch_tokens or of threads.
    """
    from nmt.search import SearchConfig

    for name, least in (("batch_tokens", 1), ("threads", 0)):
        if getattr(chosen, name) < least:
            raise UserError(f"{name} is {getattr(chosen, name)}; give at least {least}")
    try:
        return SearchConfig(**{name: getattr(chosen, name) for name in _OF_SCORE})
    except UserError as error:
        raise UserError(str(error).replace("search.", "")) from None


def _limit(chosen: Any) -> Any:
    from nmt.translator import LengthLimit

    return take(chosen, LengthLimit)


def _check_words(chosen: Any) -> None:
    if chosen.format not in FORMATS:
        raise UserError(
            f"format is '{chosen.format}'; choose {', '.join(FORMATS)}.{did_you_mean(chosen.format, FORMATS)}"
        )
    if chosen.buffer < 1:
        raise UserError(f"buffer is {chosen.buffer}; give at least 1")
    if chosen.source == chosen.target == "-":
        raise UserError("source and target cannot both be standard input (-); give at least one file")
    for name in (chosen.source, chosen.target):
        if "-" not in (name, chosen.output) and os.path.realpath(name) == os.path.realpath(chosen.output):
            raise UserError(f"{name} is read and written; give another output")


def _check_lengths(chosen: Any) -> None:
    """Before the model is loaded; a pipe can be read but once, so there it shows at the end."""
    pair = (chosen.source, chosen.target)
    files = [
        name
        for name in pair
        if name != "-" and (os.path.isfile(name) or os.path.isdir(name) or not os.path.exists(name))
    ]
    counts = [sum(1 for _ in iterate_lines(name)) for name in files]
    if len(counts) == 2 and counts[0] != counts[1]:
        raise _uneven(chosen, *(f"{count:,}" for count in counts))


def _uneven(chosen: Any, source: str, target: str) -> UserError:
    return UserError(
        f"{chosen.source} has {source} lines and {chosen.target} has {target}; line i of one must be the translation "
        "of line i of the other"
    )


def _blocks(chosen: Any) -> Iterator[list[tuple[str, str, list[str] | None]]]:
    """Sources, targets, and the pieces of these where they are given: as many at a time as are there."""
    from nmt.files.chunks import chunks, open_lines

    (sources, source_ready), (lines, target_ready) = open_lines(chosen.source), open_lines(chosen.target)
    targets = _translations(lines, chosen.target) if chosen.jsonl else ((line, None) for line in lines)
    return chunks(_pairs(chosen, sources, targets), chosen.buffer, lambda: source_ready() and target_ready())


def _pairs(
    chosen: Any, sources: Iterator[str], targets: Iterator[tuple[str, list[str] | None]]
) -> Iterator[tuple[str, str, list[str] | None]]:
    count = 0
    for source in sources:
        target = next(targets, None)
        if target is None:
            raise _uneven(chosen, f"more than {count:,}", f"{count:,}")
        count += 1
        yield source, *target
    if next(targets, None) is not None:
        raise _uneven(chosen, f"{count:,}", f"more than {count:,}")


def _translations(lines: Iterable[str], name: str) -> Iterator[tuple[str, list[str] | None]]:
    """Text and pieces of the first translation of each line of JSON; an empty translation has no pieces to give."""
    for number, line in enumerate(lines, start=1):
        try:
            best = json.loads(line)["translations"][0]
            text, pieces = best["text"], best["pieces"]
            if not (isinstance(text, str) and isinstance(pieces, list) and all(isinstance(one, str) for one in pieces)):
                raise TypeError
        except (ValueError, KeyError, IndexError, TypeError):
            raise UserError(
                f"{name}, line {number:,} is not what nmt translate --format jsonl writes; give its output, or text "
                "without --jsonl"
            ) from None
        yield text, pieces or None


def _scored(
    translator: Any,
    blocks: Iterable[list[tuple[str, str, list[str] | None]]],
    form: str,
    options: dict,
    perplexity: "Perplexity",
) -> Iterator[list[str]]:
    """The heading of a table, and the lines of each block."""
    if form == "tsv":
        yield ["score\tlog_probability\ttokens"]
    first = 1
    for block in blocks:
        sources, targets, pieces = zip(*block, strict=True)
        found = translator.score(sources, targets, pieces=pieces, first_line=first, **options)
        perplexity.add(found)
        first += len(block)
        yield [_line(one, form) for one in found]


def _line(one: "Translation", form: str) -> str:
    if form == "text":
        return f"{one.score:.6f}"
    if form == "tsv":
        return f"{one.score:.6f}\t{one.log_probability:.6f}\t{len(one.pieces)}"
    values = {"score": _value(one.score), "log_probability": _value(one.log_probability), "tokens": len(one.pieces)}
    scores = [_value(score) for score in one.token_scores]
    return json.dumps({**values, "pieces": one.pieces, "token_scores": scores}, ensure_ascii=False)


def _value(number: float) -> float | None:
    """JSON knows no NaN."""
    return None if math.isnan(number) else round(number, 6)
