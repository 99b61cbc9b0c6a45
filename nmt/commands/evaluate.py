"""`nmt evaluate`: BLEU and chrF with their signatures."""

import json
from typing import Any

from nmt.errors import UserError
from nmt.evaluation import evaluate
from nmt.flags import make_parser, parse
from nmt.lines import read_lines, write_lines


def main(words: list[str]) -> None:
    parser = make_parser(
        "evaluate",
        "Scores translations against references by sacreBLEU, on detokenised text: either lines that are there "
        "(--hypotheses) or those that a model makes of --source.",
        "nmt evaluate (MODEL --source FILE [--FLAG VALUE ...] | --hypotheses FILE) --reference FILE [FILE ...]",
    )
    parser.add_argument("--reference", nargs="+", required=True, help="one or more references, line by line")
    parser.add_argument("--hypotheses", default=None, help="translations to score; - is standard input")
    parser.add_argument("--metrics", nargs="+", default=["bleu", "chrf"], help="any of bleu, chrf")
    parser.add_argument("--lowercase", action="store_true", help="BLEU ignores case")
    parser.add_argument("--tokenize", default="13a", help="sacreBLEU's tokeniser for BLEU")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("model", nargs="?", default=None, help="model file, or the folder of a run")
    parser.add_argument("--source", default=None, help="text that the model translates")
    parser.add_argument("--output", default=None, help="file for the model's translations")
    given = any(word.split("=")[0] == "--hypotheses" for word in words)
    if not given:
        # The flags of the search come with torch, seconds that scoring does not need.
        from nmt.commands.translate import add_search_flags

        add_search_flags(parser)
    chosen = parse(parser, words)
    if given and (chosen.model or chosen.source or chosen.output):
        raise UserError("--hypotheses are scored as they are; leave out the model, --source and --output")
    if not given and (chosen.model is None or chosen.source is None):
        raise UserError("give --hypotheses, or a model and --source, the text to translate")
    references = [read_lines(path) for path in chosen.reference]
    lines = read_lines(chosen.hypotheses) if given else _translate(chosen, references)
    scores = evaluate(lines, references, metrics=chosen.metrics, lowercase=chosen.lowercase, tokenize=chosen.tokenize)
    if chosen.json:
        rows = [{"name": s.name, "score": s.value, "signature": s.signature} for s in scores]
        print(json.dumps(rows, indent=2))
    else:
        for score in scores:
            print(score.details)
            print(f"  signature: {score.signature}")


def _translate(chosen: Any, references: list[list[str]]) -> list[str]:
    """The model's translations of the source, whose length is checked before: translating may take long."""
    from nmt.commands.translate import load_translator, search_options

    options = search_options(chosen)
    if chosen.n_best > 1:
        raise UserError(f"n_best is {chosen.n_best}; one translation a line is scored, leave it out")
    lines = read_lines(chosen.source)
    for path, reference in zip(chosen.reference, references, strict=True):
        if len(lines) != len(reference):
            raise UserError(
                f"{chosen.source} has {len(lines):,} lines and {path} has {len(reference):,}; line i of one must "
                "belong to line i of the other"
            )
    translated = load_translator(chosen).translate(lines, **options)
    if chosen.output is not None:
        write_lines(chosen.output, translated)
    return translated
