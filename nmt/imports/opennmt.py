"""Takes over a recurrent model of OpenNMT-py (3.x) with its vocabularies and its BPE codes or SentencePiece models,
which are where the checkpoint says (transforms sentencepiece and bpe) or where the flags say."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nmt.errors import UserError

if TYPE_CHECKING:
    from nmt.checkpoint import Checkpoint
    from nmt.imports.recurrent import Weights
    from nmt.models import RNNsearchConfig
    from nmt.text.tokens import Cut

_SPECIAL = ("<blank>", "<unk>", "<s>", "</s>")
# Its default is in front, here and below.
_ATTENTIONS = {"general": "general", "mlp": "additive", "dot": "dot"}
_EMBEDDINGS = "{}.embeddings.make_embedding.emb_luts.0.weight"
# What a model may not have: the option, and the values without it.
_WITHOUT = {
    "model_task": ("seq2seq",),
    "model_type": ("text",),
    "decoder_type": ("rnn",),
    "encoder_type": ("rnn", "brnn"),
    "rnn_type": ("GRU", "LSTM"),
    "global_attention": tuple(_ATTENTIONS),
    "global_attention_function": ("softmax",),
    "generator_function": ("softmax",),
    "coverage_attn": (False,),
    "copy_attn": (False,),
    "context_gate": (None,),
    "position_encoding": (False,),
}


@dataclass
class Options:
    """Where subword models are."""

    source_subwords: str = ""
    """SentencePiece model or BPE codes of the source; empty: what the checkpoint names."""
    target_subwords: str = ""
    """The same of the target."""


def load(source: str, options: Options) -> "Checkpoint":
    """The model of a checkpoint, MODEL_step_N.pt.

    Raises:
        UserError: what is missing, could run code, or has no counterpart here.
    """
    from nmt.imports.recurrent import Weights, assemble, making_sense, read_checkpoint

    path = Path(source)
    found = read_checkpoint(path, [argparse.Namespace])
    try:
        settings = vars(found["opt"])
        weights = Weights(found["model"] | {f"generator.{name}": one for name, one in found["generator"].items()}, path)
        vocabularies = [[str(token) for token in found["vocab"][side]] for side in ("src", "tgt")]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no checkpoint of OpenNMT-py 3 ({error}); give its MODEL_step_N.pt.") from None
    files = (options.source_subwords, options.target_subwords)
    with making_sense(path):
        config = _config(settings, weights, "src_feats" in found["vocab"])
        sides = [
            _side(tokens, settings, side, file, path)
            for tokens, side, file in zip(vocabularies, ("src", "tgt"), files, strict=True)
        ]
        state = _state(weights, config)
        weights.check_taken()
        return assemble(config, state, sides, {"imported": "OpenNMT-py"}, path)


def _config(settings: dict[str, Any], weights: "Weights", features: bool) -> "RNNsearchConfig":
    """Sizes are those of the weights."""
    from nmt.imports.recurrent import cell_of, refuse_unless
    from nmt.models import RNNsearchConfig

    path = weights.path
    for name, allowed in _WITHOUT.items():
        value = settings.get(name, allowed[0])
        known = " or ".join(map(str, allowed))
        refuse_unless(value in allowed, path, f"its {name} is {value}; only {known} has a counterpart here")
    refuse_unless(not features, path, "it has source features, which have no counterpart here")
    attention = _ATTENTIONS[settings.get("global_attention", "general")]
    recurrent = weights["encoder.rnn.weight_hh_l0"]
    feeding = bool(settings.get("input_feed", 1))
    embeddings = [weights[_EMBEDDINGS.format(side)] for side in ("encoder", "decoder")]
    readout = weights["decoder.attn.linear_out.weight"]
    layers = weights.layers("encoder.rnn")
    tied = settings.get("share_decoder_embeddings", False)
    both = "all" if settings.get("share_embeddings", False) else "output"
    dropout = settings.get("dropout", 0.0)
    return RNNsearchConfig(
        embedding=embeddings[1].shape[1],
        source_embedding=embeddings[0].shape[1],
        hidden=len(readout),
        encoder_hidden=recurrent.shape[1],
        encoder_layers=layers,
        decoder_layers=_fed_layers(weights) if feeding else weights.layers("decoder.rnn"),
        cell=cell_of(recurrent, path),  # type: ignore[arg-type]
        readout="linear" if attention == "additive" else "tanh",
        dropout=float(dropout[0] if isinstance(dropout, list) else dropout),
        tied_embeddings=both if tied else "none",  # type: ignore[arg-type]
        decoder="luong",
        attention=attention,  # type: ignore[arg-type]
        input_feeding=feeding,
        bridge="relu" if settings.get("bridge", False) else "layers",
        bidirectional="encoder.rnn.weight_hh_l0_reverse" in weights,
        source_end=False,
    )


def _fed_layers(weights: "Weights") -> int:
    count = 0
    while f"decoder.rnn.layers.{count}.weight_hh" in weights:
        count += 1
    return count


def _state(weights: "Weights", config: "RNNsearchConfig") -> dict[str, Any]:
    import torch

    from nmt.imports.recurrent import stack_of

    readout = weights.take("decoder.attn.linear_out.weight")
    # It has the context in front, ours the state.
    context, top = readout.split([config.value_size, config.hidden], dim=1)
    zeros = readout.new_zeros(config.hidden)
    bias = "decoder.attn.linear_out.bias"
    cells = (
        weights.take_recurrent("decoder.rnn.layers", "cells")
        if config.input_feeding
        else stack_of(weights.take_recurrent("decoder.rnn", "cells"))
    )
    state = {
        "source_embedding.weight": weights.take(_EMBEDDINGS.format("encoder")),
        "target_embedding.weight": weights.take(_EMBEDDINGS.format("decoder")),
        **weights.take_recurrent("encoder.rnn", "encoder"),
        **cells,
        **weights.take_recurrent("encoder.bridge", "initials"),
        "readout.weight": torch.cat([top, context], dim=1),
        "readout.bias": weights.take(bias) if bias in weights else zeros,
        "output.weight": _generator(weights, "weight"),
        "output.bias": _generator(weights, "bias"),
    }
    if config.attention == "general":
        # It multiplies the query, ours the values.
        state["attention.key.weight"] = weights.take("decoder.attn.linear_in.weight").T.contiguous()
    elif config.attention == "additive":
        state["attention.key.weight"] = weights.take("decoder.attn.linear_context.weight")
        # The two stand in one sum.
        state["attention.key.bias"] = weights.take("decoder.attn.linear_query.bias")
        state["attention.query.weight"] = weights.take("decoder.attn.linear_query.weight")
        state["attention.energy.weight"] = weights.take("decoder.attn.v.weight")
    return state


def _generator(weights: "Weights", part: str) -> Any:
    name = f"generator.{part}"
    return weights.take(name if name in weights else f"generator.0.{part}")


def _side(
    tokens: list[str], settings: dict[str, Any], side: str, file: str, path: Path
) -> tuple[list[str], list[int], "Cut"]:
    """Tokens, their order and how lines are cut."""
    from nmt.imports.recurrent import sort_tokens

    return tokens, sort_tokens(tokens, _SPECIAL, path), _cut(settings, side, file, path)


def _cut(settings: dict[str, Any], side: str, file: str, path: Path) -> "Cut":
    from nmt.imports.recurrent import read_bytes, refuse_unless
    from nmt.text.tokens import Cut

    transforms = _transforms(settings)
    # These change what is trained on, not what is translated.
    known = {"sentencepiece", "bpe", "filtertoolong", "switchout", "tokendrop", "tokenmask"}
    refuse_unless(
        transforms <= known, path, f"its transforms {', '.join(sorted(transforms - known))} are not known here"
    )
    if not transforms & {"sentencepiece", "bpe"}:
        refuse_unless(not file, path, "it has no transform sentencepiece or bpe, but a subword model is given")
        return Cut("words")
    threshold = settings.get(f"{side}_vocab_threshold", 0)
    refuse_unless(not threshold, path, f"its {side}_vocab_threshold is {threshold}; only 0 has a counterpart here")
    shared = settings.get("src_subword_model") if settings.get("share_vocab") else None
    named = file or shared or settings.get(f"{side}_subword_model")
    flag = {"src": "source", "tgt": "target"}[side]
    refuse_unless(bool(named), path, f"it names no subword model; give --{flag}_subwords FILE")
    content = read_bytes(Path(str(named)), f"The subword model (--{flag}_subwords)")
    if "sentencepiece" in transforms:
        return Cut("sentencepiece", model=content)
    try:
        return Cut("bpe", codes=content.decode())
    except UnicodeDecodeError:
        raise UserError(f"{named} holds no BPE codes.") from None


def _transforms(settings: dict[str, Any]) -> set[str]:
    """Of the training, and of each of its corpora."""
    found = set(settings.get("transforms") or ())
    data = settings.get("data")
    for corpus in data.values() if isinstance(data, dict) else ():
        found |= set((corpus or {}).get("transforms") or ()) if isinstance(corpus, dict) else set()
    return found
