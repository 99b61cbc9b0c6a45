"""Small seeded models of transformers with a tokenizer made here, as `save_pretrained` writes them."""

from pathlib import Path
from typing import Any

import torch

SIZE = 60
WORDS = [f"{a}{b}" for a in "bdfgklmnp" for b in "aeiou"]
KINDS = ("marian", "t5", "bart", "m2m100")


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
    frame = {"bart": "<s> $A </s>", "m2m100": "__en__ $A </s>"}.get(kind, "$A </s>")
    pairs = [(name, names.index(name)) for name in ("<s>", "</s>", "__en__")]
    tokenizer.post_processor = processors.TemplateProcessing(single=frame, special_tokens=pairs)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def make_network(kind: str, seed: int = 1) -> Any:
    """A network whose translations end by themselves."""
    import transformers

    torch.manual_seed(seed)
    like_bart = {
        "vocab_size": SIZE, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 128,
        "init_std": 0.6, "scale_embedding": True,
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
    else:
        config = transformers.T5Config(
            vocab_size=SIZE, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, initializer_factor=3.0,
            relative_attention_num_buckets=8, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
        )  # fmt: skip
        network = transformers.T5ForConditionalGeneration(config)
    if kind in ("marian", "bart"):
        network.final_logits_bias[0, 2] = 2.0
    return network.eval()


def save(kind: str, folder: Path, seed: int = 1) -> Any:
    """Writes both into a folder; returns the network."""
    network = make_network(kind, seed)
    network.save_pretrained(folder)
    make_tokenizer(kind).save_pretrained(folder)
    return network
