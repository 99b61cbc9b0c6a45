"""What the search asks of a model: `encode`, `start`, `embed`, `advance` and `project`; the rest is made of these."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nmt.tree import leaves, map_tree


class Advance(NamedTuple):
    """What one step of a decoder gives.

    Attributes:
        features: (batch, slots, features), what `project` turns into logits.
        state: the new decoder state, a tree with leaves (batch, slots, ...).
        attention: (batch, slots, source length), rows sum to 1 over the source.
    """

    features: Tensor
    state: Any
    attention: Tensor


class Seq2Seq(nn.Module):
    """An encoder and a decoder whose state is explicit, so that a search may re-parent it.

    No implementation stores a batch's tensors in the module: whatever a step needs is an argument.

    Attributes:
        padding, bos, eos: ids of the target vocabulary. Padding and BOS never stand in a hypothesis.
        ids: (tokens,) what each token is in the target vocabulary; None where it is itself.
        forced: so many tokens that every translation begins with are not searched for and stand in no hypothesis, but
            count for its length.
    """

    ids: Tensor | None
    forced: int = 0

    def __init__(self, padding: int, bos: int, eos: int) -> None:
        super().__init__()
        self.padding, self.bos, self.eos = padding, bos, eos
        self.ids = None

    @property
    def steps_draw(self) -> bool:
        """Whether `embed`, `advance` or `project` draw anything in training, as dropout does: then a search and what
        runs its prefixes again are two networks, though both read the same memory."""
        return any(part.p > 0 for part in self.modules() if isinstance(part, nn.Dropout))

    @property
    def most_pieces(self) -> int | None:
        """The most pieces of a source, EOS not counted, that the encoder has positions for; None where it needs none.
        `encode` refuses more."""
        return None

    @property
    def most_tokens(self) -> int | None:
        """The most tokens of a translation, EOS counted, that the decoder has positions for; None where it needs none.
        `advance` and `teacher_force` refuse more."""
        return None

    def within_positions(self, lengths: Tensor) -> Tensor:
        """Lengths of translations, EOS counted, none beyond `most_tokens`."""
        return lengths if self.most_tokens is None else lengths.clamp(max=self.most_tokens)

    @property
    def output_layer(self) -> nn.Linear | None:
        """The layer that `project` applies to `output_inputs`, where it does no more than that; here none is known."""
        return None

    @abstractmethod
    def encode(self, source: Tensor, lengths: Tensor) -> Any:
        """Reads the source once.

        Args:
            source: (batch, source length) ids, padded behind `lengths`.
            lengths: (batch,), EOS counted, each at least 1.

        Returns:
            The memory: a tree with leaves (batch, ...). The attention's keys are part of it, so that they
            are computed once a sentence and never once a slot.
        """

    @abstractmethod
    def start(self, memory: Any) -> Any:
        """The decoder state before the first token: a tree with leaves (batch, 1, ...)."""

    @abstractmethod
    def embed(self, tokens: Tensor) -> Tensor:
        """Target embeddings (..., embedding) of target ids (...)."""

    @abstractmethod
    def advance(self, embedding: Tensor, state: Any, memory: Any) -> Advance:
        """Moves every slot by one token; `embedding` (batch, slots, embedding) is the previous target's."""

    def advance_nodes(self, embedding: Tensor, state: Any, memory: Any, sentences: Tensor) -> Advance:
        """`advance` where every sentence has as many slots as it has: one row a node.

        Here the nodes are padded to as many slots as the widest sentence has; a model that can do without overrides
        this.

        Args:
            embedding: (nodes, 1, embedding).
            state: a tree with leaves (nodes, 1, ...).
            memory: of the sentences.
            sentences: (nodes,), the row of the memory that each reads, ascending.
        """
        rows = len(next(leaves(memory)))
        places, slots = node_places(sentences, rows)

        def pad(leaf: Tensor) -> Tensor:
            return pad_nodes(leaf.squeeze(1), places, rows, slots)

        def pick(leaf: Tensor) -> Tensor:
            return leaf.flatten(0, 1).index_select(0, places).unsqueeze(1)

        advanced = self.advance(pad(embedding), map_tree(pad, state), memory)
        return Advance(pick(advanced.features), map_tree(pick, advanced.state), pick(advanced.attention))

    @abstractmethod
    def project(self, features: Tensor) -> Tensor:
        """Logits (..., target vocabulary) of features (..., features)."""

    def output_inputs(self, features: Tensor) -> Tensor:
        """What the output layer multiplies, (..., inputs), of features (..., features); here these themselves."""
        return features

    def narrow(self, candidates: Tensor) -> Callable[[Tensor], Tensor]:
        """The output layer for some tokens alone: a function from `output_inputs` to logits (..., candidates).

        A model whose output layer can be cut overrides both; here all logits are computed.
        """
        return lambda features: self.project(features).index_select(-1, candidates)

    def unrolled(self) -> "Seq2Seq":
        """The model with the same weights, for the many `advance` or `advance_nodes` of one forward pass, which may
        share what a single one would make for itself. Here it is the model itself."""
        return self

    def step(self, embedding: Tensor, state: Any, memory: Any) -> tuple[Tensor, Any]:
        """`advance` and `project` in one: logits (batch, slots, target vocabulary) and the new state."""
        advanced = self.advance(embedding, state, memory)
        return self.project(advanced.features), advanced.state

    def teacher_force(self, tokens: Tensor, memory: Any) -> Tensor:
        """Features (batch, target length, features) when `tokens` (batch, target length) are fed in turn.

        One token at a time here; a model that can do all positions at once overrides this.
        """
        state, advance = self.start(memory), self.unrolled().advance
        features = []
        # Split at once: the gradient of a slice is a tensor of zeros as large as the whole, at every step.
        for embedding in self.embed(tokens).split(1, dim=1):
            advanced = advance(embedding, state, memory)
            state = advanced.state
            features.append(advanced.features)
        return torch.cat(features, dim=1)

    def forced_features(self, tokens: Tensor, there: Tensor, memory: Any) -> tuple[Tensor, Tensor]:
        """`teacher_force` where features of some positions alone are asked for.

        Args:
            tokens: (batch, target length), what is fed in turn.
            there: (batch, target length), of each row the positions that are wanted: its first ones, one at least.
            memory: of the sentences.

        Returns:
            features (wanted, features), and where they stand, (wanted,), row * target length + position.
        """
        places = there.flatten().nonzero().squeeze(1)
        return self.teacher_force(tokens, memory).flatten(0, 1).index_select(0, places), places


def node_places(sentences: Tensor, rows: int) -> tuple[Tensor, int]:
    """Where nodes stand when they are padded.

    Args:
        sentences: (nodes,), of each node, ascending.
        rows: how many sentences there are.

    Returns:
        sentence * slots + slot, (nodes,), and slots, as many as the widest sentence has nodes.
    """
    width = torch.bincount(sentences, minlength=rows)
    slots = int(width.max())
    first = width.cumsum(dim=0) - width
    slot = torch.arange(len(sentences), device=sentences.device) - first.index_select(0, sentences)
    return sentences * slots + slot, slots


def pad_nodes(leaf: Tensor, places: Tensor, rows: int, slots: int) -> Tensor:
    """Nodes (nodes, ...) at their places (see `node_places`) of (rows, slots, ...), zeros elsewhere."""
    return leaf.new_zeros(rows * slots, *leaf.shape[1:]).index_copy(0, places, leaf).unflatten(0, (rows, slots))
