"""What a search reads of the scores over a vocabulary: their largest entries, and the log of the sum of all."""

import torch
from torch import Tensor

# So many entries share a maximum; the largest entries lie under the largest maxima.
_MEMBERS = 32
# Below this, one pass of torch.topk is as fast.
_LEAST = 1024
# The exponential of the lowest is a normal number, and nothing beside a sum that is not small.
_LOWEST, _SMALL = -80.0, 1e-20
# Rows that are worked on at once, so that what one operation writes is in the cache when the next one reads it.
_ROWS = 32


def largest(logits: Tensor, size: int) -> Tensor:
    """The positions (..., size) of the largest entries of logits (..., vocabulary), best first.

    On a CPU the maxima of groups are read first, and then the groups with the best alone: torch.topk moves all entries
    with their positions.
    """
    vocabulary = logits.shape[-1]
    groups = vocabulary // _MEMBERS
    if logits.is_cuda or vocabulary < _LEAST or size > groups // 4:
        return logits.topk(size, dim=-1).indices
    rows = logits.reshape(-1, vocabulary)
    # A group is every groups-th entry: reading down the columns is what a CPU's vectors do best.
    maxima = rows[:, : groups * _MEMBERS].unflatten(1, (_MEMBERS, groups)).amax(1)
    chosen = maxima.topk(size, dim=1).indices
    members = torch.arange(0, groups * _MEMBERS, groups, device=rows.device)
    places = (chosen.unsqueeze(2) + members).flatten(1)
    if groups * _MEMBERS < vocabulary:
        rest = torch.arange(groups * _MEMBERS, vocabulary, device=rows.device).expand(len(rows), -1)
        places = torch.cat([places, rest], dim=1)
    order = rows.gather(1, places).topk(size, dim=1).indices
    return places.gather(1, order).view(*logits.shape[:-1], size)


def log_normaliser(logits: Tensor) -> Tensor:
    """log sum exp (...) of logits (..., vocabulary), in float32 at least."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if logits.is_cuda or logits.requires_grad or not logits.numel():
        return logits.logsumexp(dim=-1)
    # Without a pass for the maxima: only where a sum is out of range would they have had to be taken off before.
    # What is far below is cut off: exp is many times slower where its result is 0 or nearly so.
    parts = [part.clamp(min=_LOWEST).exp_().sum(dim=-1) for part in logits.reshape(-1, logits.shape[-1]).split(_ROWS)]
    sums = torch.cat(parts).view(logits.shape[:-1])
    if bool(((sums > _SMALL) & (sums < torch.inf)).all()):
        return sums.log_()
    return logits.logsumexp(dim=-1)
