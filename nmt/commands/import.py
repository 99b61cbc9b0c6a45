# ruff: noqa: N999  (the verb is a word of Python)
"""`nmt import`: a model of another toolkit as a model file of ours."""

import logging
from importlib import import_module
from pathlib import Path

from nmt.errors import UserError, did_you_mean
from nmt.flags import make_parser, parse, take
from nmt.imports import TOOLKITS

logger = logging.getLogger(__name__)


def main(words: list[str]) -> None:
    if not words or words[0] in ("-h", "--help"):
        print(_usage())
        return
    toolkit, rest = words[0], words[1:]
    if toolkit not in TOOLKITS:
        raise UserError(
            f"there is no import of '{toolkit}'.{did_you_mean(toolkit, TOOLKITS)} Toolkits: {', '.join(TOOLKITS)}."
        )
    importer = import_module(f"nmt.imports.{toolkit}")
    parser = make_parser(
        f"import {toolkit}",
        importer.__doc__ or "",
        f"nmt import {toolkit} SOURCE -o MODEL [--FLAG VALUE ...]",
    )
    parser.add_argument("source", help=TOOLKITS[toolkit])
    parser.add_argument("-o", "--output", required=True, help="file of the new model, such as model.safetensors")
    parser.add_class_arguments(importer.Options)
    chosen = parse(parser, rest)
    if Path(chosen.output).is_dir():
        raise UserError(f"{chosen.output} is a folder; give -o a file, such as {chosen.output}/model.safetensors")
    from nmt.checkpoint import save_checkpoint

    checkpoint = importer.load(chosen.source, take(chosen, importer.Options))
    save_checkpoint(chosen.output, checkpoint)
    logger.info(
        "%s: %s, %.1f million parameters, vocabularies of %d and %d pieces",
        chosen.output,
        type(checkpoint.model).__name__,
        sum(parameter.numel() for parameter in checkpoint.model.parameters()) / 1e6,
        len(checkpoint.source_vocabulary),
        len(checkpoint.target_vocabulary),
    )


def _usage() -> str:
    lines = [f"  {toolkit:<10} {source}" for toolkit, source in TOOLKITS.items()]
    title = ["usage: nmt import TOOLKIT SOURCE -o MODEL [--FLAG VALUE ...]", "", "The toolkits and their sources:"]
    return "\n".join([*title, *lines, "", "nmt import TOOLKIT --help tells more."])
