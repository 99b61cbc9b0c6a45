"""Writes a Marian model of transformers with fresh weights, and its tokenizer, into the folder `fresh` of a folder that
has pieces.model: three layers on each side, as transformers itself would begin with."""

import argparse
import json
from pathlib import Path

from nmt.text.vocabulary import open_vocabulary


def main() -> None:
    import torch
    from transformers import MarianConfig, MarianMTModel, MarianTokenizer

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--size", type=int, default=256, help="of embeddings and hidden states; feed-forward four times"
    )
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    fresh = chosen.folder / "fresh"
    fresh.mkdir(exist_ok=True)
    model = chosen.folder / "pieces.model"
    pieces = open_vocabulary(model.read_bytes())
    # Marian's order: the end of a sentence first, padding last; padding is what the decoder begins with.
    names = ["</s>", "<unk>", *pieces.pieces(range(4, len(pieces))), "<pad>"]
    (fresh / "vocab.json").write_text(json.dumps({name: number for number, name in enumerate(names)}))
    sides = {"source_spm": str(model), "target_spm": str(model), "source_lang": "source", "target_lang": "target"}
    tokenizer = MarianTokenizer(vocab=str(fresh / "vocab.json"), model_max_length=256, **sides)
    tokenizer.save_pretrained(fresh)
    torch.manual_seed(chosen.seed)
    side = {"layers": 3, "attention_heads": 4, "ffn_dim": 4 * chosen.size}
    config = MarianConfig(
        vocab_size=len(names),
        d_model=chosen.size,
        **{f"{part}_{name}": value for part in ("encoder", "decoder") for name, value in side.items()},
        dropout=0.1,
        scale_embedding=True,
        max_position_embeddings=256,
        eos_token_id=0,
        forced_eos_token_id=0,
        pad_token_id=len(names) - 1,
        decoder_start_token_id=len(names) - 1,
    )
    MarianMTModel(config).save_pretrained(fresh)


if __name__ == "__main__":
    main()
