"""`nmt evaluate`: BLEU and chrF with their signatures."""

import json

from nmt.cli import make_parser, parse
from nmt.errors import UserError
from nmt.evaluation import evaluate
from nmt.lines import read_lines


def main(words: list[str]) -> None:
    parser = make_parser(
        "evaluate",
        "Scores translations against references by sacreBLEU, on detokenised text: either lines that are there "
        "(--hypotheses) or those that a model makes of --source.",
    )
    parser.add_argument("model", nargs="?", default=None, help="model file, or the folder of a run")
    parser.add_argument("--source", default=None, help="text that the model translates")
    parser.add_argument("--hypotheses", default=None, help="translations to score; - is standard input")
    parser.add_argument("--reference", nargs="+", required=True, help="one or more references, line by line")
    parser.add_argument("--output", default=None, help="file for the model's translations")
    parser.add_argument("--beam_size", type=int, default=5, help="of the model's search")
    parser.add_argument("--device", default="auto", help="auto (a GPU when there is one), cpu, cuda")
    parser.add_argument("--metrics", nargs="+", default=["bleu", "chrf"], help="any of bleu, chrf")
    parser.add_argument("--lowercase", action="store_true", help="BLEU ignores case")
    parser.add_argument("--tokenize", default="13a", help="sacreBLEU's tokeniser for BLEU")
    parser.add_argument("--json", action="store_true", help="print JSON")
    chosen = parse(parser, words)
    if (chosen.model is None) == (chosen.hypotheses is None):
        raise UserError("give either a model with --source, or --hypotheses")
    references = [read_lines(path) for path in chosen.reference]
    if chosen.hypotheses is not None:
        lines = read_lines(chosen.hypotheses)
    else:
        if chosen.source is None:
            raise UserError("a model needs --source, the text to translate")
        lines = _translate(chosen.model, chosen.source, references, chosen.output, chosen.beam_size, chosen.device)
    scores = evaluate(lines, references, metrics=chosen.metrics, lowercase=chosen.lowercase, tokenize=chosen.tokenize)
    if chosen.json:
        rows = [{"name": s.name, "score": s.value, "signature": s.signature} for s in scores]
        print(json.dumps(rows, indent=2))  # noqa: T201
    else:
        for score in scores:
            print(score.details)  # noqa: T201
            print(f"  signature: {score.signature}")  # noqa: T201


def _translate(
    model: str, source: str, references: list[list[str]], output: str | None, beam_size: int, device: str
) -> list[str]:
    from nmt.lines import write_lines
    from nmt.translator import load

    lines = read_lines(source)
    if any(len(lines) != len(reference) for reference in references):
        # Before the translation, which may take long.
        counts = ", ".join(f"{len(reference):,}" for reference in references)
        raise UserError(f"{source} has {len(lines):,} lines, the reference {counts}; they must correspond line by line")
    translated = load(model, device).translate(lines, beam_size=beam_size)
    if output is not None:
        write_lines(output, translated)
    return translated
