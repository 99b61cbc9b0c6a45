"""`nmt train`: trains a model from a configuration file and flags."""

from pathlib import Path

from nmt.config_file import check_resumable, parse_run, resumed_among
from nmt.errors import UserError


def main(words: list[str]) -> None:
    folder = resumed_among(words)
    if folder is None:
        chosen, config = parse_run(words)
        from nmt.training import train

        train(config, start=chosen.start)
        return
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
    from nmt.training import train

    train(config, resume=True)
