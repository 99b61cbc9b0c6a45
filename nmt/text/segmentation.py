"""Random pieces of words: BPE-dropout and unigram sampling, which draw the same everywhere.

SentencePiece samples itself, but its generator (0.2.3) mixes something of the process into every seed: a run that is
resumed, or shared out among processes, would read other pieces than an unbroken one. So its own two rules are written
down again here, on Python's generator. Words are drawn one by one, which is the same as long as no piece spans two;
SentencePiece trains none that does.
"""

import heapq
import math
import random
import re
from bisect import bisect
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

# What the cache of words may hold before it is begun anew.
_WORDS = 200_000
# By how many nats SentencePiece ranks an unknown character below the rarest piece.
_UNKNOWN_PENALTY = 10.0


class _Arcs(NamedTuple):
    """The pieces that can end at a place of a word.

    Attributes:
        starts: where they begin.
        ids: which they are.
        shares: their probabilities, added up.
    """

    starts: list[int]
    ids: list[int]
    shares: list[float]


class Segmenter:
    """Draws pieces of lines.

    Args:
        processor: SentencePiece's, of a BPE or unigram model.
    """

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        p = processor
        known = [i for i in range(len(p)) if not (p.is_control(i) or p.is_unknown(i) or p.is_byte(i) or p.is_unused(i))]
        self.scores: dict[str, float] = {p.id_to_piece(i): p.get_score(i) for i in known}
        self.ids: dict[str, int] = {p.id_to_piece(i): i for i in known}
        # The scores of BPE are the ranks of its merges; those of unigram are log-probabilities.
        self.is_bpe = all(score == -rank for rank, score in enumerate(self.scores.values()))
        self.longest = max(map(len, self.scores), default=1)
        self.unknown_score = min(self.scores.values(), default=0.0) - _UNKNOWN_PENALTY
        self.bytes = [p.piece_to_id(f"<0x{byte:02X}>") for byte in range(256)]
        self.has_bytes = p.is_byte(self.bytes[0])
        self._merges: dict[str, tuple[list[int], int]] = {}
        self._lattices: dict[tuple[str, float], list[_Arcs]] = {}

    def sample(self, lines: Sequence[str], seed: int, strength: float) -> list[list[int]]:
        """The ids of each line in random pieces, a function of the arguments alone.

        Args:
            lines: the lines.
            seed: of Python's generator.
            strength: BPE: the probability that a merge is left out when its turn comes (Provilkov et al., ACL 2020,
                in SentencePiece's form). Unigram: alpha, the exponent of the probability of a segmentation (Kudo, ACL
                2018).
        """
        draw = random.Random(seed).random
        word_ids = self._drop_merges if self.is_bpe else self._walk_lattice
        result = []
        for line in lines:
            ids: list[int] = []
            for word in re.findall("▁?[^▁]+|▁", self.processor.normalize(line)):
                ids += word_ids(word, strength, draw)
            result.append(self._join_unknown(ids))
        return result

    def _drop_merges(self, word: str, strength: float, draw: Callable[[], float]) -> list[int]:
        found = self._merges.get(word)
        if found is None:
            if len(self._merges) >= _WORDS:
                self._merges.clear()
            found = self._merges[word] = self._merge(word, lambda: False)
        ids, merges = found
        # Most words lose no merge, and are then known.
        drops = [draw() < strength for _ in range(merges)]
        if not any(drops):
            return ids
        left = iter(drops)

        def dropped() -> bool:
            drop = next(left, None)
            return draw() < strength if drop is None else drop

        return self._merge(word, dropped)[0]

    def _merge(self, word: str, dropped: Callable[[], bool]) -> tuple[list[int], int]:
        """The pieces when those merges are left out that `dropped` says, asked in the order of the merges; and how many
        were made."""
        size, pieces = len(word), list(word)
        after, before = list(range(1, size + 1)), list(range(-1, size - 1))
        heap: list[tuple[float, int, str]] = []

        def offer(left: int) -> None:
            if left >= 0 and after[left] < size:
                both = pieces[left] + pieces[after[left]]
                if both in self.scores:
                    heapq.heappush(heap, (-self.scores[both], left, both))

        for left in range(size - 1):
            offer(left)
        merges = 0
        while heap:
            _, left, both = heapq.heappop(heap)
            right = after[left]
            # One of the two has been merged with another since.
            if not pieces[left] or right >= size or pieces[left] + pieces[right] != both:
                continue
            if dropped():
                continue
            merges += 1
            pieces[left], pieces[right] = both, ""
            after[left] = after[right]
            if after[left] < size:
                before[after[left]] = left
            offer(left)
            offer(before[left])
        return self._ids_of(piece for piece in pieces if piece), merges

    def _walk_lattice(self, word: str, strength: float, draw: Callable[[], float]) -> list[int]:
        """Forward filtering, backward sampling."""
        lattice = self._lattices.get((word, strength))
        if lattice is None:
            if len(self._lattices) >= _WORDS:
                self._lattices.clear()
            lattice = self._lattices[word, strength] = self._lattice(word, strength)
        end = len(word)
        reverse: list[list[int]] = []
        while end:
            arcs = lattice[end]
            # Rounding may leave the last share below what is drawn.
            choice = min(bisect(arcs.shares, draw()), len(arcs.ids) - 1)
            start = arcs.starts[choice]
            reverse.append([arcs.ids[choice]] if arcs.ids[choice] >= 0 else self._ids_of([word[start:end]]))
            end = start
        return [id_ for ids in reversed(reverse) for id_ in ids]

    def _lattice(self, word: str, alpha: float) -> list[_Arcs]:
        forward, lattice = [0.0], [_Arcs([], [], [])]
        for end in range(1, len(word) + 1):
            starts, ids, weights = [], [], []
            for start in range(max(0, end - self.longest), end):
                piece = word[start:end]
                if piece in self.scores:
                    score, id_ = self.scores[piece], self.ids[piece]
                elif start == end - 1:
                    score, id_ = self.unknown_score, -1
                else:
                    continue
                starts.append(start)
                ids.append(id_)
                weights.append(forward[start] + alpha * score)
            largest = max(weights)
            total = largest + math.log(sum(math.exp(weight - largest) for weight in weights))
            forward.append(total)
            lattice.append(_Arcs(starts, ids, list(accumulate(math.exp(weight - total) for weight in weights))))
        return lattice

    def _ids_of(self, pieces: Iterable[str]) -> list[int]:
        ids: list[int] = []
        for piece in pieces:
            if piece in self.ids:
                ids.append(self.ids[piece])
            elif self.has_bytes:
                ids += [self.bytes[byte] for byte in piece.encode()]
            else:
                ids.append(self.processor.unk_id())
        return ids

    def _join_unknown(self, ids: list[int]) -> list[int]:
        """A run of unknown characters is one unknown piece, as SentencePiece has it."""
        unknown = self.processor.unk_id()
        return [id_ for place, id_ in enumerate(ids) if id_ != unknown or not place or ids[place - 1] != unknown]
