"""`nmt evaluate`: scores with their signatures, several systems, paired tests against baselines."""

import logging
import re
from pathlib import Path
from typing import Any

from nmt.corpus.testset import TestSet, published_test_set, split_of_card
from nmt.errors import UserError
from nmt.evaluation import METRICS, check_lengths, check_metrics, evaluate_all
from nmt.evaluation.comet import CometConfig, find_command
from nmt.evaluation.report import Result, as_json, print_report, write_sentence_scores
from nmt.evaluation.significance import check_counts, check_tests, compare
from nmt.evaluation.suspicion import suspicions
from nmt.flags import make_parser, parse
from nmt.lines import read_lines, write_lines

logger = logging.getLogger(__name__)


def main(words: list[str]) -> None:
    given = any(word.split("=")[0] == "--hypotheses" for word in words)
    chosen = parse(_parser(search=not given), words)
    # What sacreBLEU warns of, `suspicions` tells better.
    logging.getLogger("sacrebleu").setLevel(logging.ERROR)
    _check_words(chosen, given)
    if not given:
        from nmt.commands.translate import search_options

        # An impossible value is told before files are read or fetched.
        search_options(chosen)
        if chosen.n_best > 1:
            raise UserError(f"n_best is {chosen.n_best}; one translation a line is scored, leave it out")
    texts = _test_set(chosen)
    baselines = [read_lines(path) for path in chosen.baseline or []]
    for lines in baselines:
        check_lengths(lines, texts.references)
    names = chosen.hypotheses or [" + ".join([model, *chosen.ensemble]) for model in chosen.model]
    systems = [read_lines(path) for path in names] if given else _translate(chosen, texts)
    tokenize = chosen.tokenize or _TOKENIZERS.get(texts.target_language if chosen.test_set else "", "13a")
    options = {"metrics": chosen.metrics, "lowercase": chosen.lowercase, "tokenize": tokenize}
    comet = CometConfig(chosen.comet_command, chosen.comet_model)
    scores = evaluate_all(systems, texts.references, **options, sentences=chosen.sentence_scores is not None,
                          source=texts.source or None, comet=comet)  # fmt: skip
    for name, lines in [*zip(names, systems, strict=True), *zip(chosen.baseline or [], baselines, strict=True)]:
        for suspicion in suspicions(lines, texts.references):
            if not (chosen.lowercase and "lower-cased" in suspicion):
                logger.warning("warning: %s: %s", name, suspicion)
    results = [Result(*pair) for pair in zip(names, scores, strict=True)]
    if baselines:
        compared = compare(systems, baselines, texts.references, **options, tests=chosen.test, samples=chosen.samples)
        of_each = chosen.baseline if len(baselines) > 1 else chosen.baseline * len(systems)
        results = [Result(*row) for row in zip(names, scores, compared, of_each, strict=True)]
    if chosen.sentence_scores is not None:
        write_sentence_scores(chosen.sentence_scores, results)
    if chosen.json:
        print(as_json(results))
    else:
        print_report(results)


_TOKENIZERS = {"zh": "zh", "ja": "ja-mecab", "ko": "ko-mecab"}
"""What sacreBLEU's command line takes for its test sets in these languages, so that scores are those published."""


def _parser(search: bool) -> Any:
    parser = make_parser(
        "evaluate",
        "Scores translations against references by sacreBLEU, on detokenised text: either lines that are there "
        "(--hypotheses) or those that models make of the source. Several systems make a table with mean and deviation; "
        "--baseline adds paired tests.",
        "nmt evaluate (MODEL [MODEL ...] --source FILE [--FLAG VALUE ...] | --hypotheses FILE [FILE ...]) "
        "(--reference FILE [FILE ...] | --test_set NAME --language_pair xx-yy | --corpus CARD)",
    )
    add = parser.add_argument
    add("--reference", nargs="+", default=None, help="one or more references, line by line")
    add("--test_set", default=None, help="instead: a test set of sacreBLEU, such as wmt14, wmt14/full, wmt21")
    add("--language_pair", default="", help="of the test set: en-fr; of a corpus card: its direction by default")
    add("--corpus", default=None, help="instead: a corpus card, by name or path")
    add("--corpus_dir", default=None, help="where the card's corpus lies; by default beside the card")
    add("--split", default="test", help="split of the card")
    add("--hypotheses", nargs="+", default=None, help="translations to score, a file a system; - is standard input")
    add("--metrics", nargs="+", default=["bleu", "chrf"], help=f"any of {', '.join(METRICS)}")
    add("--lowercase", action="store_true", help="BLEU ignores case")
    add("--tokenize", default=None, help="sacreBLEU's tokeniser for BLEU; by default 13a, and for a test set in "
        "Chinese, Japanese or Korean what sacreBLEU takes")  # fmt: skip
    add("--baseline", nargs="+", default=None, help="a baseline's translations for paired tests, or as many files as "
        "systems: system i is compared with baseline i")  # fmt: skip
    add("--test", nargs="+", default=["bootstrap", "randomization"], help="paired tests, two-sided: bootstrap "
        "(resampling), randomization (approximate); not for comet")  # fmt: skip
    add("--samples", type=int, default=0, help="samples of each test; 0: sacreBLEU's 1,000 and 10,000")
    add("--sentence_scores", default=None, help="file for the scores of each line: tab-separated, or JSON lines in a "
        "name that ends in .jsonl; BLEU with effective order")  # fmt: skip
    add("--json", action="store_true", help="print JSON")
    add("--comet_command", default=CometConfig.command, help="comet-score of an environment of its own, with further "
        "words such as '--gpus 0' if you like")  # fmt: skip
    add("--comet_model", default=CometConfig.model, help="COMET's model: name or path")
    add("model", nargs="*", default=None, help="model files, or the folders of runs")
    add("--ensemble", nargs="+", default=[], help="with one model: further ones of the same vocabularies, which make "
        "one system with it, as for nmt translate")  # fmt: skip
    add("--source", default=None, help="text that the models translate; COMET reads it, too")
    add("--output", default=None, help="file for the model's translations; with several models a folder, where each "
        "has a file named after it")  # fmt: skip
    if search:
        # The flags of the search come with torch, seconds that scoring does not need.
        from nmt.commands.translate import add_search_flags

        add_search_flags(parser)
    return parser


def _check_words(chosen: Any, given: bool) -> None:
    """Refuses what does not go together, before anything is read, fetched or translated."""
    named = [flag for flag in ("reference", "test_set", "corpus") if getattr(chosen, flag) is not None]
    if not named:
        raise UserError("missing: reference; give --reference, --test_set with --language_pair, or --corpus")
    if len(named) > 1:
        raise UserError(f"give --{named[0]} or --{named[1]}, not both")
    own = "reference" not in named
    if own and chosen.source is not None:
        raise UserError(f"--{named[0]} has its own source text; leave out --source")
    metrics = check_metrics(chosen.metrics)
    if given and (chosen.model or chosen.ensemble or chosen.output or (chosen.source and "comet" not in metrics)):
        raise UserError("--hypotheses are scored as they are; leave out the model, --ensemble, --source and --output")
    if chosen.ensemble and len(chosen.model) > 1:
        raise UserError(
            f"--ensemble makes one system of one model and others, and {len(chosen.model)} models are given; give the "
            "first alone before the flags"
        )
    if not given and (not chosen.model or (chosen.source is None and not own)):
        raise UserError("give --hypotheses, or a model and --source, the text to translate")
    if "comet" in metrics and not own and chosen.source is None:
        raise UserError("COMET reads the source text, too; give --source, or leave out the metric comet")
    if "comet" in metrics:
        find_command(CometConfig(chosen.comet_command, chosen.comet_model))
    names = chosen.hypotheses if given else chosen.model
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{name} is given twice; name each system once")
    files = [*(names if given else []), *(chosen.baseline or []), *(chosen.reference or []), chosen.source]
    if files.count("-") > 1:
        raise UserError("standard input (-) can be read once; give files for the rest")
    if chosen.baseline:
        check_tests(chosen.test, chosen.samples)
        check_counts(len(names), len(chosen.baseline))
        if metrics == ["comet"]:
            raise UserError("sacreBLEU's tests do not know COMET; add another metric, or use comet-compare")


def _test_set(chosen: Any) -> TestSet:
    if chosen.test_set is not None:
        return published_test_set(chosen.test_set, chosen.language_pair)
    if chosen.corpus is not None:
        return split_of_card(chosen.corpus, chosen.split, chosen.language_pair, chosen.corpus_dir)
    references = [read_lines(path) for path in chosen.reference]
    source = [] if chosen.source is None else read_lines(chosen.source)
    # Before the models translate, which may take long.
    for path, reference in zip(chosen.reference, references, strict=True):
        if chosen.source is not None and len(source) != len(reference):
            raise UserError(
                f"{chosen.source} has {len(source):,} lines and {path} has {len(reference):,}; line i of one must "
                "belong to line i of the other"
            )
    return TestSet("", source, references)


def _translate(chosen: Any, texts: TestSet) -> list[list[str]]:
    """Each model's translations of the source."""
    from nmt.commands.translate import load_translator, search_options

    outputs = _outputs(chosen)
    for path in (*chosen.model, *chosen.ensemble):
        if not Path(path).exists():
            raise UserError(f"{path} does not exist; give a model file, or the folder of a run")
    options = search_options(chosen)
    systems = []
    for path, output in zip(chosen.model, outputs, strict=True):
        one = chosen.clone()
        one.model = path
        translator = load_translator(one)
        _tell_other_languages(path, translator.checkpoint.info.get("languages") or {}, texts)
        systems.append(translator.translate(texts.source, **options))
        if output is not None:
            write_lines(output, systems[-1])
    return systems


def _tell_other_languages(path: str, trained: dict[str, str | None], texts: TestSet) -> None:
    """Warns of a test set in other languages than the model was trained on, where both are known."""
    asked = {"source": texts.source_language, "target": texts.target_language}
    for side, language in asked.items():
        own = trained.get(side)
        # "de" and "de_DE", or "deu_Latn" and "de": a region or a script is no other language, and codes of other
        # lengths may mean the same one.
        own, language = (re.split("[-_]", code or "")[0].lower() for code in (own, language))
        if own and language and own != language and len(own) == len(language):
            logger.warning(
                "warning: %s was trained with %s as its %s language; %s has %s (--language_pair turns a corpus round)",
                path,
                own,
                side,
                texts.name,
                language,
            )


def _outputs(chosen: Any) -> list[Path | str | None]:
    """Where each model's translations go; two models never share a file."""
    if chosen.output is None:
        return [None] * len(chosen.model)
    if len(chosen.model) == 1:
        if Path(chosen.output).is_dir():
            raise UserError(f"{chosen.output} is a folder; give --output a file for the translations of one model")
        return [chosen.output]
    if Path(chosen.output).is_file() or chosen.output == "-":
        raise UserError(f"{chosen.output} is no folder; give --output a folder for several models, a file each")
    parts = [Path(path).resolve().parts[1:] for path in chosen.model]
    # As few of the last parts of the paths as tell them apart: seed1, or baseline_seed1 and beam_seed1.
    for count in range(1, max(map(len, parts)) + 1):
        labels = ["_".join(part[-count:]) for part in parts]
        if len(set(labels)) == len(labels):
            return [Path(chosen.output) / f"{label}.txt" for label in labels]
    raise UserError(f"two of the models are the same: {', '.join(chosen.model)}; name each once")
