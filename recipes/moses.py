"""Tokenises standard input as Moses does, for BLEU as papers before 2018 have it (sacreBLEU with --tokenize none).

Needs sacremoses (pip install sacremoses), a port of Moses' tokenizer.perl; what papers did before it, such as
normalising punctuation, and their own references, can still make a difference of some tenths.
"""

import argparse
import sys

from nmt.lines import iterate_lines, write_lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("language", help="code of the text's language, such as fr")
    chosen = parser.parse_args()
    try:
        from sacremoses import MosesTokenizer
    except ImportError:
        sys.exit("moses: --tokenized moses needs sacremoses; run: .venv/bin/pip install sacremoses")
    tokenizer = MosesTokenizer(chosen.language)
    write_lines("-", (tokenizer.tokenize(line, return_str=True, escape=False) for line in iterate_lines("-")))


if __name__ == "__main__":
    main()
