"""Lines as 64-bit numbers, so that tens of millions can be held against each other."""

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Prints = NDArray[np.uint64]


def fingerprints(lines: Iterable[str]) -> Prints:
    """(lines,) numbers; equal for lines that differ in case and blanks alone, and otherwise different.

    (Of 36 million different lines, two get the same number with a probability of 4e-5.)
    """
    digests = (hashlib.blake2b(" ".join(line.casefold().split()).encode("utf-8", "surrogatepass"), digest_size=8)
               for line in lines)  # fmt: skip
    return np.frombuffer(b"".join(digest.digest() for digest in digests), dtype="<u8")


def paired(source: Prints, target: Prints) -> Prints:
    """(lines,) numbers of pairs of lines."""
    # An odd factor (that of Fibonacci hashing) keeps all bits and tells (a, b) from (b, a).
    return source * np.uint64(0x9E3779B97F4A7C15) + target


def repeated(prints: Prints) -> NDArray[np.bool_]:
    """(lines,), true where the same number stood before."""
    again = np.ones(len(prints), dtype=bool)
    again[np.unique(prints, return_index=True)[1]] = False
    return again


class Seen:
    """Numbers that came before, part after part; 8 bytes each."""

    def __init__(self) -> None:
        # Sorted, each longer than the next: a number is moved log(numbers) times, and looked up in as many.
        self._runs: list[Prints] = []

    def again(self, prints: Prints) -> NDArray[np.bool_]:
        """(lines,), true where the same number stood before, in this part or an earlier one; it is kept in mind."""
        found = repeated(prints)
        for run in self._runs:
            places = np.minimum(np.searchsorted(run, prints), len(run) - 1)
            found |= run[places] == prints
        new = np.sort(prints[~found])
        while self._runs and len(self._runs[-1]) <= 2 * len(new):
            new = np.sort(np.concatenate([self._runs.pop(), new]), kind="stable")
        if len(new):
            self._runs.append(new)
        return found
