"""`nmt translate`: lines in, lines out."""

import logging
import os
from typing import Any

from nmt.errors import UserError
from nmt.flags import make_parser, parse, take
from nmt.lines import iterate_lines, write_lines

logger = logging.getLogger(__name__)


def main(words: list[str]) -> None:
    parser = make_parser(
        "translate",
        "Translates a text file line by line: N lines in, N lines out, plain text.",
        "nmt translate MODEL [INPUT] [-o OUTPUT] [--FLAG VALUE ...]",
    )
    parser.add_argument("model", help="model file, or the folder of a run")
    parser.add_argument("input", nargs="?", default="-", help="text file, plain or .gz; - is standard input")
    parser.add_argument("-o", "--output", default="-", help="text file; - is standard output")
    add_search_flags(parser)
    chosen = parse(parser, words)
    # Whatever is wrong with the words is told before a model is loaded, and before a file is made.
    options = search_options(chosen)
    if chosen.n_best > 1:
        raise UserError("nmt translate writes one line a line; n_best is for nmt.load(...).search(lines, n_best=...)")
    if "-" not in (chosen.input, chosen.output) and os.path.realpath(chosen.input) == os.path.realpath(chosen.output):
        raise UserError(f"input and output are both {chosen.input}; give another output")
    translator = load_translator(chosen)
    write_lines(chosen.output, translator.stream(iterate_lines(chosen.input), **options))


def add_search_flags(parser: Any) -> None:
    """The flags of a verb that translates: the fields of SearchConfig and LengthLimit, and where to compute."""
    from nmt.search import SearchConfig
    from nmt.translator import LengthLimit

    parser.add_argument("--device", default="auto", help="auto (a GPU when there is one), cpu, cuda")
    parser.add_argument("--threads", type=int, default=0, help="threads on the CPU; 0: torch's own choice")
    parser.add_argument("--batch_tokens", type=int, default=4096, help="most source tokens of a batch")
    parser.add_class_arguments(SearchConfig)
    parser.add_class_arguments(LengthLimit)


def search_options(chosen: Any) -> dict[str, Any]:
    """The options of `Translator.translate` among what was parsed.

    Raises:
        UserError: an impossible value.
    """
    from nmt.search import SearchConfig
    from nmt.translator import LengthLimit

    for name, least in (("batch_tokens", 1), ("threads", 0)):
        if getattr(chosen, name) < least:
            raise UserError(f"{name} is {getattr(chosen, name)}; give at least {least}")
    try:
        config = take(chosen, SearchConfig)
    except UserError as error:
        # In a configuration these are keys of the section `search`; here they are flags.
        raise UserError(str(error).replace("search.", "")) from None
    return {"config": config, "limit": take(chosen, LengthLimit), "batch_tokens": chosen.batch_tokens}


def load_translator(chosen: Any) -> Any:
    """The translator that the flags describe.

    Raises:
        UserError: see `nmt.load`.
    """
    import torch

    from nmt.search import SearchConfig
    from nmt.translator import load

    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    translator = load(chosen.model, chosen.device)
    logger.info("beam %d, score %s", chosen.beam_size, take(chosen, SearchConfig).formula)
    return translator
