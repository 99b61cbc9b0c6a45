"""Writes a split of a corpus card as two text files, and the code of its target language beside the second."""

import argparse
from pathlib import Path

from nmt.corpus.testset import split_of_card
from nmt.lines import write_lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("card")
    parser.add_argument("split")
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--direction", default="", help="source-target, to turn the card round")
    chosen = parser.parse_args()
    found = split_of_card(chosen.card, chosen.split, chosen.direction)
    write_lines(chosen.source, found.source)
    write_lines(chosen.target, found.references[0])
    write_lines(f"{chosen.target}.language", [found.target_language])


if __name__ == "__main__":
    main()
