"""Makes a model file of an encoder-decoder of transformers (Marian, T5, BART, mBART, M2M100, NLLB and the like), with
its own tokenizer. Code that comes with a model is never run."""

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nmt.errors import UserError

if TYPE_CHECKING:
    from nmt.checkpoint import Checkpoint
    from nmt.models.pretrained import Pretrained

logger = logging.getLogger(__name__)


@dataclass
class Options:
    """What a multilingual model translates."""

    source_language: str | None = None
    """Code of the source language as the model's tokenizer spells it (en, en_XX, eng_Latn)."""
    target_language: str | None = None
    """Code of the target language."""
    revision: str = "main"
    """Of a model on the hub: branch, tag or commit."""


def load(source: str, options: Options) -> "Checkpoint":
    """Opens a model and makes sure that it does step by step what it does at once.

    Raises:
        UserError: the extra `hf` is missing, there is no such model, or it does not fit; tells why.
    """
    from nmt.checkpoint import Checkpoint
    from nmt.models.pretrained import Pretrained, PretrainedConfig
    from nmt.tokenizer import TokenizerVocabulary, open_tokenizer, pack
    from nmt.vocabulary import Special

    network = _open_network(source, options.revision)
    tokenizer = open_tokenizer(source, options.revision)
    settings, size = network.config.to_dict(), network.get_output_embeddings().out_features
    if getattr(network.config, "share_encoder_decoder_embeddings", True) is False:
        raise UserError(f"{source} has a vocabulary each for source and target, which is not supported")
    if len(tokenizer) > size:
        raise UserError(
            f"{source}: its tokenizer has {len(tokenizer)} pieces and the model embeddings for {size} alone; give the "
            "tokenizer that the model was trained with"
        )
    _set_languages(tokenizer, options, source)
    generation = network.generation_config.to_dict()
    padding = _one_id(generation, settings, "pad_token_id", source)
    eos = _one_id(generation, settings, "eos_token_id", source)
    start = _start(tokenizer, generation, settings, options, source)
    prefix, suffix = _frame(tokenizer)
    config = PretrainedConfig(settings, start, padding, eos, prefix, suffix, generation)
    # Without an unknown piece, none of a text is unknown.
    unknown = tokenizer.unk_token_id
    special = Special(padding, size if unknown is None else unknown, start[-1], eos)
    sides = ("source", "target") if hasattr(tokenizer, "spm_target") else ("source",)
    packed = [TokenizerVocabulary(pack(tokenizer, side, size, special)) for side in sides]
    model = Pretrained(config, size, size)
    model.network.load_state_dict(network.state_dict())
    model.eval()
    _check_steps(model, network, source)
    info: dict[str, Any] = {"imported": {"toolkit": "transformers", "source": source, "kind": type(network).__name__}}
    if options.source_language and options.target_language:
        info["languages"] = {"source": options.source_language, "target": options.target_language}
    return Checkpoint(model, packed[0], packed[-1], info)


def _open_network(source: str, revision: str) -> Any:
    try:
        import torch
        from transformers import AutoConfig, AutoModelForSeq2SeqLM
    except ImportError as error:
        raise UserError(f"nmt import hf needs the extra hf ({error}); install it (pip install -e .[hf])") from None
    try:
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
        if not config.is_encoder_decoder:
            raise UserError(f"{source} is no encoder-decoder ({config.model_type}); give a model that translates")
        return AutoModelForSeq2SeqLM.from_pretrained(
            source, revision=revision, trust_remote_code=False, dtype=torch.float32, attn_implementation="eager"
        ).eval()
    except UserError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        cause = " ".join(str(error).split())[:300]
        raise UserError(
            f"{source} cannot be opened: {cause} Give the folder of a model that save_pretrained wrote, or a name on "
            "the hub when it can be reached"
        ) from None


def _set_languages(tokenizer: Any, options: Options, source: str) -> None:
    for name, code in (("src_lang", options.source_language), ("tgt_lang", options.target_language)):
        if code is None:
            continue
        flag = "--source_language" if name == "src_lang" else "--target_language"
        if not hasattr(tokenizer, name):
            raise UserError(f"{flag} is {code}, but the tokenizer of {source} knows no languages; leave it out")
        if _language_id(tokenizer, code) is None:
            raise UserError(f"{flag} is {code}, which the tokenizer of {source} lacks; give one of its codes")
        setattr(tokenizer, name, code)


def _language_id(tokenizer: Any, code: str) -> int | None:
    for name in (code, f"__{code}__"):
        found = tokenizer.convert_tokens_to_ids(name)
        if found is not None and found != tokenizer.unk_token_id:
            return int(found)
    return None


def _one_id(generation: dict[str, Any], settings: dict[str, Any], name: str, source: str) -> int:
    found = generation.get(name)
    found = settings.get(name) if found is None else found
    if isinstance(found, list) and len(found) == 1:
        found = found[0]
    if not isinstance(found, int):
        raise UserError(f"{source}: its {name} is {found}; a model with one such id is needed")
    return found


def _start(
    tokenizer: Any, generation: dict[str, Any], settings: dict[str, Any], options: Options, source: str
) -> list[int]:
    """What the decoder reads before a translation, as `generate` has it."""
    start = [_one_id(generation, settings, "decoder_start_token_id", source)]
    forced = generation.get("forced_bos_token_id")
    if options.target_language is not None:
        forced = _language_id(tokenizer, options.target_language)
        if start == [forced]:
            return start
    return start if forced is None else [*start, int(forced)]


def _frame(tokenizer: Any) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before and behind a source."""
    ids = tokenizer("a")["input_ids"]
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    for first in range(len(ids) - len(bare) + 1):
        if ids[first : first + len(bare)] == bare:
            return list(ids[:first]), list(ids[first + len(bare) :])
    return [], []


def _check_steps(model: "Pretrained", network: Any, source: str) -> None:
    """Makes sure that the decoder moved token by token gives what the network gives at once.

    Raises:
        UserError: it does not.
    """
    import torch

    generator = torch.Generator().manual_seed(1)
    size = network.get_output_embeddings().out_features
    text = torch.randint(size, (2, 6), generator=generator)
    text = torch.where(text == model.padding, (text + 1) % size, text)
    read = torch.cat([torch.tensor(model.config.start).expand(2, -1), text[:, :5]], dim=1)
    lengths = torch.tensor([6, 4])
    with torch.no_grad():
        tokens, mask = model._framed(text, lengths)
        wanted = network(input_ids=tokens, attention_mask=mask, decoder_input_ids=read, use_cache=False).logits
        memory = model.encode(text, lengths)
        state, found = model.start(memory), []
        for embedding in model.embed(read[:, len(model.config.start) - 1 :]).split(1, dim=1):
            logits, state = model.step(embedding, state, memory)
            found.append(logits)
    wanted = wanted[:, len(model.config.start) - 1 :]
    apart = float((torch.cat(found, dim=1) - wanted).abs().max())
    if not apart <= 1e-3 * max(1.0, float(wanted.abs().max())):
        raise UserError(
            f"{source}: {type(network).__name__} gives other logits token by token than at once ({apart:.2g} apart); "
            "it cannot be used"
        )
