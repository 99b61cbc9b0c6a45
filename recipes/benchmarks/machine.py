"""What the benchmarks share: machine, versions and command, which each prints first, and peak memory."""

import resource
import sys
from contextlib import suppress
from pathlib import Path

from nmt.manifest import describe_software


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
    # ru_maxrss would hold the parent's peak; the kernel's own mark can be reset. Where it cannot, what stays below
    # the peak so far goes unseen.
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak_resident()


def peak_resident() -> float:
    """Peak resident memory of this process since its mark was reset, in bytes."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024.0 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    except (OSError, StopIteration):
        # Bytes on macOS, the one other system with torch and this module.
        return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
