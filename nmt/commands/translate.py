"""`nmt translate`: lines in, lines out."""

import logging
from collections.abc import Iterator
from pathlib import Path

from nmt.cli import make_parser, parse
from nmt.errors import UserError
from nmt.lines import iterate_lines, write_lines

logger = logging.getLogger(__name__)


def main(words: list[str]) -> None:
    from nmt.search import SearchConfig
    from nmt.translator import LengthLimit, load

    parser = make_parser("translate", "Translates a text file line by line: N lines in, N lines out, plain text.")
    parser.add_argument("model", help="model file, or the folder of a run")
    parser.add_argument("input", nargs="?", default="-", help="text file, plain or .gz; - is standard input")
    parser.add_argument("-o", "--output", default="-", help="text file; - is standard output")
    parser.add_argument("--device", default="auto", help="auto (a GPU when there is one), cpu, cuda")
    parser.add_argument("--batch_tokens", type=int, default=4096, help="most source tokens of a batch")
    parser.add_argument("--threads", type=int, default=0, help="threads on the CPU; 0: torch's own choice")
    parser.add_class_arguments(SearchConfig, "search", as_group=True)
    parser.add_class_arguments(LengthLimit, "limit", as_group=True)
    # The two most used flags have short names.
    parser.add_argument("--beam_size", "-k", type=int, default=None, help="short for --search.beam_size")
    chosen = parse(parser, words)
    if chosen.search.n_best > 1:
        raise UserError("nmt translate writes one line a line; n_best is for nmt.load(...).search(lines, n_best=...)")
    if chosen.beam_size is not None:
        chosen.search.beam_size = chosen.beam_size
        chosen.search.__post_init__()
    if chosen.output != "-" and chosen.input != "-" and Path(chosen.output).resolve() == Path(chosen.input).resolve():
        raise UserError(f"input and output are both {chosen.input}; give another output")
    if chosen.threads:
        import torch

        torch.set_num_threads(chosen.threads)
    translator = load(chosen.model, chosen.device)
    logger.info("beam %d, score %s", chosen.search.beam_size, chosen.search.formula)

    def translations() -> Iterator[str]:
        yield from translator.stream(
            iterate_lines(chosen.input),
            config=chosen.search,
            limit=chosen.limit,
            batch_tokens=chosen.batch_tokens,
        )

    write_lines(chosen.output, translations())
