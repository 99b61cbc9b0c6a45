"""Losses of a traced search: searched without a gradient, weighed on its scores alone, replayed where it matters.

A loss whose states are those of the hard search depends on the model only through the log-probabilities of the
candidates' tokens. So the search runs first, without a gradient and without the dropout of single steps (locked dropout
stays); the loss and its gradient G with respect to those log-probabilities are a matter of small tensors; and the
model's gradient is that of sum G log p, for which only the prefixes with weight are decoded again, each once
(`nmt.search.replay`).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div

from nmt.errors import UserError
from nmt.models.seq2seq import Seq2Seq
from nmt.objectives.likelihood import token_log_likelihood, weighted_log_likelihood
from nmt.objectives.objective import Loss, shares
from nmt.objectives.prefix_bleu import sobered
from nmt.objectives.scorer import make_scorer
from nmt.objectives.words import Words
from nmt.search.replay import Replay, replay
from nmt.search.trace import Trace, TraceStep, trace_search
from nmt.text.batching import Batch
from nmt.tree import map_tree, take_slots, where_rows

Figures = dict[str, Tensor]
TraceLoss = Callable[[Trace, list[Tensor], list[Tensor]], tuple[Figures, Figures]]
"""(trace, scores, values) -> the terms of the loss by name, differentiable in the scores, and figures. For each step
(batch, C): the scores are those of the candidates, -inf where there is none; the values are their BLEU (see
`candidate_values`)."""


def check_bleu(section: str, bleu: str) -> None:
    """Refuses what `bleu` of an objective cannot be.

    Raises:
        UserError: it is neither sentence nor batch.
    """
    if bleu not in ("sentence", "batch"):
        raise UserError(f"{section}.bleu is '{bleu}'; choose sentence or batch")


def traced_loss(
    model: Seq2Seq,
    batch: Batch,
    loss: TraceLoss,
    *,
    beam_size: int,
    candidates: int,
    alpha: float,
    n_best: int,
    overrun: int,
    tolerance: float,
    cross_entropy: float,
    label_smoothing: float,
    references: float = 1.0,
    temperature: float | Tensor = 0.0,
    anchor: Seq2Seq | None = None,
    divergence: float = 0.0,
    words: Words | None = None,
    together: bool = False,
    sober: bool = False,
) -> Loss:
    """Searches, weighs, replays.

    Beside the figures of `loss` it tells the norm of each term's gradient with respect to the log-probabilities
    (gradient_NAME), the share of the references' prefixes that the beam held (gold_in_beam), and how many prefixes
    were decoded again for each token of the references (prefixes).

    Args:
        model, batch: what is trained on what.
        loss: what is minimised.
        beam_size, candidates, alpha, n_best: see `trace_search`.
        overrun: tokens by which a hypothesis may be longer than its reference.
        tolerance: weights below this share of the batch's largest, or the size of rounding, are dropped; see `replay`.
        cross_entropy, label_smoothing: of the cross-entropy (nats a token) that is added; the references' prefixes are
            decoded with the others.
        references: share of the sentences, at least one and drawn by torch's generator, that the cross-entropy is the
            mean of.
        temperature: what `loss` depends on besides; if it is learned, the result's gradient reaches it.
        anchor: a model to stay near, in evaluation mode, or None.
        divergence: weight of KL(anchor || model), nats, the mean over all prefixes that are decoded again.
        words: what BLEU counts; None for pieces.
        together, sober: see `candidate_values`.
    """
    # Where the steps draw nothing, the search runs the network that the replay runs, on the same memory.
    shared = None if model.steps_draw else model.encode(batch.source, batch.source_lengths)
    with evaluating(model), torch.no_grad():
        memory = model.encode(batch.source, batch.source_lengths) if shared is None else map_tree(Tensor.detach, shared)
        limits = batch.target_lengths + overrun
        trace = trace_search(model, memory, limits, beam_size, candidates, alpha=alpha, n_best=n_best)
        values = candidate_values(trace, batch, model.eos, words, together=together, sober=sober)

    # Under no_grad, too: the value of the loss needs the weights.
    with torch.enable_grad():
        leaves, scores = cumulate(trace)
        terms, figures = loss(trace, scores, values)
        learned = [temperature] if isinstance(temperature, Tensor) and temperature.requires_grad else []
        slopes = [torch.zeros_like(tensor) for tensor in [*leaves, *learned]]
        for name, term in terms.items():
            # A hard operator has no gradient at all.
            parts = torch.autograd.grad(
                term + 0 * leaves[0].sum(), [*leaves, *learned], retain_graph=True, materialize_grads=True
            )
            norms = torch.stack([part.square().sum() for part in parts[: len(leaves)]])
            figures[f"gradient_{name}"] = norms.sum().sqrt()
            slopes = [slope + part for slope, part in zip(slopes, parts, strict=True)]
    value = torch.stack([term.detach() for term in terms.values()]).sum()
    weights = slopes[: len(leaves)]
    # One look for all steps: each would wait for a GPU.
    largest = float(torch.stack([weight.abs().amax() for weight in weights]).amax())
    # Where nothing that was found is worth more than another, all weights are rounding.
    least = max(tolerance * largest, torch.finfo(weights[0].dtype).eps)

    memory = model.encode(batch.source, batch.source_lengths) if shared is None else shared
    inside = batch.target != model.padding
    tokens, led = inside.sum(), None
    if references < 1:
        order = torch.randperm(len(inside), device=inside.device)
        led = order < max(1, round(references * len(inside)))

    def play(network: Seq2Seq, memory: Any) -> Replay:
        return replay(network, memory, trace, weights, batch.target, batch.target_lengths, least, led)

    played = play(model, memory)
    asked = inside if led is None else inside & led.unsqueeze(1)
    gold_rows, gold_tokens = played.gold[asked], batch.target[asked]
    share = played.weights.new_full(gold_rows.shape, cross_entropy / len(gold_rows))
    uniform = share.new_zeros(len(played.features)).index_add_(0, gold_rows, share * -label_smoothing)
    asked_for = (
        torch.cat([played.rows, gold_rows]),
        torch.cat([played.tokens, gold_tokens]),
        torch.cat([played.weights, share * -(1 - label_smoothing)]),
        uniform,
    )
    if anchor is None:
        likelihood, log_probability = token_log_likelihood(model, played.features, *asked_for)
    else:
        logits = model.project(played.features)
        likelihood, log_probability = weighted_log_likelihood(logits, *asked_for)
        with torch.no_grad():
            known = anchor.project(play(anchor, anchor.encode(batch.source, batch.source_lengths)).features)
        apart = mean_divergence(known, logits)
        figures["divergence"] = apart.detach()
        likelihood = likelihood + divergence * apart
    weighed, gold = log_probability.split([len(played.rows), len(gold_rows)])
    figures |= {
        "nll": -gold.mean(),
        "gold_in_beam": played.held[inside].to(value.dtype).mean(),
        "prefixes": len(played.features) / tokens,
    }
    # The gradient is that of the likelihood; in the value the loss stands for its part of it.
    total = likelihood + (value.detach() - (played.weights * weighed).sum())
    for tensor, slope in zip(learned, slopes[len(leaves) :], strict=True):
        total = total + slope * (tensor - tensor.detach())
    # The main term is a mean over the sentences; the cross-entropy, one over tokens, goes with it.
    return Loss(total, figures, normaliser=len(batch))


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """A module in evaluation mode; afterwards, whatever happens, each of its parts is in the mode that it was in."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def mean_divergence(wanted: Tensor, logits: Tensor) -> Tensor:
    """KL(p || q) in nats of p = softmax(wanted) and q = softmax(logits), each (rows, vocabulary); the mean over the
    rows."""
    p, q = (each.to(torch.promote_types(each.dtype, torch.float32)).log_softmax(dim=1) for each in (wanted, logits))
    return kl_div(q, p, reduction="batchmean", log_target=True)


def candidate_values(
    trace: Trace, batch: Batch, eos: int, words: Words | None = None, *, together: bool = False, sober: bool = False
) -> list[Tensor]:
    """For each step (batch, C): the BLEU, of words or of pieces, of a candidate that has ended, the BLEU within reach
    of another.

    Args:
        trace: the search.
        batch: what was searched.
        eos: the id of EOS.
        words: what BLEU counts; None for pieces.
        together: instead of its own BLEU, what BLEU of the whole batch becomes with the candidate in place of its
            sentence's best hypothesis; the difference that it makes is multiplied by the number of sentences.
        sober: within reach of an open prefix is, instead of all that can still match, the share of it that matched
            in the best hypotheses of the batch.
    """
    scorer = make_scorer(batch, eos, words)
    matches = scorer.start()
    counts = []
    for number, step in enumerate(trace.steps):
        extended = scorer.extend(take_slots(matches, step.candidates.slots), step.candidates.tokens)
        counts.append(scorer.counts(extended, step.ended))
        width = trace.selected(number)
        matches = map_tree(lambda leaf, width=width: leaf[:, :width], extended)
    if not (together or sober):
        return [scorer.bleu(each) for each in counts]
    best = counts_of_best(trace, counts)
    whole = map_tree(lambda leaf: leaf.sum(dim=0, keepdim=True), best)
    if sober:
        counts = [sobered(each, whole) for each in counts]
    if not together:
        return [scorer.bleu(each) for each in counts]
    others = map_tree(lambda every, mine: every - mine, whole, best)
    now = scorer.bleu(whole)
    values = [scorer.bleu(map_tree(lambda mine, rest: mine + rest, each, others)) for each in counts]
    return [now + len(batch) * (value - now) for value in values]


def counts_of_best(trace: Trace, counts: list[Any]) -> Any:
    """Of each sentence's best hypothesis, (batch, 1), from those of the candidates of each step (batch, C)."""
    best, found = None, counts[0]
    for number, (step, mine) in enumerate(zip(trace.steps, counts, strict=True)):
        width = trace.selected(number)
        ended = step.ended[:, :width]
        ranked = (step.candidates.scores[:, :width] / float(number + 1) ** trace.alpha).masked_fill(~ended, -torch.inf)
        score, slot = ranked.max(dim=1)
        mine = take_slots(mine, slot.unsqueeze(1))
        if best is None:
            best, found = score, mine
        else:
            found = where_rows(score > best, mine, found)
            best = torch.maximum(best, score)
    return found


def cumulate(trace: Trace) -> tuple[list[Tensor], list[Tensor]]:
    """The log-probabilities of the candidates' tokens as leaves, and the candidates' scores as their sums."""
    leaves: list[Tensor] = []
    scores: list[Tensor] = []
    for number, step in enumerate(trace.steps):
        leaf = step.log_probability.clone().requires_grad_()
        leaves.append(leaf)
        total = leaf
        if number:
            before = trace.steps[number - 1].candidates.scores > -torch.inf
            open_ = torch.where(before, scores[-1], 0.0)[:, : trace.selected(number - 1)]
            total = open_.gather(1, step.candidates.slots) + leaf
        scores.append(torch.where(step.candidates.scores > -torch.inf, total, -torch.inf))
    return leaves, scores


def pool(trace: Trace, scores: list[Tensor], values: list[Tensor]) -> tuple[Tensor, Tensor]:
    """All hypotheses that the search finished, (batch, hypotheses): log p / |y|^alpha, -inf where there is none, and
    BLEU."""
    found, bleu = [], []
    for number, (step, score, value) in enumerate(zip(trace.steps, scores, values, strict=True)):
        width = trace.selected(number)
        ended = step.ended[:, :width]
        found.append(torch.where(ended, score[:, :width] / float(number + 1) ** trace.alpha, -torch.inf))
        bleu.append(value[:, :width])
    return torch.cat(found, dim=1), torch.cat(bleu, dim=1)


def pool_risk(trace: Trace, scores: list[Tensor], values: list[Tensor], sharpness: float) -> tuple[Tensor, Figures]:
    """1 - sum over the pool of softmax(sharpness * score) * BLEU, a mean over the sentences."""
    ranked, bleu = pool(trace, scores, values)
    there = ranked > -torch.inf
    pi = shares(ranked, sharpness)
    risk = (1 - (pi * bleu).sum(dim=1)).mean()
    best = bleu.masked_fill(~there, 0.0).amax(dim=1).mean()
    first = bleu.gather(1, ranked.argmax(dim=1, keepdim=True)).mean()
    return risk, {"risk": risk.detach(), "first_bleu": first, "best_bleu": best}


def is_open(step: TraceStep) -> Tensor:
    """(batch,), true where the sentence was still searched."""
    return (step.candidates.scores > -torch.inf).any(dim=1)
