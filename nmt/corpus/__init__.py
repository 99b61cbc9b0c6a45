"""Corpora: what a card describes, which pairs of it are used, and what is odd about them."""

from nmt.corpus.card import Card, card_names, file_checksum, load_card
from nmt.corpus.filter import Filter
from nmt.corpus.pairs import Pairs, pairs_from_files

__all__ = ["Card", "Filter", "Pairs", "card_names", "file_checksum", "load_card", "pairs_from_files"]
