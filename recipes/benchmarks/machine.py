"""What the benchmarks share: machine, versions and command, which each prints first, and peak memory."""

import sys

import torch

from nmt.manifest import describe_software
from nmt.runs.headroom import peak_memory, reset_peak


def describe() -> str:
    """A few lines to stand above a table."""
    found = describe_software()
    packages = ", ".join(f"{name} {found['packages'][name]}" for name in ("nmt", "torch", "numpy"))
    machine = found["machine"]
    return "\n".join(
        [
            f"command   python {' '.join(sys.argv)}",
            f"machine   {machine['processor']}, {machine['threads']} thread(s), GPU: {machine['gpu'] or 'none'}",
            f"versions  python {found['python']}, {packages}, source {found['git'] or 'unknown'}",
        ]
    )


def reset_peak_resident() -> float:
    """Forgets the peak so far and returns the resident memory of this process, in bytes."""
    return reset_peak(torch.device("cpu"))


def peak_resident() -> float:
    """Peak resident memory of this process since its mark was reset, in bytes."""
    return peak_memory(torch.device("cpu"))
