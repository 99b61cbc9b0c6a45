"""Seeded models in the layouts of fairseq's and Marian's files, and what these toolkits compute with them, in numpy and
float64, written from their descriptions: one sentence and one word at a time, nothing of ours called."""

import argparse
import itertools
import json
import sys
import types
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml

Array = np.ndarray
WORDS = ["a", "b@@", "c", "d", "e@@", "f", "g", "h", "i", "j", "k"]
CODES = "#version: 0.2\ne f</w>\n"
LANGUAGE = ("aa", "bb")


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def softmax(x: Array) -> Array:
    shares = np.exp(x - x.max())
    return shares / shares.sum()


class Peer(ABC):
    """A model.

    Attributes:
        weights: float64, by their names in the file.
        tokens: of both sides, by their numbers.
        unknown, end: numbers of special tokens.
        never: numbers that no search writes.
        refills: whether its search gives the place of what ends to what goes on, and is done when as many hypotheses
            have ended as a beam has places.
    """

    def __init__(self, weights: dict[str, Array], tokens: list[str], unknown: int, end: int, never: set[int]) -> None:
        self.weights = {name: value.astype(np.float64) for name, value in weights.items()}
        self.tokens, self.unknown, self.end, self.never = tokens, unknown, end, never

    refills = False

    @abstractmethod
    def read(self, source: list[int]) -> tuple[Array, Any]:
        """What the encoder gives (length, values) and the first state."""

    @abstractmethod
    def step(self, previous: int | None, state: Any, values: Array) -> tuple[Array, Any]:
        """Logits and the new state behind a token, or behind nothing."""

    def numbers(self, words: list[str]) -> list[int]:
        found = {token: number for number, token in enumerate(self.tokens)}
        return [found.get(word, self.unknown) for word in words]

    def next(self, previous: int | None, state: Any, values: Array) -> tuple[Array, Any]:
        """Log-probabilities and the new state."""
        logits, state = self.step(previous, state, values)
        return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum()), state

    def score(self, source: list[str], target: list[str]) -> float:
        """The log-probability of a target and its end."""
        values, state = self.read([*self.numbers(source), self.end])
        total, previous = 0.0, None
        for token in [*self.numbers(target), self.end]:
            found, state = self.next(previous, state, values)
            total, previous = total + found[token], token
        return total

    def search(self, source: list[str], beam: int, longest: int) -> tuple[float, list[str]]:
        """The best by log-probability a token of the hypotheses of at most so many tokens, the end counted, that a beam
        comes across: at each step the best continuations are taken, those that end among them."""
        values, state = self.read([*self.numbers(source), self.end])
        opened: list[tuple[float, list[int], Any]] = [(0.0, [], state)]
        ended: list[tuple[float, list[int]]] = []
        for length in range(1, longest + 1):
            every = []
            for total, tokens, state in opened:
                found, new = self.next(tokens[-1] if tokens else None, state, values)
                for token, value in enumerate(found):
                    if token not in self.never and (length < longest or token == self.end):
                        every.append((total + value, [*tokens, token], new))
            every.sort(key=lambda one: -one[0])
            ended += [(total / length, tokens[:-1]) for total, tokens, _ in every[:beam] if tokens[-1] == self.end]
            opened = [one for one in every[: None if self.refills else beam] if one[1][-1] != self.end][:beam]
            if self.refills and len(ended) >= beam:
                break
        best = max(ended)
        return best[0], [self.tokens[token] for token in best[1]]


def random_arrays(seed: int, sizes: dict[str, tuple[int, ...]], scales: dict[str, float]) -> dict[str, Array]:
    """float32 arrays; a scale is that of all names that begin so, the first that fits."""
    generator = np.random.default_rng(seed)
    found = {}
    for name, size in sizes.items():
        scale = next((scale for start, scale in scales.items() if name.startswith(start)), 1.2)
        found[name] = (generator.standard_normal(size) * scale).astype(np.float32)
    return found


# fairseq


@dataclass
class FairseqShape:
    """Sizes of decoder, encoder (each direction) and embeddings; `out`: of what the output layer multiplies; `shared`:
    which matrices are one; `settings`: how the checkpoint keeps them."""

    layers: int = 1
    hidden: int = 6
    encoder: int = 6
    directions: int = 1
    source: int = 5
    target: int = 6
    out: int = 6
    shared: str = "none"
    settings: str = "args"


class Fairseq(Peer):
    """fairseq.models.lstm: torch's LSTM reads, its cells write, whose first one takes the last attended state, too."""

    shape: FairseqShape
    refills = True

    def _cell(self, name: str, suffix: str, x: Array, h: Array, c: Array) -> tuple[Array, Array]:
        w = {part: self.weights[f"{name}.{part}{suffix}"] for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
        i, f, g, o = np.split(w["weight_ih"] @ x + w["bias_ih"] + w["weight_hh"] @ h + w["bias_hh"], 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        return sigmoid(o) * np.tanh(c), c

    def read(self, source: list[int]) -> tuple[Array, Any]:
        inputs = list(self.weights["encoder.embed_tokens.weight"][source])
        first = []
        for layer in range(self.shape.layers):
            sides, last = [], []
            for direction in range(self.shape.directions):
                h = c = np.zeros(self.shape.encoder)
                outputs = []
                for x in inputs[::-1] if direction else inputs:
                    h, c = self._cell("encoder.lstm", f"_l{layer}" + "_reverse" * direction, x, h, c)
                    outputs.append(h)
                sides.append(outputs[::-1] if direction else outputs)
                last.append((h, c))
            inputs = [np.concatenate(both) for both in zip(*sides, strict=True)]
            h, c = (np.concatenate(part) for part in zip(*last, strict=True))
            if len(h) != self.shape.hidden:
                h, c = (
                    self.weights[f"decoder.encoder_{name}_proj.weight"] @ part
                    + self.weights[f"decoder.encoder_{name}_proj.bias"]
                    for name, part in (("hidden", h), ("cell", c))
                )
            first.append((h, c))
        return np.stack(inputs), (first, np.zeros(self.shape.hidden))

    def step(self, previous: int | None, state: Any, values: Array) -> tuple[Array, Any]:
        w, (layers, fed) = self.weights, state
        # The end of a sentence stands in front of the next.
        x = np.concatenate([w["decoder.embed_tokens.weight"][self.end if previous is None else previous], fed])
        new = []
        for layer, (h, c) in enumerate(layers):
            new.append(self._cell(f"decoder.layers.{layer}", "", x, h, c))
            x = new[-1][0]
        shares = softmax(values @ (w["decoder.attention.input_proj.weight"] @ x))
        out = np.tanh(w["decoder.attention.output_proj.weight"] @ np.concatenate([shares @ values, x]))
        features = out
        if "decoder.additional_fc.weight" in w:
            features = w["decoder.additional_fc.weight"] @ out + w["decoder.additional_fc.bias"]
        if self.shape.shared != "none":
            return w["decoder.embed_tokens.weight"] @ features, (new, out)
        return w["decoder.fc_out.weight"] @ features + w["decoder.fc_out.bias"], (new, out)


def write_fairseq(path: Path, shape: FairseqShape, seed: int = 1, **settings: Any) -> Fairseq:
    """A checkpoint with its dictionaries beside it; `settings` go over those of the training."""
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *WORDS, "madeupword0000"]
    rows, values = len(tokens), shape.directions * shape.encoder
    sizes: dict[str, tuple[int, ...]] = {
        "encoder.embed_tokens.weight": (rows, shape.source),
        "decoder.embed_tokens.weight": (rows, shape.target),
        "decoder.attention.input_proj.weight": (values, shape.hidden),
        "decoder.attention.output_proj.weight": (shape.hidden, values + shape.hidden),
    }

    def cell(name: str, suffix: str, inputs: int, size: int) -> None:
        sizes[f"{name}.weight_ih{suffix}"], sizes[f"{name}.weight_hh{suffix}"] = (4 * size, inputs), (4 * size, size)
        sizes[f"{name}.bias_ih{suffix}"] = sizes[f"{name}.bias_hh{suffix}"] = (4 * size,)

    for layer in range(shape.layers):
        for direction in range(shape.directions):
            suffix = f"_l{layer}" + "_reverse" * direction
            cell("encoder.lstm", suffix, values if layer else shape.source, shape.encoder)
        cell(f"decoder.layers.{layer}", "", shape.hidden if layer else shape.target + shape.hidden, shape.hidden)
    if values != shape.hidden:
        for name in ("hidden", "cell"):
            sizes[f"decoder.encoder_{name}_proj.weight"] = (shape.hidden, values)
            sizes[f"decoder.encoder_{name}_proj.bias"] = (shape.hidden,)
    if shape.out != shape.hidden:
        sizes |= {"decoder.additional_fc.weight": (shape.out, shape.hidden), "decoder.additional_fc.bias": (shape.out,)}
    if shape.shared == "none":
        sizes |= {"decoder.fc_out.weight": (rows, shape.out), "decoder.fc_out.bias": (rows,)}
    loud = {"encoder.embed": 2.0, "decoder.embed": 2.0, "decoder.fc_out.w": 1.5, "decoder.attention.input_proj": 3.0}
    w = random_arrays(seed, sizes, loud)
    if shape.shared == "all":
        w["encoder.embed_tokens.weight"] = w["decoder.embed_tokens.weight"]
    told = {
        "arch": "lstm",
        "task": "translation",
        "criterion": "label_smoothed_cross_entropy",
        "source_lang": LANGUAGE[0],
        "target_lang": LANGUAGE[1],
        "data": "data-bin/gone",
        "dropout": 0.1,
        "share_decoder_input_output_embed": shape.shared != "none",
        "share_all_embeddings": shape.shared == "all",
        **settings,
    }
    content = {
        "args": argparse.Namespace(**told) if shape.settings == "args" else None,
        "model": {name: torch.from_numpy(value) for name, value in w.items()},
        "optimizer_history": [{"optimizer_name": "FairseqAdam", "num_updates": 3}],
        "extra_state": {"val_loss": np.float64(3.5), "best": 3.5},
    }
    for language in LANGUAGE:
        path.with_name(f"dict.{language}.txt").write_text("".join(f"{token} 7\n" for token in tokens[4:]))
    with _Omegaconf() as omegaconf:
        if shape.settings != "args":
            model, task = argparse.Namespace(_name="lstm", **told), {**told, "_name": told["task"]}
            content["cfg"] = {"model": model, "task": task, "common": {"seed": 1}}
        if shape.settings == "omegaconf":
            content["cfg"] = omegaconf(content["cfg"])
        torch.save(content, path)
    peer = Fairseq(w, tokens, unknown=3, end=2, never={1})
    peer.shape = shape
    return peer


class _Omegaconf:
    """Modules that pretend to be omegaconf while a file is written that names their classes."""

    def __enter__(self) -> Any:
        self.before = {name: sys.modules.get(name) for name in ("omegaconf", "omegaconf.nodes", "omegaconf.base")}
        made = {name: types.ModuleType(name) for name in self.before}
        sys.modules.update(made)
        kinds = {}
        for module, name in (("omegaconf", "DictConfig"), ("omegaconf.nodes", "AnyNode"), ("omegaconf.base", "Meta")):
            kinds[name] = type(name, (), {"__module__": module})
            setattr(made[module], name, kinds[name])

        def wrap(value: Any, parent: Any = None) -> Any:
            made = kinds["DictConfig" if isinstance(value, dict) else "AnyNode"]()
            made._metadata = kinds["Meta"]()
            made._metadata.object_type, made._parent = dict, parent
            if isinstance(value, dict):
                made._content = {name: wrap(one, made) for name, one in value.items()}
            else:
                made._val = value
            return made

        return wrap

    def __exit__(self, *_: Any) -> None:
        for name, module in self.before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


# Marian


@dataclass
class MarianShape:
    """Sizes of states, embeddings and the attention's layer; `kind`: the type; `tied`: which matrices are one."""

    kind: str = "s2s"
    cell: str = "gru"
    layers: int = 1
    upper: int = 1
    direction: str = "bidirectional"
    skip: bool = False
    hidden: int = 5
    embedding: int = 6
    attention: int = 10
    tied: str = "none"
    normed: bool = False
    seed: int = 0


class State(NamedTuple):
    h: Array
    c: Array


class Marian(Peer):
    """marian::EncoderS2S and DecoderS2S: two stacks of cells read, two cells around the attention and a stack of
    others write, whose first state is made of the mean of what was read."""

    shape: MarianShape

    def _norm(self, x: Array, name: str) -> Array:
        """Layer normalisation with a scale, where the model has any."""
        if not self.shape.normed:
            return x
        centred = x - x.sum(axis=-1, keepdims=True) / x.shape[-1]
        variance = (centred * centred).sum(axis=-1, keepdims=True) / x.shape[-1]
        return centred / np.sqrt(variance + 1e-9) * self.weights[name].ravel()

    def _cell(self, name: str, x: Array, state: State, final: bool = False) -> State:
        w, h = self.weights, state.h
        wide = ("W",) if self.shape.cell == "lstm" else ("W", "Wx")
        given = self._norm(np.concatenate([x @ w[f"{name}_{part}"] for part in wide]), f"{name}_gamma1")
        own = np.concatenate([h @ w[f"{name}_{part.replace('W', 'U')}"] for part in wide])
        own = self._norm(own, f"{name}_gamma2")
        bias = np.concatenate([w[f"{name}_{part.replace('W', 'b')}"].ravel() for part in wide])
        if self.shape.cell == "lstm":
            f, i, c, o = np.split(given + own + bias, 4)
            cell = sigmoid(f) * state.c + sigmoid(i) * np.tanh(c)
            return State(sigmoid(o) * np.tanh(cell), cell)
        size = len(h)
        reset, keep = np.split(sigmoid((given + own + bias)[: 2 * size]), 2)
        given, own, bias = (part[2 * size :] for part in (given, own, bias))
        new = np.tanh(given + (own + bias) * reset) if final else np.tanh(given + own * reset + bias)
        return State((1 - keep) * new + keep * h, h)

    def read(self, source: list[int]) -> tuple[Array, Any]:
        w, shape = self.weights, self.shape
        embedded = list(w["Wemb" if "Wemb" in w else "encoder_Wemb"][source])
        tops = []
        for backward, prefix in enumerate(("encoder_bi", "encoder_bi_r")):
            inputs = embedded
            for layer in range(shape.layers):
                turn = bool(backward) != (shape.direction == "alternating" and layer % 2 == 1)
                state = State(np.zeros(shape.hidden), np.zeros(shape.hidden))
                outputs = []
                for x in inputs[::-1] if turn else inputs:
                    state = self._cell(prefix + (f"_l{layer + 1}_cell1" if layer else ""), x, state)
                    outputs.append(state.h)
                inputs = outputs[::-1] if turn else outputs
            tops.append(inputs)
        values = np.array([np.concatenate(both) for both in zip(*tops, strict=True)])
        mean = self._norm(values.mean(axis=0) @ w["decoder_ff_state_W"], "decoder_ff_state_gamma")
        first = np.tanh(mean + w["decoder_ff_state_b"].ravel())
        return values, [State(first, first)] * shape.upper

    def step(self, previous: int | None, state: Any, values: Array) -> tuple[Array, Any]:
        w, shape = self.weights, self.shape
        matrix = w["Wemb" if "Wemb" in w else "decoder_Wemb"]
        x = np.zeros(shape.embedding) if previous is None else matrix[previous]
        asking = self._cell("decoder_cell1", x, state[0])
        keys = self._norm(values @ w["decoder_Wc_att"], "decoder_att_gamma1")
        query = self._norm(asking.h @ w["decoder_W_comb_att"], "decoder_att_gamma2")
        energies = np.tanh(keys + w["decoder_b_att"].ravel() + query) @ w["decoder_U_att"].ravel()
        context = softmax(energies) @ values
        new = [self._cell("decoder_cell2", context, asking, final=True)]
        top = new[0].h
        for layer in range(1, shape.upper):
            new.append(self._cell(f"decoder_l{layer + 1}_cell1", top, state[layer]))
            top = new[-1].h + top if shape.skip else new[-1].h
        inputs = (x, top, context)
        hidden = np.tanh(
            sum(
                self._norm(one @ w[f"decoder_ff_logit_l1_W{part}"], f"decoder_ff_logit_l1_gamma{part}")
                + w[f"decoder_ff_logit_l1_b{part}"].ravel()
                for part, one in enumerate(inputs)
            )
        )
        output = w.get("decoder_ff_logit_l2_Wt", matrix)
        if "decoder_ff_logit_l2_W" in w:
            output = w["decoder_ff_logit_l2_W"].T
        return output @ hidden + w["decoder_ff_logit_l2_b"].ravel(), new


def write_marian(path: Path, shape: MarianShape, settings: dict[str, Any] | None = None, old: bool = False) -> Marian:
    """A model.npz with its vocabularies and configuration beside it; `settings` go over those in the file; `old`: as
    Nematus itself wrote it, with its settings beside the file."""
    tokens = ["</s>", "<unk>", *WORDS, "null", "1.0"]
    rows, size, values = len(tokens), shape.hidden, 2 * shape.hidden
    sizes: dict[str, tuple[int, ...]] = {}

    def cell(name: str, inputs: int) -> None:
        gates = 4 if shape.cell == "lstm" else 2
        sizes[f"{name}_W"], sizes[f"{name}_U"] = (inputs, gates * size), (size, gates * size)
        sizes[f"{name}_b"] = (1, gates * size)
        for gamma in ("gamma1", "gamma2") if shape.normed else ():
            sizes[f"{name}_{gamma}"] = (1, max(gates, 3) * size)
        if shape.cell != "lstm":
            sizes[f"{name}_Wx"], sizes[f"{name}_Ux"], sizes[f"{name}_bx"] = (inputs, size), (size, size), (1, size)

    for prefix in ("encoder_bi", "encoder_bi_r"):
        for layer in range(shape.layers):
            cell(f"{prefix}_l{layer + 1}_cell1" if layer else prefix, size if layer else shape.embedding)
    cell("decoder_cell1", shape.embedding)
    cell("decoder_cell2", values)
    for layer in range(1, shape.upper):
        cell(f"decoder_l{layer + 1}_cell1", size)
    embeddings = ("Wemb",) if shape.tied == "all" else ("encoder_Wemb", "decoder_Wemb")
    sizes |= dict.fromkeys(embeddings, (rows, shape.embedding))
    sizes |= {"decoder_Wc_att": (values, shape.attention), "decoder_W_comb_att": (size, shape.attention)}
    sizes |= {"decoder_b_att": (1, shape.attention), "decoder_U_att": (shape.attention, 1)}
    sizes |= {"decoder_ff_state_W": (values, size), "decoder_ff_state_b": (1, size)}
    for part, inputs in enumerate((shape.embedding, size, values)):
        sizes[f"decoder_ff_logit_l1_W{part}"] = (inputs, shape.embedding)
        sizes[f"decoder_ff_logit_l1_b{part}"] = (1, shape.embedding)
        if shape.normed:
            sizes[f"decoder_ff_logit_l1_gamma{part}"] = (1, shape.embedding)
    if shape.normed:
        sizes |= {"decoder_ff_state_gamma": (1, size)}
        sizes |= dict.fromkeys(("decoder_att_gamma1", "decoder_att_gamma2"), (1, shape.attention))
    if shape.tied == "none":
        untied = {"decoder_ff_logit_l2_Wt": (rows, shape.embedding)}
        sizes |= untied if shape.kind == "s2s" else {"decoder_ff_logit_l2_W": (shape.embedding, rows)}
    sizes["decoder_ff_logit_l2_b"] = (1, rows)
    loud = {"decoder_ff_logit_l2_W": 1.6, "Wemb": 1.2, "encoder_Wemb": 1.2, "decoder_Wemb": 1.2, "decoder_U_att": 2.0}
    w = random_arrays(shape.seed, sizes, loud)
    for name in w if shape.normed else ():
        # A normalised cell that is not loud forgets.
        factor = 2.0 if "Wemb" in name else 1.25 if "gamma" in name else 1.0
        w[name] *= np.float32(0.6 if "logit_l1_gamma" in name else factor)
    for part in range(3):
        # Their sum is exact in float32, too.
        w[f"decoder_ff_logit_l1_b{part}"] = np.round(w[f"decoder_ff_logit_l1_b{part}"] * 256) / 256
    told = {
        "type": shape.kind, "enc-cell": shape.cell, "dec-cell": shape.cell, "enc-type": shape.direction,
        "enc-depth": shape.layers, "dec-depth": shape.upper, "enc-cell-depth": 1, "dec-cell-base-depth": 2,
        "dec-cell-high-depth": 1, "skip": shape.skip, "layer-normalization": shape.normed, "right-left": False,
        "tied-embeddings": shape.tied == "output", "tied-embeddings-src": False,
        "tied-embeddings-all": shape.tied == "all", "dim-vocabs": [rows, rows], "dim-emb": shape.embedding,
        "dim-rnn": size, **(settings or {}),
    }  # fmt: skip
    arrays = {name if shape.kind == "s2s" else nematus_name(name): value for name, value in w.items()}
    arrays |= {} if shape.kind == "s2s" else {"decoder_c_tt": np.zeros((1, 0), np.float32)}
    if old:
        arrays = {name: value.ravel() if "_b" in name else value for name, value in arrays.items()}
        arrays |= {"uidx": np.array(7), "history_errs": np.array([1.0])}
        options = {"dim_word": shape.embedding, "dim": size, "dictionaries": ["gone/vocab.json", "gone/vocab.json"]}
        path.with_name(f"{path.name}.json").write_text(json.dumps({**options, **(settings or {})}))
        names = {**dict(zip(tokens, itertools.count())), "eos": 0, "UNK": 1}
        del names["</s>"], names["<unk>"]
        path.with_name("vocab.json").write_text(json.dumps(names))
    else:
        text = yaml.safe_dump(told).encode() + b"\0"
        arrays["special:model.yml"] = np.frombuffer(text, np.int8)
        beside = {"vocabs": ["gone/vocab.yml", "gone/vocab.yml"], "relative-paths": True}
        path.with_name(f"{path.name}.decoder.yml").write_text(yaml.safe_dump(beside))
        # Marian writes tokens without quotes that YAML takes for other things.
        quoted = [f'"{token}"' if token[0] == "<" else token for token in tokens]
        path.with_name("vocab.yml").write_text("".join(f"{one}: {number}\n" for number, one in enumerate(quoted)))
    np.savez(path, **arrays)
    peer = Marian(w, tokens, unknown=1, end=0, never=set())
    peer.shape = shape
    return peer


def nematus_name(name: str) -> str:
    """What Nematus calls a parameter of Marian, one by one."""
    words = {"decoder_Wemb": "Wemb_dec", "encoder_Wemb": "Wemb", "decoder_cell2_W": "decoder_Wc"}
    words |= {"decoder_cell2_Wx": "decoder_Wcx"}
    for part, side in enumerate(("prev", "lstm", "ctx")):
        words |= {f"decoder_ff_logit_l1_{kind}{part}": f"ff_logit_{side}_{kind}" for kind in "Wb"}
    for layer, short in (("logit_l2", "logit"), ("state", "state")):
        words |= {f"decoder_ff_{layer}_{kind}": f"ff_{short}_{kind}" for kind in "Wb"}
    for kind in ("W", "Wx", "U", "Ux", "b", "bx"):
        words |= {f"encoder_bi_{kind}": f"encoder_{kind}", f"encoder_bi_r_{kind}": f"encoder_r_{kind}"}
        words[f"decoder_cell1_{kind}"] = f"decoder_{kind}"
        words.setdefault(f"decoder_cell2_{kind}", f"decoder_{kind}_nl")
    for kind in ("gamma1", "gamma2"):
        words |= {f"encoder_bi_{kind}": f"encoder_{kind}", f"encoder_bi_r_{kind}": f"encoder_r_{kind}"}
    scales = ["ff_state_gamma", *(f"ff_logit_l1_gamma{part}" for part in range(3))]
    words |= {f"decoder_{scale}": scale for scale in scales}
    return words.get(name, name)
