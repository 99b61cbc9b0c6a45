"""`nmt translate`: lines in, translations out."""

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from nmt.commands.engine import add_engine_flags, check_engine, open_cluster
from nmt.errors import UserError
from nmt.flags import make_parser, parse, take
from nmt.lines import name_of

logger = logging.getLogger(__name__)


def main(words: list[str]) -> None:
    chosen = parse(_parser(), words)
    from nmt.files.blocks import SourceText
    from nmt.files.job import Job
    from nmt.files.output import make_part, open_output
    from nmt.progress import show_progress

    # Whatever is wrong with the words or the files is told before a model is loaded, and before a file is made.
    options = {**search_options(chosen), "replace_unknown": chosen.replace_unknown}
    form = _format(chosen)
    text = SourceText(chosen.input, chosen.prefix, chosen.include, chosen.exclude)
    check_engine(chosen)
    _check_words(chosen, text.paths.values())
    job = Job(
        chosen.model,
        tuple(chosen.ensemble),
        chosen.device,
        chosen.dtype,
        chosen.int8,
        chosen.shortlist,
        options,
        form,
    )
    _find_models(job)
    if chosen.int8:
        from nmt.models.kernels import keep_few_kernels

        keep_few_kernels()
    text.check()
    part = make_part(chosen.output, lambda: job.settings(text, chosen.buffer), chosen.resume)
    done = 0 if part is None else part.done.lines
    digest = part.done.digest if part is not None and done else None
    blocks = text.blocks(chosen.buffer, skip=done, digest=digest)
    if done:
        logger.info("%s lines are done; going on with line %s", f"{done:,}", f"{done + 1:,}")
    elif chosen.resume:
        logger.info("there is nothing to resume; beginning with line 1")
    with ExitStack() as stack:
        results: Iterator[Any]
        if chosen.engine == "ray":
            from nmt.files import actors

            logger.info("%s", _summary(chosen))
            cluster = stack.enter_context(open_cluster(chosen))
            results = actors.results(cluster, job, chosen.threads or 1, text, chosen.buffer, done, digest)
        elif chosen.processes > 1:
            from nmt.files.workers import Workers

            logger.info("%s, %d processes", _summary(chosen), chosen.processes)
            results = stack.enter_context(Workers(job, chosen.processes)).results(blocks)
        else:
            results = job.results(load_translator(chosen), blocks)
        output = stack.enter_context(open_output(chosen.output, part))
        tell = stack.enter_context(show_progress(chosen.input, chosen.output))
        if form.header and not output.done.size:
            output.write(form.header.encode(), 0, "")
        for block, content in results:
            output.write(content, block.last, block.digest)
            tell(block.position, block.last)


def _parser() -> Any:
    parser = make_parser(
        "translate",
        "Translates a text file line by line. As text, N lines in are N lines out, in order; a pipe has the answer to "
        "each line at once. A file that is interrupted is gone on with by --resume.",
        "nmt translate MODEL [INPUT] [-o OUTPUT] [--FLAG VALUE ...]",
    )
    add = parser.add_argument
    add("model", help="model file, or the folder of a run")
    add("input", nargs="?", default="-", help="text file, plain or .gz; - is standard input")
    add("-o", "--output", default="-", help="text file; - is standard output. Until it is whole it is OUTPUT.part")
    add("--format", default="text", help="text: the best translation a line; jsonl: an object a source line, with "
        "scores, pieces and all; tsv: a header and a row a translation; moses: Moses' n-best list. Scores have four "
        "decimals")  # fmt: skip
    add("--alignment", action="store_true", help="in jsonl, tsv and moses: words aligned with words, source-target "
        "from 0, as fast_align writes them; by attention")  # fmt: skip
    add("--attention", action="store_true", help="in jsonl: the attention matrices, pieces by source pieces, and these")
    add("--prefix", default=None, help="file whose line i is how the translation of line i begins; blank: no wish")
    add("--include", default=None, help="file whose line i names what the translation of line i holds: words or "
        "phrases, separated by tabs")  # fmt: skip
    add("--exclude", default=None, help="file whose line i names what the translation of line i does not hold")
    add("--replace_unknown", action="store_true", help="a word that the model cannot spell becomes the source word "
        "that it looked at")  # fmt: skip
    add("--ensemble", nargs="+", default=[], help="further models of the same vocabularies; at every step the mean "
        "of all models' probabilities counts")  # fmt: skip
    add("--resume", action="store_true", help="go on with OUTPUT.part, with the same settings; from the beginning "
        "where there is none. The result is that of one run")  # fmt: skip
    add_engine_flags(add, "processes that share the work, each with its own model and one thread, on the CPU; of "
        "engine ray with --threads CPUs, or a GPU (--device cuda)")  # fmt: skip
    add("--buffer", type=int, default=2048, help="most lines that are sorted into batches, and written, together")
    add_search_flags(parser)
    return parser


def _format(chosen: Any) -> Any:
    from nmt.files.formats import Format

    form = Format(chosen.format, chosen.alignment, chosen.attention)
    form.check(chosen.n_best)
    return form


def _check_words(chosen: Any, sources: Any) -> None:
    """Refuses what does not go together."""
    if chosen.buffer < 1:
        raise UserError(f"buffer is {chosen.buffer}; give at least 1")
    for path in sources:
        if chosen.engine == "ray" and not os.path.isfile(path):
            raise UserError(f"engine ray reads files, and {name_of(path)} is none; give a file, or --engine local")
        if "-" not in (path, chosen.output) and os.path.realpath(path) == os.path.realpath(chosen.output):
            what = "input and output are both" if path == chosen.input else "the output is also read:"
            raise UserError(f"{what} {path}; give another output")
    if chosen.engine == "ray":
        if chosen.device not in ("auto", "cpu", "cuda"):
            raise UserError(f"device is {chosen.device} and Ray gives each actor its GPU; give --device cuda")
    elif chosen.processes > 1:
        import torch

        if chosen.threads > 1:
            raise UserError(f"threads is {chosen.threads}, but each of several processes has one; leave out threads")
        if chosen.device != "cpu" and (chosen.device != "auto" or torch.cuda.is_available()):
            raise UserError(
                f"processes is {chosen.processes} and device {chosen.device}: processes share the cores of a CPU, and "
                "one alone fills a GPU; give --device cpu, or leave out --processes"
            )


def _find_models(job: Any) -> None:
    from nmt.checkpoint import find_model

    for path in (job.model, *job.ensemble):
        find_model(path)
    if job.shortlist is not None and not os.path.isfile(job.shortlist):
        raise UserError(f"{job.shortlist} does not exist; make a shortlist with nmt shortlist")


def add_search_flags(parser: Any) -> None:
    """The flags of a verb that translates: the fields of SearchConfig and LengthLimit, and where to compute."""
    from nmt.search import SearchConfig
    from nmt.translator import LengthLimit

    parser.add_argument("--device", default="auto", help="auto (a GPU when there is one), cpu, cuda")
    parser.add_argument("--threads", type=int, default=0, help="threads on the CPU; 0: torch's own choice")
    parser.add_argument("--dtype", default="float32", help="of the weights: float32 or bfloat16; scores stay float32")
    parser.add_argument("--int8", action="store_true", help="on the CPU: multiply in 8 bits")
    parser.add_argument("--shortlist", default=None, help="file of nmt shortlist: the output layer is computed for the "
                        "pieces alone that a line can ask for")  # fmt: skip
    parser.add_argument("--batch_tokens", type=int, default=2048, help="most source tokens of a batch; for beams wider "
                        "than 16, fewer in proportion")  # fmt: skip
    parser.add_class_arguments(SearchConfig)
    parser.add_class_arguments(LengthLimit)


def search_options(chosen: Any) -> dict[str, Any]:
    """The options of `Translator.translate` among what was parsed.

    Raises:
        UserError: an impossible value.
    """
    from nmt.loading import check_precision
    from nmt.search import SearchConfig
    from nmt.translator import LengthLimit

    check_precision(chosen.device, chosen.dtype, chosen.int8)
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
    """The translator that the flags describe, for translating alone.

    Raises:
        UserError: see `nmt.load`.
    """
    import torch

    from nmt.loading import load

    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    translator = load(
        chosen.model,
        chosen.device,
        ensemble=chosen.ensemble,
        dtype=chosen.dtype,
        int8=chosen.int8,
        shortlist=chosen.shortlist,
    )
    logger.info("%s", _summary(chosen))
    return translator.keep_decoder_alone()


def _summary(chosen: Any) -> str:
    """The search, the precision and the number of models in one line."""
    from nmt.search import SearchConfig

    models = 1 + len(chosen.ensemble)
    together = f", {models} models" if models > 1 else ""
    short = ", shortlist" if chosen.shortlist is not None else ""
    return f"{take(chosen, SearchConfig).summary}, {'int8' if chosen.int8 else chosen.dtype}{short}{together}"
