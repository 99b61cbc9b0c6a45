"""Model files become translators: one or several, on a device, in a precision."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from nmt.checkpoint import Checkpoint, load_checkpoint
from nmt.errors import UserError, did_you_mean
from nmt.models import Ensemble
from nmt.shortlist import Shortlist
from nmt.text.vocabulary import Vocabulary
from nmt.translator import Translator


def load(
    path: str | Path,
    device: str = "auto",
    *,
    ensemble: Sequence[str | Path] = (),
    dtype: Literal["float32", "bfloat16"] = "float32",
    int8: bool = False,
    shortlist: str | Path | None = None,
) -> Translator:
    """Loads a model file, or that of a run's folder, or several as one.

    Args:
        path: `model.safetensors` or the folder it lies in.
        device: "auto" (a GPU when there is one), "cpu", "cuda", "cuda:1".
        ensemble: further models of the same vocabularies; at every step the mean of all models' probabilities counts.
        dtype: of the weights; scores stay float32.
        int8: linear and recurrent layers multiply in 8 bits, on the CPU alone; see `nmt.models.int8`.
        shortlist: file of `nmt shortlist`, made for these vocabularies; see `Translator`.

    Raises:
        UserError: no such model, a damaged one, no such device, other vocabularies, or a precision that it lacks.
    """
    check_precision(device, dtype, int8)
    where = torch.device("cpu") if int8 else resolve_device(device)
    first = load_checkpoint(path, where)
    others = [load_checkpoint(other, where) for other in ensemble]
    for name, other in zip(ensemble, others, strict=True):
        for side in ("source", "target"):
            if _vocabulary(first, side).checksum() != _vocabulary(other, side).checksum():
                raise UserError(
                    f"{path} and {name} have different {side} vocabularies; the models of an ensemble share theirs "
                    "(train the second with --from, or on the same text with the same data.vocabulary)."
                )
    chosen = None
    if shortlist is not None:
        whose = first.model if not others else None
        chosen = Shortlist.load(shortlist, first.source_vocabulary, first.target_vocabulary, whose)
    models = [checkpoint.model.to(getattr(torch, dtype)) for checkpoint in (first, *others)]
    model = models[0] if not others else Ensemble(models)
    return Translator(dataclasses.replace(first, model=model), int8=int8, shortlist=chosen)


def check_precision(device: str, dtype: str, int8: bool) -> None:
    """Refuses precisions that do not go together.

    Raises:
        UserError: names them.
    """
    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"dtype is '{dtype}'; choose float32 or bfloat16.{did_you_mean(dtype, ('bfloat16',))}")
    if int8 and dtype != "float32":
        raise UserError(f"int8 and dtype {dtype} are two precisions; leave out one")
    if int8 and device not in ("auto", "cpu"):
        raise UserError(f"int8 runs on the CPU alone and device is {device}; give --device cpu, or leave out int8")


def _vocabulary(checkpoint: Checkpoint, side: str) -> Vocabulary:
    return checkpoint.source_vocabulary if side == "source" else checkpoint.target_vocabulary


def resolve_device(name: str) -> torch.device:
    """The device of that name; "auto" is the first GPU, or else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"there is no device '{name}'; give auto, cpu or cuda") from None
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        cause = str(error).splitlines()[0]
        raise UserError(f"device '{name}' cannot be used ({cause}); give auto or cpu.") from None
    return device
