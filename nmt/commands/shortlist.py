"""`nmt shortlist`: which target pieces a source piece can ask for, learned from sentence pairs."""

import logging
from collections.abc import Sequence
from typing import TypeVar

from nmt.errors import UserError
from nmt.flags import make_parser, parse
from nmt.lines import read_parallel

logger = logging.getLogger(__name__)

_Item = TypeVar("_Item")
# Pieces of a source line, as nmt translate has it by default.
_LONGEST = 256


def main(words: list[str]) -> None:
    parser = make_parser(
        "shortlist",
        "Learns from sentence pairs, by IBM Model 1, which target pieces a source piece can ask for, and what the "
        "model gives to all others; with nmt translate --shortlist the output layer is computed for these alone.",
        "nmt shortlist MODEL --source FILE --target FILE -o OUTPUT [--FLAG VALUE ...]",
    )
    parser.add_argument("model", help="model file, or the folder of a run, whose vocabularies are used")
    parser.add_argument("--source", required=True, help="text of the source language, such as the training text")
    parser.add_argument("--target", required=True, help="its translation, line by line")
    parser.add_argument("-o", "--output", required=True, help="file for the shortlist (.safetensors)")
    parser.add_argument("--best", type=int, default=20, help="candidates of a source piece, at most")
    parser.add_argument("--frequent", type=int, default=100, help="most frequent pieces, candidates of every line")
    parser.add_argument("--iterations", type=int, default=5, help="of expectation and maximisation")
    parser.add_argument("--pairs", type=int, default=500_000, help="learn from so many pairs at most, evenly spread")
    parser.add_argument("--lines", type=int, default=1000, help="source lines that are translated to learn how much "
                        "probability all other pieces have; 0: scores are those among the candidates")  # fmt: skip
    chosen = parse(parser, words)
    if chosen.lines < 0:
        raise UserError(f"lines is {chosen.lines}; give 0 or more")
    for name in ("best", "frequent", "iterations", "pairs"):
        if getattr(chosen, name) < 1:
            raise UserError(f"{name} is {getattr(chosen, name)}; give at least 1")
    sources, targets = read_parallel(chosen.source, chosen.target)
    pairs = _spread(list(zip(sources, targets, strict=True)), chosen.pairs)
    from nmt.checkpoint import load_checkpoint
    from nmt.shortlist import Shortlist

    checkpoint = load_checkpoint(chosen.model)
    shortlist = Shortlist.learn(
        pairs,
        checkpoint.source_vocabulary,
        checkpoint.target_vocabulary,
        best=chosen.best,
        frequent=chosen.frequent,
        iterations=chosen.iterations,
    )
    if chosen.lines:
        from nmt.models import decoding_form
        from nmt.remainder import learn_remainder

        ids = [line[:_LONGEST] for line in checkpoint.source_vocabulary.encode(_spread(sources, chosen.lines)) if line]
        if not ids:
            raise UserError(f"{chosen.source} has blank lines alone; give text, or --lines 0")
        shortlist.remainder = learn_remainder(decoding_form(checkpoint.model), shortlist, ids)
    shortlist.save(chosen.output, checkpoint.model)
    counts = (shortlist.best >= 0).sum(1)
    logger.info(
        "%s: from %s pairs, %.1f candidates a source piece that was seen, %d of every line",
        chosen.output, f"{len(pairs):,}", counts[counts > 0].mean() if (counts > 0).any() else 0.0,
        len(shortlist.frequent),
    )  # fmt: skip


def _spread(items: Sequence[_Item], count: int) -> Sequence[_Item]:
    """So many at most, evenly spread."""
    if len(items) <= count:
        return items
    return [items[number * len(items) // count] for number in range(count)]
