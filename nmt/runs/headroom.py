"""How much memory a process may still take, and how much it has taken."""

import resource
from contextlib import suppress
from pathlib import Path

import torch

_ROOT = Path("/")


def free_memory(device: torch.device, root: Path = _ROOT) -> int:
    """Bytes that can still be had: of a GPU, what nobody has and what torch has in store; else what the kernel would
    give, or the least that a control group of this process (a container, a job of a cluster) or a limit of its address
    space (ulimit -v) still allows.

    Args:
        device: whose.
        root: where /proc and /sys are.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    found = [*_of_groups(root), *_of_process(root)]
    with suppress(OSError, ValueError, IndexError):
        lines = (root / "proc/meminfo").read_text().splitlines()
        found.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]))
    # A system that tells nothing: as much as most have.
    return min(found, default=2**32)


def _of_process(root: Path) -> list[int]:
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return []
    try:
        lines = (root / "proc/self/status").read_text().splitlines()
        taken = 1024 * int(next(line for line in lines if line.startswith("VmSize")).split()[1])
    except (OSError, StopIteration):
        taken = 0
    return [max(0, limit - taken)]


def _of_groups(root: Path) -> list[int]:
    """What the limits of the control groups leave, of this process's and of those above it, versions 2 and 1."""
    left: list[int] = []
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return left
    for line in lines:
        _, kinds, path = line.split(":", 2)
        if kinds and "memory" not in kinds.split(","):
            continue
        base = root / ("sys/fs/cgroup/memory" if kinds else "sys/fs/cgroup")
        most, used, cached = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            if kinds
            else ("memory.max", "memory.current", "inactive_file")
        )
        group = base / path.lstrip("/")
        for folder in (group, *group.parents):
            # Of a limit that is "max" or not there nothing follows.
            with suppress(OSError, ValueError):
                limit = int((folder / most).read_text())
                taken = int((folder / used).read_text())
                with suppress(OSError, ValueError, StopIteration):
                    rows = (folder / "memory.stat").read_text().splitlines()
                    # The kernel gives up copies of files before anything else.
                    taken -= int(next(row for row in rows if row.startswith(f"{cached} ")).split()[1])
                left.append(max(0, limit - taken))
            if folder == base:
                break
    return left


def reset_peak(device: torch.device) -> int:
    """Forgets the peak so far and returns the memory that this process has now, in bytes."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    else:
        # ru_maxrss would hold the parent's peak; the kernel's own mark can be reset. Where it cannot, what stays below
        # the peak so far goes unseen.
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
    return peak_memory(device)


def peak_memory(device: torch.device) -> int:
    """Peak memory of this process since its mark was reset, in bytes; of a CPU's, what is resident."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    except (OSError, StopIteration):
        # Bytes on macOS, the one other system with torch and this module.
        return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
