"""Seeded models in the layouts of joeynmt's and OpenNMT-py's checkpoints, and what these toolkits compute with them,
written from their papers and documentation: one sentence, one word at a time, cells gate by gate."""

import argparse
import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml
from torch import Tensor

WORDS = ["a", "b@@", "c", "d", "e@@", "f", "g"]
CODES = "#version: 0.2\ne f</w>\n"


@dataclass
class Shape:
    """Of a model; `hidden` is the decoder's, `encoder` that of each direction; `tied`: one
    matrix for both embeddings and the output layer."""

    cell: str = "gru"
    layers: int = 1
    attention: str = "additive"
    feeding: bool = False
    bridge: str = "tanh"
    hidden: int = 6
    encoder: int = 6
    directions: int = 2
    embedding: int = 5
    tied: bool = False


@dataclass
class Peer:
    """A model as plain tensors.

    Attributes:
        tokens: of both sides, in the toolkit's order.
        source_end: whether the encoder reads the end of the sentence.
    """

    shape: Shape
    weights: dict[str, Tensor]
    tokens: list[str]
    source_end: bool
    names: dict[str, str] = field(default_factory=dict)

    def score(self, source: list[str], target: list[str]) -> float:
        """The log-probability of target tokens, the end among them."""
        w, shape = self.weights, self.shape
        number = {token: i for i, token in enumerate(self.tokens)}

        def ids(words: list[str]) -> list[int]:
            return [number.get(word, number["<unk>"]) for word in words]

        read = ids(source) + ([number["</s>"]] if self.source_end else [])
        values, finals = self._encode(w["source"][read])
        state, feed = self._first(finals), torch.zeros(shape.hidden)
        written, total = [*ids(target), number["</s>"]], 0.0
        for before, token in zip([number["<s>"], *written], written, strict=False):
            below = torch.cat([w["target"][before], feed]) if shape.feeding else w["target"][before]
            for layer in range(shape.layers):
                state[layer] = self._cell(f"decoder{layer}", below, *state[layer])
                below = state[layer][0]
            energies = torch.stack([self._energy(below, value) for value in values])
            context = (energies.softmax(dim=0).unsqueeze(1) * values).sum(dim=0)
            feed = self._readout(below, context)
            logits = w["output"] @ feed + w.get("output_bias", torch.zeros(()))
            total += float(logits[token] - logits.logsumexp(dim=0))
        return total

    def _cell(self, name: str, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        w, size = self.weights, len(h)
        given = w[f"{name}.weight_ih"] @ x + w[f"{name}.bias_ih"]
        own = w[f"{name}.weight_hh"] @ h + w[f"{name}.bias_hh"]
        if self.shape.cell == "lstm":
            i, f, g, o = (given + own).split(size)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            return o.sigmoid() * c.tanh(), c
        (r1, z1, n1), (r2, z2, n2) = given.split(size), own.split(size)
        r, z = (r1 + r2).sigmoid(), (z1 + z2).sigmoid()
        return (1 - z) * (n1 + r * n2).tanh() + z * h, c

    def _encode(self, inputs: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Values, and the last state of each layer and direction."""
        finals = []
        for layer in range(self.shape.layers):
            sides = []
            for direction in range(self.shape.directions):
                h = c = torch.zeros(self.shape.encoder)
                outputs = []
                for x in inputs.flip(0) if direction else inputs:
                    h, c = self._cell(f"encoder{layer}.{direction}", x, h, c)
                    outputs.append(h)
                finals.append((h, c))
                sides.append(torch.stack(outputs[::-1] if direction else outputs))
            inputs = torch.cat(sides, dim=1)
        return inputs, finals

    def _first(self, finals: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
        w, shape = self.weights, self.shape
        dirs = shape.directions
        if shape.bridge in ("layers", "relu"):
            parts = [torch.stack(part) for part in zip(*finals, strict=True)]  # (layers * directions, size)
            if shape.bridge == "relu":
                rows = [part.view(dirs, -1) for part in parts]
                parts = [
                    (row @ w[f"bridge{i}"].T + w[f"bridge_bias{i}"]).relu().view(part.shape)
                    for i, (row, part) in enumerate(zip(rows, parts, strict=True))
                    if f"bridge{i}" in w
                ] + parts[1 if shape.cell == "gru" else 2 :]
            h, c = (part.view(shape.layers, -1) for part in parts)
            return list(zip(h, c, strict=True))
        top = torch.cat([h for h, _ in finals[-dirs:]])
        if shape.bridge == "tanh":
            top = (w["bridge0"] @ top + w["bridge_bias0"]).tanh()
        first = torch.zeros(shape.hidden) if shape.bridge == "zero" else top[: shape.hidden]
        return [(first, first)] * shape.layers

    def _energy(self, query: Tensor, value: Tensor) -> Tensor:
        w = self.weights
        if self.shape.attention == "additive":
            return w["energy"][0] @ (w["query"] @ query + w.get("query_bias", 0) + w["key"] @ value).tanh()
        # OpenNMT-py's matrix is on the query, joeynmt's on the value.
        if self.shape.attention == "general":
            return (w["query"] @ query) @ value if "query" in w else query @ (w["key"] @ value)
        return query @ value

    def _readout(self, top: Tensor, context: Tensor) -> Tensor:
        w = self.weights
        if "readout_swapped" in w:
            found = w["readout_swapped"] @ torch.cat([context, top]) + w.get("readout_bias", torch.zeros(()))
            return found if self.shape.attention == "additive" else found.tanh()
        return (w["readout"] @ torch.cat([top, context]) + w["readout_bias"]).tanh()


def _random(shape: Shape, rows: int, seed: int) -> dict[str, Tensor]:
    """What both have."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator) * (0.4 if len(sizes) > 1 else 0.2)

    gates = 3 if shape.cell == "gru" else 4
    values = shape.directions * shape.encoder
    w = {"source": draw(rows, shape.embedding) * 3, "target": draw(rows, shape.embedding) * 3}
    w |= {"output": draw(rows, shape.hidden) * 4}
    if shape.tied:
        w["source"] = w["target"] = w["output"]

    def cell(name: str, inputs: int, size: int) -> None:
        w[f"{name}.weight_ih"], w[f"{name}.weight_hh"] = draw(gates * size, inputs), draw(gates * size, size)
        w[f"{name}.bias_ih"], w[f"{name}.bias_hh"] = draw(gates * size), draw(gates * size)

    for layer in range(shape.layers):
        for direction in range(shape.directions):
            cell(f"encoder{layer}.{direction}", values if layer else shape.embedding, shape.encoder)
        below = shape.embedding + (shape.hidden if shape.feeding else 0)
        cell(f"decoder{layer}", shape.hidden if layer else below, shape.hidden)
    if shape.attention == "additive":
        w |= {"query": draw(shape.hidden, shape.hidden), "key": draw(shape.hidden, values)}
        w |= {"energy": draw(1, shape.hidden) * 5}
    w["readout"], w["readout_bias"] = draw(shape.hidden, shape.hidden + values), draw(shape.hidden)
    w["general"] = draw(shape.hidden, values)
    w["output_bias"], w["query_bias"] = draw(rows), draw(shape.hidden)
    for part in range(2):
        size = values if shape.bridge == "tanh" else shape.layers * shape.encoder
        w[f"bridge{part}"] = draw(shape.hidden if shape.bridge == "tanh" else size, size)
        w[f"bridge_bias{part}"] = draw(len(w[f"bridge{part}"]))
    return w


def _named_cells(w: dict[str, Tensor], shape: Shape, decoder: str) -> dict[str, Tensor]:
    found = {}
    for layer in range(shape.layers):
        for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            found[decoder.format(layer=layer, part=part)] = w[f"decoder{layer}.{part}"]
            for direction in range(shape.directions):
                suffix = "_reverse" if direction else ""
                found[f"encoder.rnn.{part}_l{layer}{suffix}"] = w[f"encoder{layer}.{direction}.{part}"]
    return found


def write_joeynmt(folder: Path, shape: Shape, seed: int = 0, scale: bool = False, **data: object) -> Peer:
    """A model_dir of joeynmt 2.3; `data` goes over the sides' settings."""
    folder.mkdir(exist_ok=True)
    tokens = ["<unk>", "<pad>", "<s>", "</s>", *WORDS]
    w = _random(shape, len(tokens), seed)
    for name in ("output_bias", "query_bias", "bridge1", "bridge_bias1"):
        del w[name]
    general = w.pop("general")
    if shape.attention == "general":
        w["key"] = general
    if shape.bridge != "tanh":
        del w["bridge0"], w["bridge_bias0"]
    state = {
        "src_embed.lut.weight": w["source"].clone(),
        "trg_embed.lut.weight": w["target"].clone(),
        **_named_cells(w, shape, "decoder.rnn.{part}_l{layer}"),
        "decoder.att_vector_layer.weight": w["readout"],
        "decoder.att_vector_layer.bias": w["readout_bias"],
        "decoder.output_layer.weight": w["output"],
        "decoder.attention.key_layer.weight": w["key"],
    }
    if shape.attention == "additive":
        state |= {f"decoder.attention.{part}_layer.weight": w[part] for part in ("query", "energy")}
    if shape.bridge == "tanh":
        state |= {"decoder.bridge_layer.weight": w["bridge0"], "decoder.bridge_layer.bias": w["bridge_bias0"]}
    if scale:
        w |= {side: w[side] * math.sqrt(shape.embedding) for side in ("source", "target")}
    optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-3}]}
    torch.save({"model_state": state, "optimizer_state": optimizer, "scaler_state": None}, folder / "best.ckpt")
    (folder / "codes").write_text(CODES)
    side = {"level": "bpe", "tokenizer_type": "subword-nmt", "tokenizer_cfg": {"codes": "elsewhere/codes"}, **data}
    part = {"type": "recurrent", "rnn_type": shape.cell, "num_layers": shape.layers, "dropout": 0.1}
    part["embeddings"] = {"embedding_dim": shape.embedding, "scale": scale}
    decoder = {"attention": {"additive": "bahdanau", "general": "luong"}[shape.attention]}
    decoder |= {"init_hidden": {"tanh": "bridge"}.get(shape.bridge, shape.bridge), "input_feeding": shape.feeding}
    settings = {
        "name": "seeded",
        "data": {"src": {"lang": "aa", **side}, "trg": {"lang": "bb", **side}},
        "model": {
            "tied_embeddings": shape.tied,
            "tied_softmax": shape.tied,
            "encoder": {**part, "hidden_size": shape.encoder},
            "decoder": {**part, **decoder, "hidden_size": shape.hidden},
        },
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    for name in ("src", "trg"):
        (folder / f"{name}_vocab.txt").write_text("\n".join(tokens) + "\n")
    return Peer(shape, w, tokens, source_end=True)


def write_opennmt(path: Path, shape: Shape, seed: int = 0, **options: object) -> Peer:
    """A checkpoint of OpenNMT-py 3.0; `options` go over those of the training."""
    tokens = ["<unk>", "<blank>", "<s>", "</s>", *WORDS]
    w = _random(shape, len(tokens), seed)
    w["readout_swapped"] = w.pop("readout")
    general, bias = w.pop("general"), w.pop("query_bias")
    state = _named_cells(
        w, shape, "decoder.rnn.layers.{layer}.{part}" if shape.feeding else "decoder.rnn.{part}_l{layer}"
    )
    for side, name in (("encoder", "source"), ("decoder", "target")):
        state[f"{side}.embeddings.make_embedding.emb_luts.0.weight"] = w[name]
    state["decoder.attn.linear_out.weight"] = w["readout_swapped"]
    if shape.attention == "additive":
        w["query_bias"] = bias
        state["decoder.attn.linear_out.bias"] = w["readout_bias"]
        state["decoder.attn.linear_query.weight"], state["decoder.attn.linear_query.bias"] = w["query"], bias
        state["decoder.attn.linear_context.weight"], state["decoder.attn.v.weight"] = w["key"], w["energy"]
    else:
        del w["readout_bias"]
    if shape.attention == "general":
        w["query"] = state["decoder.attn.linear_in.weight"] = general
    for part in range(2):
        weight, offset = w.pop(f"bridge{part}"), w.pop(f"bridge_bias{part}")
        if shape.bridge == "relu" and part < (2 if shape.cell == "lstm" else 1):
            w[f"bridge{part}"], w[f"bridge_bias{part}"] = weight, offset
            state[f"encoder.bridge.{part}.weight"], state[f"encoder.bridge.{part}.bias"] = weight, offset
    codes = path.with_name("codes")
    codes.write_text(CODES)
    settings = {
        "model_type": "text", "model_task": "seq2seq", "decoder_type": "rnn", "rnn_type": shape.cell.upper(),
        "encoder_type": "brnn" if shape.directions == 2 else "rnn", "input_feed": int(shape.feeding),
        "global_attention": {"additive": "mlp"}.get(shape.attention, shape.attention), "dropout": [0.1],
        "global_attention_function": "softmax", "bridge": shape.bridge == "relu", "copy_attn": False,
        "share_vocab": shape.tied, "share_embeddings": shape.tied, "share_decoder_embeddings": shape.tied,
        "transforms": ["bpe"], "src_subword_model": str(codes), "tgt_subword_model": str(codes), **options,
    }  # fmt: skip
    checkpoint = {
        "model": state,
        "generator": {"weight": w["output"], "bias": w["output_bias"]},
        "vocab": {"src": tokens, "tgt": tokens, "data_task": "seq2seq"},
        "opt": argparse.Namespace(**settings),
        "optim": {"training_step": 3},
    }
    torch.save(checkpoint, path)
    return Peer(shape, w, tokens, source_end=False)
