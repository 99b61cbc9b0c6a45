"""What a hypothesis is worth, and what a prefix can still become worth: BLEU of its sentence or of the whole corpus."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from nmt.batching import Batch
from nmt.errors import UserError
from nmt.objectives.prefix_bleu import BLEUCounts, PrefixBLEU, PrefixMatches, sentence_bleu, worth
from nmt.objectives.soft_bleu import ORDER
from nmt.objectives.words import WordBoundaries
from nmt.search.trace import Trace
from nmt.tree import map_tree, take_slots


@dataclass
class RewardConfig:
    """What hypotheses are worth."""

    bleu: Literal["corpus", "sentence"] = "corpus"
    """corpus: what corpus BLEU becomes when one sentence changes, to first order; sentence: sentence BLEU, add-one
    smoothed for n > 1, which gives short sentences as much weight as long ones and likes short translations."""
    unit: Literal["word", "piece"] = "word"
    """Tokens of BLEU. word: what white space and sacreBLEU's 13a separate; piece: of the vocabulary, for languages
    without spaces."""
    memory: float = 0.95
    """corpus: what the counts of the corpus keep at each update; 0: the batch alone is the corpus."""

    def __post_init__(self) -> None:
        for name, choices in (("bleu", ("corpus", "sentence")), ("unit", ("word", "piece"))):
            if getattr(self, name) not in choices:
                raise UserError(f"reward.{name} is '{getattr(self, name)}'; choose {' or '.join(choices)}")
        if not 0 <= self.memory < 1:
            raise UserError(f"reward.memory is {self.memory}; give a share from 0 up to, not including, 1")


class Worth(NamedTuple):
    """The rewards of a traced search.

    Attributes:
        values: for each step (batch, C): what a candidate that has ended is worth, the most that another can become.
        sentences: (batch,), the weights of the sentences, about 1 / batch.
        steps: (batch,), what a sum over the steps of a sentence is divided by.
    """

    values: list[Tensor]
    sentences: Tensor
    steps: Tensor


class Reward(nn.Module):
    """Gives the candidates of a traced search their worth.

    Sentence BLEU, smoothed, is not what corpus BLEU is made of: it weighs an n-gram by the inverse of its sentence's
    length, and it prefers short translations (Nakov, Guzman, Vogel, COLING 2012). With m_n matches of c_n n-grams, l
    words and r of the reference, all of them sums over the corpus, log BLEU = 1/4 sum_n log(m_n / c_n) + min(0, 1 -
    r / l), so a hypothesis changes it, to first order, by

        1/4 sum_n (m_n(h) / m_n - c_n(h) / c_n) + [l < r] (r l(h) / l^2 - r(h) / l)

    (as Tromble et al., EMNLP 2008, linearise it), and is worth BLEU * (1 + that times the number of sentences). The
    corpus is what the search has found in the batches before: a decaying sum, which a checkpoint keeps (Chiang,
    Marton, Resnik, EMNLP 2008).

    Args:
        config: which BLEU.
        boundaries: which pieces begin a word; None: each is one.
    """

    corpus: Tensor

    def __init__(self, config: RewardConfig, boundaries: WordBoundaries | None = None) -> None:
        super().__init__()
        self.config = config
        self.boundaries = boundaries if config.unit == "word" else None
        # Matches, n-grams, words, words of the references, steps of the search, sentences.
        self.register_buffer("corpus", torch.zeros(2 * ORDER + 4, dtype=torch.float64))

    def forward(self, trace: Trace, batch: Batch, eos: int) -> tuple[Worth, dict[str, Tensor]]:
        """The rewards, and figures: BLEU of the corpus (`corpus`) and its length over that of the
        references."""
        boundaries = None if self.boundaries is None else self.boundaries.to(batch.target.device)
        scorer = PrefixBLEU(batch.target, batch.target_lengths - 1, eos, boundaries)
        found = candidate_matches(trace, scorer)
        steps = torch.stack([(step.candidates.scores > -torch.inf).any(dim=1) for step in trace.steps]).sum(dim=0)
        if self.config.bleu == "sentence":
            score = partial(sentence_bleu, reference_length=scorer.lengths)
            values = self._values(trace, scorer, found, score)
            return Worth(values, torch.full_like(values[0][:, 0], 1 / len(steps)), steps), {}
        with torch.no_grad():
            now = torch.cat(
                [first_counts(trace, scorer, found), scorer.lengths.unsqueeze(1), steps.unsqueeze(1)], dim=1
            )
            now = torch.nn.functional.pad(now.double().sum(dim=0), (0, 1), value=len(steps))
            self.corpus.mul_(self.config.memory).add_(now)
        matched, total, (length, wanted, walked, sentences) = self.corpus.split([ORDER, ORDER, 4])
        matched, total, length = matched.clamp_min(0.5), total.clamp_min(0.5), length.clamp_min(0.5)
        bleu = ((matched / total).log().mean() + (1 - wanted / length).clamp_max(0)).exp()
        short = length < wanted

        def first_order(counts: BLEUCounts) -> Tensor:
            change = (counts.matched / matched.to(counts.matched) - counts.total / total.to(counts.total)).mean(dim=-1)
            reference = scorer.lengths.view(-1, *(1,) * (counts.length.dim() - 1))
            brevity = (wanted / length.square()).to(change) * counts.length - reference / length.to(change)
            return bleu.to(change) * (1 + sentences.to(change) * (change + short * brevity))

        values = self._values(trace, scorer, found, first_order)
        # A word has the same weight in all sentences and batches.
        mean = wanted / sentences
        weight = (mean / scorer.lengths.sum().clamp_min(1)).to(values[0].dtype).expand(len(steps))
        divisor = (walked / sentences).to(values[0].dtype).expand(len(steps))
        return Worth(values, weight, divisor), {"corpus_bleu": bleu, "corpus_length": length / wanted}

    def _values(
        self,
        trace: Trace,
        scorer: PrefixBLEU,
        found: list[PrefixMatches],
        score: Callable[[BLEUCounts], Tensor],
    ) -> list[Tensor]:
        return [worth(scorer, matches, step.ended, score) for matches, step in zip(found, trace.steps, strict=True)]


def candidate_matches(trace: Trace, scorer: PrefixBLEU) -> list[PrefixMatches]:
    """For each step the matches (batch, C) of the candidates."""
    matches = scorer.start()
    found = []
    for number, step in enumerate(trace.steps):
        extended = scorer.extend(take_slots(matches, step.candidates.slots), step.candidates.tokens)
        found.append(extended)
        width = trace.selected(number)
        matches = map_tree(lambda leaf, width=width: leaf[:, :width], extended)
    return found


def first_counts(trace: Trace, scorer: PrefixBLEU, found: list[PrefixMatches]) -> Tensor:
    """(batch, 9): matches, n-grams and words of the hypothesis that the search ranks first."""
    scores, counts = [], []
    for number, (step, matches) in enumerate(zip(trace.steps, found, strict=True)):
        width = trace.selected(number)
        ranked = step.candidates.scores[:, :width] / float(number + 1) ** trace.alpha
        scores.append(ranked.masked_fill(~step.ended[:, :width], -torch.inf))
        part = scorer.finished(matches)
        counts.append(torch.cat([part.matched, part.total, part.length.unsqueeze(2)], dim=2)[:, :width])
    best = torch.cat(scores, dim=1).argmax(dim=1)
    return torch.cat(counts, dim=1)[torch.arange(len(best), device=best.device), best]
