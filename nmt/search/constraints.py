"""What a user demands of a hypothesis: how it begins, what it must hold and what it must not."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from nmt.errors import UserError
from nmt.search.config import SearchConfig
from nmt.search.selection import HardSelection, Scored


@dataclass(frozen=True)
class Demand:
    """What the hypotheses of one sentence have to keep to.

    Attributes:
        prefix: the ids that they begin with.
        include: phrases, each as ids that begin a word, that they hold as whole words; one that is given twice is held
            twice.
        exclude: phrases, each as the text of its pieces without the first space ("the▁cat"). No pieces spell one from
            the beginning of a word, or anywhere if it begins with what is no letter or digit (","); so a longer word
            goes with it where its pieces spell the phrase on the way.
    """

    prefix: tuple[int, ...] = ()
    include: tuple[tuple[int, ...], ...] = ()
    exclude: tuple[str, ...] = ()

    def is_met(self, progress: "Progress | None") -> bool:
        """Whether a hypothesis holds all phrases."""
        return progress is not None and len(progress.met) == len(self.include)


@dataclass(frozen=True)
class Progress:
    """How far a hypothesis has come.

    Attributes:
        text: of its pieces, where phrases are excluded.
        met: the numbers of the phrases that it holds.
        begun: (phrase, its tokens so far) for each that the last tokens begin.
        closing: the phrases that the last token has ended, and that it is not to have held if the word goes on.
    """

    text: str = ""
    met: frozenset[int] = frozenset()
    begun: frozenset[tuple[int, int]] = frozenset()
    closing: frozenset[int] = frozenset()


class Constraints:
    """The demands on the sentences of a batch, and how far the slots of a search have come with them.

    Phrases that must be there are placed by dynamic beam allocation (Post and Vilar, NAACL 2018, section 3): beside the
    best candidates compete those that go on with a phrase, and the slots are shared out among hypotheses that have
    met equally many tokens. The furthest have at least one slot, so that no sentence ends without its phrases.
    """

    def __init__(
        self, demands: Sequence[Demand], pieces: Sequence[str], *, eos: int, never: Sequence[int] = ()
    ) -> None:
        """Prepares a search.

        Args:
            demands: one a sentence.
            pieces: the target vocabulary, SentencePiece's names by id, "" for the special ones.
            eos: the id of the end of a sentence.
            never: ids that stand in no hypothesis, those of padding and of the beginning.
        """
        self.demands, self.pieces, self.eos, self._never = demands, pieces, eos, list(never)
        self._last = {text: _last_pieces(text, pieces) for demand in demands for text in demand.exclude}
        # The sentences that have a finished hypothesis with all their phrases.
        self._served: set[int] = set()
        # None for a slot that holds nothing, or what has ended.
        self._slots: dict[int, list[Progress | None]] = {
            row: [Progress()] for row, d in enumerate(demands) if d.include or d.exclude
        }

    @cached_property
    def _inner(self) -> Tensor:
        """The ids of the pieces that go on with a word."""
        return torch.tensor([token for token, piece in enumerate(self.pieces) if piece[:1].isalnum()], dtype=torch.long)

    def check(self, config: SearchConfig) -> None:
        """Makes sure that a search can meet the demands.

        Raises:
            UserError: phrases to be included, and no plain beam to share out among them.
        """
        plain = config.strategy == "beam" and config.groups == 1 and not config.refill
        if any(demand.include for demand in self.demands) and not plain:
            raise UserError("phrases to include want a plain beam; leave out sampling, groups and refill")

    def limits(self, limits: Tensor) -> Tensor:
        """The most tokens (batch,) of a hypothesis: `limits` and what is demanded beyond."""
        prefix = limits.new_tensor([len(demand.prefix) for demand in self.demands])
        include = limits.new_tensor([sum(map(len, demand.include)) for demand in self.demands])
        return torch.maximum(limits, prefix + 1) + include

    def forbid(self, logits: Tensor, only_eos: Tensor, rows: Tensor, step: int) -> Tensor:
        """The logits with -inf for what a slot must not take next. A prefix is taken whatever else is demanded, and
        a sentence that would end with nothing ends without its phrases.

        Args:
            logits: (open, slots, vocabulary).
            only_eos: (open,), true where the sentence must end now.
            rows: (open,), the sentences that are still open.
            step: counted from 0.
        """
        logits, last_chance = logits.clone(), only_eos.tolist()
        for place, row in enumerate(rows.tolist()):
            prefix = self.demands[row].prefix
            if step < len(prefix):
                wanted = logits[place, :, prefix[step]].clone()
                logits[place].fill_(-torch.inf)
                logits[place, :, prefix[step]] = wanted
                continue
            demand, states = self.demands[row], self._slots.get(row, ())
            served = row in self._served or any(map(demand.is_met, states))
            for slot, progress in enumerate(states):
                if progress is not None:
                    self._forbid(logits[place, slot], demand, progress, last_chance[place] and not served)
        return logits

    def _forbid(self, logits: Tensor, demand: Demand, progress: Progress, anyway: bool) -> None:
        logits[self._never] = -torch.inf
        if not demand.is_met(progress) and not anyway:
            logits[self.eos] = -torch.inf
        banned = [
            token
            for text in demand.exclude
            for before, token in self._last[text]
            if before is None
            or (progress.text.endswith(before) and _begins(progress.text[: len(progress.text) - len(before)], text))
        ]
        if banned:
            logits[torch.tensor(banned, device=logits.device)] = -torch.inf

    def select(self, selection: HardSelection, scored: Scored, rows: Tensor, step: int) -> HardSelection:
        """The selection with the slots shared out where phrases are to be included; notes what was selected.

        Args:
            selection: the k best candidates.
            scored: what they were selected from, `forbid` applied.
            rows: (open,), the sentences that are still open.
            step: counted from 0.
        """
        for place, row in enumerate(rows.tolist()):
            if row not in self._slots:
                continue
            demand = self.demands[row]
            if demand.include and step >= len(demand.prefix):
                self._allocate(selection, scored, place, row)
            before, after = self._slots[row], []
            for parent, token, score in zip(*(part[place].tolist() for part in selection), strict=True):
                there = score > -float("inf")
                if there and token == self.eos:
                    self._served.add(row)
                open_ = before[parent] if there and token != self.eos else None
                after.append(None if open_ is None else self._advance(open_, token, demand))
            self._slots[row] = after
        return selection

    def _allocate(self, selection: HardSelection, scored: Scored, place: int, row: int) -> None:
        """Overwrites the selection of one sentence."""
        demand, states = self.demands[row], self._slots[row]
        slots, tokens = selection.parents[place].tolist(), selection.tokens[place].tolist()
        wanted = set(zip(slots, tokens, strict=True))
        logits = scored.logits[place]
        best = logits.argmax(dim=1).tolist()
        closing = [slot for slot, progress in enumerate(states) if progress is not None and progress.closing]
        if closing:  # where the model would always go on with its last word, a phrase would never be met
            ending = logits[closing].index_fill(1, self._inner.to(logits.device), -torch.inf).argmax(dim=1)
            wanted |= set(zip(closing, ending.tolist(), strict=True))
        for slot, progress in enumerate(states):
            if progress is None:
                continue
            wanted.add((slot, best[slot]))
            wanted |= {(slot, demand.include[phrase][done]) for phrase, done in progress.begun}
            wanted |= {(slot, ids[0]) for phrase, ids in enumerate(demand.include) if phrase not in progress.met}
        if bool(scored.only_eos[place]):
            wanted = {(slot, token) for slot, token in wanted if token == self.eos}
        every = sorted(wanted)
        if not every:
            return
        at, ids = torch.tensor(every, device=scored.logits.device).unbind(dim=1)
        log_probability = scored.logits[place, at, ids].to(scored.normaliser.dtype) - scored.normaliser[place, at]
        scores = (scored.beam.scores[place, at] + log_probability).tolist()
        banks: dict[int, list[tuple[float, int, int]]] = {}
        for (slot, token), score in zip(every, scores, strict=True):
            progress = states[slot]
            if score > -float("inf") and progress is not None:
                reached = self._advance(progress, token, demand)
                banks.setdefault(self._tokens_met(reached, demand), []).append((score, slot, token))
        chosen = _share_out(banks, selection.parents.shape[1])
        for number in range(selection.parents.shape[1]):
            score, slot, token = chosen[number] if number < len(chosen) else (-float("inf"), 0, self.eos)
            selection.scores[place, number] = score
            selection.parents[place, number] = slot
            selection.tokens[place, number] = token

    def _tokens_met(self, progress: Progress, demand: Demand) -> int:
        """How far a hypothesis has come. From any there is a token that leads further: what has begun counts unless
        going on with it would go on with the word of a phrase that has just ended."""
        whole = sum(len(demand.include[phrase]) for phrase in progress.met)
        return whole + max(
            (
                done
                for phrase, done in progress.begun
                if not (progress.closing and self.pieces[demand.include[phrase][done]][:1].isalnum())
            ),
            default=0,
        )

    def _advance(self, progress: Progress, token: int, demand: Demand) -> Progress:
        text = progress.text + self.pieces[token] if demand.exclude else ""
        if not demand.include:
            return Progress(text)
        met, ended = set(progress.met), set()
        if self.pieces[token][:1].isalnum():
            met -= progress.closing
        begun = {(phrase, done + 1) for phrase, done in progress.begun if demand.include[phrase][done] == token}
        begun |= {(n, 1) for n, ids in enumerate(demand.include) if n not in met and ids[0] == token}
        for phrase, done in sorted(begun):
            ids = demand.include[phrase]
            # Of equal phrases one alone is met at a time.
            if done == len(ids) and ids not in ended:
                met.add(phrase)
                ended.add(ids)
        begun = {(phrase, done) for phrase, done in begun if phrase not in met and done < len(demand.include[phrase])}
        closing = frozenset(met - progress.met) if self.pieces[token][-1:].isalnum() else frozenset()
        return Progress(text, frozenset(met), frozenset(begun), closing)


def _share_out(banks: dict[int, list[tuple[float, int, int]]], size: int) -> list[tuple[float, int, int]]:
    """The candidates (score, slot, token) that get the slots, best first: one a bank in turn, the furthest first."""
    queues = [sorted(banks[bank], reverse=True) for bank in sorted(banks, reverse=True)]
    longest = max(map(len, queues), default=0)
    turns = [queue[turn] for turn in range(longest) for queue in queues if turn < len(queue)]
    return sorted(turns[:size], reverse=True)


def _last_pieces(text: str, pieces: Sequence[str]) -> list[tuple[str | None, int]]:
    """The tokens that can be the last one of a phrase, each with the text that must stand before it; None where the
    piece holds the whole phrase, and where it begins."""
    found: list[tuple[str | None, int]] = []
    # A letter behind a phrase goes on with its word; behind a full stop it does not.
    word = text[-1].isalnum()
    for token, piece in enumerate(pieces):
        if piece and len(piece) <= len(text) and text.endswith(piece):
            found.append((text[: len(text) - len(piece)], token))
            continue
        for at in range(len(piece) - len(text) + 1):
            if piece.startswith(text, at) and (not word or at + len(text) == len(piece)):
                if at == 0:
                    found.append(("", token))
                elif _begins(piece[:at], text):
                    found.append((None, token))
    return found


def _begins(before: str, text: str) -> bool:
    """Whether a phrase can begin behind a text: a word not in the middle of one, a comma anywhere."""
    return not (before[-1:].isalnum() and text[0].isalnum())
