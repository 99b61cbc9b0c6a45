"""Peak memory of one forward and backward of each operator, each in a process of its own.

Run as a script it reads requests from its input, one JSON list, and writes a line for each. It imports everything
once and forks for each request, so that no operator meets memory that another has left behind.
"""

import ctypes
import json
import os
import subprocess
import sys
import traceback
from contextlib import suppress
from typing import Any

import torch
from machine import peak_resident, reset_peak_resident
from topk_rows import Row, make_rows, make_scores


def peaks(requests: list[dict[str, Any]]) -> list[float | None]:
    """Bytes above what stood before the call, one a request; None where the process came to no end.

    A request has `name`, `scores`, `rows`, `n`, `k`, `temperature` and `limit` (of `make_rows`).
    """
    command = [sys.executable, __file__]
    done = subprocess.run(command, input=json.dumps(requests), stdout=subprocess.PIPE, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def step(row: Row, x: torch.Tensor, k: int, temperature: float) -> None:
    """Forward and backward of one operator; the cotangents are ones."""
    assert row.call is not None
    parts = row.call(x, k, temperature)
    torch.autograd.grad(parts, x, [torch.ones_like(part) for part in parts])


def _measure(name: str, scores: str, rows: int, n: int, k: int, temperature: float, limit: float) -> float:
    row = next(row for row in make_rows(limit) if row.name == name)
    # What the first call of an operator loads is not what it needs.
    step(row, make_scores(scores, 1, min(n, 8 * k)).requires_grad_(), k, temperature)
    x = make_scores(scores, rows, n).requires_grad_()
    # What the allocator holds free would be filled unseen.
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = reset_peak_resident()
    step(row, x, k, temperature)
    return max(0.0, peak_resident() - before)


def main() -> None:
    torch.set_num_threads(1)
    # The first gradient imports a second's worth of modules.
    step(make_rows(0)[0], make_scores("normal", 1, 8).requires_grad_(), 1, 1.0)
    for request in json.load(sys.stdin):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.write(write, json.dumps(_measure(**request)).encode())
            except Exception:
                traceback.print_exc()
            finally:
                os._exit(0)
        os.close(write)
        os.waitpid(child, 0)
        with os.fdopen(read) as answer:
            print(answer.read() or "null", flush=True)


if __name__ == "__main__":
    main()
