"""`nmt average`: several models become one, whose weights are their mean."""

import logging
from pathlib import Path

from nmt.errors import UserError
from nmt.flags import make_parser, parse

logger = logging.getLogger(__name__)


def main(words: list[str]) -> None:
    parser = make_parser(
        "average",
        "Averages the weights of models of one shape and vocabulary. Of one run's folder alone: the models that it has "
        "kept of its last validations (trainer.keep).",
        "nmt average (RUN | MODEL MODEL [MODEL ...]) -o OUTPUT",
    )
    parser.add_argument("model", nargs="+", help="model files or the folders of runs")
    parser.add_argument("-o", "--output", required=True, help="file of the new model, such as average.safetensors")
    chosen = parse(parser, words)
    if Path(chosen.output).is_dir():
        raise UserError(f"{chosen.output} is a folder; give --output a file, such as average.safetensors")
    # torch takes seconds to import: after the words are known to be right.
    from nmt.checkpoint import average_checkpoints, find_model, save_checkpoint

    paths = _kept(chosen.model[0]) if len(chosen.model) == 1 else [find_model(name) for name in chosen.model]
    real = [path.resolve() for path in paths]
    for path in real:
        if real.count(path) > 1:
            raise UserError(f"{path.name} in {path.parent} is given twice; name each model once")
    if Path(chosen.output).resolve() in real:
        raise UserError(f"{chosen.output} is one of the models; give another output")
    save_checkpoint(chosen.output, average_checkpoints(paths))
    logger.info("averaged %d models: %s", len(paths), ", ".join(map(str, paths)))


def _kept(name: str) -> list[Path]:
    from nmt.checkpoint import kept_models

    folder = Path(name)
    if not folder.exists():
        raise UserError(f"{name} does not exist; give the folder of a run, or several models")
    found = list(kept_models(folder).values()) if folder.is_dir() else []
    if not found:
        what = "is one model" if not folder.is_dir() else "holds no kept models (model.UPDATE.safetensors)"
        raise UserError(f"{name} {what}; give several models, or a run that was trained with trainer.keep (such as 5)")
    return found
