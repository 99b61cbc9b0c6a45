"""`nmt corpus prepare`: the cache that training reads, made beforehand."""

import dataclasses
import json

from nmt.commands.engine import add_engine_flags, check_engine, open_cluster
from nmt.config_file import parse_run, run_parser
from nmt.lines import atomic_path

_USAGE = """nmt corpus prepare [CARD] [--config FILE ...] [--from MODEL] [--engine ray] [--processes N] [--json FILE]
       [--KEY VALUE ...]"""
_DESCRIPTION = """Trains the vocabularies and encodes train and dev into the cache, as nmt train with the same files and
flags would before its first update; what is there is not made again. All keys of nmt train are flags: section data
and seed count, the others are passed over."""


def main(words: list[str]) -> None:
    parser = run_parser("corpus prepare", _DESCRIPTION, _USAGE)
    add = parser.add_argument
    add("card", nargs="?", default=None, help="name or path of a card, instead of --data.corpus")
    add_engine_flags(add, "processes that encode; the files are the same with any number")
    add("--json", default=None, help="file for the report")
    chosen, config = parse_run(words, parser)
    check_engine(chosen)
    data = config.data if chosen.card is None else dataclasses.replace(config.data, corpus=chosen.card)
    # torch takes seconds to import: after the words are known to be right.
    from nmt.runs.preparation import as_row, prepare

    vocabularies = None
    if chosen.start is not None:
        from nmt.checkpoint import load_checkpoint

        found = load_checkpoint(chosen.start)
        vocabularies = found.source_vocabulary, found.target_vocabulary
    if chosen.engine == "ray":
        with open_cluster(chosen) as cluster:
            preparation = prepare(data, config.seed, vocabularies, spread=cluster.map_in_order)
    else:
        preparation = prepare(data, config.seed, vocabularies, chosen.processes)
    print("\n".join(preparation.lines()))
    if chosen.json is not None:
        with atomic_path(chosen.json) as path:
            path.write_text(json.dumps(as_row(preparation), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
