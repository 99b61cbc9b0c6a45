"""`nmt plot`: attention, soft beam or learning curves as a picture."""

from pathlib import Path

from nmt.errors import UserError, did_you_mean
from nmt.flags import make_parser, parse

KINDS = ("attention", "beam", "curves")


def main(words: list[str]) -> None:
    from nmt.search import SoftSearchConfig

    parser = make_parser(
        "plot",
        "attention MODEL --text TEXT: where the decoder looked. beam MODEL --text TEXT: the soft beam unrolled. "
        "curves RUN [RUN ...]: loss and dev BLEU.",
        "nmt plot (attention MODEL | beam MODEL | curves RUN [RUN ...]) [--text TEXT] [-o PICTURE] [--FLAG VALUE ...]",
    )
    parser.add_argument("kind", help="attention, beam or curves")
    parser.add_argument("paths", nargs="+", help="a model or run folder; curves: one or more run folders")
    parser.add_argument("--text", default=None, help="the sentence to translate")
    parser.add_argument("-o", "--output", default=None, help="picture (.png, .pdf, .svg); by default KIND.png")
    parser.add_argument("--beam_size", type=int, default=5, help="attention: slots of the search")
    parser.add_class_arguments(SoftSearchConfig, "soft")
    # More slots, and sharper ones, than are best for training: there is more to see.
    parser.set_defaults({"soft.beam_size": 4, "soft.candidates": 16, "soft.temperature": 0.3})
    parser.add_argument(
        "--hard_states", action="store_true", help="beam: the search of the loss reachable_bleu, whose states are hard"
    )
    chosen = parse(parser, words)
    if chosen.kind not in KINDS:
        raise UserError(
            f"there is no plot '{chosen.kind}'.{did_you_mean(chosen.kind, KINDS)} Plots: attention, beam, curves"
        )
    output = chosen.output or f"{chosen.kind}.png"
    # matplotlib takes most of a second to import: after the words are known to be right.
    from nmt.plots import draw_attention, draw_beam, draw_curves, save_figure, trace_beam

    if chosen.kind == "curves":
        save_figure(draw_curves({Path(path).name: _reports(path) for path in chosen.paths}), output)
    else:
        if len(chosen.paths) > 1:
            raise UserError(f"nmt plot {chosen.kind} takes one model, not {len(chosen.paths)}")
        if chosen.text is None:
            raise UserError(f"nmt plot {chosen.kind} needs --text, the sentence to translate")
        from nmt.loading import load

        translator = load(chosen.paths[0])
        if chosen.kind == "attention":
            found = translator.search([chosen.text], beam_size=chosen.beam_size, attention=True)
            save_figure(draw_attention(found[0][0]), output)
        else:
            trace = trace_beam(translator, chosen.text, chosen.soft, hard_states=chosen.hard_states)
            save_figure(draw_beam(trace), output)
    print(output)


def _reports(path: str) -> list[dict]:
    from nmt.runs.journal import read_journal

    reports = read_journal(Path(path) / "metrics.jsonl")
    if not reports:
        raise UserError(f"{path} holds no metrics.jsonl with reports; give the folder of a run")
    return reports
