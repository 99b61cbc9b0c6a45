"""Beam search: one loop, a hard selection to decode and a soft one to train."""

from nmt.search.beam import Beam, Candidates, expand, first_beam
from nmt.search.config import SearchConfig
from nmt.search.constraints import Constraints, Demand
from nmt.search.forced import forced_search
from nmt.search.hard import Hypothesis, beam_search
from nmt.search.selection import hard_reparent, hard_select
from nmt.search.soft import SoftSearchConfig, SoftStep, soft_advance, soft_beam_search

__all__ = [
    "Beam",
    "Candidates",
    "Constraints",
    "Demand",
    "Hypothesis",
    "SearchConfig",
    "SoftSearchConfig",
    "SoftStep",
    "beam_search",
    "expand",
    "first_beam",
    "forced_search",
    "hard_reparent",
    "hard_select",
    "soft_advance",
    "soft_beam_search",
]
