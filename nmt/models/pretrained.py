"""An encoder-decoder of transformers, whose decoder state is its key-value cache."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nmt.errors import UserError
from nmt.huggingface import library
from nmt.models.int8 import take_outputs
from nmt.models.seq2seq import Advance, Seq2Seq
from nmt.tree import map_tree

Cache = tuple[tuple[Tensor, Tensor], ...]
"""Keys and values of each layer, (rows, heads, positions, head size) each; in a state (batch, slots, heads, ...)."""


@dataclass
class PretrainedConfig:
    """What transformers and its `generate` know of a model, as plain JSON values."""

    network: dict[str, Any]
    """The configuration of transformers."""
    start: list[int]
    """What the decoder reads before a translation: its start token, and what `generate` forces to be first."""
    padding: int
    """Id of padding."""
    eos: int
    """Id of the end of a sentence."""
    source_prefix: list[int] = field(default_factory=list)
    """What the tokenizer puts before a source, such as a language code."""
    source_suffix: list[int] = field(default_factory=list)
    """What it puts behind: the end of the sentence, and in mBART a language code."""
    generation: dict[str, Any] = field(default_factory=dict)
    """The settings of `generate`, which export gives back."""


class PretrainedMemory(NamedTuple):
    """What the encoder left.

    Attributes:
        mask: (batch, positions), 1 where the encoder read a token.
        ends: (batch,), of our sources, EOS counted.
        cross: the cross-attention's keys and values, computed once a sentence.
        first: the decoder's cache before the first token that a search knows of.
    """

    mask: Tensor
    ends: Tensor
    cross: Cache
    first: Cache


class Pretrained(Seq2Seq):
    """`model.bos` is the last token that the decoder reads before a translation; those before it are in its first
    state. So a language code or a forced first token is no part of a hypothesis and has no score."""

    def __init__(self, config: PretrainedConfig, source_vocabulary: int, target_vocabulary: int) -> None:
        """Builds the network with fresh weights.

        Raises:
            UserError: the extra `hf` is not installed, transformers does not know the architecture, or it has fewer
                embeddings than the vocabularies have pieces.
        """
        super().__init__(config.padding, config.start[-1], config.eos)
        self.config = config
        self.forced = len(config.start) - 1
        self.network = _build(config.network)
        self._settle()
        read = self.network.get_encoder().get_input_embeddings().num_embeddings
        for pieces, size in ((source_vocabulary, read), (target_vocabulary, self._head.out_features)):
            if pieces > size:
                raise UserError(
                    f"the tokenizer has {pieces} pieces and the model embeddings for {size} alone; give the tokenizer "
                    "that the model was trained with"
                )

    def _settle(self) -> None:
        """Takes out of the network what a cache that is handed on cannot have."""
        for module in self.network.modules():
            # A layer that is passed over leaves no keys for the next step.
            if hasattr(module, "layerdrop"):
                module.layerdrop = 0.0
        if type(self.network.get_output_embeddings()) is not nn.Linear:
            raise UserError(f"{type(self.network).__name__} has an output layer that is not linear; it cannot be used")
        if self._of_two:
            _before_output(self.network.decoder)
        names = inspect.signature(self._decoder.forward).parameters
        self._cache_name = "cache" if "cache" in names else "past_key_values"

    @property
    def _of_two(self) -> bool:
        """Whether it is an EncoderDecoderModel, whose decoder is a language model with an output layer of its own."""
        return self.network.config.model_type == "encoder-decoder"

    @property
    def _decoder(self) -> Any:
        return self.network.decoder.base_model if self._of_two else self.network.get_decoder()

    def _settings(self, side: str) -> dict[str, Any]:
        """The settings of "encoder" or "decoder", where they have some of their own, over those of both."""
        own = self.config.network.get(side)
        return {**self.config.network, **own} if isinstance(own, dict) else self.config.network

    @property
    def _head(self) -> nn.Linear:
        return self.network.get_output_embeddings()

    @property
    def steps_draw(self) -> bool:
        # Dropout is a function of the network's, and its shares are settings.
        settings = self._settings("decoder").items()
        drawing = any(("dropout" in name or name.endswith("pdrop")) and share for name, share in settings)
        return drawing or super().steps_draw

    @property
    def most_pieces(self) -> int | None:
        most = self._positions("encoder")
        return None if most is None else most - len(self.config.source_prefix) - len(self.config.source_suffix)

    @property
    def most_tokens(self) -> int | None:
        most = self._positions("decoder")
        return None if most is None else most - self.forced

    @property
    def output_layer(self) -> nn.Linear | None:
        head, bias = self._head, self._output_bias
        if type(head) is not nn.Linear:
            return None
        if bias is None:
            return head
        layer = nn.Linear(1, 1, device="meta")
        layer.weight, layer.bias = head.weight, nn.Parameter(bias, requires_grad=False)
        return layer

    @property
    def _output_bias(self) -> Tensor | None:
        """What Marian and BART add beside the output layer, (vocabulary,)."""
        bias = getattr(self.network, "final_logits_bias", None)
        return None if bias is None else bias.view(-1)

    def encode(self, source: Tensor, lengths: Tensor) -> PretrainedMemory:
        ends = lengths.to(source.device)
        tokens, mask = self._framed(source, ends)
        self._check_length(tokens.shape[1], "source")
        encoder = self.network.get_encoder()
        hidden = encoder(input_ids=tokens, attention_mask=mask).last_hidden_state
        if hasattr(self.network, "enc_to_dec_proj"):
            hidden = self.network.enc_to_dec_proj(hidden)
        read = torch.tensor(self.config.start, device=source.device).expand(len(source), -1)
        cache = _cache((), ())
        self._run(self.embed(read), hidden, mask, cache)
        cross = tuple(_tensors(cache.cross_attention_cache))
        first = tuple((keys[:, :, :-1], values[:, :, :-1]) for keys, values in _tensors(cache.self_attention_cache))
        return PretrainedMemory(mask, ends, cross, first)

    def _framed(self, source: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
        """The source as the tokenizer of the network frames it, without our EOS, and the mask."""
        prefix, suffix = (
            torch.tensor(part, dtype=source.dtype, device=source.device)
            for part in (self.config.source_prefix, self.config.source_suffix)
        )
        width = max(1, len(prefix) + source.shape[1] - 1 + len(suffix))
        place = torch.arange(width, device=source.device).expand(len(source), -1)
        tokens = torch.full_like(place, self.padding)
        tokens[:, : len(prefix)] = prefix
        tokens[:, len(prefix) : len(prefix) + source.shape[1] - 1] = source[:, :-1]
        last = (len(prefix) + ends - 1).unsqueeze(1)
        tokens.masked_fill_(place >= last, self.padding)
        if len(suffix):
            behind = last + torch.arange(len(suffix), device=source.device)
            tokens.scatter_(1, behind, suffix.expand(len(source), -1))
        return tokens, (place < last + len(suffix)).long()

    def start(self, memory: PretrainedMemory) -> Cache:
        return map_tree(lambda leaf: leaf.unsqueeze(1), memory.first)

    def embed(self, tokens: Tensor) -> Tensor:
        return self._decoder.get_input_embeddings()(tokens)

    def advance(self, embedding: Tensor, state: Cache, memory: PretrainedMemory) -> Advance:
        rows, slots = embedding.shape[:2]
        flat = map_tree(lambda leaf: leaf.flatten(0, 1), state)
        cache, mask = _cache(flat, _widen(memory.cross, slots)), _widen(memory.mask, slots)
        hidden = embedding.new_zeros(1, 1, 1).expand(rows * slots, mask.shape[1], 1)
        out = self._run(embedding.reshape(rows * slots, 1, -1), hidden, mask, cache, output_attentions=True)
        after = map_tree(lambda leaf: leaf.unflatten(0, (rows, slots)), tuple(_tensors(cache.self_attention_cache)))
        looked = out.cross_attentions[-1].mean(dim=1).view(rows, slots, -1)
        return Advance(out.last_hidden_state.view(rows, slots, -1), after, self._of_source(looked, memory.ends))

    def teacher_force(self, tokens: Tensor, memory: PretrainedMemory) -> Tensor:
        """All positions at once."""
        cache = _cache(memory.first, memory.cross)
        hidden = memory.cross[0][0].new_zeros(1, 1, 1).expand(*memory.mask.shape, 1)
        return self._run(self.embed(tokens), hidden, memory.mask, cache).last_hidden_state

    def _run(self, embedding: Tensor, hidden: Tensor, mask: Tensor, cache: Any, **options: Any) -> Any:
        """Moves the decoder, and the cache with it. Where the cache has the cross-attention's keys, `hidden` counts for
        its length alone."""
        self._check_length(cache.get_seq_length() + embedding.shape[1], "translation")
        return self._decoder(
            inputs_embeds=embedding,
            encoder_hidden_states=hidden,
            encoder_attention_mask=mask,
            use_cache=True,
            **{self._cache_name: cache},
            **options,
        )

    def _positions(self, side: str) -> int | None:
        """How many tokens "encoder" or "decoder" has positions for."""
        settings = self._settings(side)
        # T5's n_positions bounds nothing.
        most = settings.get("max_position_embeddings", settings.get("n_positions") if self._of_two else None)
        if most is None or not self._of_two:
            return most
        # RoBERTa and its like count positions from behind the id of padding.
        part = self.network.encoder if side == "encoder" else self._decoder
        table = getattr(getattr(part, "embeddings", None), "position_embeddings", None)
        padding = getattr(table, "padding_idx", None)
        return most if padding is None else most - padding - 1

    def _check_length(self, length: int, what: str) -> None:
        most = self._positions("encoder" if what == "source" else "decoder")
        if most is not None and length > most:
            raise UserError(
                f"a {what} has {length} tokens and the model positions for {most} alone; give shorter lines, or lower "
                "max_pieces, search.max_ratio or search.max_extra"
            )

    def _of_source(self, looked: Tensor, ends: Tensor) -> Tensor:
        """Attention (batch, slots, positions) over our sources, (batch, slots, source length): what is looked at in the
        frame counts for nothing but the place of EOS."""
        first, width = len(self.config.source_prefix), int(looked.shape[2]) - len(self.config.source_prefix)
        missing = 1 if not self.config.source_suffix else 0
        inside = nn.functional.pad(looked[:, :, first:], (0, missing))
        width += missing - max(0, len(self.config.source_suffix) - 1)
        there = torch.arange(width, device=looked.device) < ends.view(-1, 1, 1)
        inside = inside[:, :, :width] * there
        total = inside.sum(dim=2, keepdim=True)
        alike = there / ends.view(-1, 1, 1)
        return torch.where(total > 0, inside / total.clamp_min(torch.finfo(inside.dtype).tiny), alike.to(inside.dtype))

    def output_inputs(self, features: Tensor) -> Tensor:
        if getattr(self.network.config, "scale_decoder_outputs", False):
            return features * self.network.config.d_model**-0.5
        if self._of_two and (before := _before_output(self.network.decoder)) is not None:
            return before(features)
        return features

    def project(self, features: Tensor) -> Tensor:
        inputs, layer, bias = self.output_inputs(features), self.output_layer, self._output_bias
        if layer is not None:
            return layer(inputs)
        logits = self._head(inputs)  # of 8 bits
        return logits if bias is None else logits + bias

    def narrow(self, candidates: Tensor) -> Callable[[Tensor], Tensor]:
        layer, bias = take_outputs(self._head, candidates), self._output_bias
        if bias is None:
            return layer
        own = bias.index_select(0, candidates)
        return lambda inputs: layer(inputs) + own


def _build(settings: dict[str, Any]) -> Any:
    known = dict(settings)
    with library("a model of transformers") as transformers:
        config = transformers.CONFIG_MAPPING[known.pop("model_type")].from_dict(known)
        # Eager attention tells its weights, which alignments and the coverage penalty read. It is set for the parts of
        # an EncoderDecoderModel, too, and may be no name of code on the hub.
        config._attn_implementation = "eager"
        return transformers.AutoModelForSeq2SeqLM.from_config(config, trust_remote_code=False, dtype=torch.float32)


def _before_output(decoder: Any) -> Callable[[Tensor], Tensor] | None:
    """What a language model of transformers applies to its last hidden state before the output layer.

    Raises:
        UserError: this is not known of it.
    """
    head: Any = getattr(decoder, "lm_head", None)
    inner = getattr(getattr(decoder, "cls", None), "predictions", None)
    if inner is not None and hasattr(inner, "transform"):  # BERT and its like
        return inner.transform
    if hasattr(head, "dense") and hasattr(head, "layer_norm"):  # RoBERTa and its like
        return lambda hidden: head.layer_norm(nn.functional.gelu(head.dense(hidden)))
    if head is not None and (head is decoder.get_output_embeddings() or hasattr(head, "decoder")):
        return None
    raise UserError(f"{type(decoder).__name__} has an output layer that is not known; it cannot be used as a decoder")


def _cache(own: Cache, cross: Cache) -> Any:
    """transformers' cache around our tensors."""
    from transformers import DynamicCache, EncoderDecoderCache
    from transformers.cache_utils import DynamicLayer

    def around(tensors: Cache) -> DynamicCache:
        cache = DynamicCache()
        for keys, values in tensors:
            layer = DynamicLayer()
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys, values
            cache.layers.append(layer)
        return cache

    return EncoderDecoderCache(around(own), around(cross))


def _tensors(cache: Any) -> Iterator[tuple[Tensor, Tensor]]:
    return ((layer.keys, layer.values) for layer in cache.layers)


def _widen(tree: Any, slots: int) -> Any:
    """(batch, ...) to (batch * slots, ...)."""
    return map_tree(lambda leaf: leaf.unsqueeze(1).expand(-1, slots, *leaf.shape[1:]).flatten(0, 1), tree)
