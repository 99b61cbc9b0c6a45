"""Signs that hypotheses and references were not treated alike: tokenised, or lower-cased, on one side only."""

import re
from collections.abc import Sequence

# What a tokeniser or a segmenter leaves and no writer types: Moses's hyphens and escapes, subword-nmt's "@@",
# SentencePiece's "▁", and the "</w>" of others.
_TRACE = re.compile(r"(?:^|\s)@-@(?:\s|$)|&(?:apos|quot|amp|#91|#93|#124);|@@(?:\s|$)|▁|</w>")
# A full stop or comma that stands alone. No language of ours writes that, while French puts a space before ! ? : ; and
# around quotation marks. Dots in a row (" ...") and numbers (" .5") do not count.
_ALONE = re.compile(r"(?<=\w)\s[.,。，、](?=\s|$)")


def suspicions(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> list[str]:
    """One sentence for each thing that looks wrong; scores are right for the lines as they are in any case.

    Hypotheses look tokenised when a tenth of their lines, and three times the share of any reference, bear the marks of
    a tokeniser. They look lower-cased when hardly a line has a capital and in every reference a third have.

    Args:
        hypotheses: lines of a system.
        references: one or more sets of lines.
    """
    found = []
    share, usual = tokenised_share(hypotheses), max(map(tokenised_share, references), default=0.0)
    if share >= 0.1 and share > 3 * usual:
        found.append(
            f"they look tokenised ({share:.0%} of the lines, {usual:.0%} of the references'); scores compare "
            "detokenised text, so detokenise them (sacremoses, or join the pieces)"
        )
    share, usual = capital_share(hypotheses), min(map(capital_share, references), default=0.0)
    if usual >= 1 / 3 and share < usual / 20 and _cased_share(hypotheses) >= 0.5:
        found.append(
            f"they look lower-cased (a capital in {share:.0%} of the lines, in {usual:.0%} of the references'); "
            "restore the case, or score with --lowercase and say so"
        )
    return found


def tokenised_share(lines: Sequence[str]) -> float:
    """Share, 0 to 1, of the lines that bear marks of a tokeniser."""
    return sum(1 for line in lines if _TRACE.search(line) or _ALONE.search(line)) / max(1, len(lines))


def capital_share(lines: Sequence[str]) -> float:
    """Share, 0 to 1, of the lines that hold a capital letter."""
    return sum(1 for line in lines if any(map(str.isupper, line))) / max(1, len(lines))


def _cased_share(lines: Sequence[str]) -> float:
    return sum(1 for line in lines if any(map(str.islower, line))) / max(1, len(lines))
