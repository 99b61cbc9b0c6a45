"""Takes over a recurrent model of fairseq (arch lstm) with its dictionaries, which are beside the checkpoint, where it
says or where the flags say. fairseq keeps no subword model: without one of the flags, lines are cut at spaces."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nmt.errors import UserError

if TYPE_CHECKING:
    from nmt.checkpoint import Checkpoint
    from nmt.imports.recurrent import Weights
    from nmt.models import RNNsearchConfig
    from nmt.text.tokens import Cut

logger = logging.getLogger(__name__)

# In this order they stand before the tokens of a file.
_FIRST = ("<s>", "<pad>", "</s>", "<unk>")
_SPECIAL = ("<pad>", "<unk>", "<s>", "</s>")
_SIDES = ("source", "target")


@dataclass
class Options:
    """Where dictionaries and subword models are."""

    source_dictionary: str = ""
    """Dictionary of the source, dict.LANGUAGE.txt; empty: beside the checkpoint, or where that says."""
    target_dictionary: str = ""
    """The same of the target."""
    source_subwords: str = ""
    """SentencePiece model or BPE codes of the source; empty: lines are cut at spaces."""
    target_subwords: str = ""
    """The same of the target."""


def load(source: str, options: Options) -> "Checkpoint":
    """The model of a checkpoint, such as checkpoint_best.pt.

    Raises:
        UserError: what is missing, could run code, or has no counterpart here.
    """
    from nmt.imports.recurrent import Weights, assemble, making_sense, read_checkpoint
    from nmt.imports.stand_in import stand_ins

    path = Path(source)
    found = read_checkpoint(path, stand_ins(path))
    with making_sense(path):
        settings, weights = _settings(found, path), found.get("model")
        if not settings or not isinstance(weights, dict):
            raise UserError(f"{path} is no checkpoint of fairseq; give its checkpoint_best.pt.")
        _check(settings, path)
        model = Weights(weights, path)
        config = _config(settings, model)
        sides = [_side(settings, name, options, path) for name in _SIDES]
        state = _state(model, config)
        model.check_taken()
        languages = {name: str(settings.get(f"{name}_lang") or "") for name in _SIDES}
        return assemble(config, state, sides, {"languages": languages, "imported": "fairseq"}, path)


def _settings(found: dict[str, Any], path: Path) -> dict[str, Any]:
    """Those of task and model: of `args`, or since fairseq 0.10 of `cfg`."""
    from nmt.imports.stand_in import plain

    if isinstance(args := plain(found.get("args")), dict):
        return args
    config = plain(found.get("cfg"))
    if not isinstance(config, dict):
        return {}
    task, model = config.get("task"), config.get("model")
    if not (isinstance(task, dict) and isinstance(model, dict)):
        raise UserError(f"{path} has settings without a task and a model; give a checkpoint of a translation model.")
    return {**task, **model, "task": task.get("_name"), "arch": model.get("arch") or model.get("_name")}


def _check(settings: dict[str, Any], path: Path) -> None:
    """UserError for a model of another kind."""
    from nmt.imports.recurrent import refuse_unless

    arch, task = str(settings.get("arch", "lstm")), settings.get("task") or "translation"
    recurrent = arch.startswith("lstm") and not arch.startswith("lstm_lm")
    refuse_unless(recurrent, path, f"its arch is {arch}; only lstm has a counterpart here")
    refuse_unless(task == "translation", path, f"its task is {task}; only translation has a counterpart here")
    softmax = settings.get("criterion") != "adaptive_loss"
    refuse_unless(softmax, path, "it has an adaptive softmax, which has no counterpart here")


def _config(settings: dict[str, Any], weights: "Weights") -> "RNNsearchConfig":
    """Sizes are those of the weights."""
    from nmt.imports.recurrent import cell_of, refuse_unless
    from nmt.models import RNNsearchConfig

    path = weights.path
    recurrent = weights["encoder.lstm.weight_hh_l0"]
    attention = "decoder.attention.input_proj.weight"
    refuse_unless(attention in weights, path, "its decoder has no attention (decoder_attention)")
    layers = 0
    while f"decoder.layers.{layers}.weight_hh" in weights:
        layers += 1
    embeddings = [weights[f"{side}.embed_tokens.weight"] for side in ("encoder", "decoder")]
    narrow = "decoder.additional_fc.weight"
    shared = bool(settings.get("share_all_embeddings"))
    tied = shared or bool(settings.get("share_decoder_input_output_embed"))
    dropout = settings.get("dropout")
    return RNNsearchConfig(
        embedding=embeddings[1].shape[1],
        source_embedding=embeddings[0].shape[1],
        hidden=weights["decoder.layers.0.weight_hh"].shape[1],
        encoder_hidden=recurrent.shape[1],
        encoder_layers=weights.layers("encoder.lstm"),
        decoder_layers=layers,
        cell=cell_of(recurrent, path),  # type: ignore[arg-type]
        readout="tanh",
        dropout=float(dropout) if isinstance(dropout, int | float) else 0.0,
        tied_embeddings="all" if shared else "output" if tied else "none",
        start="eos",
        decoder="luong",
        attention="general",
        input_feeding=True,
        bridge="linear" if "decoder.encoder_hidden_proj.weight" in weights else "layers",
        output_size=len(weights[narrow]) if narrow in weights else 0,
        bidirectional="encoder.lstm.weight_hh_l0_reverse" in weights,
    )


def _state(weights: "Weights", config: "RNNsearchConfig") -> dict[str, Any]:
    import torch

    readout = weights.take("decoder.attention.output_proj.weight")
    # It has the context in front, ours the state.
    context, top = readout.split([config.value_size, config.hidden], dim=1)
    embedding = weights.take("decoder.embed_tokens.weight")
    tied = config.tied_embeddings != "none"
    output = embedding.clone() if tied else weights.take("decoder.fc_out.weight")
    state = {
        "source_embedding.weight": weights.take("encoder.embed_tokens.weight"),
        "target_embedding.weight": embedding,
        **weights.take_recurrent("encoder.lstm", "encoder"),
        **weights.take_recurrent("decoder.layers", "cells"),
        # It multiplies the query, ours the values.
        "attention.key.weight": weights.take("decoder.attention.input_proj.weight").T.contiguous(),
        "readout.weight": torch.cat([top, context], dim=1),
        "readout.bias": readout.new_zeros(config.hidden),
        "output.weight": output,
        "output.bias": output.new_zeros(len(output)) if tied else weights.take("decoder.fc_out.bias"),
    }
    if config.bridge == "linear":
        for number, part in enumerate(("hidden", "cell")):
            state |= weights.take_recurrent(f"decoder.encoder_{part}_proj", f"initials.{number}")
    if config.output_size:
        state |= weights.take_recurrent("decoder.additional_fc", "output_input")
    return state


def _side(settings: dict[str, Any], name: str, options: Options, path: Path) -> tuple[list[str], list[int], "Cut"]:
    """Tokens, their order and how lines are cut."""
    from nmt.imports.recurrent import cut_of, read_bytes, sort_tokens
    from nmt.text.tokens import Cut

    file = _dictionary(settings, name, getattr(options, f"{name}_dictionary"), path)
    tokens = [*_FIRST, *_read_dictionary(file)]
    order = sort_tokens(tokens, _SPECIAL, file)
    subwords = getattr(options, f"{name}_subwords")
    if subwords:
        return tokens, order, cut_of(read_bytes(Path(subwords), "The subword model"), subwords)
    if any(token.endswith("@@") or token.startswith("▁") for token in tokens):
        remedy = f"give --{name}_subwords FILE, or text in pieces"
        logger.warning("%s holds pieces of words, but lines are cut at spaces; %s", file, remedy)
    return tokens, order, Cut("words")


def _dictionary(settings: dict[str, Any], name: str, given: str, path: Path) -> Path:
    """The file of a dictionary."""
    if given:
        return Path(given)
    file = f"dict.{settings.get(f'{name}_lang')}.txt"
    data = settings.get("data")
    # Several folders of training text are one string there.
    folders = data.split(":") if isinstance(data, str) else []
    for folder in (path.parent, *map(Path, folders)):
        if (folder / file).exists():
            return folder / file
    raise UserError(f"{path} needs {file}, which is not beside it; give --{name}_dictionary FILE.")


def _read_dictionary(file: Path) -> list[str]:
    """The tokens of the lines "token count"."""
    from nmt.imports.recurrent import read_bytes

    try:
        lines = read_bytes(file, "The dictionary").decode().removesuffix("\n").split("\n")
    except UnicodeDecodeError:
        raise UserError(f"{file} is no dictionary of fairseq: it is not in UTF-8.") from None
    tokens = []
    for number, line in enumerate(lines, 1):
        token, _, count = line.rstrip().removesuffix(" #fairseq:overwrite").rpartition(" ")
        if not token or not count.isdigit():
            raise UserError(f"{file} is no dictionary of fairseq: line {number} is no token and its count.")
        tokens.append(token)
    return tokens
