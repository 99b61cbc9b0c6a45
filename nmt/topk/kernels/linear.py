"""Linear equations of a few unknowns."""

from typing import Any

from numba import njit


@njit(error_model="numpy")
def solve(A: Any, b: Any) -> None:
    """Replaces b (k,) by A^-1 b, by elimination with the largest pivot of each column; A (k, k) is overwritten."""
    k = len(b)
    for j in range(k):
        pivot = j
        for i in range(j + 1, k):
            if abs(A[i, j]) > abs(A[pivot, j]):
                pivot = i
        if pivot != j:
            for m in range(j, k):
                A[j, m], A[pivot, m] = A[pivot, m], A[j, m]
            b[j], b[pivot] = b[pivot], b[j]
        inverse = 1.0 / A[j, j]
        for i in range(j + 1, k):
            factor = A[i, j] * inverse
            if factor != 0.0:
                for m in range(j + 1, k):
                    A[i, m] -= factor * A[j, m]
                b[i] -= factor * b[j]
    for j in range(k - 1, -1, -1):
        total = b[j]
        for m in range(j + 1, k):
            total -= A[j, m] * b[m]
        b[j] = total / A[j, j]
