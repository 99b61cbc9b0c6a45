"""`nmt train`: trains a model from a configuration file and flags."""

from pathlib import Path
from typing import TYPE_CHECKING

from nmt.config_file import check_resumable, given_among, parse_run, resumed_among
from nmt.errors import UserError

if TYPE_CHECKING:
    from nmt.config import TrainConfig


def main(words: list[str]) -> int:
    folder = resumed_among(words)
    if folder is None:
        chosen, config = parse_run(words)
        return _run(words, config, chosen.start, resume=False)
    if any(word.split("=")[0] == "--from" for word in words):
        raise UserError("--from begins a new run and --resume goes on with an old one; give one of them")
    saved = Path(folder) / "config.yaml"
    if not saved.is_file():
        raise UserError(f"{folder} holds no run (no config.yaml); give the folder of a run")
    # The run's own configuration first: flags stand on top of it and are seen to differ.
    own = ["--config", str(saved)]
    _, config = parse_run([*own, *words])
    config.run = folder
    check_resumable(parse_run(own)[1], config)
    return _run(words, config, None, resume=True)


def _run(words: list[str], config: "TrainConfig", start: str | None, resume: bool) -> int:
    """Trains in this process, or starts those that do where nobody has."""
    from nmt.runs.world import read_world

    if config.trainer.devices > 1 and read_world().size == 1:
        from nmt.runs.launcher import launch

        return launch(words, config.trainer.devices)
    from nmt.runs.training import train

    # Told apart from defaults only here: what is given on top of --from changes the model's shape.
    given = None if start is None else given_among(words, "model")
    train(config, start=start, resume=resume, given=given)
    return 0
