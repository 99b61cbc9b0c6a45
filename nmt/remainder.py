"""How much probability a model gives to all that is no candidate: learned from searches, as one more logit.

Without it, probabilities are those among the candidates, and a hypothesis is not charged for a step at which the model
would rather have said something else. With it, their normaliser is sum over candidates of exp(logit) + exp(w h + b), h
what the output layer multiplies; w and b are those of the least squared error of its logarithm, over the states that a
search with the exact normaliser comes through.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nmt.models import Narrowed, Seq2Seq
from nmt.models.narrowed import NarrowedMemory
from nmt.models.remainder import Remainder
from nmt.models.seq2seq import Advance
from nmt.search import SearchConfig, beam_search
from nmt.shortlist import Shortlist
from nmt.text.batching import evaluation_batches, pad

# Of the Levenberg-Marquardt method: steps, first damping, what it is multiplied by after a good and a bad step.
_STEPS, _DAMPING, _GOOD, _BAD = 30, 1.0, 0.2, 5.0
_ROWS = 8192


class States(NamedTuple):
    """What a search came through: inputs of the output layer (states, inputs), and the logs of the sums of exp(logit)
    over a sentence's candidates and over the vocabulary, (states,)."""

    inputs: Tensor
    own: Tensor
    every: Tensor


def learn_remainder(
    model: Seq2Seq, shortlist: Shortlist, sources: Sequence[Sequence[int]], *, batch_tokens: int = 2048
) -> Remainder:
    """Translates by a beam of 5, and learns.

    Args:
        model: in its decoding form, float32.
        shortlist: gives the candidates.
        sources: ids without EOS, none empty; a thousand sentences are enough.
        batch_tokens: most source tokens of a batch.
    """
    return fit(search_states(model, shortlist, sources, batch_tokens=batch_tokens))


def search_states(
    model: Seq2Seq, shortlist: Shortlist, sources: Sequence[Sequence[int]], *, batch_tokens: int = 2048
) -> States:
    """The states of a search for the sources; see `learn_remainder`."""
    seen: list[States] = []
    device = next(model.parameters()).device
    for rows in evaluation_batches([len(source) for source in sources], batch_tokens):
        chosen = [sources[row] for row in rows]
        source, sizes = pad(chosen, model.padding, model.eos)
        candidates, allowed = shortlist.candidates(chosen)
        observed = _Observed(model, candidates.to(device), allowed.to(device), seen)
        beam_search(observed, source.to(device), sizes, SearchConfig(beam_size=5))
    return States(*(torch.cat(part).cpu() for part in zip(*seen, strict=True)))


def fit(states: States) -> Remainder:
    """w and b of the least mean of (log(exp(own) + exp(w h + b)) - every)^2, by the Levenberg-Marquardt method."""
    outside = states.every + _log_of_rest(states.own, states.every)
    found = torch.zeros(states.inputs.shape[1] + 1, dtype=torch.float64)
    found[-1] = outside.double().mean()
    damping, error = _DAMPING, torch.inf
    best, products, slopes = found, torch.zeros(0), torch.zeros(0)
    for _ in range(_STEPS):
        tried, *normal = _linearised(states, found)
        if tried < error:
            best, error, (products, slopes) = found, tried, normal
            damping *= _GOOD
        else:
            damping *= _BAD
        # An input that never varies has no slope; it stays where it is.
        ridge = damping * products.diagonal() + 1e-9
        found = best - torch.linalg.solve(products + ridge.diag(), slopes)
    return Remainder(best[:-1].float(), best[-1].float())


def _linearised(states: States, at: Tensor) -> tuple[float, Tensor, Tensor]:
    """The mean squared error at w and b, and of its linearised residuals J p + r: J'J and J'r."""
    products, slopes = at.new_zeros(len(at), len(at)), at.new_zeros(len(at))
    total = 0.0
    for inputs, own, every in zip(*(part.split(_ROWS) for part in states), strict=True):
        h = torch.cat([inputs.double(), inputs.new_ones(len(inputs), 1, dtype=torch.float64)], dim=1)
        rest = h @ at
        residual = torch.logaddexp(own.double(), rest) - every.double()
        jacobian = h * torch.sigmoid(rest - own.double()).unsqueeze(1)
        products += jacobian.T @ jacobian
        slopes += jacobian.T @ residual
        total += float(residual.square().sum())
    count = len(states.own)
    return total / count, products / count, slopes / count


def _log_of_rest(own: Tensor, every: Tensor) -> Tensor:
    """log(1 - exp(own - every)), where own is no larger but for rounding."""
    return torch.log(-torch.expm1((own - every).clamp(max=-1e-6)))


class _Observed(Narrowed):
    """With the exact normaliser, from all logits; what it comes through is kept."""

    def __init__(self, model: Seq2Seq, candidates: Tensor, allowed: Tensor, seen: list[States]) -> None:
        super().__init__(model, candidates, allowed)
        self._seen = seen

    def advance(self, embedding: Tensor, state: Any, memory: NarrowedMemory) -> Advance:
        model = self._model[0]
        advanced = model.advance(embedding, state, memory.memory)
        whole = model.project(advanced.features).float()
        logits = whole.index_select(-1, self._candidates) + memory.mask.unsqueeze(1)
        logits[..., self.padding] = -torch.inf
        own, every = logits.logsumexp(-1), whole.logsumexp(-1)
        logits[..., self.padding] = every + _log_of_rest(own, every)
        self._seen.append(States(model.output_inputs(advanced.features).flatten(0, 1), own.flatten(), every.flatten()))
        return Advance(logits, advanced.state, advanced.attention)
