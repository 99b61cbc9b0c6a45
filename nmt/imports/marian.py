"""Takes over a recurrent model of Marian (types s2s, amun and nematus) or of Nematus with its vocabularies, which are
where the configurations beside the model say (model.npz.decoder.yml, model.npz.yml, model.npz.json) or where the flags
say. A vocabulary that is no SentencePiece model has no rules of how text is cut: without the flags, at spaces."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nmt.errors import UserError

if TYPE_CHECKING:
    from nmt.checkpoint import Checkpoint
    from nmt.imports.recurrent import Weights
    from nmt.models import RNNsearchConfig

_SETTINGS = "special:model.yml"
# What files of Nematus, and of Marian's types that write such, hold besides parameters; one may be a pickle.
_OTHER = frozenset(("decoder_c_tt", "uidx", "history_errs", "zipped_params"))
# What a model may not have: the setting, its default, the values that have a counterpart, and why others have none.
_KNOWN: tuple[tuple[str, Any, tuple[Any, ...], str], ...] = (
    ("type", "s2s", ("s2s", "amun", "nematus"), ""),
    ("enc-type", "bidirectional", ("bidirectional", "alternating"), ""),
    ("enc-cell", "gru", ("gru", "gru-nematus", "lstm"), ""),
    ("dec-cell", "gru", ("gru", "gru-nematus", "lstm"), ""),
    ("enc-cell-depth", 1, (1,), "ours has one cell a layer"),
    ("dec-cell-base-depth", 2, (2,), "ours has two cells around the attention"),
    ("dec-cell-high-depth", 1, (1,), "ours has one cell a layer"),
    ("dec-attention-hops", 1, (1,), "ours looks once"),
    ("dec-attention-heads", 1, (1,), "ours has one head"),
    ("dec-attention-projection-dim", -1, (-1,), ""),
    ("right-left", False, (False,), "it writes backwards"),
    ("lemma-dim-emb", 0, (0,), "its vocabulary is factored"),
    ("ulr", False, (False,), ""),
)


@dataclass
class Options:
    """Where vocabularies and subword models are."""

    source_vocabulary: str = ""
    """Vocabulary of the source (.yml, .json, .spm or one token a line); empty: where the model's configuration says."""
    target_vocabulary: str = ""
    """The same of the target."""
    source_subwords: str = ""
    """BPE codes of the source, or a SentencePiece model that cut the text before; empty: lines are cut at spaces, or by
    the vocabulary where that is a SentencePiece model."""
    target_subwords: str = ""
    """The same of the target."""


def load(source: str, options: Options) -> "Checkpoint":
    """The model of a file such as model.npz.

    Raises:
        UserError: what is missing, could run code, or has no counterpart here.
    """
    from nmt.imports.marian_vocabulary import find_vocabularies, read_side
    from nmt.imports.npz import read_npz
    from nmt.imports.recurrent import assemble, making_sense

    path = Path(source) / "model.npz" if Path(source).is_dir() else Path(source)
    if path.suffix != ".npz":
        raise UserError(f"{path} is no npz file; give Marian's model.npz, not the binary form of it.")
    arrays = read_npz(path, _OTHER)
    with making_sense(path):
        settings = _settings(arrays.pop(_SETTINGS, None), path)
        _check(settings, path)
        weights = _weights(arrays, settings, path)
        config = _config(settings, weights)
        state = _state(weights, config, settings.get("enc-type") == "alternating")
        weights.check_taken()
        files = find_vocabularies(path, settings, (options.source_vocabulary, options.target_vocabulary))
        subwords = (options.source_subwords, options.target_subwords)
        sides = [
            read_side(file, cut, len(state[f"{name}_embedding.weight"]), f"--{name}_subwords")
            for file, cut, name in zip(files, subwords, ("source", "target"), strict=True)
        ]
        _add_padding_and_bos(state)
        return assemble(config, state, sides, {"imported": "Marian"}, path)


def _settings(special: Any, path: Path) -> dict[str, Any]:
    """Marian's, which are in the file, or Nematus', which are beside it, by Marian's names."""
    import json

    import yaml

    from nmt.imports.recurrent import refuse_unless

    if special is not None:
        text = special.tobytes().partition(b"\0")[0].decode()
        try:
            found = yaml.safe_load(text)
        except yaml.YAMLError:
            found = None
        if not isinstance(found, dict):
            raise UserError(f"{path} has settings ({_SETTINGS}) that cannot be read; copy it again.")
        return found
    beside = path.with_name(f"{path.name}.json")
    if not beside.exists():
        raise UserError(f"{path} holds no {_SETTINGS} of Marian, and {beside.name} of Nematus is not beside it.")
    told = json.loads(beside.read_text(encoding="utf-8"))
    scaled = not told.get("use_dropout") or float(told.get("model_version", 0)) >= 0.1
    refuse_unless(scaled, path, "its dropout is that of Nematus' model_version 0")
    activation = told.get("output_hidden_activation", "tanh")
    refuse_unless(activation == "tanh", path, f"its output_hidden_activation is {activation}; tanh is known")
    refuse_unless(int(told.get("factors", 1)) == 1, path, "it has source factors, which have no counterpart here")
    for name in ("enc_depth", "dec_depth"):
        refuse_unless(
            int(told.get(name, 1)) == 1, path, f"its {name} is {told.get(name)}; only 1 has a counterpart here"
        )
    return {
        "type": "nematus",
        "enc-cell-depth": int(told.get("enc_recurrence_transition_depth", 1)),
        "dec-cell-base-depth": int(told.get("dec_base_recurrence_transition_depth", 2)),
        "layer-normalization": bool(told.get("use_layer_norm", told.get("layer_normalisation", False))),
        "vocabs": told.get("dictionaries"),
    }


def _check(settings: dict[str, Any], path: Path) -> None:
    """UserError for what no model of ours has."""
    from nmt.imports.recurrent import refuse_unless

    for name, default, values, why in _KNOWN:
        value = settings.get(name, default)
        known = " or ".join(map(str, values))
        reason = f" ({why})" if why else ""
        refuse_unless(value in values, path, f"its {name} is {value}; only {known} has a counterpart here{reason}")
    cells = {"lstm" if settings.get(name, "gru") == "lstm" else "gru" for name in ("enc-cell", "dec-cell")}
    refuse_unless(len(cells) == 1, path, "its enc-cell and dec-cell are of two kinds")
    other = settings.get("type") == "nematus" or "gru-nematus" in (settings.get("enc-cell"), settings.get("dec-cell"))
    normed = other and settings.get("layer-normalization", False)
    refuse_unless(not normed, path, "its layer-normalization is that of gru-nematus and Nematus, which ours has not")
    deep = settings.get("skip", False) and int(settings.get("enc-depth", 1)) > 1
    refuse_unless(not deep, path, "it has skip connections in its encoder (skip, enc-depth), which ours has not")


def _weights(arrays: dict[str, Any], settings: dict[str, Any], path: Path) -> "Weights":
    """By Marian's own names, without those of the optimiser."""
    import numpy as np
    import torch

    from nmt.imports.recurrent import Weights

    shared = settings.get("tied-embeddings-src", False) or settings.get("tied-embeddings-all", False)
    native = settings.get("type", "s2s") == "s2s"
    return Weights(
        {
            name if native else _own_name(name, shared): torch.from_numpy(array.astype(np.float32))
            for name, array in arrays.items()
            if not name.startswith("adam")
        },
        path,
    )


def _own_name(name: str, shared: bool) -> str:
    """Marian's own name of a parameter of Nematus; `shared`: one matrix for the embeddings of both sides."""
    import re

    if name in ("Wemb", "Wemb_dec"):
        return name if shared else {"Wemb": "encoder_Wemb", "Wemb_dec": "decoder_Wemb"}[name]
    inputs = {"decoder_Wc": "decoder_cell2_W", "decoder_Wcx": "decoder_cell2_Wx"}
    if name in inputs:
        return inputs[name]
    parts = {"prev": 0, "lstm": 1, "ctx": 2}
    name = re.sub(r"^encoder_((?:r_)?(?:[UWb]x?|gamma[12]))$", r"encoder_bi_\1", name)
    name = re.sub(r"^decoder_([UWb]x?)$", r"decoder_cell1_\1", name)
    name = re.sub(r"^decoder_([Ub]x?)_nl$", r"decoder_cell2_\1", name)
    name = re.sub(r"^ff_logit_(prev|lstm|ctx)_([Wb])$", lambda m: f"decoder_ff_logit_l1_{m[2]}{parts[m[1]]}", name)
    name = re.sub(r"^ff_logit_([Wb])$", r"decoder_ff_logit_l2_\1", name)
    return re.sub(r"^ff_(state_|logit_l1_gamma)", r"decoder_ff_\1", name)


def _config(settings: dict[str, Any], weights: "Weights") -> "RNNsearchConfig":
    """Sizes are those of the weights."""
    from nmt.models import RNNsearchConfig

    layers = int(settings.get("dec-depth", 1))
    shared = "Wemb" in weights
    tied = not any(f"decoder_ff_logit_l2_{name}" in weights for name in ("W", "Wt"))
    return RNNsearchConfig(
        embedding=weights["decoder_ff_logit_l1_W0"].shape[0],
        hidden=weights["decoder_ff_state_W"].shape[1],
        encoder_layers=int(settings.get("enc-depth", 1)),
        decoder_layers=layers,
        cell="lstm" if settings.get("enc-cell") == "lstm" else "gru",
        readout="tanh",
        dropout=0.0,
        tied_embeddings="none" if not tied else "all" if shared else "output",
        attention_hidden=weights["decoder_Wc_att"].shape[1],
        layer_normalization=bool(settings.get("layer-normalization", False)),
        upper="sum" if layers == 1 else "skip" if settings.get("skip") else "last",
        bridge="mean",
    )


def _state(weights: "Weights", config: "RNNsearchConfig", alternating: bool) -> dict[str, Any]:
    from nmt.imports.marian_cells import context_rows, name_cell, take_cell, take_encoder

    source, target = ("Wemb", "Wemb") if "Wemb" in weights else ("encoder_Wemb", "decoder_Wemb")
    state = {f"{side}_embedding.weight": weights[name] for side, name in (("source", source), ("target", target))}
    for name in {source, target}:
        weights.take(name)
    state |= take_encoder(weights, config, alternating)
    state |= name_cell(take_cell(weights, "decoder_cell1", config), "reader")
    writer = take_cell(weights, "decoder_cell2", config, final=True)
    writer["weight_ih"] = context_rows(writer["weight_ih"].T, config, alternating).T
    state |= name_cell(writer, "writer")
    for layer in range(1, config.decoder_layers):
        state |= name_cell(take_cell(weights, f"decoder_l{layer + 1}_cell1", config), f"upper.{layer - 1}")
    state |= _layers(weights, config, alternating)
    output = state["target_embedding.weight"]
    if config.tied_embeddings == "none":
        turned = "decoder_ff_logit_l2_W" in weights
        output = weights.take("decoder_ff_logit_l2_W").T if turned else weights.take("decoder_ff_logit_l2_Wt")
    bias = "decoder_ff_logit_l2_b"
    state["output.weight"] = output
    state["output.bias"] = weights.take(bias).flatten() if bias in weights else output.new_zeros(len(output))
    return state


def _layers(weights: "Weights", config: "RNNsearchConfig", alternating: bool) -> dict[str, Any]:
    """First state, attention and readout."""
    import torch

    from nmt.imports.marian_cells import context_rows

    def take(name: str) -> Any:
        return weights.take(f"decoder_{name}").T.contiguous()

    def of_context(name: str) -> Any:
        return context_rows(weights.take(f"decoder_{name}"), config, alternating).T.contiguous()

    def vector(name: str) -> Any:
        return weights.take(f"decoder_{name}").flatten()

    layers = config.decoder_layers
    initial, initial_bias = of_context("ff_state_W").repeat(layers, 1), vector("ff_state_b").repeat(layers)
    query, key, key_bias = take("W_comb_att"), of_context("Wc_att"), vector("b_att")
    # The state, the token before and the context: ours has them in this order.
    parts = take("ff_logit_l1_W1"), take("ff_logit_l1_W0"), of_context("ff_logit_l1_W2")
    biases = [vector(f"ff_logit_l1_b{part}") for part in (1, 0, 2)]
    energy = {"attention.energy.weight": vector("U_att").view(1, -1)}
    if not config.layer_normalization:
        return energy | {
            "initial.weight": initial,
            "initial.bias": initial_bias,
            "attention.query.weight": query,
            "attention.key.weight": key,
            "attention.key.bias": key_bias,
            "readout.weight": torch.cat(parts, dim=1),
            "readout.bias": torch.stack(biases).sum(dim=0),
        }
    state = energy | {
        "initial.0.weight": initial,
        "initial.1.weight": vector("ff_state_gamma").repeat(layers),
        "initial.1.bias": initial_bias,
        "attention.query.0.weight": query,
        "attention.query.1.weight": vector("att_gamma2"),
        "attention.key.0.weight": key,
        "attention.key.1.weight": vector("att_gamma1"),
        "attention.key.1.bias": key_bias,
    }
    for number, (part, weight, bias) in enumerate(zip((1, 0, 2), parts, biases, strict=True)):
        state[f"readout.parts.{number}.0.weight"] = weight
        state[f"readout.parts.{number}.1.weight"] = vector(f"ff_logit_l1_gamma{part}")
        state[f"readout.parts.{number}.1.bias"] = bias
    return state


def _add_padding_and_bos(state: dict[str, Any]) -> None:
    """Rows for padding and BOS behind the others: Marian has neither, and reads zeros before the first token.

    Their logit is a constant so low that all their probability is below e^-29: what the output layer multiplies is
    within -1 and 1, so that the largest logit is never below that of the bound.
    """
    weight, bias = state["output.weight"], state["output.bias"]
    bound = (bias - weight.abs().sum(dim=1)).max()
    state["output.bias"] = _append(bias, bound - 30)
    for name in ("source_embedding.weight", "target_embedding.weight", "output.weight"):
        state[name] = _append(state[name], 0.0)


def _append(rows: Any, value: Any) -> Any:
    import torch

    return torch.cat([rows, rows.new_zeros(2, *rows.shape[1:]) + value])
