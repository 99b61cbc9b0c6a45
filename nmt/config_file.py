"""Configuration files: looked through before they are parsed, written, and compared with what was asked."""

import argparse
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import yaml

from nmt.errors import UserError, hint
from nmt.flags import make_parser, parse, take
from nmt.lines import atomic_path

if TYPE_CHECKING:
    from nmt.config import TrainConfig

MAY_CHANGE = {
    *("run", "data.cache", "data.corpus", "data.corpus_dir"),
    *("data.train_source", "data.train_target", "data.dev_source", "data.dev_target"),
    *("trainer.max_steps", "trainer.max_epochs", "trainer.max_minutes", "trainer.patience"),
    *(
        "trainer.bad_steps",
        "trainer.profile",
        "trainer.log_every",
        "trainer.compile",
        "trainer.device",
        "trainer.devices",
        "trainer.threads",
        "trainer.keep",
    ),
    *("soft_beam.recompute", "bso.recompute"),
    # As long as the processes times this stay the same; training sees to it.
    "trainer.accumulate",
}
"""What a resumed run may set anew: where things lie (checksums see to what they hold), when to end, how to
compute, what to keep. With anything else it would be another run."""


USAGE = "nmt train [--config FILE ...] [--from MODEL | --resume RUN] [--KEY VALUE ...]"
DESCRIPTION = """Trains a model. Every key of a configuration file is a flag, and the flag wins:
nmt train --config FILE --run runs/mine --model.hidden 256.
--from MODEL begins a new run with a model's weights and vocabularies; --resume RUN goes on with the same run."""


def check_config_file(path: str | Path, kind: type) -> None:
    """Makes sure that a YAML file holds keys of a configuration and nothing else.

    Values are left to the parser and to the dataclasses.

    Args:
        path: the file.
        kind: the dataclass of the whole configuration; its fields may be dataclasses in turn.

    Raises:
        UserError: the file is missing, not UTF-8, not YAML, empty or a list; a key is unknown, or a section
            holds a plain value.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}); give a YAML file") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give a YAML file") from None
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        where = f", line {place.line + 1}" if place is not None else ""
        problem = getattr(error, "problem", None) or str(error)
        raise UserError(f"{path}{where}: not YAML ({problem}); see recipes/configs for examples") from None
    if content is None:
        raise UserError(f"{path} is empty; give a YAML file with keys such as data and model")
    known = dict(keys_of(kind))
    for key, value in _walk(content, path):
        if key not in known:
            raise UserError(f"{path}: unknown key '{key}'.{hint(key, set(known))} nmt train --help lists all")
        section = any(name.startswith(f"{key}.") for name in known)
        if section and not isinstance(value, Mapping):
            raise UserError(f"{path}: {key} is {value!r}; it is a section, give keys below it")
        if value is None and type(None) not in get_args(known[key]):
            raise UserError(f"{path}: {key} is null; give a value, or leave the key out")


def read_config(path: str | Path | None = None, changes: Mapping[str, Any] | None = None) -> "TrainConfig":
    """A run's configuration, as `nmt train --config PATH --KEY VALUE ...` reads it.

    Args:
        path: a YAML file; None: the defaults.
        changes: values by their dotted keys, such as {"model.hidden": 256}.

    Raises:
        UserError: as `check_config_file`, or a value is of the wrong kind or impossible.
    """
    words = [f"--{key}={value}" for key, value in (changes or {}).items()]
    return parse_run(words if path is None else ["--config", str(path), *words])[1]


def parse_run(words: Sequence[str], parser: Any = None) -> tuple[Any, "TrainConfig"]:
    """Parses the words behind `nmt train`.

    Args:
        words: flags; --config may stand there several times, each file laid over those before it.
        parser: of another verb, made by `run_parser`; None: that of `nmt train`.

    Returns:
        The flags of the command itself (start, resume), and the run that the others describe.

    Raises:
        UserError: as `read_config`.
    """
    from nmt.config import TrainConfig

    for path in files_among(words):
        check_config_file(path, TrainConfig)
    chosen = parse(parser or _train_parser(), words)
    return chosen, take(chosen, TrainConfig)


def given_among(words: Sequence[str], section: str) -> set[str]:
    """The keys of a section that flags or configuration files of `nmt train` give, whatever their value.

    Args:
        words: that `parse_run` has understood.
        section: such as "model".
    """
    known = _train_parser().parse_args(list(words), defaults=False)
    prefix = f"{section}."
    return {key.removeprefix(prefix) for key in known.keys() if key.startswith(prefix)}  # noqa: SIM118


def _train_parser() -> Any:
    parser = run_parser("train", DESCRIPTION, USAGE)
    parser.add_argument("--resume", default=None, metavar="RUN", help="folder of the run to go on with")
    return parser


def run_parser(verb: str, description: str, usage: str) -> Any:
    """A parser of what describes a run: configuration files, the model that it begins with, and every key."""
    from jsonargparse import ActionConfigFile

    from nmt.config import TrainConfig

    parser = make_parser(verb, description, usage)
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file with any of the keys below; several are "
        "laid over each other in their order")  # fmt: skip
    parser.add_argument("--from", dest="start", default=None, metavar="MODEL", help="model file or run folder")
    parser.add_class_arguments(TrainConfig, as_group=False)
    return parser


def files_among(words: Sequence[str]) -> list[str]:
    """What --config names, in order."""
    return _look_ahead(words)[1]


def resumed_among(words: Sequence[str]) -> str | None:
    """What --resume names; that run's configuration comes before the other flags."""
    return _look_ahead(words)[0]


def _look_ahead(words: Sequence[str]) -> tuple[str | None, list[str]]:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--resume", default=None)
    parser.add_argument("--config", action="append", default=[])
    try:
        found = parser.parse_known_args(list(words))[0]
    except argparse.ArgumentError:
        return None, []  # the complete parser tells what is wrong
    return found.resume, found.config


def write_config(path: Path, config: "TrainConfig") -> None:
    """Writes a configuration that `read_config` and `nmt train --config` understand."""
    values = dataclasses.asdict(config)
    values["optimizer"]["betas"] = list(values["optimizer"]["betas"])
    with atomic_path(path) as temporary:
        temporary.write_text(yaml.safe_dump(values, sort_keys=False))


def check_resumable(saved: "TrainConfig", asked: "TrainConfig") -> None:
    """Makes sure that a resumed run stays the same run.

    Raises:
        UserError: a setting outside `MAY_CHANGE` differs.
    """
    before, now_ = _flat(dataclasses.asdict(saved)), _flat(dataclasses.asdict(asked))
    changed = [
        f"{name} is {now_[name]} instead of {value}"
        for name, value in before.items()
        if now_[name] != value and name not in MAY_CHANGE
    ]
    if changed:
        raise UserError(
            f"--resume goes on with the same run, but {', '.join(changed)}; leave that out, or begin a new run "
            "with --from"
        )


def keys_of(kind: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted names of all fields of a dataclass and of the dataclasses in it, with their types."""
    types = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        yield prefix + field.name, types[field.name]
        if dataclasses.is_dataclass(types[field.name]):
            yield from keys_of(types[field.name], f"{prefix}{field.name}.")


def _walk(content: Any, path: str | Path, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds {_describe(content)}; give a YAML file with keys such as data and model")
    for key, value in content.items():
        yield f"{prefix}{key}", value
        if isinstance(value, Mapping):
            yield from _walk(value, path, f"{prefix}{key}.")


def _describe(content: Any) -> str:
    return "a list" if isinstance(content, list) else f"the plain value {str(content)[:40]!r}"


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            result |= _flat(value, f"{prefix}{name}.")
        else:
            result[prefix + name] = tuple(value) if isinstance(value, list) else value
    return result
