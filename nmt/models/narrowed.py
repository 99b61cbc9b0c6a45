"""A model whose output layer knows some tokens alone, other ones for each sentence."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from nmt.models.remainder import Remainder
from nmt.models.seq2seq import Advance, Seq2Seq


class NarrowedMemory(NamedTuple):
    """The model's memory, and (batch, candidates), 0 for a candidate of the sentence and -inf for the others."""

    memory: Any
    mask: Tensor


class Narrowed(Seq2Seq):
    """A model over candidates instead of a vocabulary: token i is candidate i. Features are its logits.

    The special ids have to be candidates; here they are their places among them. Padding, which no hypothesis holds,
    has the logit of all that is no candidate, so that probabilities are those over the whole vocabulary, nearly;
    without a remainder they are those among the candidates.
    """

    def __init__(self, model: Seq2Seq, candidates: Tensor, allowed: Tensor, remainder: Remainder | None = None) -> None:
        """Narrows a model for one batch.

        Args:
            model: in its decoding form.
            candidates: (candidates,) ids, ascending.
            allowed: (batch, candidates), whether a candidate is one of the sentence.
            remainder: of the model, learned for candidates such as these.
        """
        special = torch.tensor([model.padding, model.bos, model.eos], device=candidates.device)
        places = torch.searchsorted(candidates, special).clamp(max=len(candidates) - 1)
        assert torch.equal(candidates[places], special)
        super().__init__(*places.tolist())
        self.forced = model.forced
        # In a tuple, so that the model does not become a part of this one, which is made for each batch.
        self._model = (model,)
        self.ids = self._candidates = candidates
        self._allowed = allowed
        self._project = model.narrow(candidates)
        self._remainder = remainder

    def parameters(self, recurse: bool = True) -> Any:
        return self._model[0].parameters(recurse)

    @property
    def most_tokens(self) -> int | None:
        return self._model[0].most_tokens

    def encode(self, source: Tensor, lengths: Tensor) -> NarrowedMemory:
        mask = torch.zeros(self._allowed.shape, device=source.device).masked_fill(~self._allowed, -torch.inf)
        return NarrowedMemory(self._model[0].encode(source, lengths), mask)

    def start(self, memory: NarrowedMemory) -> Any:
        return self._model[0].start(memory.memory)

    def embed(self, tokens: Tensor) -> Tensor:
        return self._model[0].embed(self._candidates[tokens])

    def advance(self, embedding: Tensor, state: Any, memory: NarrowedMemory) -> Advance:
        advanced = self._model[0].advance(embedding, state, memory.memory)
        inputs = self._model[0].output_inputs(advanced.features)
        logits = self._project(inputs) + memory.mask.unsqueeze(1)
        if self._remainder is not None:
            logits[..., self.padding] = self._remainder.logit(inputs)
        return Advance(logits, advanced.state, advanced.attention)

    def project(self, features: Tensor) -> Tensor:
        return features
