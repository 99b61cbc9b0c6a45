"""Neural machine translation in which beam search is trained."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nmt.translator import Translator, load

__version__ = "0.1.0"
__all__ = ["Translator", "__version__", "load"]


def __getattr__(name: str) -> Any:
    # torch takes seconds to import; `nmt --help` and `nmt evaluate` must not wait for it.
    if name in ("Translator", "load"):
        return getattr(import_module("nmt.translator"), name)
    raise AttributeError(f"module 'nmt' has no attribute '{name}'")
