"""Linear equations of a few unknowns, in the registers of one program."""

import triton
import triton.language as tl


@triton.jit
def solve(A, b, k, K: tl.constexpr):
    """A^-1 b (K,) of the first k equations, by elimination (Gauss-Jordan) with the largest pivot of each column."""
    r = tl.arange(0, K)
    left = (r < k).to(tl.int32)
    row_of = tl.zeros((K,), tl.int32)
    for m in range(k):
        column = tl.sum(tl.where(r[None, :] == m, A, 0.0), 1)
        p = tl.argmax(tl.where(left > 0, tl.abs(column), -1.0), 0)
        inverse = 1.0 / tl.sum(tl.where(r == p, column, 0.0), 0)
        pivot = tl.sum(tl.where(r[:, None] == p, A, 0.0), 0) * inverse
        value = tl.sum(tl.where(r == p, b, 0.0), 0) * inverse
        A = tl.where(r[:, None] == p, pivot[None, :], A - column[:, None] * pivot[None, :])
        b = tl.where(r == p, value, b - column * value)
        left = tl.where(r == p, 0, left)
        row_of = tl.where(r == m, p, row_of)
    return tl.sum(tl.where(row_of[:, None] == r[None, :], b[None, :], 0.0), 1)


@triton.jit
def moment(a, b, c, d, k, K: tl.constexpr):
    """(K, K) from a, b, c, d (K, C): at j <= m the sum of a_j b_m over the candidates, elsewhere that of c_j d_m."""
    r = tl.arange(0, K)
    out = tl.zeros((K, K), a.dtype)
    for m in range(k):
        here = (r == m)[:, None]
        of_b, of_d = tl.sum(tl.where(here, b, 0.0), 0)[None, :], tl.sum(tl.where(here, d, 0.0), 0)[None, :]
        column = tl.sum(tl.where((r <= m)[:, None], a * of_b, c * of_d), 1)
        out = tl.where(r[None, :] == m, column[:, None], out)
    return out
