"""The best candidates of each row, and the sum of the exponentials of all others, from one read of the scores."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from nmt.topk import arguments

# Scores that one program reads at a time.
CHUNK = 4096
# A tile of distinct numbers, out of which the largest are taken.
MOST = 16384
_LEAST_KEY = tl.constexpr(-(2**31))


def launch(kernel: Any, grid: tuple[int, ...], *values: Any, warps: int = 4, **constants: Any) -> None:
    """Runs a kernel on the device of its first argument."""
    with torch.cuda.device_of(values[0]):
        kernel[grid](*values, num_warps=warps, **constants)


def power_of_two(size: int, least: int = 1) -> int:
    return max(least, 1 << (size - 1).bit_length())


def number(value: float | Tensor) -> tuple[float | Tensor, int]:
    """A number, a tensor () or (rows,) as the argument of a kernel, and the stride over the rows; -1 for a number."""
    if isinstance(value, Tensor):
        return value.detach().contiguous(), value.dim()
    # It goes as float32, whose rounding is far below that of the scores divided by it.
    return min(max(float(value), 1e-37), 1e37), -1


def block_of(n: int, width: int) -> int:
    """Candidates of a block, of n in a row: about as many blocks as candidates in the best `width` of them."""
    return min(power_of_two(max(32, round((n / width) ** 0.5))), MOST // power_of_two(width))


@triton.jit
def of_row(value, row, STRIDE: tl.constexpr):
    """The float64 value of a row, of `number`."""
    if STRIDE < 0:
        return tl.cast(value, tl.float64)
    # No fall through: what follows does not compile with a number.
    else:
        return tl.load(value + row * STRIDE)


@triton.jit
def scale_of(t):
    """1 / T in float32, and finite."""
    return tl.minimum(1.0 / t, 1e38).to(tl.float32)


@triton.jit
def key_of(v):
    """The int32 whose order is that of the floats; the largest of all for NaN and +inf."""
    bits = v.to(tl.int32, bitcast=True)
    return tl.where(v < float("inf"), bits ^ ((bits >> 31) & 0x7FFFFFFF), 0x7FFFFFFF)


@triton.jit
def value_of(key):
    """The inverse of `key_of`."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def pack(key, i):
    """One int64, distinct for each position: in the order of the keys, and for equal ones the lower position first."""
    return (key.to(tl.int64) << 31) + (0x7FFFFFFF - i)


@triton.jit
def position_of(packed):
    return 0x7FFFFFFF - (packed & 0x7FFFFFFF)


@triton.jit
def last_of(x, order, width):
    """The last of the best candidates of a row: packed, and its score, 0 if that is a mask."""
    i = tl.load(order + width - 1)
    v = tl.load(x + i).to(tl.float32)
    return pack(key_of(v), i), tl.where(v > -float("inf"), v, 0.0)


@triton.jit
def rest_of(x, i, n, last, reference, scale):
    """(x - reference) / T at the positions i, -inf for the best candidates; and which are others."""
    v = tl.load(x + i, mask=i < n, other=-float("inf")).to(tl.float32)
    others = (i < n) & (pack(key_of(v), i) < last)
    return tl.where(others, (v - reference) * scale, -float("inf")), others


@triton.jit
def put_best(out, order, values, first, width, C: tl.constexpr, E: tl.constexpr):
    """Values (C,) of the best candidates, over what a program has written for all of first..first + E - 1.

    To leave them out there would break up the stores.
    """
    lane = tl.arange(0, C)
    place = tl.load(order + lane, mask=lane < width, other=-1)
    tl.debug_barrier()
    tl.store(out + place, values, mask=(place >= first) & (place < first + E))


@triton.jit
def blocks(x, T, keys, sums, n, count, T_STRIDE: tl.constexpr, B: tl.constexpr, PER: tl.constexpr):
    """Of each block of B candidates the key of the maximum, and the sum of exp((x - maximum) / T)."""
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1) * PER + tl.arange(0, PER)
    i = block[:, None] * B + tl.arange(0, B)[None, :]
    v = tl.load(x + row * n + i, mask=i < n, other=-float("inf")).to(tl.float32)
    key = tl.max(key_of(v), 1)
    most = value_of(key)
    e = tl.exp((v - tl.where(most > -float("inf"), most, 0.0)[:, None]) * scale_of(of_row(T, row, T_STRIDE)))
    tl.store(keys + row * count + block, key, mask=block < count)
    tl.store(sums + row * count + block, tl.sum(e, 1), mask=block < count)


@triton.jit
def _largest(packed, space, N: tl.constexpr, C: tl.constexpr):
    """The C largest of N distinct numbers, in any order, by way of the space for them in memory, and the least."""
    low, high = tl.min(packed, 0), tl.max(packed, 0) + 1
    count = tl.full([], N, tl.int32)
    # At least C reach `low`, and fewer reach `high`.
    while count != C:
        middle = low + (high - low) // 2
        reach = tl.sum((packed >= middle).to(tl.int32), 0)
        low, high = tl.where(reach >= C, middle, low), tl.where(reach >= C, high, middle)
        count = tl.where(reach >= C, reach, count)
    chosen = packed >= low
    tl.store(space + tl.cumsum(chosen.to(tl.int32), 0) - 1, packed, mask=chosen)
    tl.debug_barrier()
    found = tl.load(space + tl.arange(0, C))
    tl.debug_barrier()
    return found, tl.min(found, 0)


@triton.jit
def select(
    x, T, keys, sums, space, order, mass, status, n, count, width,
    T_STRIDE: tl.constexpr, B: tl.constexpr, N: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """The best candidates of a row, which lie in the blocks with the best maxima, and the mass of all others."""
    row = tl.program_id(0).to(tl.int64)
    x, space = x + row * n, space + row * C
    scale = scale_of(of_row(T, row, T_STRIDE))
    block = tl.arange(0, N)
    key = tl.load(keys + row * count + block, mask=block < count, other=_LEAST_KEY)
    # NaN or +inf is in a row whose largest key is that of +inf or above.
    tl.store(status + row, (tl.max(key, 0) >= 0x7F800000).to(tl.int32))
    packed_blocks = pack(key, block)
    chosen, last_block = _largest(packed_blocks, space, N, C)
    i = (position_of(chosen)[:, None] * B + tl.arange(0, B)[None, :]).reshape(C * B)
    v = tl.load(x + i, mask=i < n, other=-float("inf")).to(tl.float32)
    packed = pack(tl.where(i < n, key_of(v), _LEAST_KEY), i)
    best, last = _largest(packed, space, C * B, C)
    lane = tl.arange(0, C)
    tl.store(order + row * width + lane, position_of(tl.sort(best, 0, descending=True)), mask=lane < width)
    reference = value_of((last >> 31).to(tl.int32))
    reference = tl.where(reference > -float("inf"), reference, 0.0)
    others = tl.where(packed < last, tl.exp((v - reference) * scale), 0.0)
    far = tl.load(sums + row * count + block, mask=block < count, other=0.0)
    far *= tl.exp((value_of(key) - reference) * scale)
    far = tl.where((packed_blocks < last_block) & (block < count), far, 0.0)
    tl.store(mass + row, tl.sum(others.to(tl.float64), 0) + tl.sum(far.to(tl.float64), 0))


def best_of(rows: Tensor, T: float | Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """Fills the positions (rows, C) of the best candidates, best first.

    Returns:
        (rows,) float64 the sums of exp((x - last) / T) over all others, `last` the score of the last of the best; and
        (rows,) int32, not 0 where there is NaN or +inf.
    """
    count, n = rows.shape
    width = order.shape[1]
    C = power_of_two(width, 16)
    B = block_of(n, width)
    blocks_ = triton.cdiv(n, B)
    keys = torch.empty(count, blocks_, dtype=torch.int32, device=rows.device)
    sums = torch.empty(count, blocks_, dtype=torch.float32, device=rows.device)
    space = torch.empty(count, C, dtype=torch.int64, device=rows.device)
    mass = torch.empty(count, dtype=torch.float64, device=rows.device)
    status = torch.empty(count, dtype=torch.int32, device=rows.device)
    t, stride = number(T)
    per = max(1, CHUNK // B)
    launch(blocks, (count, triton.cdiv(blocks_, per)), rows, t, keys, sums, n, blocks_, T_STRIDE=stride, B=B, PER=per)
    N = power_of_two(blocks_, C)
    warps = max(4, max(N, C * B) // 512)
    launch(select, (count,), rows, t, keys, sums, space, order, mass, status, n, blocks_, width, warps=warps,
           T_STRIDE=stride, B=B, N=N, C=C)  # fmt: skip
    return mass, status


def takes(n: int, width: int) -> bool:
    """Whether `best_of` takes so many candidates in a row."""
    return n > 1 and triton.cdiv(n, block_of(n, width)) <= MOST


def refused(status: Tensor) -> int:
    """-1, or a row that holds a NaN or +inf, or -2 for rows that have not converged.

    While a CUDA graph is captured nothing can be read: -1, and NaN are the weights of such rows.
    """
    if arguments.is_captured(status):
        return -1
    worst = int(status.max())
    return -1 if worst == 0 else -2 if worst == 2 else int((status == 1).nonzero()[0, 0])
