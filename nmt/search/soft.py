"""Beam search as it trains: selection by weights, differentiable end to end.

The recurrences replace the top-k of beam search by the sorted SOFT top-k of Xie et al., "Differentiable
Top-k with Optimal Transport", NeurIPS 2020, section 4. With A the soft indicator of the candidates, (C, k):

    weight of token v in slot m     w^m_v = sum over l of A_(l,v),m
    weight of parent l of slot m    R_ml  = sum over v of A_(l,v),m
    e'^m = sum_v w^m_v embedding_v;  h'^m = sum_l R_ml h^l;  s'^m = sum A_(l,v),m score_(l,v);
    f'^m = sum A_(l,v),m max(f^l, [v = EOS]).

As the temperature goes to 0 the soft search selects, token for token, what the hard search selects.

The chain through these mixtures is chaotic over many steps. What controls its gradient: `damping`, `clip`, `rollout`,
and `values: hard`, the straight-through form, whose states and scores are those of the hard search; A is then left with
the gradient of states, embeddings and rewards.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from nmt.errors import UserError
from nmt.models.seq2seq import Seq2Seq
from nmt.search.beam import Beam, Candidates, expand, first_beam, include
from nmt.search.peaks import log_normaliser
from nmt.topk import sorted_soft_topk
from nmt.tree import map_tree, mix_slots, product

Operator = Callable[[Tensor, int, float | Tensor], Tensor]
"""(scores (..., C), k, temperature) -> soft indicators (..., C, k), column m that of the m-th best."""

Watch = Callable[[str, Tensor], Tensor]
"""(path, tensor) -> the same tensor, watched: "states" mix the states and embeddings, "scores" the scores."""


@dataclass
class SoftSearchConfig:
    """The soft beam. Size and temperature are by default those with which it paid (recipes/results/README.md)."""

    beam_size: int = 2
    """Slots of the soft beam, k."""
    candidates: int = 8
    """Continuations that compete for the slots, C: the best of beam_size * vocabulary."""
    temperature: float = 0.5
    """Of the SOFT top-k, in nats; 0.05 to 0.5 suits cumulative log-probabilities. Where a schedule starts."""
    damping: float = 0.1
    """Factor on the gradient of the weights where they mix states and embeddings (values unchanged). 1 is
    the plain chain rule, which is chaotic over many steps; 0 leaves the scores' gradient alone."""
    values: Literal["soft", "hard"] = "soft"
    """hard: straight-through. The search is the hard one, and so is the gradient of its scores; where weights mix
    states, embeddings and rewards they have the gradient of the soft ones, damped."""
    clip: float = 0.0
    """Largest norm, a sentence and step, of the gradient of the weights that mix, before it is damped; 0: none."""
    rollout: int = 0
    """States and embeddings are cut off from what was before them every so many steps; 0: never."""

    def __post_init__(self) -> None:
        if self.beam_size < 1:
            raise UserError(f"soft_beam.search.beam_size is {self.beam_size}; give at least 1")
        if self.candidates < self.beam_size:
            raise UserError(
                f"soft_beam.search.candidates is {self.candidates}, less than the beam size "
                f"{self.beam_size}; give at least as many (4 times as many is a good start)"
            )
        if not 0 < self.temperature < math.inf:
            raise UserError(f"soft_beam.search.temperature is {self.temperature}; give a positive number of nats (0.5)")
        if not 0 <= self.damping <= 1:
            raise UserError(f"soft_beam.search.damping is {self.damping}; give a factor from 0 to 1")
        if self.values not in ("soft", "hard"):
            raise UserError(f"soft_beam.search.values is '{self.values}'; choose soft or hard")
        if not 0 <= self.clip < math.inf:
            raise UserError(f"soft_beam.search.clip is {self.clip}; give a norm, or 0 for none")
        if self.rollout < 0:
            raise UserError(f"soft_beam.search.rollout is {self.rollout}; give a number of steps, or 0 for all of them")


class SoftSelection(NamedTuple):
    """Weights instead of indices.

    Attributes:
        candidates: what competed, (batch, C).
        weights: (batch, C, k), column m the soft indicator of the m-th best candidate.
        moves: (batch, C, k), what mixes: the weights or, straight-through, the hard choice with their gradient.
        parents: (batch, k, slots), R: how much of slot l went into slot m.
    """

    candidates: Candidates
    weights: Tensor
    moves: Tensor
    parents: Tensor


class SoftStep(NamedTuple):
    """One step of the soft search.

    Attributes:
        before: the beam it began with.
        logits: (batch, slots, vocabulary) of that beam.
        normaliser: (batch, slots), their log-sum-exp.
        selection: what was selected.
        after: the beam it ended with.
    """

    before: Beam
    logits: Tensor
    normaliser: Tensor
    selection: SoftSelection
    after: Beam


def scale_gradient(tensor: Tensor, factor: float) -> Tensor:
    """The same values; the gradient that flows back through them is multiplied by `factor`."""
    if factor == 1:
        return tensor
    if factor == 0:
        return tensor.detach()
    return tensor.detach() + factor * (tensor - tensor.detach())


class LossScale:
    """What a loss is multiplied by before its backward pass, as mixed precision and updates of several batches do.

    Gradients inside the loss are larger by that factor, which who measures them has to know.

    Attributes:
        factor: known from the beginning of the backward pass on.
    """

    def __init__(self) -> None:
        self.factor: Tensor | float = 1.0

    def watch(self, loss: Tensor) -> Tensor:
        """The same loss; its gradient is the factor."""

        def note(grad: Tensor) -> None:
            self.factor = grad.detach()

        if loss.requires_grad:
            loss = loss.view_as(loss)
            loss.register_hook(note)
        return loss


def clip_gradient(tensor: Tensor, norm: float, scale: LossScale | None = None) -> Tensor:
    """The same values; the gradient that flows back through them is shortened, row by row, to at most `norm` times the
    scale of the loss."""
    if norm == 0 or not tensor.requires_grad:
        return tensor

    def shorten(grad: Tensor) -> Tensor:
        length = grad.flatten(1).norm(dim=1).clamp_min(torch.finfo(grad.dtype).tiny)
        most = norm * (scale.factor if scale else 1.0)
        return grad * (most / length).clamp(max=1.0).view(-1, *[1] * (grad.dim() - 1))

    tensor = tensor.view_as(tensor)
    tensor.register_hook(shorten)
    return tensor


def soft_select(
    candidates: Candidates,
    slots: int,
    config: SoftSearchConfig,
    operator: Operator = sorted_soft_topk,
    temperature: float | Tensor | None = None,
) -> SoftSelection:
    """Chooses config.beam_size of the candidates softly; `slots` is the width of the beam before. The temperature is
    that of the configuration unless it is given."""
    size = min(config.beam_size, candidates.scores.shape[1])
    weights = operator(candidates.scores, size, config.temperature if temperature is None else temperature)
    rows, width = candidates.slots.shape
    moves = weights
    if config.values == "hard":
        # Candidates come sorted: the m-th goes to slot m.
        chosen = torch.eye(width, size, device=weights.device, dtype=weights.dtype)
        hard = chosen * (candidates.scores > -torch.inf).unsqueeze(2)
        moves = hard + (weights - weights.detach())
    membership = weights.new_zeros(rows, width, slots).scatter_(2, candidates.slots.unsqueeze(2), 1.0)
    return SoftSelection(candidates, weights, moves, product(moves.transpose(1, 2), membership))


def unwatched(path: str, tensor: Tensor) -> Tensor:
    """Looks away."""
    return tensor


def soft_reparent(
    model: Seq2Seq,
    selection: SoftSelection,
    beam: Beam,
    state: Any,
    config: SoftSearchConfig,
    watch: Watch = unwatched,
    scale: LossScale | None = None,
) -> Beam:
    """Every slot takes a mixture of its parents' states and of its tokens' embeddings."""
    candidates, weights, moves, parents = selection

    def controlled(mixing: Tensor) -> Tensor:
        return watch("states", clip_gradient(scale_gradient(mixing, config.damping), config.clip, scale))

    # A masked candidate has weight 0; 0 * -inf must be 0.
    scores = candidates.scores.masked_fill(candidates.scores == -torch.inf, 0.0)
    ended = (candidates.tokens == model.eos).to(weights.dtype)
    finished = torch.maximum(beam.finished.gather(1, candidates.slots), ended)
    by_slot = moves.transpose(1, 2)
    embedding = model.embed(candidates.tokens)
    # Fewer candidates than slots leave empty columns: such a slot holds nothing.
    held = moves.detach().sum(dim=1) > 0.5
    for_scores = by_slot.detach() if config.values == "hard" else watch("scores", by_slot)
    mixed = product(for_scores, torch.stack([scores, finished], dim=2))
    return Beam(
        state=mix_slots(state, controlled(parents)),
        embedding=torch.bmm(controlled(by_slot).to(embedding.dtype), embedding),
        scores=torch.where(held, mixed[..., 0], -torch.inf),
        # Rounding may leave the mixture of ones a little above one.
        finished=mixed[..., 1].clamp(max=1.0),
    )


def soft_advance(
    model: Seq2Seq,
    features: Tensor,
    state: Any,
    beam: Beam,
    config: SoftSearchConfig,
    operator: Operator = sorted_soft_topk,
    temperature: float | Tensor | None = None,
    required: tuple[Tensor, Tensor] | None = None,
    watch: Watch = unwatched,
    scale: LossScale | None = None,
) -> SoftStep:
    """Expands, selects and re-parents a beam whose slots the model has just advanced to `features` and `state`.

    Operator and temperature are as those of `soft_select`; `required` is a slot and a token, (batch,) each, that
    compete in any case; `watch` sees the weights where they mix; `scale` is that of the loss, for `config.clip`."""
    logits = model.project(features)
    normaliser = log_normaliser(logits)
    candidates = expand(model, logits, normaliser, beam, config.candidates)
    if required is not None:
        candidates = include(model, candidates, logits, normaliser, beam, *required)
    selection = soft_select(candidates, beam.slots, config, operator, temperature)
    after = soft_reparent(model, selection, beam, state, config, watch, scale)
    return SoftStep(beam, logits, normaliser, selection, after)


def cut_off(beam: Beam, position: int, rollout: int) -> Beam:
    """The beam after step `position`, at every `rollout`-th cut off from what was before: a gradient flows back through
    its scores alone."""
    if rollout == 0 or (position + 1) % rollout:
        return beam
    return replace(beam, state=map_tree(Tensor.detach, beam.state), embedding=beam.embedding.detach())


def soft_beam_search(
    model: Seq2Seq,
    memory: Any,
    rows: int,
    steps: int,
    config: SoftSearchConfig,
    operator: Operator = sorted_soft_topk,
) -> Iterator[SoftStep]:
    """Unrolls the soft search for `steps` steps over a batch of `rows` sentences, or for as many as the decoder has
    positions for."""
    beam = first_beam(model, memory, rows)
    for position in range(min(steps, model.most_tokens or steps)):
        advanced = model.advance(beam.embedding, beam.state, memory)
        step = soft_advance(model, advanced.features, advanced.state, beam, config, operator)
        yield step
        beam = cut_off(step.after, position, config.rollout)
