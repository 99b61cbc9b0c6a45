"""The candidates outside the screen: their weights and the derivatives by their scores, in few passes.

They are computed in float32, or in float64 for float64 scores, and a few rows at a time, so that what one operation
writes is in the cache when the next one reads it.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

# Candidates of one block.
BLOCK = 32
# Elements of one part of the rows: half a mebibyte of float32.
_PART = 1 << 17
# Elements that PyTorch's vectorised loop takes at once, two AVX-512 registers of float32; what is left over goes
# through other code.
_LANES = 32


class Rest(NamedTuple):
    """Of each row, all candidates, or those of some blocks and the end of the row.

    Attributes:
        weights: (rows, m) the exponentials exp((x - reference) / T), and then the weights; 0 for the candidates of
            the screen.
        sums: (rows, 1) of the exponentials, float64.
        reference: (rows, 1) float64, the last score of the screen, so that no exponential is above 1.
        starts: (rows * b,) where each block starts in the flattened scores; None: m = n, all candidates.
    """

    weights: Tensor
    sums: Tensor
    reference: Tensor
    starts: Tensor | None = None


def parts(rows: int, size: int, cuda: bool) -> Iterator[slice]:
    """Splits rows of `size` elements so that a part stays in the cache; on a GPU they stay together."""
    step = max(1, rows if cuda else _PART // max(size, 1))
    for first in range(0, rows, step):
        yield slice(first, first + step)


def rows_in_parts(chosen: Tensor | None, x: Tensor) -> Iterator[Tensor]:
    """The positions (r,) of the chosen rows of x (rows, m), in parts; nothing of None."""
    if chosen is not None:
        for some in parts(len(chosen), x.shape[1], x.is_cuda):
            yield chosen[some]


def of_rows(value: float | Tensor, some: slice | Tensor) -> float | Tensor:
    """The values (rows, 1) of some rows; numbers and 0-d tensors as they are."""
    return value[some] if isinstance(value, Tensor) and value.dim() else value


def exponentials(x: Tensor, reference: Tensor, temperature: float | Tensor, inside: Tensor) -> Rest:
    """exp((x - reference) / T) of scores x (rows, m), 0 for those at the positions `inside` (rows, C).

    Masked candidates give 0. Below about 1e-37 (float64: 1e-307) the result is 0: subnormal numbers cost many times
    as much.
    """
    x = x if x.dtype == torch.float64 else x.float()
    reference = reference.to(x.dtype)
    floor = -1021.0 if x.dtype == torch.float64 else -125.0
    most = torch.finfo(x.dtype).max / 4
    scale: float | Tensor
    if isinstance(temperature, Tensor):
        scale = (math.log2(math.e) / temperature).clamp(max=most).to(x.dtype)
    else:
        scale = min(math.log2(math.e) / temperature, most)
    weights = torch.empty_like(x)
    sums = x.new_empty(len(x), 1, dtype=torch.float64)
    for some in parts(len(x), x.shape[1], x.is_cuda):
        e = weights[some]
        torch.sub(x[some], reference[some], out=e)
        # Less the floor, a power of two: -inf, and all that is as low, becomes 0.
        _exp2_(e.mul_(of_rows(scale, some)).clamp_(min=floor)).sub_(2.0**floor)
        sums[some] = e.scatter_(1, inside[some], 0.0).sum(-1, keepdim=True)
    return Rest(weights, sums, reference.double())


def _exp2_(e: Tensor) -> Tensor:
    # The vectorised function rounds the last few elements of a tensor otherwise than the others, and then a row alone
    # would differ from the row in a batch. It is still the fastest of its kind.
    flat = e.view(-1)
    end = flat.numel() % _LANES
    if end:
        tail = torch.nn.functional.pad(flat[-end:], (0, _LANES - end)).exp2_()[:end]
        flat[:-end].exp2_()
        flat[-end:] = tail
        return e
    return e.exp2_()


def masses(e: Tensor, U: Tensor) -> tuple[Tensor, Tensor]:
    """The sums (rows, 1) of A = e / (e + U) and of A^2, both float64; U = exp((tau - reference) / T)."""
    A = torch.add(e, U.to(e.dtype))
    torch.div(e, A, out=A)
    return A.sum(-1, keepdim=True).double(), A.square_().sum(-1, keepdim=True).double()


def weigh(rest: Rest, u: Tensor, exact: Tensor | None) -> None:
    """Turns the exponentials into weights in place.

    Args:
        rest: of the rows.
        u: (rows, 1) (tau - reference) / T, float64.
        exact: the rows where exp(-u) e does not serve for e / (e + exp(u)).
    """
    if exact is not None and len(exact) < len(u):
        e = rest.weights[exact]
        rest.weights.mul_((-u).exp().to(rest.weights.dtype))
        U = u[exact].exp().to(e.dtype)
        rest.weights[exact] = e.div_(e + U)
        return
    for some in parts(len(rest.weights), rest.weights.shape[1], rest.weights.is_cuda):
        e = rest.weights[some]
        if exact is None:
            e.mul_((-u[some]).exp().to(e.dtype))
        else:
            e.div_(e + u[some].exp().to(e.dtype))


def slopes(A: Tensor, order: Tensor | None, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """w = A (1 - A) of the rest, (rows, m), its sum and that of w g, (rows, 1) float64.

    Args:
        A: (rows, m) weights.
        order: (rows, C) positions in A of candidates of the screen, which get w = 0; None if they have it already.
        g: (rows, m), or one value a row, (rows, 1).
    """
    w = torch.empty_like(A)
    mass = A.new_empty(len(A), 1, dtype=torch.float64)
    product = torch.empty_like(mass)
    for some in parts(len(A), A.shape[1], A.is_cuda):
        a, out = A[some], w[some]
        torch.addcmul(a, a, a, value=-1, out=out)
        if order is not None:
            out.scatter_(1, order[some], 0.0)
        mass[some] = out.sum(-1, keepdim=True)
        if g.shape[1] > 1:
            product[some] = (out * g[some]).sum(-1, keepdim=True)
    return w, mass, product if g.shape[1] > 1 else mass * g.double()


def pull(w: Tensor, g: Tensor, mean: Tensor, temperature: float | Tensor) -> Tensor:
    """w (g - mean) / T in the place of w (rows, m); g (rows, m) or (rows, 1), mean (rows, 1) float64."""
    if g.shape[1] == 1:
        return w.mul_(((g - mean) / temperature).to(w.dtype))
    mean = mean.to(w.dtype)
    for some in parts(len(w), w.shape[1], w.is_cuda):
        w[some].mul_((g[some] - mean[some]).div_(of_rows(temperature, some)))
    return w


def spread(part: Tensor, starts: Tensor | None, n: int) -> Tensor:
    """What (rows, m) holds for the candidates of the rest, as (rows, n) with 0 elsewhere; `starts` of `Rest`."""
    if starts is None:
        return part
    count, m = part.shape
    end = n % BLOCK
    out = part.new_zeros(count, n)
    out.view(-1).unfold(0, BLOCK, 1).index_copy_(0, starts, part[:, : m - end].reshape(-1, BLOCK))
    out[:, n - end :] = part[:, m - end :]
    return out
