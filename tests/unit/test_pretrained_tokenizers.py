"""Tokenizers that models of transformers come with, made small here: of two SentencePiece models, of many languages."""

import io
import json
import random
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

import sentencepiece
import transformers

from nmt.checkpoint import load_checkpoint, save_checkpoint
from nmt.huggingface import library
from nmt.imports.hf import Options, load
from nmt.models import Pretrained
from nmt.pretrained_folder import export_folder
from nmt.text.tokenizer import TokenizerVocabulary, pack
from nmt.text.vocabulary import Special
from nmt.translation import words_of
from nmt.translator import Translator
from tests.unit.pretrained import WORDS

LINES = [" ".join(random.Random(i).choices(WORDS, k=1 + i % 7)) for i in range(30)]
LIKE_BART = {
    "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 128, "init_std": 0.6,
}  # fmt: skip
FIRST = ["<s>", "<pad>", "</s>", "<unk>"]
IDS = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}


def sentence_pieces(path: Path, size: int) -> list[str]:
    """Trains a SentencePiece model; returns its pieces without the special ones."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES * 5), model_writer=written, vocab_size=size, minloglevel=2, num_threads=1,
        hard_vocab_limit=False,
    )  # fmt: skip
    path.write_bytes(written.getvalue())
    processor = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    return [piece for piece in map(processor.id_to_piece, range(len(processor))) if piece not in FIRST]


def marian(folder: Path) -> tuple[Any, Any]:
    sides = [sentence_pieces(folder / f"{side}.spm", size) for side, size in (("source", 90), ("target", 24))]
    names = ["</s>", "<unk>", *sorted({piece for side in sides for piece in side}), "<pad>"]
    (folder / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tokenizer = transformers.MarianTokenizer(*(str(folder / n) for n in ("source.spm", "target.spm", "vocab.json")))
    ids = {"pad_token_id": len(names) - 1, "eos_token_id": 0, "decoder_start_token_id": len(names) - 1}
    config = transformers.MarianConfig(
        vocab_size=len(names), **LIKE_BART, **ids, forced_eos_token_id=0, scale_embedding=True
    )
    return transformers.MarianMTModel(config), tokenizer


def m2m100(folder: Path) -> tuple[Any, Any]:
    names = [*FIRST, *sentence_pieces(folder / "sentencepiece.bpe.model", 90)]
    (folder / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
    files = (str(folder / name) for name in ("vocab.json", "sentencepiece.bpe.model"))
    tokenizer = transformers.M2M100Tokenizer(*files)
    config = transformers.M2M100Config(vocab_size=len(names) + 108, **LIKE_BART, **IDS, decoder_start_token_id=2)
    return transformers.M2M100ForConditionalGeneration(config), tokenizer


def mbart(folder: Path) -> tuple[Any, Any]:
    """The decoder begins with the language."""
    codes = transformers.MBartTokenizer().convert_ids_to_tokens(range(5, 30))
    pieces = [*((f"▁{word}", -3.0) for word in WORDS), *((letter, -9.0) for letter in "▁abdefgiklmnopu")]
    vocabulary = [(name, 0.0) for name in FIRST] + pieces + [(name, 0.0) for name in (*codes, "<mask>")]
    tokenizer = transformers.MBartTokenizer(vocab=vocabulary)
    start = tokenizer.convert_tokens_to_ids("ro_RO")
    config = transformers.MBartConfig(
        vocab_size=len(tokenizer), **LIKE_BART, **IDS, decoder_start_token_id=start, forced_eos_token_id=2
    )
    return transformers.MBartForConditionalGeneration(config), tokenizer


def nllb(folder: Path) -> tuple[Any, Any]:
    names = [*FIRST, "▁", *"abdefgiklmnopu", *(f"▁{letter}" for letter in "bdfgklmnp")]
    merges = [("▁", letter) for letter in "bdfgklmnp"]
    tokenizer = transformers.NllbTokenizer(vocab={name: i for i, name in enumerate(names)}, merges=merges)
    config = transformers.M2M100Config(vocab_size=len(tokenizer), **LIKE_BART, **IDS, decoder_start_token_id=2)
    return transformers.M2M100ForConditionalGeneration(config), tokenizer


@pytest.mark.parametrize(
    ("make", "source", "target"),
    [
        (marian, None, None),
        (m2m100, "de", "fr"),
        (mbart, "de_DE", "fr_XX"),
        (mbart, "de_DE", None),
        (nllb, "deu_Latn", "fra_Latn"),
    ],
)
def test_texts_and_translations_are_those_of_transformers(
    make: Callable[[Path], tuple[Any, Any]], source: str | None, target: str | None, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    (tmp_path / "parts").mkdir()
    with library("a test"):
        network, tokenizer = make(tmp_path / "parts")
        network.eval().save_pretrained(tmp_path / "whole")
        tokenizer.save_pretrained(tmp_path / "whole")
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, load(str(tmp_path / "whole"), Options(source_language=source, target_language=target)))
    checkpoint = load_checkpoint(path)
    model = checkpoint.model
    assert isinstance(model, Pretrained)

    # What the encoder reads.
    options: dict[str, Any] = {}
    if source is not None:
        tokenizer.src_lang = source
    if target is not None:
        tokenizer.tgt_lang = target
        name = "decoder_start_token_id" if make is mbart else "forced_bos_token_id"
        options[name] = tokenizer.convert_tokens_to_ids(f"__{target}__" if make is m2m100 else target)
    wanted = tokenizer(LINES)["input_ids"]
    for ids, whole in zip(checkpoint.source_vocabulary.encode(LINES), wanted, strict=True):
        assert [*model.config.source_prefix, *ids, *model.config.source_suffix] == whole
    # What is a target; here the sides of Marian differ.
    alone = tokenizer(text_target=LINES, add_special_tokens=False)["input_ids"]
    assert checkpoint.target_vocabulary.encode(LINES) == alone
    assert (alone != tokenizer(LINES, add_special_tokens=False)["input_ids"]) == (make is marian)
    assert [checkpoint.target_vocabulary.decode(ids) for ids in alone] == LINES

    def generated(network: Any, tokenizer: Any, **options: Any) -> list[str]:
        encoded = tokenizer(LINES, return_tensors="pt", padding=True)
        banned = sorted(
            {model.padding, model.bos} - {model.eos, options.get("forced_bos_token_id", model.config.start[-1])}
        )
        found = network.generate(
            **encoded, num_beams=1, do_sample=False, max_new_tokens=8 + model.forced, forced_eos_token_id=None,
            suppress_tokens=banned or None, **options,
        )  # fmt: skip
        # A new tokenizer of M2M100 does not know yet that its codes are special, and spells ids without a piece.
        texts = tokenizer.batch_decode(found, skip_special_tokens=True)
        return [re.sub("__[a-z]+__|<unk>", "", text).strip() for text in texts]

    theirs = generated(network, tokenizer, **options)
    ours = Translator(checkpoint).translate(LINES, beam_size=1, max_ratio=0, max_extra=8)
    # Ours ends at the last place, theirs need not.
    for mine, other in zip(ours, theirs, strict=True):
        assert other.startswith(mine)
    assert len(set(ours)) > 3

    # Exported, it has its languages without being told.
    export_folder(checkpoint, tmp_path / "back")
    with library("a test"):
        again = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "back").eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")
    assert tokenizer(LINES)["input_ids"] == wanted
    assert generated(again, tokenizer) == theirs
    assert again.generation_config.forced_eos_token_id == network.generation_config.forced_eos_token_id
    for file in (tmp_path / "back").iterdir():
        assert str(tmp_path).encode() not in file.read_bytes()


@pytest.mark.parametrize("kind", ["bytes", "word pieces"])
def test_pieces_tell_where_words_begin(kind: str) -> None:
    """Alignments, and phrases that a search shall hold or avoid, go by it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    lines = [" ".join(random.Random(seed).choices(WORDS, k=6)) for seed in range(40)]
    names = ["<pad>", "<s>", "</s>", "<unk>"]
    if kind == "bytes":
        inner = Tokenizer(models.BPE())
        inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        trainer: Any = trainers.BpeTrainer(special_tokens=names, vocab_size=60)
    else:
        inner = Tokenizer(models.WordPiece(unk_token="<unk>"))
        inner.pre_tokenizer, inner.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(special_tokens=names, vocab_size=60)
    inner.train_from_iterator(lines, trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    vocabulary = TokenizerVocabulary(pack(tokenizer, "target", len(tokenizer) + 2, Special(0, 3, 1, 2)))
    several = 0
    for line in lines:
        [ids] = vocabulary.encode([line])
        pieces = vocabulary.pieces(ids)
        words = ["".join(pieces[place] for place in places).removeprefix("▁") for places in words_of(pieces)]
        assert words == line.split()
        assert vocabulary.surfaces(line) == pieces and vocabulary.decode(ids) == line
        several += len(pieces) > len(words)
    assert several
    every = range(len(vocabulary))
    assert vocabulary.ids(vocabulary.pieces(every)) == list(every)
