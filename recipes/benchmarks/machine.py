"""What every benchmark prints first: machine, versions, command."""

import sys

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
