"""Corpora: where their text is and how it is read, which pairs are used, and what is odd about them."""

from nmt.corpus.card import Card, card_names, file_checksum, load_card
from nmt.corpus.filter import Filter

__all__ = ["Card", "Filter", "card_names", "file_checksum", "load_card"]
