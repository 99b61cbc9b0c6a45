"""`nmt rescore`: n-best lists with the scores of models, tuned weights or minimum Bayes risk."""

import contextlib
import gzip
import io
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from nmt.errors import UserError
from nmt.flags import make_parser, parse
from nmt.lines import atomic_path, iterate_lines, read_lines, write_lines

if TYPE_CHECKING:
    from nmt.nbest import Entry, Survey
    from nmt.nbest.rescoring import Ranking

logger = logging.getLogger(__name__)


def main(words: list[str]) -> None:
    chosen = parse(_parser(), words)
    _check_words(chosen)
    # Whatever is wrong with the files is told before a model is loaded.
    from nmt.nbest import read_nbest, survey
    from nmt.nbest.rescoring import all_names, default_weights, model_names, read_weights, start_weights, with_base

    found = survey(chosen.nbest)
    sources = _count(chosen.source, found) if chosen.source else found.sentences
    models = dict(zip(model_names(found, len(chosen.model or [])), chosen.model or [], strict=True))
    names = all_names(found, list(models))
    references = [read_lines(path) for path in chosen.reference or []]
    for path, lines in zip(chosen.reference or [], references, strict=True):
        _check_count(path, len(lines), found)
        if len(lines) != len(references[0]):
            raise UserError(f"{path} has {len(lines):,} lines and {chosen.reference[0]} has {len(references[0]):,}")
    weights = None
    if chosen.tune:
        weights = start_weights(names)
    elif chosen.weights is not None:
        weights = read_weights(chosen.weights, names)
    elif not (chosen.mbr and (chosen.samples or not (found.scored or models))):
        weights = default_weights(found, list(models), mbr=chosen.mbr is not None)
    groups: Iterable[list[Entry]] = map(with_base, read_nbest(chosen.nbest))
    groups = _with_models(chosen, models, groups)
    if chosen.tune:
        assert weights is not None
        _tune(chosen, groups, references, names, weights, models)
        return
    from nmt.nbest.rescoring import Ranking

    ranking = Ranking(weights, chosen.mbr, chosen.mbr_scale)
    told = "all hypotheses alike" if weights is None else " + ".join(f"{v:g} {name}" for name, v in weights.items())
    logger.info("score %s%s", told, f", minimum Bayes risk by {chosen.mbr}" if chosen.mbr else "")
    write_lines(chosen.output, _best(groups, ranking, sources, chosen.n_best_out))


def _parser() -> Any:
    parser = make_parser(
        "rescore",
        "Chooses a translation a sentence from an n-best list in Moses' format (id ||| text ||| name= value ... ||| "
        "score; ids from 0): by its score and the log-probability under each --model, 1 each; by --weights of its "
        "features, the score it came with (base) and the models' (nmt1, nmt1_length, nmt2, ...); or by minimum Bayes "
        "risk. --tune learns the weights. Texts are scored and compared as they stand in the list: tokenised "
        "hypotheses want a model and references of tokenised text.",
        "nmt rescore NBEST [--model MODEL ... --source FILE] [--weights FILE] [--mbr chrf|bleu] [-o OUTPUT] "
        "[--n_best_out FILE] | nmt rescore NBEST --tune --reference FILE --weights OUTPUT",
    )
    add = parser.add_argument
    add("nbest", help="n-best list, plain or .gz; it is read twice, so no pipe")
    add("--model", nargs="+", default=None, help="model files or the folders of runs, each of which scores the list")
    add("--source", default=None, help="what was translated, line by line; models need it, and the output then has as "
        "many lines")  # fmt: skip
    add("--weights", default=None, help="JSON with a weight for each feature, the rest 0; with --tune it is written")
    add("--mbr", default=None, help="minimum Bayes risk by this utility, chrf or bleu: the hypothesis worth most if "
        "each is right with the probability that the scores say (of a list of nmt translate: its log_p)")  # fmt: skip
    add("--mbr_scale", type=float, default=1.0, help="factor on the scores before they become probabilities; tuned "
        "weights have no scale of their own")  # fmt: skip
    add(
        "--samples", action="store_true", help="minimum Bayes risk: the list was drawn from a model, all weigh the same"
    )
    add("-o", "--output", default="-", help="the best hypothesis of each sentence, a line each")
    add("--n_best_out", default=None, help="file for the whole list, ranked anew, with all features (.gz is packed)")
    add("--tune", action="store_true", help="learn the weights that give the best BLEU on --reference (MERT)")
    add("--reference", nargs="+", default=None, help="--tune: one or more references, line by line")
    add("--tokenize", default="13a", help="--tune: sacreBLEU's tokeniser for BLEU; none for tokenised text")
    add("--restarts", type=int, default=20, help="--tune: climbs from random weights, beside that from the given ones")
    add("--seed", type=int, default=1, help="--tune: of random weights and directions")
    add("--device", default="auto", help="auto (a GPU when there is one), cpu, cuda")
    add("--threads", type=int, default=0, help="threads on the CPU; 0: torch's own choice")
    add("--batch_tokens", type=int, default=4096, help="most tokens of a batch on the longer side")
    return parser


def _check_words(chosen: Any) -> None:
    """Refuses what does not go together, before anything is read."""
    for name, least in (("batch_tokens", 1), ("threads", 0), ("restarts", 0), ("seed", 0)):
        if getattr(chosen, name) < least:
            raise UserError(f"{name} is {getattr(chosen, name)}; give at least {least}")
    if not 0 <= chosen.mbr_scale < float("inf"):
        raise UserError(f"mbr_scale is {chosen.mbr_scale}; give 0 or more")
    if chosen.model and chosen.source is None:
        raise UserError("models score hypotheses by what was translated; give --source")
    for name in chosen.model or []:
        if not Path(name).exists():
            raise UserError(f"{name} does not exist; give a model file, or the folder of a run")
        if chosen.model.count(name) > 1:
            raise UserError(f"{name} is given twice; name each model once")
    if chosen.tune:
        if chosen.reference is None or chosen.weights is None:
            raise UserError("--tune needs --reference, lines to come near to, and --weights, a file to write")
        if chosen.mbr or chosen.n_best_out or chosen.output != "-":
            raise UserError("--tune writes weights alone; leave out --mbr, --output and --n_best_out")
    elif chosen.reference is not None:
        raise UserError("--reference is for --tune; nmt evaluate scores the output")
    if chosen.mbr is not None:
        from nmt.nbest.ngrams import check_utility

        check_utility(chosen.mbr)
    elif chosen.samples:
        raise UserError("--samples is for minimum Bayes risk; give --mbr chrf or --mbr bleu")
    if chosen.samples and (chosen.weights or chosen.model):
        raise UserError("--samples all weigh the same; leave out --model and --weights")
    _check_files(chosen)


def _check_files(chosen: Any) -> None:
    read = [chosen.nbest, *([chosen.source] if chosen.source else []), *(chosen.reference or [])]
    if "-" in read:
        raise UserError("n-best lists, sources and references are read twice; give files instead of standard input (-)")
    if Path(chosen.nbest).exists() and not os.path.isfile(chosen.nbest):
        raise UserError(f"{chosen.nbest} is read twice; give a file")
    written = [chosen.output, chosen.n_best_out, chosen.weights if chosen.tune else None]
    places = [os.path.realpath(name) for name in written if name not in (None, "-")]
    for name in read + ([] if chosen.tune or chosen.weights is None else [chosen.weights]):
        if os.path.realpath(name) in places:
            raise UserError(f"{name} is read and written; give another output")
    if len(set(places)) < len(places):
        raise UserError(f"{chosen.n_best_out} is to be written twice; give two names")
    if chosen.n_best_out == "-":
        raise UserError("--n_best_out is a file; standard output is for the best hypotheses")


def _count(path: str, found: "Survey") -> int:
    count = sum(1 for _ in iterate_lines(path))
    _check_count(path, count, found)
    return count


def _check_count(path: str, count: int, found: "Survey") -> None:
    if count < found.sentences:
        raise UserError(
            f"{path} has {count:,} lines, but the n-best list goes on to sentence {found.sentences - 1}; ids count "
            "from 0, so line i belongs to id i - 1"
        )


def _with_models(chosen: Any, models: dict[str, str], groups: Iterable[list["Entry"]]) -> Iterable[list["Entry"]]:
    if not models:
        return groups
    import torch

    from nmt.loading import load
    from nmt.nbest.rescoring import add_scores

    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    translators = {name: load(path, chosen.device).keep_decoder_alone() for name, path in models.items()}
    for name, path in models.items():
        logger.info("%s: log p of %s", name, path)
    return add_scores(groups, iterate_lines(chosen.source), translators, batch_tokens=chosen.batch_tokens)


def _tune(
    chosen: Any,
    groups: Iterable[list["Entry"]],
    references: list[list[str]],
    names: list[str],
    start: dict[str, float],
    models: dict[str, str],
) -> None:
    from nmt.nbest import read_nbest
    from nmt.nbest.rescoring import tune_weights, write_weights

    there = len({group[0].sentence for group in read_nbest(chosen.nbest)})
    if missing := len(references[0]) - there:
        logger.warning("%s of %s sentences have no hypothesis and count as empty translations: is %s of another text?",
                       f"{missing:,}", f"{len(references[0]):,}", chosen.reference[0])  # fmt: skip
    weights, tuned = tune_weights(groups, references, names, start, tokenize=chosen.tokenize,
                                  restarts=chosen.restarts, seed=chosen.seed)  # fmt: skip
    about = {"tokenize": chosen.tokenize, "restarts": chosen.restarts, "seed": chosen.seed, "models": models}
    write_weights(chosen.weights, weights, tuned, about)
    logger.info("BLEU %.2f, before %.2f: %s", tuned.bleu, tuned.start_bleu, chosen.weights)


def _best(groups: Iterable[list["Entry"]], ranking: "Ranking", sentences: int, n_best_out: str | None) -> Iterator[str]:
    """A line for each sentence, an empty one where the list has none; ranked lists go to their file on the way."""
    missing, number = [], 0
    with _lists(n_best_out) as stream:
        for group in groups:
            while number < group[0].sentence:
                missing.append(number)
                number += 1
                yield ""
            ranked = ranking(group)
            if stream is not None:
                stream.writelines(f"{entry}\n" for entry in ranked)
            number += 1
            yield ranked[0].text
        while number < sentences:
            missing.append(number)
            number += 1
            yield ""
    if missing:
        logger.warning("%d sentences have no hypothesis and an empty line each; the first is %d (from 0)", len(missing),
                       missing[0])  # fmt: skip


@contextlib.contextmanager
def _lists(path: str | None) -> Iterator[TextIO | None]:
    if path is None:
        yield None
        return
    with atomic_path(path) as temporary, contextlib.ExitStack() as stack:
        if path.endswith(".gz"):
            raw = stack.enter_context(open(temporary, "wb"))
            # No time and no name inside, so that equal lists make equal files.
            packed = stack.enter_context(gzip.GzipFile("", "wb", 6, raw, mtime=0))
            yield stack.enter_context(io.TextIOWrapper(packed, encoding="utf-8", newline="\n"))
        else:
            yield stack.enter_context(open(temporary, "w", encoding="utf-8", newline="\n"))
