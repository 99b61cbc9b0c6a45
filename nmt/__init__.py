"""Neural machine translation in which beam search is trained."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nmt.loading import load
    from nmt.translator import Translator

__version__ = "0.1.0"
__all__ = ["Translator", "__version__", "load"]


def __getattr__(name: str) -> Any:
    # torch takes seconds to import; `nmt --help` and `nmt evaluate` must not wait for it.
    homes = {"Translator": "nmt.translator", "load": "nmt.loading"}
    if name in homes:
        return getattr(import_module(homes[name]), name)
    raise AttributeError(f"module 'nmt' has no attribute '{name}'")
