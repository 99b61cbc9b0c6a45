"""N-best lists in Moses' format: read, given further features, and ranked anew."""

from nmt.nbest.lists import Entry, Survey, parse_entry, read_nbest, survey

__all__ = ["Entry", "Survey", "parse_entry", "read_nbest", "survey"]
