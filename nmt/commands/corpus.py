"""`nmt corpus`: what cards describe."""

import argparse
from collections.abc import Callable

from nmt.errors import UserError, did_you_mean
from nmt.flags import make_parser, parse


def main(words: list[str]) -> None:
    if words[:1] == ["prepare"]:
        # Its flags are those of nmt train, and come with torch.
        from nmt.commands.corpus_prepare import main as prepare

        prepare(words[1:])
        return
    actions: dict[str, Callable[[argparse.Namespace], None]] = {
        "get": _get, "check": _check, "prepare": _misplaced, "list": _list
    }  # fmt: skip
    parser = make_parser(
        "corpus",
        "get CARD makes the files of a corpus; check CARD tells what is in its splits and what is wrong with it; "
        "prepare CARD trains vocabularies and encodes it for training (nmt corpus prepare --help has its flags); list "
        "names the cards at hand.",
    )
    add = parser.add_argument
    add("action", help="get, check, prepare or list")
    add("card", nargs="?", default=None, help="name or path of a card")
    add("--directory", default=None, help="where the files go; by default beside the card")
    add("--force", action="store_true", help="get: fetch again what is there")
    add("--model", default=None, help="check: model whose vocabularies' unknown pieces are counted")
    add("--languages", action="store_true", help="check: lines in another language, by py3langid (extra corpus)")
    add("--filtered", action="store_true", help="check: of train, what the card's filter leaves")
    add("--max_ratio", type=float, default=3.0, help="check: words of one side for a word of the other")
    add("--processes", type=int, default=1, help="check: processes that share the work")
    add("--json", default=None, help="check: file for the report")
    chosen = parse(parser, words)
    if chosen.action not in actions:
        raise UserError(
            f"there is no 'nmt corpus {chosen.action}'.{did_you_mean(chosen.action, actions)} Give "
            f"{', '.join(list(actions)[:-1])} or {list(actions)[-1]}."
        )
    if chosen.card is None and chosen.action not in ("list", "prepare"):
        from nmt.corpus import card_names

        raise UserError(f"nmt corpus {chosen.action} needs the name of a card: {', '.join(card_names())}")
    actions[chosen.action](chosen)


def _misplaced(chosen: argparse.Namespace) -> None:
    raise UserError("prepare comes first: nmt corpus prepare CARD, then its flags")


def _list(chosen: argparse.Namespace) -> None:
    from nmt.corpus import card_names, load_card

    for name in card_names():
        card = load_card(name)
        print(f"{name:<20} {' '.join(card.description.split())}")


def _get(chosen: argparse.Namespace) -> None:
    from nmt.corpus import load_card
    from nmt.fetch import fetch

    print(fetch(load_card(chosen.card, chosen.directory), force=chosen.force))


def _check(chosen: argparse.Namespace) -> None:
    from nmt.corpus import load_card
    from nmt.corpus.inspection import Checks, inspect
    from nmt.corpus.report import as_json, print_report
    from nmt.lines import atomic_path

    if chosen.processes < 1:
        raise UserError(f"processes is {chosen.processes}; give at least 1")
    if not chosen.max_ratio >= 1:
        raise UserError(f"max_ratio is {chosen.max_ratio}; give 1 or more")
    card = load_card(chosen.card, chosen.directory)
    vocabularies = None
    if chosen.model is not None:
        from nmt.checkpoint import load_checkpoint

        checkpoint = load_checkpoint(chosen.model)
        vocabularies = checkpoint.source_vocabulary, checkpoint.target_vocabulary
    languages = (card.languages["source"], card.languages["target"]) if chosen.languages else ("", "")
    checks = Checks(languages, chosen.max_ratio, vocabularies)
    held = {split: card.read(split) for split in card.splits if split != "train"}
    inspections = []
    for split in card.splits:
        # What a model was trained on should not be what it is judged by; dev and test may share what they like.
        others = held if split == "train" else {}
        pairs = held[split] if split in held else card.bitext(split, filtered=chosen.filtered)
        inspections.append(inspect(pairs, checks, others, chosen.processes))
    print_report(inspections)
    if chosen.json is not None:
        with atomic_path(chosen.json) as path:
            path.write_text(as_json(inspections) + "\n", encoding="utf-8")
