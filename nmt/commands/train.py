"""`nmt train`: trains a model from a configuration file and flags."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nmt.cli import make_parser, parse, take
from nmt.errors import UserError

if TYPE_CHECKING:
    from nmt.config import TrainConfig

DESCRIPTION = """Trains a model. Every key of a configuration file is a flag, and the flag wins:
nmt train --config FILE --run runs/mine --model.hidden 256.
--from MODEL begins a new run with a model's weights and vocabularies; --resume RUN goes on with the same run."""


def main(words: list[str]) -> None:
    folder, files = _look_ahead(words)
    if folder is not None and any(word.split("=")[0] == "--from" for word in words):
        raise UserError("--from begins a new run and --resume goes on with an old one; give one of them")
    saved = Path(folder) / "config.yaml" if folder is not None else None
    if saved is not None:
        if not saved.is_file():
            raise UserError(f"{folder} holds no run (no config.yaml); give the folder of a run")
        files = [str(saved), *files]
    if files:
        from nmt.config import TrainConfig
        from nmt.config_file import check_config_file

        for path in files:
            check_config_file(path, TrainConfig)
    # The run's own configuration first: flags stand on top of it and are seen to differ.
    chosen, config = _parse(words if saved is None else ["--config", str(saved), *words])
    from nmt.config_file import check_resumable
    from nmt.training import train

    if saved is None:
        train(config, start=chosen.start)
        return
    config.run = str(folder)
    check_resumable(_parse(["--config", str(saved)])[1], config)
    train(config, resume=True)


def _parse(words: Sequence[str]) -> tuple[Any, "TrainConfig"]:
    """Parses the words; gives the flags of the command itself, and the run that the others describe."""
    from jsonargparse import ActionConfigFile

    from nmt.config import TrainConfig

    parser = make_parser(
        "train", DESCRIPTION, "nmt train [--config FILE] [--from MODEL | --resume RUN] [--KEY VALUE ...]"
    )
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file with any of the keys below")
    parser.add_argument("--from", dest="start", default=None, metavar="MODEL", help="model file or run folder")
    parser.add_argument("--resume", default=None, metavar="RUN", help="folder of the run to go on with")
    parser.add_class_arguments(TrainConfig, as_group=False)
    chosen = parse(parser, words)
    return chosen, take(chosen, TrainConfig)


def _look_ahead(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """What --resume and --config name: a resumed run's configuration comes before the other flags."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--resume", default=None)
    parser.add_argument("--config", action="append", default=[])
    try:
        found = parser.parse_known_args(list(words))[0]
    except argparse.ArgumentError:
        return None, []  # the complete parser tells what is wrong
    return found.resume, found.config
