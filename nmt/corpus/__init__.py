"""Corpora: what a card describes, which pairs of it are used, and what is odd about them."""

from nmt.corpus.card import Card, card_names, file_checksum, load_card
from nmt.corpus.filter import Filter
from nmt.corpus.pairs import Bitext, Pairs, bitext_from_files, pairs_from_files

__all__ = [
    "Bitext",
    "Card",
    "Filter",
    "Pairs",
    "bitext_from_files",
    "card_names",
    "file_checksum",
    "load_card",
    "pairs_from_files",
]
