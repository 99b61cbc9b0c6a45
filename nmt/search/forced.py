"""Forced decoding: the score that a search would have given to translations that are there already."""

import torch
from torch import Tensor

from nmt.models.seq2seq import Seq2Seq
from nmt.search.config import SearchConfig
from nmt.search.hard import Hypothesis, coverage_penalty
from nmt.search.peaks import log_normaliser

# As many logits are made at once, whatever the batch holds.
_ROWS = 1024


@torch.inference_mode()
def forced_search(
    model: Seq2Seq,
    source: Tensor,
    lengths: Tensor,
    target: Tensor,
    target_lengths: Tensor,
    config: SearchConfig,
    *,
    attention: bool = False,
) -> list[Hypothesis]:
    """What `beam_search` would return for the targets, had it found them. Limits of length are not asked.

    Args:
        model: in evaluation mode.
        source: (batch, source length) ids.
        lengths: (batch,), EOS counted.
        target: (batch, target length) ids, each row ends in EOS, then padding.
        target_lengths: (batch,), EOS counted.
        config: normalisation, its exponent and the weight of the coverage; nothing else of it counts.
        attention: whether hypotheses carry their attention matrix, (tokens and EOS, source length).

    Returns:
        A hypothesis a row.
    """
    memory = model.encode(source, lengths)
    read = torch.cat([torch.full_like(target[:, :1], model.bos), target[:, :-1]], dim=1)
    seen = None
    there = torch.arange(target.shape[1], device=target.device) < target_lengths.to(target.device).unsqueeze(1)
    if attention or config.coverage:
        features, seen = _advance(model, read, memory)
        features, places = features[there], there.flatten().nonzero().squeeze(1)
    else:
        features, places = model.forced_features(read, there, memory)
    found = _log_probabilities(model, features, target.flatten()[places])
    of_tokens = found.new_zeros(target.numel()).index_copy(0, places, found).view_as(target)
    # In float64: the order of a sum of many tokens must not show in what is compared with the search.
    totals = of_tokens.double().sum(dim=1)
    scores = totals / config.divisor(target_lengths.to(totals) + model.forced)
    if config.coverage:
        assert seen is not None
        covered = (seen * there.unsqueeze(2)).sum(dim=1, keepdim=True)
        scores = scores + config.coverage * coverage_penalty(covered, lengths.to(source.device)).squeeze(1)
    return [
        Hypothesis(
            tokens=target[row, : length - 1].tolist(),
            log_probability=float(totals[row]),
            score=float(scores[row]),
            token_log_probabilities=of_tokens[row, :length].tolist(),
            attention=seen[row, :length, : int(lengths[row])].float().cpu() if attention and seen is not None else None,
        )
        for row, length in enumerate(target_lengths.tolist())
    ]


def _advance(model: Seq2Seq, read: Tensor, memory: object) -> tuple[Tensor, Tensor]:
    """Features (batch, target length, features) and attention (batch, target length, source length)."""
    state, features, seen = model.start(memory), [], []
    for embedding in model.embed(read).split(1, dim=1):
        advanced = model.advance(embedding, state, memory)
        state = advanced.state
        features.append(advanced.features)
        seen.append(advanced.attention)
    return torch.cat(features, dim=1), torch.cat(seen, dim=1)


def _log_probabilities(model: Seq2Seq, features: Tensor, tokens: Tensor) -> Tensor:
    """(tokens,) of features (tokens, features)."""
    found: list[Tensor] = []
    for part, wanted in zip(features.split(_ROWS), tokens.split(_ROWS), strict=True):
        logits = model.project(part)
        normaliser = log_normaliser(logits)
        found.append(logits.gather(1, wanted.unsqueeze(1)).squeeze(1).to(normaliser) - normaliser)
    return torch.cat(found).float()
