"""Screening: the best candidates of each row, on which the solvers work in float64, and the rest of the row.

The rest enters the solvers as sums alone. A candidate of it weighs sigmoid(z), z = (x - tau) / T < 0; where exp(z)
is as good, one sum over the rest serves every step of the solver, and elsewhere a step costs a pass over the rest.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from nmt.topk.rest import BLOCK, Rest, exponentials

# Up to here the solver on all candidates is cheaper than a pass over the rest.
_ALL = 64
# From here on the best candidates are found by the maxima of blocks: one read of the scores, where torch.topk moves
# all of them with their positions.
_BLOCKED = 1 << 14
# exp(-z) with z = (x - tau) / T serves for the weight up to this error of their sum, in units of k.
_ERROR, _ERROR_DOUBLE = 1e-8, 1e-13


class Screen(NamedTuple):
    """The rows, split.

    Attributes:
        order: (rows, C) positions of the best candidates, best first.
        values: (rows, C) their scores in float64.
        rest: all others, or None.
    """

    order: Tensor
    values: Tensor
    rest: Rest | None


def width_of(n: int, k: int, wanted: int = 0) -> int:
    """C of n candidates for k selected ones: all of them, or a multiple of 16, at least 4 k and `wanted`.

    A multiple of 16 keeps vectorised functions from rounding the end of a tensor otherwise than the rest of it.
    """
    width = -(-max(32, 4 * k, wanted) // 16) * 16
    return n if n <= _ALL or 2 * width >= n else width


def log_limit(rows: Tensor, k: int) -> float:
    """The log of the error that exp(z) in the place of the weight may make in the sum of a row."""
    return math.log(k * (_ERROR_DOUBLE if rows.dtype == torch.float64 else _ERROR))


def screen(rows: Tensor, k: int, width: int, temperature: float | Tensor, whole: bool) -> Screen:
    """Splits rows (rows, n).

    Args:
        rows: (rows, n) contiguous.
        k: (the largest) number of selected candidates.
        width: C of `width_of`.
        temperature: a number, or a tensor () or (rows, 1).
        whole: the rest holds every other candidate; or else it may leave out those that, all together, cannot weigh
            a tenth of the error that `log_limit` allows.
    """
    n = rows.shape[1]
    if width == n:
        values, order = rows.sort(dim=-1, descending=True, stable=True)
        return Screen(order, values.double(), None)
    # On a GPU a pass over all candidates is cheaper than waiting for the number of blocks.
    starts = None
    if n >= _BLOCKED and len(rows) and not rows.is_cuda:
        order, values, starts, part, inside = _by_blocks(rows, k, width, temperature, whole)
    else:
        values, order = rows.topk(width, dim=-1)
    last = values[:, -1:]
    # Relative to a score of the row: the difference of two scores is exact where it matters.
    reference = torch.where(last > -torch.inf, last, 0.0)
    if starts is None:
        rest = exponentials(rows, reference, temperature, order)
    else:
        rest = exponentials(part, reference, temperature, inside)._replace(starts=starts)
    return Screen(order, values.double(), rest)


def _by_blocks(
    rows: Tensor, k: int, width: int, temperature: float | Tensor, whole: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor]:
    """The best candidates, which lie in the blocks with the best maxima.

    Returns:
        order and values (rows, C); starts of the blocks whose candidates the rest consists of, or None if that is
        the whole row; those candidates (rows, m), and the positions in them of the best (rows, C).
    """
    count, n = rows.shape
    blocks = n // BLOCK
    maxima = rows[:, : blocks * BLOCK].unflatten(1, (blocks, BLOCK)).amax(-1)
    best, chosen = maxima.topk(width, dim=-1)
    part_of_rows = False
    if not whole:
        # The best k + 1 blocks hold k + 1 candidates as good as the last of their maxima, and so
        # tau >= that maximum - T log k.
        depth = math.log(10 * n * k) - log_limit(rows, k)
        threshold = best[:, k : k + 1].double() - temperature * depth
        needed = int((maxima > threshold).sum(-1).max())
        part_of_rows = 2 * needed < blocks
        if part_of_rows and needed > width:
            chosen = maxima.topk(needed, dim=-1).indices
    first = torch.arange(count, device=rows.device).unsqueeze(1) * n
    starts = (chosen * BLOCK + first).view(-1)
    # All windows of the flat scores; the blocks are some of them, whatever n.
    part = rows.view(-1).unfold(0, BLOCK, 1).index_select(0, starts).view(count, -1)
    if blocks * BLOCK < n:
        part = torch.cat((part, rows[:, blocks * BLOCK :]), 1)
    # Only the first blocks and the end of the row can hold one of the best.
    near = part[:, : width * BLOCK]
    if blocks * BLOCK < n:
        near = torch.cat((near, part[:, chosen.shape[1] * BLOCK :]), 1)
    values, inside = near.topk(width, dim=-1)
    behind = inside - width * BLOCK
    block = chosen.gather(1, (inside // BLOCK).clamp_(max=width - 1))
    order = torch.where(behind < 0, block * BLOCK + inside % BLOCK, behind + blocks * BLOCK)
    inside = torch.where(behind < 0, inside, behind + chosen.shape[1] * BLOCK)
    return order, values, starts if part_of_rows else None, part, inside
