"""Weights as 8-bit whole numbers, for a CPU that has little memory or time."""

import warnings
from typing import TypeVar

import torch
from torch import nn

from nmt.errors import UserError

_Model = TypeVar("_Model", bound=nn.Module)

KINDS = (nn.Linear, nn.GRU, nn.LSTM, nn.GRUCell, nn.LSTMCell)
"""The layers that hold nearly all of a model's arithmetic; embeddings are only looked up and stay as they are."""


def quantize(model: _Model) -> _Model:
    """A copy whose layers of `KINDS` multiply in int8 (dynamic quantisation: the weights are rounded now, the inputs
    when they come, by the range that they then have).

    Because that range is the whole batch's, a line's translation may depend a little on the lines beside it.

    Args:
        model: on the CPU, float32, in evaluation mode; it is left as it is.

    Raises:
        UserError: torch was built without int8 arithmetic for this processor, or is too new to have it.
    """
    with warnings.catch_warnings():
        # torch.ao.quantization is deprecated in favour of a package of its own, which has no recurrent layers.
        warnings.simplefilter("ignore")
        try:
            from torch.ao.quantization import quantize_dynamic

            return quantize_dynamic(model, set(KINDS), dtype=torch.qint8)
        except (ImportError, RuntimeError) as error:
            cause = str(error).splitlines()[0]
            raise UserError(f"int8 is not there in this torch ({cause}); leave it out.") from None
