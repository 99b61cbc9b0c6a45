"""Which target pieces a source sentence can ask for, so that the output layer is computed for these alone.

A source piece names the pieces that translate it best; those, and the most frequent ones, are a sentence's candidates
(Jean et al., ACL 2015, section 3.3; L'Hostis et al. 2016). Probabilities are then normalised over the candidates.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor

from nmt.alignment import Lexicon, learn_lexicon
from nmt.errors import UserError
from nmt.lines import atomic_path
from nmt.vocabulary import Vocabulary

_FORMAT = 1
# PAD, UNK, BOS and EOS are always candidates, and keep their ids among them.
_SPECIAL = 4


class Shortlist:
    """The candidates of every source piece.

    Attributes:
        best: (source vocabulary, n) int32, target ids, best first; -1 where there are fewer.
        frequent: (m,) int32, candidates of every sentence, the special ids among them.
        checksums: of the source and the target vocabulary.
    """

    def __init__(self, best: NDArray[np.int32], frequent: NDArray[np.int32], checksums: tuple[str, str]) -> None:
        self.best, self.frequent, self.checksums = best, frequent, checksums

    @classmethod
    def learn(
        cls,
        pairs: Sequence[tuple[str, str]],
        source: Vocabulary,
        target: Vocabulary,
        *,
        best: int = 40,
        frequent: int = 200,
        iterations: int = 5,
    ) -> "Shortlist":
        """Learns from sentence pairs by IBM Model 1.

        Args:
            pairs: lines.
            source, target: vocabularies of the model.
            best: candidates of a source piece, at most.
            frequent: pieces that are candidates of every sentence: the most frequent ones.
            iterations: of expectation and maximisation.

        Raises:
            UserError: no pairs, or an impossible number.
        """
        for name, value in (("best", best), ("frequent", frequent), ("iterations", iterations)):
            if value < 1:
                raise UserError(f"{name} is {value}; give at least 1")
        if not pairs:
            raise UserError("a shortlist is learned from sentence pairs, and there are none")
        sources, targets = source.encode([a for a, _ in pairs]), target.encode([b for _, b in pairs])
        lexicon = learn_lexicon(sources, targets, max(len(source), len(target)), iterations=iterations)
        counts = np.bincount(np.fromiter((i for ids in targets for i in ids), dtype=np.int64), minlength=len(target))
        counts[:_SPECIAL] = 0
        common = np.argsort(-counts, kind="stable")[:frequent]
        common = common[counts[common] > 0]
        always = np.concatenate([np.arange(_SPECIAL), np.sort(common)]).astype(np.int32)
        return cls(_best_of(lexicon, len(source), best), always, (source.checksum(), target.checksum()))

    def candidates(self, sentences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Of a batch.

        Args:
            sentences: ids of the sources.

        Returns:
            the candidates of all sentences together, (candidates,) int64, ascending; and (batch, candidates), true
            where a candidate is one of the sentence.
        """
        own = [np.unique(np.concatenate([self.frequent, *self.best[np.unique(ids)]])) for ids in sentences]
        every = np.unique(np.concatenate(own))
        every = every[every >= 0]
        allowed = np.zeros((len(sentences), len(every)), dtype=bool)
        for row, ids in enumerate(own):
            allowed[row, np.searchsorted(every, ids[ids >= 0])] = True
        return torch.from_numpy(every.astype(np.int64)), torch.from_numpy(allowed)

    def save(self, path: str | Path) -> None:
        """Writes the shortlist as safetensors.

        Raises:
            UserError: the file cannot be written.
        """
        header = {"format": _FORMAT, "source": self.checksums[0], "target": self.checksums[1]}
        content = save({"best": self.best, "frequent": self.frequent}, metadata={"nmt_shortlist": json.dumps(header)})
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)

    @classmethod
    def load(cls, path: str | Path, source: Vocabulary, target: Vocabulary) -> "Shortlist":
        """Reads a shortlist for a model.

        Raises:
            UserError: there is no such file, it is damaged, or of other vocabularies.
        """
        if not Path(path).is_file():
            raise UserError(f"{path} does not exist; make a shortlist with nmt shortlist")
        try:
            with safe_open(path, framework="np") as file:
                header = json.loads((file.metadata() or {})["nmt_shortlist"])
                best, frequent = file.get_tensor("best"), file.get_tensor("frequent")
            checksums = (header["source"], header["target"])
            if header["format"] != _FORMAT:
                raise UserError(f"{path} has format {header['format']}, this version reads {_FORMAT}; learn it anew")
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{path} is damaged or no shortlist ({error}); make one with nmt shortlist") from None
        if checksums != (source.checksum(), target.checksum()):
            raise UserError(f"{path} was learned for other vocabularies than the model's; learn one for this model")
        return cls(best, frequent, checksums)


def _best_of(lexicon: Lexicon, vocabulary: int, count: int) -> NDArray[np.int32]:
    """The targets of every source, best first, (vocabulary, count), -1 where there are fewer."""
    order = np.lexsort((lexicon.target, -lexicon.probability, lexicon.source))
    source, target = lexicon.source[order], lexicon.target[order]
    rank = np.arange(len(source)) - np.searchsorted(source, source)
    kept = (rank < count) & (target >= _SPECIAL) & (source < vocabulary)
    best = np.full((vocabulary, count), -1, dtype=np.int32)
    best[source[kept], rank[kept]] = target[kept]
    return best
