"""What comes out for a line: text, scores, pieces, and where the decoder looked."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

_SPACE = "▁"
_END = "</s>"


@dataclass(frozen=True)
class Translation:
    """One hypothesis for one line.

    Attributes:
        text: detokenised.
        score: the log-probability after length normalisation and coverage.
        log_probability: in nats, the end of the sentence counted.
        source_pieces, pieces: what the model read and wrote, each with "</s>" at its end.
        token_scores: log-probability of each piece, in nats.
        attention: (pieces, source pieces), when asked for.
    """

    text: str
    score: float
    log_probability: float
    source_pieces: list[str]
    pieces: list[str]
    token_scores: list[float] = field(default_factory=list)
    attention: Tensor | None = None

    @property
    def alignment(self) -> list[tuple[int, int]]:
        """Hard alignment of words, counted from 0: (source word, target word), one for each target word.

        A target word belongs to the source word that had most of the attention of its pieces. Words are what stands
        between spaces.

        Raises:
            ValueError: the search was not asked for attention.
        """
        if self.attention is None:
            raise ValueError("alignment needs attention; search with attention=True")
        source, target = words_of(self.source_pieces), words_of(self.pieces)
        if not source or not target:
            return []
        pairs = []
        for number, pieces in enumerate(target):
            looked = self.attention[pieces].sum(dim=0)
            mass = [float(looked[others].sum()) for others in source]
            pairs.append((max(range(len(mass)), key=mass.__getitem__), number))
        return pairs


NOTHING = Translation("", 0.0, 0.0, [], [])


def words_of(pieces: Sequence[str]) -> list[list[int]]:
    """The places of the pieces of each word; the end of the sentence belongs to none."""
    words: list[list[int]] = []
    for place, piece in enumerate(pieces):
        if piece == _END:
            break
        if not words or piece.startswith(_SPACE):
            words.append([])
        words[-1].append(place)
    return words


def replace_unknown(
    pieces: Sequence[str], unknown: Sequence[bool], source_pieces: Sequence[str], attention: Tensor
) -> str:
    """The text in which each word with an unknown piece is the source word that this piece looked at most
    (Luong et al., ACL 2015; Jean et al., ACL 2015, section 4.1).

    Args:
        pieces: of the hypothesis, "</s>" at its end.
        unknown: which of them are unknown.
        source_pieces: as they are spelt in the source, unknown ones too, "</s>" at the end.
        attention: (pieces, source pieces).
    """
    source = words_of(source_pieces)
    result = []
    for places in words_of(pieces):
        asking = [place for place in places if unknown[place]]
        if asking and source:
            looked = attention[asking].sum(dim=0)
            best = max(source, key=lambda others: float(looked[others].sum()))
            result.append("".join(source_pieces[other] for other in best))
        else:
            result.append("".join(pieces[place] for place in places))
    return " ".join("".join(_SPACE + word.lstrip(_SPACE) for word in result).replace(_SPACE, " ").split())
