"""Makes a model file of an encoder-decoder of transformers (Marian, T5, BART, mBART, M2M100, NLLB and the like), with
its own tokenizer. Code that comes with a model is never run."""

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nmt.errors import UserError
from nmt.huggingface import cause_of, library

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
    from nmt.text.tokenizer import TokenizerVocabulary, open_tokenizer, pack
    from nmt.text.vocabulary import Special

    network = _open_network(source, options.revision)
    tokenizer = open_tokenizer(source, options.revision)
    settings, size = _plain(network.config.to_dict()), network.get_output_embeddings().out_features
    _check_sizes(network, tokenizer, size, source)
    _set_languages(tokenizer, options, source)
    generation = network.generation_config.to_dict()
    padding = _one_id(generation, settings, "pad_token_id", source)
    eos = _one_id(generation, settings, "eos_token_id", source)
    _check_ends(tokenizer, padding, eos, source)
    start = _start(tokenizer, generation, settings, options, source)
    prefix, suffix = _frame(tokenizer, source)
    config = PretrainedConfig(settings, start, padding, eos, prefix, suffix, generation)
    # Without an unknown piece, none of a text is unknown.
    unknown = tokenizer.unk_token_id
    special = Special(padding, size if unknown is None else unknown, start[-1], eos)
    sides = ("source", "target") if hasattr(tokenizer, "spm_target") else ("source",)
    packed = [TokenizerVocabulary(pack(tokenizer, side, size, special)) for side in sides]
    model = Pretrained(config, len(tokenizer), size)
    model.network.load_state_dict(network.state_dict())
    model.eval()
    _check_steps(model, network, source)
    info: dict[str, Any] = {"imported": {"toolkit": "transformers", "source": source, "kind": type(network).__name__}}
    if options.source_language and options.target_language:
        info["languages"] = {"source": options.source_language, "target": options.target_language}
    return Checkpoint(model, packed[0], packed[-1], info)


def _open_network(source: str, revision: str) -> Any:
    with library("nmt import hf") as transformers:
        import torch

        try:
            config = transformers.AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
        except Exception as error:  # what it raises for a damaged file depends on the file
            raise _no_model(source, error) from None
        if not config.is_encoder_decoder:
            raise UserError(f"{source} is no encoder-decoder ({config.model_type}); give a model that translates")
        try:
            # A file of torch is read with weights_only, where there is no safetensors.
            network, told = transformers.AutoModelForSeq2SeqLM.from_pretrained(
                source,
                revision=revision,
                trust_remote_code=False,
                weights_only=True,
                dtype=torch.float32,
                attn_implementation="eager",
                output_loading_info=True,
            )
        except Exception as error:
            raise _no_model(source, error) from None
    if missing := sorted(told["missing_keys"]):
        raise UserError(
            f"{source} lacks {len(missing)} weights of a {type(network).__name__}, such as {missing[0]}; give a whole "
            "model, as save_pretrained writes it"
        )
    return network.eval()


def _no_model(source: str, error: Exception) -> UserError:
    return UserError(
        f"{source} cannot be opened: {cause_of(error)} Give the folder of a model that save_pretrained wrote, or a "
        "name on the hub when it can be reached"
    )


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings without where code of the model's own lies, which does not come along."""
    return {
        name: _plain(value) if isinstance(value, dict) else value
        for name, value in settings.items()
        if name != "auto_map"
    }


def _check_sizes(network: Any, tokenizer: Any, size: int, source: str) -> None:
    read = network.get_encoder().get_input_embeddings().num_embeddings
    if getattr(network.config, "share_encoder_decoder_embeddings", True) is False or read != size:
        raise UserError(f"{source} has a vocabulary each for source and target, which is not supported")
    if len(tokenizer) > size:
        raise UserError(
            f"{source}: its tokenizer has {len(tokenizer)} pieces and the model embeddings for {size} alone; give the "
            "tokenizer that the model was trained with"
        )


def _check_ends(tokenizer: Any, padding: int, eos: int, source: str) -> None:
    if padding == eos:
        raise UserError(
            f"{source}: {eos} is the id of padding and of the end of a sentence, which could not be learned then; give "
            "a model with a padding of its own"
        )
    for name, known in (("pad", padding), ("eos", eos)):
        of_tokenizer = getattr(tokenizer, f"{name}_token_id")
        if of_tokenizer not in (None, known):
            raise UserError(
                f"{source}: {name}_token_id is {known} in the model and {of_tokenizer} in its tokenizer; give the "
                "tokenizer that the model was trained with"
            )


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
    """What the decoder reads before a translation, as `generate` has it. A target language is noted in `generation`,
    so that a model that is exported has it, too."""
    start = _one_id(generation, settings, "decoder_start_token_id", source)
    if options.target_language is not None:
        language = _language_id(tokenizer, options.target_language)
        assert language is not None  # `_set_languages` has looked
        if start in _special_ids(tokenizer):
            generation["forced_bos_token_id"] = language
        else:
            # It begins with a language code, as mBART does; another language is another start.
            start = generation["decoder_start_token_id"] = language
    forced = generation.get("forced_bos_token_id")
    return [start] if forced is None else [start, int(forced)]


def _special_ids(tokenizer: Any) -> set[int | None]:
    """The ids of special tokens that are no language code."""
    return {getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos", "unk", "cls", "sep", "mask")}


def _frame(tokenizer: Any, source: str) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before and behind a source."""
    ids = list(tokenizer("a")["input_ids"])
    bare = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    for first in range(len(ids) - len(bare) + 1):
        if bare and ids[first : first + len(bare)] == bare:
            return ids[:first], ids[first + len(bare) :]
    raise UserError(f"{source}: what its tokenizer puts around a text cannot be told ({bare} becomes {ids})")


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
