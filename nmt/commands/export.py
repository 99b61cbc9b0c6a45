"""`nmt export`: a model as a folder that runs without torch, or that transformers opens."""

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from nmt.errors import UserError
from nmt.flags import make_parser, parse, take
from nmt.runner.settings import Settings

logger = logging.getLogger(__name__)


@dataclass
class Options:
    """What is written."""

    format: Literal["onnx", "hf"] = "onnx"
    """onnx: graphs for `python -m nmt.runner FOLDER`, which needs numpy, sentencepiece and onnxruntime alone. hf: of a
    model that `nmt import hf` has made, what save_pretrained of transformers writes."""


def main(words: list[str]) -> None:
    parser = make_parser(
        "export",
        "Writes a model as ONNX graphs with its vocabularies; `python -m nmt.runner FOLDER` translates with them. The "
        "flags are what it does unless told otherwise. With --format hf a model of transformers is written for "
        "transformers.",
        "nmt export MODEL -o FOLDER [--FLAG VALUE ...]",
    )
    parser.add_argument("model", help="model file, or the folder of a run")
    parser.add_argument("-o", "--output", help="a new folder")
    parser.add_class_arguments(Options)
    parser.add_class_arguments(Settings)
    chosen = parse(parser, words)
    if not chosen.output:
        raise UserError("nmt export needs a folder to write; give -o FOLDER")
    settings, folder = take(chosen, Settings), Path(chosen.output)
    if chosen.format == "hf":
        for name, value in asdict(Settings()).items():
            if getattr(settings, name) != value:
                raise UserError(f"{name} is a setting of the runner and format is hf; leave out one")
        _export_hf(chosen.model, folder)
    else:
        _export_onnx(chosen.model, folder, settings)


def _export_onnx(model: str, folder: Path, settings: Settings) -> None:
    from nmt.checkpoint import load_checkpoint
    from nmt.export import check_ready, export_model

    check_ready(folder)
    export_model(load_checkpoint(model), folder, settings)
    logger.info("%s: %.1f MB; python -m nmt.runner %s < in > out", folder, _megabytes(folder), folder)


def _export_hf(model: str, folder: Path) -> None:
    from nmt.checkpoint import load_checkpoint
    from nmt.lines import check_empty
    from nmt.pretrained_folder import export_folder

    check_empty(folder)
    export_folder(load_checkpoint(model), folder)
    logger.info("%s: %.1f MB; AutoModelForSeq2SeqLM.from_pretrained('%s')", folder, _megabytes(folder), folder)


def _megabytes(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.iterdir()) / 1e6
