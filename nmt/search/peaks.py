"""What a search reads of the scores over a vocabulary: their largest entries, and the log of the sum of all."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# So many entries share a maximum; the largest entries lie under the largest maxima.
_MEMBERS = 16
# Below this, one pass of torch.topk is as fast.
_LEAST = 1024
# 2 to the power of the lowest is a normal number, and nothing beside a sum that is not small.
_LOWEST, _SMALL = -115.0, 1e-20
_TO_BITS = 1 / math.log(2)
# Rows that are worked on at once, so that what one operation writes is in the cache when the next one reads it.
_ROWS = 32


def largest(logits: Tensor, offsets: Tensor, size: int, without: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The slots and tokens, (batch, size) each, of the largest entries of logits + offsets, best first.

    The maxima of groups of tokens are read first, and then the groups with the best alone: torch.topk moves all entries
    with their positions.

    Args:
        logits: (batch, slots, vocabulary).
        offsets: (batch, slots), what is added to all entries of a slot; -inf leaves it out.
        size: how many; as many as there are, if they are fewer.
        without: tokens that are left out: they come last, if at all.
    """
    slots, vocabulary = logits.shape[1:]
    size = min(size, slots * vocabulary)
    offsets = offsets.unsqueeze(2)
    groups = vocabulary // _MEMBERS
    if vocabulary < _LEAST or size > groups:
        every = (
            logits.index_fill(2, torch.tensor(without, dtype=torch.long, device=logits.device), -torch.inf) + offsets
        )
        order = every.flatten(1).topk(size, dim=1).indices
        return order // vocabulary, order % vocabulary
    # A group is every groups-th token: reading down the columns is what a CPU's vectors do best.
    whole, rest = logits.split([groups * _MEMBERS, vocabulary - groups * _MEMBERS], dim=2)
    maxima = whole.unflatten(2, (_MEMBERS, groups)).amax(2)
    maxima[..., : rest.shape[2]] = maxima[..., : rest.shape[2]].maximum(rest)
    steps = groups * torch.arange(_MEMBERS + 1, device=logits.device)
    for group in {token % groups for token in without}:
        there = [token for token in range(group, vocabulary, groups) if token not in without]
        maxima[..., group] = logits[..., there].amax(2)
    best = (maxima + offsets).flatten(1).topk(size, dim=1).indices
    chosen = best // groups
    tokens = (best % groups).unsqueeze(2) + steps
    absent = tokens >= vocabulary
    for token in without:
        absent |= tokens == token
    tokens.clamp_(max=vocabulary - 1)
    places = (chosen * vocabulary).unsqueeze(2) + tokens
    values = logits.flatten(1).gather(1, places.flatten(1)).view(places.shape)
    values = (values + offsets.squeeze(2).gather(1, chosen).unsqueeze(2)).masked_fill(absent, -torch.inf)
    order = values.flatten(1).topk(size, dim=1).indices
    places = places.flatten(1).gather(1, order)
    return places // vocabulary, places % vocabulary


def log_normaliser(logits: Tensor) -> Tensor:
    """log sum exp (...) of logits (..., vocabulary), in float32 at least."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if logits.is_cuda or logits.requires_grad or not logits.numel():
        return logits.logsumexp(dim=-1)
    # Without a pass for the maxima: only where a sum is out of range would they have had to be taken off before.
    # What is far below is cut off: exp is many times slower where its result is 0 or nearly so.
    # Powers of 2, since torch's exp is MKL's, which is slow on a processor that is not Intel's.
    rows = logits.reshape(-1, logits.shape[-1])
    buffer, parts = rows.new_empty(min(_ROWS, len(rows)), rows.shape[1]), []
    for part in rows.split(_ROWS):
        powers = torch.mul(part, _TO_BITS, out=buffer[: len(part)])
        parts.append(powers.clamp_(min=_LOWEST).exp2_().sum(dim=-1))
    sums = torch.cat(parts).view(logits.shape[:-1])
    if bool(((sums > _SMALL) & (sums < torch.inf)).all()):
        return sums.log_()
    return logits.logsumexp(dim=-1)
