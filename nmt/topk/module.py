"""The operators as a layer."""

from torch import Tensor, nn

from nmt.topk.plain import soft_topk
from nmt.topk.schedules import Constant, Learned, Schedule
from nmt.topk.sorted import sorted_soft_topk


class SoftTopK(nn.Module):
    """`soft_topk`, or `sorted_soft_topk`, with a temperature that may be annealed or learned.

    Args:
        k: number of selected candidates.
        temperature: in units of the scores (nats for log-probabilities), or a schedule of it; where it starts if
            it is learned.
        sorted: one column a rank instead of one weight a candidate.
        learned: train the temperature, by its logarithm.
        largest: False selects the smallest.

    Raises:
        ValueError: k < 1, a temperature out of range, or a schedule that should be learned.
    """

    def __init__(
        self,
        k: int,
        temperature: float | Schedule,
        *,
        sorted: bool = False,
        learned: bool = False,
        largest: bool = True,
    ) -> None:
        super().__init__()
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise ValueError(f"k must be an int >= 1, not {k!r}")
        self.k, self.sorted, self.largest = k, sorted, largest
        self.temperature: Schedule | Learned
        if callable(temperature):
            if learned:
                raise ValueError(f"temperature is the schedule {temperature}, and learned=True: choose one of them")
            self.temperature = temperature
        else:
            self.temperature = Learned(temperature) if learned else Constant(temperature)

    def forward(self, scores: Tensor, update: int = 0) -> Tensor:
        """The weights at an update, counted from 0: (..., n), or (..., n, k) if sorted, of scores (..., n)."""
        operator = sorted_soft_topk if self.sorted else soft_topk
        return operator(scores, self.k, self.temperature(update), largest=self.largest)

    def extra_repr(self) -> str:
        parts = [f"k={self.k}", f"sorted={self.sorted}", f"largest={self.largest}"]
        if not isinstance(self.temperature, nn.Module):
            parts.insert(1, f"temperature={self.temperature}")
        return ", ".join(parts)
