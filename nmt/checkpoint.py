"""The model file: weights, vocabularies and configuration in one safetensors file, nothing that could run.

Two kinds of files must not be confused. `model.safetensors`, written here, is what people translate with
and pass on. `last.ckpt`, written by Lightning in a run's folder, is what `--resume` goes on from.
"""

import dataclasses
import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from nmt.errors import UserError
from nmt.lines import atomic_path
from nmt.models import RNNsearch, RNNsearchConfig, Seq2Seq
from nmt.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

FORMAT = 1
NAME = "model.safetensors"
_VOCABULARY = "vocabulary."
ARCHITECTURES: dict[str, tuple[type[Seq2Seq], type]] = {"rnnsearch": (RNNsearch, RNNsearchConfig)}


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
    architecture = next(name for name, (kind, _) in ARCHITECTURES.items() if type(model) is kind)
    tensors: dict[str, torch.Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[int, str] = {}
    for name, tensor in model.state_dict().items():
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
        "architecture": architecture,
        "config": dataclasses.asdict(model.config),  # type: ignore[call-overload]
        "aliases": aliases,
        "info": checkpoint.info,
    }
    # Written by us, not by safetensors, whose files only their owner may read.
    content = save(tensors, metadata={"nmt": json.dumps(header, sort_keys=True)})
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def load_checkpoint(path: str | Path, device: str | torch.device = "cpu") -> Checkpoint:
    """Reads a model file, or that of a run's folder.

    Args:
        path: a model file, or a folder that holds one named model.safetensors.
        device: where the weights go.

    Raises:
        UserError: there is no such file, it is truncated, or it is not one of ours.
    """
    path = find_model(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            header = json.loads((file.metadata() or {})["nmt"])
            if not isinstance(header, dict):
                raise KeyError("nmt")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
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
        target = Vocabulary(tensors.pop(_VOCABULARY + "target").numpy().tobytes())
        source_model = tensors.pop(_VOCABULARY + "source", None)
        source = target if source_model is None else Vocabulary(source_model.numpy().tobytes())
        kind, config_kind = ARCHITECTURES[architecture]
        model = kind(config_kind(**header["config"]), len(source), len(target))
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
    return path
