"""Which language a line is in, by py3langid (Lui and Baldwin 2012)."""

import functools
from typing import Any

from nmt.errors import UserError

# A short line says too little, and a language that the identifier is not sure of is no finding.
_LETTERS, _SURE = 20, 0.95


class Expected:
    """Tells lines that are in another language than the one expected."""

    def __init__(self, language: str) -> None:
        """Loads the identifier.

        Args:
            language: the code (two letters; what follows "-" or "_" does not count).

        Raises:
            UserError: py3langid is not installed, or does not know the language.
        """
        self.language = language.replace("_", "-").split("-")[0].lower()
        known = list(_identifier().labels)
        if self.language not in known:
            raise UserError(
                f"py3langid does not know the language '{language}'; write its code of two letters (ISO 639-1), or "
                "leave the language out of the check"
            )

    def is_other(self, line: str) -> bool:
        """Whether the line is long enough to tell, and surely in another language."""
        if sum(map(str.isalpha, line)) < _LETTERS:
            return False
        found, probability = _identifier().classify(line)
        return found != self.language and probability >= _SURE


@functools.cache
def _identifier() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise UserError("languages are told by py3langid, which is not installed; pip install 'nmt[corpus]'") from None
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
