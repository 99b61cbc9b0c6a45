"""Takes over a recurrent model of joeynmt (2.x) with its vocabularies and its BPE codes or SentencePiece models, which
are looked for in the model's folder and then where its configuration says."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nmt.errors import UserError

if TYPE_CHECKING:
    from nmt.checkpoint import Checkpoint
    from nmt.imports.recurrent import Weights
    from nmt.models import RNNsearchConfig
    from nmt.text.tokens import Cut

_SIDES = (("source", "src"), ("target", "trg"))
_BRIDGES = {"bridge": "tanh", "last": "last", "zero": "zero", "zeros": "zero"}
_ATTENTIONS = {"bahdanau": "additive", "luong": "general"}


@dataclass
class Options:
    """Nothing is asked for."""


def load(source: str, options: Options) -> "Checkpoint":
    """The model of a folder of joeynmt (its best.ckpt, or else its latest.ckpt), or of a checkpoint in it.

    Raises:
        UserError: what is missing, could run code, or has no counterpart here.
    """
    from nmt.imports.recurrent import Weights, assemble, making_sense, read_checkpoint

    path = _checkpoint(Path(source))
    settings = _settings(path.parent / "config.yaml")
    with making_sense(path):
        config, scales = _config(settings, path)
        sides = [_side(settings["data"], side, path) for _, side in _SIDES]
        languages = {name: str(settings["data"][side].get("lang", "")) for name, side in _SIDES}
        found = read_checkpoint(path).get("model_state")
        if not isinstance(found, dict):
            raise UserError(f"{path} holds no model_state; give a checkpoint of joeynmt.")
        weights = Weights(found, path)
        state = _state(weights, config, scales)
        weights.check_taken()
        return assemble(config, state, sides, {"languages": languages, "imported": "joeynmt"}, path)


def _checkpoint(source: Path) -> Path:
    if not source.exists():
        raise UserError(f"{source} does not exist; give the model_dir of joeynmt or a checkpoint in it.")
    if not source.is_dir():
        return source
    for name in ("best.ckpt", "latest.ckpt"):
        if (source / name).exists():
            return source / name
    raise UserError(f"{source} holds neither best.ckpt nor latest.ckpt; give a checkpoint of joeynmt.")


def _settings(path: Path) -> dict[str, Any]:
    import yaml

    from nmt.imports.recurrent import read_bytes

    try:
        found = yaml.safe_load(read_bytes(path, "The configuration"))
        parts = [found["data"]["src"], found["data"]["trg"], found["model"]["encoder"], found["model"]["decoder"]]
        if all(isinstance(part, dict) for part in parts):
            return found
    except (yaml.YAMLError, KeyError, TypeError):
        pass
    raise UserError(f"{path} is no configuration of joeynmt 2; the model's folder must hold the one of its training.")


def _config(settings: dict[str, Any], path: Path) -> tuple["RNNsearchConfig", list[float]]:
    """The model's configuration, and what source and target embeddings are multiplied by."""
    from nmt.imports.recurrent import refuse_unless
    from nmt.models import RNNsearchConfig

    model = settings["model"]
    encoder, decoder = model["encoder"], model["decoder"]
    for name, part, default in (("encoder", encoder, "recurrent"), ("decoder", decoder, "transformer")):
        kind = part.get("type", default)
        refuse_unless(kind == "recurrent", path, f"its {name} is a {kind}, not recurrent")
    attention, bridge = decoder.get("attention", "bahdanau"), decoder.get("init_hidden", "bridge")
    activation = decoder.get("activation", "tanh")
    refuse_unless(attention in _ATTENTIONS, path, f"its attention is '{attention}'; bahdanau and luong are known")
    refuse_unless(bridge in _BRIDGES, path, f"its init_hidden is '{bridge}'; bridge, last and zero are known")
    refuse_unless(activation == "tanh", path, f"its activation is '{activation}'; tanh is known")
    cells = {part.get("rnn_type", "gru") for part in (encoder, decoder)}
    refuse_unless(len(cells) == 1 and cells <= {"gru", "lstm"}, path, f"its cells are {' and '.join(sorted(cells))}")
    refuse_unless(encoder.get("bidirectional", True), path, "its encoder is not bidirectional")
    embeddings = [part.get("embeddings") or {} for part in (encoder, decoder)]
    if model.get("tied_embeddings"):
        embeddings[1] = embeddings[0]
    sizes = [int(part.get("embedding_dim", 64)) for part in embeddings]
    scales = [size**0.5 if part.get("scale") else 1.0 for size, part in zip(sizes, embeddings, strict=True)]
    # What is scaled is another matrix than the output layer's.
    tied = bool(model.get("tied_softmax")) and scales == [1.0, 1.0]
    both = "all" if model.get("tied_embeddings") else "output"
    config = RNNsearchConfig(
        embedding=sizes[1],
        source_embedding=sizes[0],
        hidden=int(decoder.get("hidden_size", 1)),
        encoder_hidden=int(encoder.get("hidden_size", 1)),
        encoder_layers=int(encoder.get("num_layers", 1)),
        decoder_layers=int(decoder.get("num_layers", 1)),
        cell=cells.pop(),
        readout="tanh",
        dropout=float(decoder.get("dropout", 0.0)),
        tied_embeddings=both if tied else "none",  # type: ignore[arg-type]
        decoder="luong",
        attention=_ATTENTIONS[attention],  # type: ignore[arg-type]
        input_feeding=bool(decoder.get("input_feeding", True)),
        bridge=_BRIDGES[bridge],  # type: ignore[arg-type]
    )
    return config, scales


def _state(weights: "Weights", config: "RNNsearchConfig", scales: list[float]) -> dict[str, Any]:
    from nmt.imports.recurrent import stack_of

    output = weights.take("decoder.output_layer.weight")
    state = {
        "source_embedding.weight": weights.take("src_embed.lut.weight") * scales[0],
        "target_embedding.weight": weights.take("trg_embed.lut.weight") * scales[1],
        **weights.take_recurrent("encoder.rnn", "encoder"),
        **stack_of(weights.take_recurrent("decoder.rnn", "cells")),
        "readout.weight": weights.take("decoder.att_vector_layer.weight"),
        "readout.bias": weights.take("decoder.att_vector_layer.bias"),
        "output.weight": output,
        "output.bias": output.new_zeros(len(output)),
        "attention.key.weight": weights.take("decoder.attention.key_layer.weight"),
    }
    if config.attention == "additive":
        state["attention.key.bias"] = output.new_zeros(config.hidden)
        state["attention.query.weight"] = weights.take("decoder.attention.query_layer.weight")
        state["attention.energy.weight"] = weights.take("decoder.attention.energy_layer.weight")
    if config.bridge == "tanh":
        for part in ("weight", "bias"):
            state[f"initial.{part}"] = weights.take(f"decoder.bridge_layer.{part}")
    return state


def _side(data: dict[str, Any], side: str, path: Path) -> tuple[list[str], list[int], "Cut"]:
    """Tokens, their order and how lines are cut."""
    from nmt.imports.recurrent import refuse_unless, sort_tokens
    from nmt.lines import read_lines

    special = data.get("special_symbols") or {}
    tags = special.get("lang_tags") or special.get("sep_token")
    refuse_unless(not tags, path, "it has language tags or prompts, which have no counterpart here")
    file = path.parent / f"{side}_vocab.txt"
    refuse_unless(file.exists(), path, f"{file.name} is not beside it; copy it from joeynmt's model_dir")
    tokens = read_lines(file)
    defaults = (("pad_token", "<pad>"), ("unk_token", "<unk>"), ("bos_token", "<s>"), ("eos_token", "</s>"))
    order = sort_tokens(tokens, [special.get(key, default) for key, default in defaults], file)
    return tokens, order, _cut(data[side], [tokens[number] for number in order[4:]], path)


def _cut(told: dict[str, Any], tokens: list[str], path: Path) -> "Cut":
    from nmt.imports.recurrent import read_bytes, refuse_unless, restrict
    from nmt.text.tokens import Cut

    level, options = told.get("level", "word"), told.get("tokenizer_cfg") or {}
    lowercase = bool(told.get("lowercase", False))
    refuse_unless(level in ("word", "bpe"), path, f"its level is '{level}'; word and bpe are known")
    refuse_unless(not told.get("normalize"), path, "it normalises its text in its own way (normalize)")
    pretokenizer = options.get("pretokenizer", "none")
    refuse_unless(pretokenizer == "none", path, f"its pretokenizer is '{pretokenizer}', which has no counterpart here")
    if level == "word":
        return Cut("words", lowercase=lowercase)
    kind = told.get("tokenizer_type", told.get("bpe_type", "sentencepiece"))
    refuse_unless(kind in ("sentencepiece", "subword-nmt"), path, f"its tokenizer_type is '{kind}'")
    named = str(options.get("model_file" if kind == "sentencepiece" else "codes") or "")
    refuse_unless(bool(named), path, "its tokenizer_cfg names no file")
    beside = path.parent / Path(named).name
    content = read_bytes(beside if beside.exists() else Path(named), "The subword model")
    if kind == "sentencepiece":
        return Cut("sentencepiece", model=restrict(content, tokens), lowercase=lowercase)
    try:
        codes = content.decode()
    except UnicodeDecodeError:
        raise UserError(f"{named} holds no BPE codes.") from None
    return Cut("bpe", codes=codes, separator=options.get("separator", "@@"), restricted=True, lowercase=lowercase)
