"""Which target pieces a source sentence can ask for, so that the output layer is computed for these alone.

A source piece names the pieces that translate it best; those, and the most frequent ones, are a sentence's candidates
(Jean et al., ACL 2015, section 3.3; L'Hostis et al. 2016). What the model gives to all others is one number more; see
`nmt.remainder`.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor

from nmt.alignment import Lexicon, learn_lexicon
from nmt.checksum import KEY, check_content, content_checksum
from nmt.errors import UserError
from nmt.lines import atomic_path
from nmt.models import Remainder, Seq2Seq
from nmt.text.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

_FORMAT = 1


class Shortlist:
    """The candidates of every source piece.

    Attributes:
        best: (source vocabulary, n) int32, target ids, best first; -1 where there are fewer.
        frequent: (m,) int32, ascending, candidates of every sentence, the special ids among them.
        checksums: of the source and the target vocabulary.
        remainder: what a model gives to all that is no candidate; without it, its probabilities are those among the
            candidates.
    """

    remainder: Remainder | None = None

    def __init__(self, best: NDArray[np.int32], frequent: NDArray[np.int32], checksums: tuple[str, str]) -> None:
        self.best, self.frequent, self.checksums = best, frequent, checksums

    @classmethod
    def learn(
        cls,
        pairs: Sequence[tuple[str, str]],
        source: Vocabulary,
        target: Vocabulary,
        *,
        best: int = 20,
        frequent: int = 100,
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
        # Where there is no unknown piece, its id is none of the vocabulary.
        special = np.array(sorted({i for i in target.special if i < len(target)}))
        counts[special] = 0
        common = np.argsort(-counts, kind="stable")[:frequent]
        common = common[counts[common] > 0]
        always = np.sort(np.concatenate([special, common])).astype(np.int32)
        return cls(_best_of(lexicon, len(source), best, special), always, (source.checksum(), target.checksum()))

    def candidates(self, sentences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Of a batch.

        Args:
            sentences: ids of the sources.

        Returns:
            the candidates of all sentences together, (candidates,) int64, ascending; and (batch, candidates), true
            where a candidate is one of the sentence.
        """
        asked = (self.best[np.unique(np.asarray(ids, dtype=np.int64))].ravel() for ids in sentences)
        own = [np.unique(np.concatenate([self.frequent, best])) for best in asked]
        every = np.unique(np.concatenate(own))
        every = every[every >= 0]
        allowed = np.zeros((len(sentences), len(every)), dtype=bool)
        for row, ids in enumerate(own):
            allowed[row, np.searchsorted(every, ids[ids >= 0])] = True
        return torch.from_numpy(every.astype(np.int64)), torch.from_numpy(allowed)

    def save(self, path: str | Path, model: Seq2Seq | None = None) -> None:
        """Writes the shortlist as safetensors.

        Args:
            path: the file.
            model: whose remainder it is, if there is one.

        Raises:
            UserError: the file cannot be written.
        """
        header = {"format": _FORMAT, "source": self.checksums[0], "target": self.checksums[1]}
        arrays: dict[str, NDArray[Any]] = {"best": self.best, "frequent": self.frequent}
        if self.remainder is not None and model is not None:
            header["model"] = _fingerprint(model)
            arrays |= {"remainder.weight": self.remainder.weight.numpy(), "remainder.bias": self.remainder.bias.numpy()}
        header[KEY] = content_checksum(header, _tensors(arrays))
        content = save(arrays, metadata={"nmt_shortlist": json.dumps(header)})
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)

    @classmethod
    def load(
        cls, path: str | Path, source: Vocabulary, target: Vocabulary, model: Seq2Seq | None = None
    ) -> "Shortlist":
        """Reads a shortlist for a model.

        Args:
            path: the file.
            source, target: vocabularies of the model.
            model: as it was saved, in float32; None: it comes without a remainder, as it does, with a warning, where
                that was learned for another model.

        Raises:
            UserError: there is no such file, it is damaged, or of other vocabularies.
        """
        if not Path(path).is_file():
            raise UserError(f"{path} does not exist; make a shortlist with nmt shortlist")
        try:
            with safe_open(path, framework="np") as file:
                header = json.loads((file.metadata() or {})["nmt_shortlist"])
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            checksums = (header["source"], header["target"])
            check_content(header, _tensors(arrays))
            if header["format"] != _FORMAT:
                raise UserError(f"{path} has format {header['format']}, this version reads {_FORMAT}; learn it anew")
            found = cls(arrays["best"], arrays["frequent"], checksums)
            if "model" in header:
                parts = (torch.from_numpy(arrays[f"remainder.{name}"]) for name in ("weight", "bias"))
                found.remainder = Remainder(*parts)
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{path} is damaged or no shortlist ({error}); make one with nmt shortlist") from None
        if checksums != (source.checksum(), target.checksum()):
            raise UserError(f"{path} was learned for other vocabularies than the model's; learn one for this model")
        if model is None:
            found.remainder = None
        elif header.get("model") != _fingerprint(model):
            logger.warning(
                "%s does not know what this model gives to words outside of it; translations are better where nmt "
                "shortlist has learned that, for this very model", path
            )  # fmt: skip
            found.remainder = None
        return found


def _tensors(arrays: dict[str, NDArray[Any]]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _fingerprint(model: Seq2Seq) -> str:
    """Of the first numbers of every weight: any update changes them."""
    parts = (weight.detach().flatten()[:256].float().cpu().numpy().tobytes() for weight in model.parameters())
    return hashlib.sha256(b"".join(parts)).hexdigest()


def _best_of(lexicon: Lexicon, vocabulary: int, count: int, special: NDArray[np.int64]) -> NDArray[np.int32]:
    """The targets of every source, best first and none of them special, (vocabulary, count), -1 where there are
    fewer."""
    order = np.lexsort((lexicon.target, -lexicon.probability, lexicon.source))
    source, target = lexicon.source[order], lexicon.target[order]
    rank = np.arange(len(source)) - np.searchsorted(source, source)
    kept = (rank < count) & ~np.isin(target, special) & (source < vocabulary)
    best = np.full((vocabulary, count), -1, dtype=np.int32)
    best[source[kept], rank[kept]] = target[kept]
    return best
