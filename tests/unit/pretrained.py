"""Small seeded models of transformers with a tokenizer made here, as `save_pretrained` writes them."""

import random
from pathlib import Path
from typing import Any, NamedTuple

import torch

from nmt.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from nmt.imports.hf import Options, load
from nmt.models import Pretrained
from nmt.text.batching import pad

SIZE = 60
WORDS = [f"{a}{b}" for a in "bdfgklmnp" for b in "aeiou"]
KINDS = ("marian", "t5", "bart", "m2m100")
OTHERS = ("mbart", "bert2bert")
INPUTS = 200


class Case(NamedTuple):
    """A model, as transformers and as a user of ours has it.

    Attributes:
        kind: which.
        folder: what `save_pretrained` has written.
        network, tokenizer: of transformers.
        checkpoint: what `nmt import hf` makes of the folder, written to a model file and read again.
        lines: texts, some of them long, without unknown words.
    """

    kind: str
    folder: Path
    network: Any
    tokenizer: Any
    checkpoint: Checkpoint
    lines: list[str]


def make_case(kind: str, folder: Path, seed: int = 1) -> Case:
    """A model and what to try it with."""
    network = save(kind, folder, seed)
    path = folder.parent / f"{folder.name}.safetensors"
    save_checkpoint(path, load(str(folder), Options()))
    generator = random.Random(seed)
    lines = [" ".join(generator.choices(WORDS, k=generator.randint(1, 9))) for _ in range(INPUTS)]
    return Case(kind, folder, network, make_tokenizer(kind), load_checkpoint(path), lines)


def make_tokenizer(kind: str) -> Any:
    """Whole words; each kind has the special ids and the frame that its models know."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<s>", "<pad>", "</s>", "<unk>", "__en__", "__fr__"]
    if kind == "t5":
        special = ["<pad>", "</s>", "<unk>", "<s>", "__en__", "__fr__"]
    names = [*special, *WORDS]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    frames = {
        "bart": "<s> $A </s>",
        "bert2bert": "<s> $A </s>",
        "m2m100": "__en__ $A </s>",
        "mbart": "$A </s> __en__",
    }
    frame = frames.get(kind, "$A </s>")
    pairs = [(name, names.index(name)) for name in ("<s>", "</s>", "__en__")]
    tokenizer.post_processor = processors.TemplateProcessing(single=frame, special_tokens=pairs)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def make_network(kind: str, seed: int = 1) -> Any:
    """A network of a kind."""
    import transformers

    # With these, most inputs have an output of their own, and some of them end by themselves.
    spread, scaled, first = {
        "marian": (0.5, True, 2), "bart": (0.6, True, 1), "mbart": (0.8, False, 1), "m2m100": (0.8, False, 3),
        "t5": (2.5, False, 5), "bert2bert": (0.2, False, 1),
    }[kind]  # fmt: skip
    torch.manual_seed(first + seed - 1)
    like_bart = {
        "vocab_size": SIZE, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 128,
        "init_std": spread, "scale_embedding": scaled,
    }  # fmt: skip
    ids = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    if kind == "marian":
        config = transformers.MarianConfig(**like_bart, **ids, decoder_start_token_id=1, forced_eos_token_id=None)
        network = transformers.MarianMTModel(config)
    elif kind == "bart":
        config = transformers.BartConfig(**like_bart, **ids, decoder_start_token_id=2, forced_eos_token_id=None)
        network = transformers.BartForConditionalGeneration(config)
    elif kind == "m2m100":
        config = transformers.M2M100Config(**like_bart, **ids, decoder_start_token_id=2)
        network = transformers.M2M100ForConditionalGeneration(config)
        network.generation_config.forced_bos_token_id = 5
    elif kind == "mbart":
        # The language is the start: nothing is forced.
        config = transformers.MBartConfig(**like_bart, **ids, decoder_start_token_id=5, forced_eos_token_id=None)
        network = transformers.MBartForConditionalGeneration(config)
    elif kind == "bert2bert":
        like_bert = {
            "vocab_size": SIZE, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
            "max_position_embeddings": 128, "initializer_range": spread,
        }  # fmt: skip
        # The encoder's states are projected to the decoder's size.
        parts = [transformers.BertConfig(**like_bert, **ids, hidden_size=size) for size in (24, 16)]
        config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(
            *parts, pad_token_id=1, eos_token_id=2, decoder_start_token_id=0
        )
        network = transformers.EncoderDecoderModel(config)
    else:
        config = transformers.T5Config(
            vocab_size=SIZE, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, initializer_factor=spread,
            relative_attention_num_buckets=8, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
        )  # fmt: skip
        network = transformers.T5ForConditionalGeneration(config)
    if kind in ("marian", "bart", "mbart"):
        network.final_logits_bias[0, 2] = 2.0
    return network.eval()


def save(kind: str, folder: Path, seed: int = 1) -> Any:
    """Writes both into a folder; returns the network."""
    from nmt.huggingface import library

    network = make_network(kind, seed)
    with library("a test"):
        network.save_pretrained(folder)
    make_tokenizer(kind).save_pretrained(folder)
    return network


def model_of(case: Case) -> Pretrained:
    model = case.checkpoint.model
    assert isinstance(model, Pretrained)
    return model


def sources(case: Case, rows: int = INPUTS) -> tuple[torch.Tensor, torch.Tensor]:
    """The lines as our vocabulary has them: ids and lengths."""
    model = model_of(case)
    return pad(case.checkpoint.source_vocabulary.encode(case.lines[:rows]), model.padding, model.eos)


def targets(case: Case, rows: int = INPUTS) -> tuple[torch.Tensor, torch.Tensor]:
    """Texts that have nothing to do with them."""
    model = model_of(case)
    return pad(case.checkpoint.target_vocabulary.encode(case.lines[::-1][:rows]), model.padding, model.eos)


def framed(case: Case) -> dict[str, torch.Tensor]:
    """The lines as transformers' own tokenizer has them."""
    return dict(case.tokenizer(case.lines, return_tensors="pt", padding=True, return_token_type_ids=False))
