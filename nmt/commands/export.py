"""`nmt export`: a model as a folder that runs without torch."""

import logging
from pathlib import Path

from nmt.errors import UserError
from nmt.flags import make_parser, parse, take

logger = logging.getLogger(__name__)


def main(words: list[str]) -> None:
    from nmt.runner.settings import Settings

    parser = make_parser(
        "export",
        "Writes a model as ONNX graphs with its vocabularies; `python -m nmt.runner FOLDER` translates with them and "
        "needs numpy, sentencepiece and onnxruntime alone. The flags are what it does unless told otherwise.",
        "nmt export MODEL -o FOLDER [--FLAG VALUE ...]",
    )
    parser.add_argument("model", help="model file, or the folder of a run")
    parser.add_argument("-o", "--output", help="a new folder")
    parser.add_class_arguments(Settings)
    chosen = parse(parser, words)
    if not chosen.output:
        raise UserError("nmt export needs a folder to write; give -o FOLDER")
    settings, folder = take(chosen, Settings), Path(chosen.output)
    from nmt.checkpoint import load_checkpoint
    from nmt.export import check_ready, export_model

    check_ready(folder)
    export_model(load_checkpoint(chosen.model), folder, settings)
    size = sum(file.stat().st_size for file in folder.iterdir())
    logger.info("%s: %.1f MB; python -m nmt.runner %s < in > out", folder, size / 1e6, folder)
