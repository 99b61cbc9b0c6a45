"""A model as a folder that runs without torch: two ONNX graphs, the SentencePiece models, and what describes them."""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nmt import __version__
from nmt.checkpoint import Checkpoint
from nmt.errors import UserError
from nmt.lines import atomic_folder, check_empty
from nmt.models import Pretrained, decoding_form
from nmt.models.portable import MEMORY, EncoderGraph, Form, StepGraph
from nmt.runner.folder import CONFIG, PARTS, Exported, Special, describe
from nmt.runner.settings import Settings
from nmt.text.vocabulary import EOS, PAD, UNK, SentencePiece


def export_model(checkpoint: Checkpoint, folder: str | Path, settings: Settings | None = None) -> None:
    """Writes the model for `nmt.runner`.

    Args:
        checkpoint: the model.
        folder: appears when it is whole; must not be there or be empty.
        settings: how it translates unless told otherwise.

    Raises:
        UserError: the folder holds something or cannot be written, the packages of the extra `onnx` are missing, or
            the model or its vocabularies have no form for export.
    """
    folder = Path(folder)
    check_ready(folder)
    encoder, step = _graphs(checkpoint)
    for vocabulary in (checkpoint.source_vocabulary, checkpoint.target_vocabulary):
        if not isinstance(vocabulary, SentencePiece):
            raise UserError("The runner reads SentencePiece models alone, and this model's vocabulary is none.")
    source, target = checkpoint.source_vocabulary.model, checkpoint.target_vocabulary.model
    joint = source == target
    names = dict(zip(PARTS, ("encoder.onnx", "step.onnx", "source.model", "target.model"), strict=True))
    if joint:
        names["source"] = names["target"] = "vocabulary.model"
    languages = checkpoint.info.get("languages")
    exported = Exported(
        files=dict(zip(PARTS, (encoder, step, source, target), strict=True)),
        special=Special(pad=PAD, unk=UNK, bos=checkpoint.model.bos, eos=EOS),
        settings=settings or Settings(),
        languages=languages if isinstance(languages, dict) else {},
    )
    config = json.dumps(describe(names, exported, __version__), indent=2, ensure_ascii=False) + "\n"
    with atomic_folder(folder) as temporary:
        for part, name in names.items():
            (temporary / name).write_bytes(exported.files[part])
        (temporary / CONFIG).write_text(config, encoding="utf-8")


def check_ready(folder: Path) -> None:
    """Tells before anything is loaded what would fail later.

    Raises:
        UserError: the folder holds something, or the packages of the extra `onnx` are missing.
    """
    try:
        import_module("onnx")
        import_module("onnxscript")
    except ImportError as error:
        raise UserError(
            f"Export needs onnx and onnxscript ({error}); install the extra (pip install -e .[onnx])."
        ) from None
    check_empty(folder)


def _graphs(checkpoint: Checkpoint) -> tuple[bytes, bytes]:
    """Encoder and step as ONNX writes them to files."""
    form = decoding_form(checkpoint.model.cpu().eval())
    if not isinstance(form, Form):
        other = "; --format hf writes it for transformers" if isinstance(checkpoint.model, Pretrained) else ""
        raise UserError(
            f"This {type(checkpoint.model).__name__} model cannot be exported as ONNX; give a recurrent one without "
            f"layer normalisation{other}."
        )
    # Every size is another one, so that none is taken for another.
    rows, length, slots = 2, 3, 5
    batch, source_length, width = (torch.export.Dim(name) for name in ("batch", "length", "slots"))
    source, lengths = torch.full((rows, length), EOS), torch.tensor([length, 1])
    encoder = EncoderGraph(form).eval()
    with torch.no_grad():
        parts = encoder(source, lengths)
    memory, first = parts[:MEMORY], parts[MEMORY:]
    of_memory, of_state = (
        [f"{kind}_{i}" for i in range(len(of))] for kind, of in (("memory", memory), ("state", first))
    )
    state = tuple(part.repeat(1, slots, *[1] * (part.dim() - 2)) for part in first)
    by_row, by_slot = {0: batch, 1: source_length}, {0: batch, 1: width}
    return (
        _graph(
            encoder,
            (source, lengths),
            ["source", "lengths"],
            [*of_memory, *of_state],
            (by_row, {0: batch}),
        ),
        _graph(
            StepGraph(form).eval(),
            (torch.full((rows, slots), EOS), memory, state),
            ["tokens", *of_memory, *of_state],
            ["logits", *(f"new_{name}" for name in of_state)],
            (by_slot, (by_row,) * len(memory), (by_slot,) * len(state)),
        ),
    )


def _graph(
    module: nn.Module, arguments: tuple[Any, ...], inputs: list[str], outputs: list[str], dynamic: tuple[Any, ...]
) -> bytes:
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module,
            arguments,
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes=dynamic,
            dynamo=True,
            verbose=False,
            external_data=False,
        )
    assert program is not None
    graph = program.model_proto
    # Where in our source a node comes from, with the paths of this machine.
    for nodes in (graph.graph.node, *(function.node for function in graph.functions)):
        for node in nodes:
            node.ClearField("metadata_props")
            node.ClearField("doc_string")
    try:
        return graph.SerializeToString()
    except ValueError as error:
        raise UserError(
            f"The graph is too large for one file of ONNX, 2 GiB ({error}); take a smaller model."
        ) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says of its passes and of packages that we do not need."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
