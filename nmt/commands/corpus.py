"""`nmt corpus`: what cards describe."""

from nmt.errors import UserError, did_you_mean
from nmt.flags import make_parser, parse


def main(words: list[str]) -> None:
    actions = ("get", "list")
    parser = make_parser("corpus", "get CARD makes the files of a corpus; list names the cards at hand.")
    parser.add_argument("action", help="get or list")
    parser.add_argument("card", nargs="?", default=None, help="name or path of a card")
    parser.add_argument("--directory", default=None, help="where the files go; by default beside the card")
    parser.add_argument("--force", action="store_true", help="fetch again what is there")
    chosen = parse(parser, words)
    if chosen.action not in actions:
        raise UserError(
            f"there is no 'nmt corpus {chosen.action}'.{did_you_mean(chosen.action, actions)} Give get or list."
        )
    from nmt.corpus import card_names, load_card

    if chosen.action == "list":
        for name in card_names():
            card = load_card(name)
            print(f"{name:<20} {' '.join(card.description.split())}")
        return
    if chosen.card is None:
        raise UserError(f"nmt corpus get needs the name of a card: {', '.join(card_names())}")
    from nmt.fetch import fetch

    report = fetch(load_card(chosen.card, chosen.directory), force=chosen.force)
    print(report)
