"""`nmt train`: trains a model from a configuration file and flags."""

import sys
from pathlib import Path

from nmt.cli import make_parser, parse
from nmt.errors import UserError

DESCRIPTION = """Trains a model. Every key of a configuration file is a flag, and the flag wins:
nmt train --config recipes/configs/multi30k.yaml --run runs/mine --model.hidden 256.
--from MODEL begins a new run with a model's weights and vocabularies; --resume RUN goes on with the same run."""


def main(words: list[str]) -> None:
    parser = make_parser("train", DESCRIPTION)
    parser.add_argument("--from", dest="start", default=None, metavar="MODEL", help="model file or run folder")
    parser.add_argument("--resume", default=None, metavar="RUN", help="folder of the run to go on with")
    _add_config(parser)
    chosen = parse(parser, words)
    if chosen.resume is not None and chosen.start is not None:
        raise UserError("--from begins a new run and --resume goes on with an old one; give one of them")
    from nmt.training import check_resumable, train

    if chosen.resume is None:
        train(_config(chosen), start=chosen.start)
        return
    saved_file = Path(chosen.resume) / "config.yaml"
    if not saved_file.is_file():
        raise UserError(f"{chosen.resume} holds no run (no config.yaml); give the folder of a run")
    saved = _read(saved_file)
    # The run's own configuration first, so that flags stand on top of it and are seen to differ.
    again = make_parser("train", DESCRIPTION)
    again.add_argument("--from", dest="start", default=None)
    again.add_argument("--resume", default=None)
    _add_config(again)
    asked = _config(parse(again, ["--config", str(saved_file), *words]))
    asked.run = saved.run = chosen.resume
    check_resumable(saved, asked)
    train(asked, resume=True)


def _add_config(parser) -> None:  # type: ignore[no-untyped-def]
    from jsonargparse import ActionConfigFile

    from nmt.config import TrainConfig

    parser.add_argument("--config", action=ActionConfigFile, help="YAML file with any of the keys below")
    parser.add_class_arguments(TrainConfig, as_group=False)


def _config(chosen):  # type: ignore[no-untyped-def]
    import dataclasses

    from nmt.config import TrainConfig

    return TrainConfig(**{field.name: getattr(chosen, field.name) for field in dataclasses.fields(TrainConfig)})


def _read(path: Path):  # type: ignore[no-untyped-def]
    parser = make_parser("train", "")
    _add_config(parser)
    try:
        return _config(parse(parser, ["--config", str(path)]))
    except UserError as error:
        print(f"nmt: {path}: {error}", file=sys.stderr)  # noqa: T201
        raise
