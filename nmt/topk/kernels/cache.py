"""Compiled code on disk, by what all modules of the kernels say.

Numba compiles a cached function again when its own file has changed. These functions have pieces of other files
inlined, so that a change there would go unnoticed.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba


def folder() -> Path:
    """Where the code of these sources is: below NUMBA_CACHE_DIR, beside the sources, or in the home of the user."""
    here = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(here.glob("*.py")):
        digest.update(path.read_bytes())
    if numba.config.CACHE_DIR:
        base = Path(numba.config.CACHE_DIR)
    else:
        base = here / "__pycache__" if os.access(here, os.W_OK) else Path.home() / ".cache" / "nmt.topk"
    return base / digest.hexdigest()[:16]


def entry(function: Callable[..., Any]) -> Any:
    """Compiles a function at its first call for some dtypes, to run without the interpreter's lock; keeps the code."""
    before, numba.config.CACHE_DIR = numba.config.CACHE_DIR, str(folder())
    try:
        return numba.njit(nogil=True, cache=True, error_model="numpy")(function)
    except RuntimeError:
        # No folder can be written to: the code is for this process alone.
        return numba.njit(nogil=True, error_model="numpy")(function)
    finally:
        numba.config.CACHE_DIR = before
