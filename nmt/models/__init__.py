"""Encoders and decoders with an explicit state; one file an architecture."""

from nmt.models.ensemble import Ensemble
from nmt.models.fused import Fused, FusedRNNsearch
from nmt.models.fused_luong import FusedLuong
from nmt.models.int8 import quantize
from nmt.models.luong import Luong
from nmt.models.narrowed import Narrowed
from nmt.models.pretrained import Pretrained, PretrainedConfig
from nmt.models.recurrent import REGULARISATION, Recurrent, RNNsearchConfig
from nmt.models.remainder import Remainder
from nmt.models.rnnsearch import RNNsearch
from nmt.models.seq2seq import Advance, Seq2Seq

__all__ = [
    "REGULARISATION",
    "Advance",
    "Ensemble",
    "Fused",
    "FusedLuong",
    "FusedRNNsearch",
    "Luong",
    "Narrowed",
    "Pretrained",
    "PretrainedConfig",
    "RNNsearch",
    "RNNsearchConfig",
    "Recurrent",
    "Remainder",
    "Seq2Seq",
    "decoding_form",
    "make_recurrent",
    "quantize",
]


def make_recurrent(config: RNNsearchConfig, source_vocabulary: int, target_vocabulary: int) -> Recurrent:
    """A fresh model with the decoder that the configuration names."""
    kind = {"conditional": RNNsearch, "luong": Luong}[config.decoder]
    return kind(config, source_vocabulary, target_vocabulary)


def decoding_form(model: Seq2Seq) -> Seq2Seq:
    """The model as it decodes fastest, in evaluation, without gradients; itself where there is no such form. A model
    that is trained on needs a new form: weights that stay as they are are in the same memory."""
    if isinstance(model, RNNsearch) and not model.config.layer_normalization:
        return FusedRNNsearch(model)
    if isinstance(model, Luong):
        return FusedLuong(model)
    if isinstance(model, Ensemble):
        return Ensemble([decoding_form(part) for part in model.parts])
    return model
