"""Learns one SentencePiece model of both sides of a folder's training text, with the list of its pieces for joeynmt."""

import argparse
from pathlib import Path

from nmt.lines import write_lines
from nmt.text.pairs import pairs_from_files
from nmt.text.vocabulary import VocabularyConfig, train_vocabularies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    texts = pairs_from_files(chosen.folder / "train.source", chosen.folder / "train.target")
    joint, _ = train_vocabularies(texts, VocabularyConfig(size=chosen.size, kind="bpe", joint=True), chosen.seed)
    (chosen.folder / "pieces.model").write_bytes(joint.model)
    write_lines(chosen.folder / "pieces.vocabulary", joint.pieces(range(4, len(joint))))


if __name__ == "__main__":
    main()
