"""Additive attention (Bahdanau, Cho, Bengio, ICLR 2015, section 3.1)."""

import torch
from torch import Tensor, nn


class AdditiveAttention(nn.Module):
    """energy(q, k) = v . tanh(W q + U k); the keys U k are the caller's to keep, one set a sentence."""

    def __init__(self, query: int, value: int, hidden: int) -> None:
        super().__init__()
        self.query = nn.Linear(query, hidden, bias=False)
        self.key = nn.Linear(value, hidden)
        self.energy = nn.Linear(hidden, 1, bias=False)

    def keys(self, values: Tensor) -> Tensor:
        """Keys (batch, source length, hidden) of values (batch, source length, value)."""
        return self.key(values)

    def forward(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Reads the values once for each slot, without a copy of them for each slot.

        Args:
            query: (batch, slots, query).
            keys: (batch, source length, hidden).
            values: (batch, source length, value).
            mask: (batch, source length), true where there is a source token.

        Returns:
            context (batch, slots, value) and attention (batch, slots, source length).
        """
        # Slot by slot into one buffer would save memory; a (batch, slots, source, hidden) sum is faster.
        mixed = torch.tanh(self.query(query).unsqueeze(2) + keys.unsqueeze(1))
        energy = self.energy(mixed).squeeze(3)
        attention = energy.masked_fill(~mask.unsqueeze(1), -torch.inf).softmax(dim=2)
        return torch.bmm(attention, values), attention
