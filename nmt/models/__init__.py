"""Encoders and decoders with an explicit state; one file an architecture."""

from nmt.models.ensemble import Ensemble
from nmt.models.rnnsearch import RNNsearch, RNNsearchConfig
from nmt.models.seq2seq import Advance, Seq2Seq

__all__ = ["Advance", "Ensemble", "RNNsearch", "RNNsearchConfig", "Seq2Seq"]
