"""What made a run: enough to tell two runs apart and to make one again."""

import json
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from nmt.errors import UserError
from nmt.lines import atomic_path

PACKAGES = ("nmt", "torch", "pytorch-lightning", "sentencepiece", "sacrebleu", "numpy", "pyarrow")


def describe_software() -> dict[str, Any]:
    """Versions, source revision and machine."""
    import torch

    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed as a package"
    return {
        "python": platform.python_version(),
        "packages": found,
        "git": git_revision(),
        "machine": {
            "system": platform.platform(),
            "processor": processor_name(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        },
    }


def processor_name() -> str:
    """Model name of the processor, as far as the system tells."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def git_revision() -> str | None:
    """Commit of the source checkout, "+changes" behind it when files differ; None outside a checkout."""
    folder = Path(__file__).resolve().parent.parent

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, check=True, timeout=10
        )
        return done.stdout.strip()

    try:
        changes = git("status", "--porcelain", "--untracked-files=no", "--", "nmt")
        return git("rev-parse", "HEAD") + ("+changes" if changes else "")
    except (OSError, subprocess.SubprocessError):
        return None


def read_manifest(path: Path) -> dict[str, Any]:
    """The entries of a manifest.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(manifest, dict):
            raise ValueError("not a mapping")
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); restore it, or begin a new run with --from"
        ) from None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); restore it, or begin a new run with --from") from None
    return manifest


def update_manifest(path: Path, **entries: Any) -> None:
    """Adds entries to a manifest, which is made when there is none, and writes it whole."""
    manifest = read_manifest(path) if path.exists() else {"command": sys.argv, "began": now()}
    manifest.update(entries)
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
