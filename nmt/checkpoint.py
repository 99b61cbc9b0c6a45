"""The model file: weights, vocabularies and configuration in one safetensors file, nothing that could run.

Two kinds of files must not be confused. `model.safetensors`, written here, is what people translate with
and pass on. `last.ckpt`, written by Lightning in a run's folder, is what `--resume` goes on from.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from nmt.adapters import plain_state
from nmt.checksum import KEY, check_content, content_checksum
from nmt.errors import UserError
from nmt.lines import atomic_path
from nmt.models import (
    REGULARISATION,
    Luong,
    Pretrained,
    PretrainedConfig,
    Recurrent,
    RNNsearch,
    RNNsearchConfig,
    Seq2Seq,
)
from nmt.text.vocabulary import Vocabulary, open_vocabulary

logger = logging.getLogger(__name__)

FORMAT = 1
NAME = "model.safetensors"
_VOCABULARY = "vocabulary."
ARCHITECTURES: dict[str, tuple[type[Seq2Seq], type]] = {
    "rnnsearch": (RNNsearch, RNNsearchConfig),
    "luong": (Luong, RNNsearchConfig),
    "transformers": (Pretrained, PretrainedConfig),
}
RECURRENT = ("rnnsearch", "luong")
"""Those that a run's configuration, section `model`, describes; the others come by --from alone."""


@dataclass
class Checkpoint:
    """A model with what it takes to use it.

    Attributes:
        model: in evaluation mode when loaded.
        source_vocabulary, target_vocabulary: one object twice when the vocabulary is joint.
        info: languages, training data, dev BLEU and the like: plain JSON values.
    """

    model: Seq2Seq
    source_vocabulary: Vocabulary
    target_vocabulary: Vocabulary
    info: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(path: str | Path, checkpoint: Checkpoint) -> None:
    """Writes the model file; a failure, such as a full disk, leaves a file of that name as it was.

    Raises:
        UserError: the file cannot be written.
    """
    model = checkpoint.model
    tensors: dict[str, torch.Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[int, str] = {}
    # To the end of the loop: memory that is let go of may be that of another tensor.
    state = plain_state(model)
    for name, tensor in state.items():
        # Tied weights are one tensor under several names; safetensors keeps each tensor once.
        first = seen.setdefault(tensor.data_ptr(), name) if tensor.numel() else name
        if first != name:
            aliases[name] = first
        else:
            tensors[name] = tensor.detach().cpu().contiguous()
    joint = checkpoint.source_vocabulary is checkpoint.target_vocabulary
    vocabularies = {"target": checkpoint.target_vocabulary}
    if not joint:
        vocabularies["source"] = checkpoint.source_vocabulary
    for side, vocabulary in vocabularies.items():
        tensors[_VOCABULARY + side] = torch.frombuffer(bytearray(vocabulary.model), dtype=torch.uint8)
    header = {
        "format": FORMAT,
        **describe_architecture(model),
        "aliases": aliases,
        "info": checkpoint.info,
    }
    header[KEY] = content_checksum(header, tensors)
    # Written by us, not by safetensors, whose files only their owner may read.
    content = save(tensors, metadata={"nmt": json.dumps(header, sort_keys=True)})
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def describe_architecture(model: Seq2Seq) -> dict[str, Any]:
    """The name and the configuration of a model's architecture, plain JSON values, of which `build_model` makes one."""
    architecture = next(name for name, (kind, _) in ARCHITECTURES.items() if type(model) is kind)
    return {"architecture": architecture, "config": dataclasses.asdict(model.config)}  # type: ignore[call-overload]


def build_model(described: dict[str, Any], source: Vocabulary, target: Vocabulary, *, draw: bool = True) -> Seq2Seq:
    """A model of what `describe_architecture` has described, with fresh weights, or, where others are about to be
    loaded, with any: drawing those of a large recurrent model takes seconds."""
    kind, config_kind = ARCHITECTURES[described["architecture"]]
    options = {} if draw or not issubclass(kind, Recurrent) else {"draw": False}
    return kind(config_kind(**described["config"]), len(source), len(target), **options)


def load_checkpoint(path: str | Path, device: str | torch.device = "cpu") -> Checkpoint:
    """Reads a model file, or that of a run's folder.

    Args:
        path: a model file, or a folder that holds one named model.safetensors.
        device: where the weights go.

    Raises:
        UserError: there is no such file, it is truncated, a bit of it has changed, or it is not one of ours.
    """
    path = find_model(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            header = json.loads((file.metadata() or {})["nmt"])
            if not isinstance(header, dict):
                raise KeyError("nmt")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        check_content(header, tensors)
    except KeyError:
        raise UserError(f"{path} is a safetensors file, but not a model of nmt; give a model that nmt wrote.") from None
    except (SafetensorError, ValueError) as error:
        raise UserError(
            f"{path} is damaged or not a model file ({error}); copy it again or give a model that nmt wrote."
        ) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from None
    if header.get("format") != FORMAT:
        raise UserError(
            f"{path} has format {header.get('format')}, this version reads format {FORMAT}; "
            "use the version of nmt that wrote it."
        )
    architecture = header.get("architecture")
    if architecture not in ARCHITECTURES:
        raise UserError(
            f"{path} holds an architecture '{architecture}'; this version knows {', '.join(ARCHITECTURES)}."
        )
    try:
        target = open_vocabulary(tensors.pop(_VOCABULARY + "target").numpy().tobytes())
        source_model = tensors.pop(_VOCABULARY + "source", None)
        source = target if source_model is None else open_vocabulary(source_model.numpy().tobytes())
        model = build_model(header, source, target, draw=False)
        for name, first in header["aliases"].items():
            tensors[name] = tensors[first]
        model.load_state_dict(tensors)
        info = dict(header.get("info", {}))
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        message = " ".join(str(error).split())[:200]
        raise UserError(f"{path} does not fit this version of the model ({message}).") from None
    return Checkpoint(model.eval().to(device), source, target, info)


def find_model(path: str | Path) -> Path:
    """The model file that `path` names: itself, or the one in the folder of that name."""
    path = Path(path)
    if path.is_dir():
        if not (path / NAME).exists():
            hint = "; its training has not reached a validation yet" if (path / "config.yaml").exists() else ""
            raise UserError(f"{path} holds no {NAME}{hint}; give a model file or the folder of a finished run.")
        return path / NAME
    if not path.exists():
        raise UserError(f"{path} does not exist; give a model file ({NAME}) or the folder of a run.")
    if path.suffix == ".ckpt":
        raise UserError(f"{path} is what nmt train --resume goes on from; give the folder of the run, or its {NAME}.")
    return path


def kept_name(step: int) -> str:
    """Name of the model that a run keeps of a validation (`trainer.keep`)."""
    return f"model.{step}.safetensors"


def kept_models(folder: str | Path) -> dict[int, Path]:
    """The models that a run has kept, by their update, ascending."""
    found = {}
    for path in Path(folder).glob("model.*.safetensors"):
        if number := re.fullmatch(r"model\.(\d+)\.safetensors", path.name):
            found[int(number[1])] = path
    return dict(sorted(found.items()))


def average_checkpoints(paths: Sequence[str | Path]) -> Checkpoint:
    """The arithmetic mean of the weights of several models, such as the last of one run (Junczys-Dowmunt et al.,
    WMT 2016, section 2; Vaswani et al. 2017, section 6.1).

    Sums are taken in float64, in an order that does not depend on that of the paths; what is no floating-point number
    must be equal. One model is held in memory, and while the files are compared a second one.

    Args:
        paths: model files, or folders that hold one named model.safetensors. A model may be named several times.

    Returns:
        The mean, in evaluation mode. Its `info` holds what the models' have in common, without the dev BLEU, and under
        "averaged" the file, the checksum and the dev BLEU of each.

    Raises:
        UserError: no model, one that cannot be read, weights that are not numbers, or models that differ in
            architecture, vocabularies or configuration but for dropout; names the first difference.
    """
    if not paths:
        raise UserError("There are 0 models to average; give at least one.")
    # By content, so that equal models make an equal mean, whatever their order.
    files = sorted((_checksum(file), file) for file in map(find_model, paths))
    mean = load_checkpoint(files[0][1])
    infos = [mean.info, *(_info_of_alike(mean, files[0][1], file) for _, file in files[1:])]
    with contextlib.ExitStack() as stack, torch.no_grad():
        opened = [(file, stack.enter_context(safe_open(file, framework="pt", device="cpu"))) for _, file in files]
        # Tied weights are one tensor of the file and one of the model: they are set once and stay tied.
        stored = set(opened[0][1].keys())
        for name, tensor in mean.model.state_dict().items():
            if name not in stored:
                continue
            total = torch.zeros(tensor.shape, dtype=torch.float64)
            for file, content in opened:
                part = content.get_tensor(name)
                if not tensor.is_floating_point():
                    if not torch.equal(part, tensor):
                        raise UserError(
                            f"{files[0][1]} and {file} differ in {name}, which has no mean; give models of one kind."
                        )
                    continue
                total += part
            if tensor.is_floating_point():
                if not torch.isfinite(total).all():
                    raise UserError(
                        f"{_not_finite(opened, name)} holds weights that are not numbers ({name}); its training "
                        "diverged, leave it out."
                    )
                tensor.copy_(total / len(files))
    common = {key: value for key, value in infos[0].items() if all(info.get(key) == value for info in infos)}
    common.pop("dev", None)
    averaged = [
        {"file": "/".join(file.parts[-2:]), "sha256": checksum, "dev": info.get("dev")}
        for (checksum, file), info in zip(files, infos, strict=True)
    ]
    averaged.sort(key=lambda one: (one["file"], one["sha256"]))
    return dataclasses.replace(mean, info={**common, "averaged": averaged})


def _checksum(path: Path) -> str:
    try:
        with open(path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from None


def _not_finite(opened: Sequence[tuple[Path, Any]], name: str) -> Path:
    return next(path for path, content in opened if not torch.isfinite(content.get_tensor(name)).all())


def _info_of_alike(first: Checkpoint, path: Path, other_path: Path) -> dict[str, Any]:
    """The info of another model, which is let go of. UserError for the first thing in which the two differ that an
    average must share."""
    other = load_checkpoint(other_path)

    def refuse(what: str) -> None:
        raise UserError(f"{path} and {other_path} cannot be averaged: {what}; give models of one run, or of one start.")

    if type(first.model) is not type(other.model):
        refuse(f"their architectures are {type(first.model).__name__} and {type(other.model).__name__}")
    for field_ in dataclasses.fields(first.model.config):  # type: ignore[arg-type]
        one, two = (getattr(checkpoint.model.config, field_.name) for checkpoint in (first, other))
        if one != two and field_.name not in REGULARISATION:
            refuse(f"model.{field_.name} is {one} and {two}")
    for side in ("source", "target"):
        one, two = (getattr(checkpoint, f"{side}_vocabulary").checksum() for checkpoint in (first, other))
        if one != two:
            refuse(f"their {side} vocabularies differ")
    if (first.source_vocabulary is first.target_vocabulary) != (other.source_vocabulary is other.target_vocabulary):
        refuse("one has a joint vocabulary")
    return other.info
