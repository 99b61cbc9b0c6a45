"""Subword vocabularies, kept as bytes: SentencePiece models, trained from raw text, and those that imports bring."""

import hashlib
import io
import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

from nmt.errors import UserError, did_you_mean
from nmt.text.segmentation import Segmenter

if TYPE_CHECKING:
    from nmt.text.pairs import Pair

PAD, UNK, BOS, EOS = 0, 1, 2, 3

KINDS = {
    b"tokenizer": ("nmt.text.tokenizer", "TokenizerVocabulary"),
    b"tokens": ("nmt.text.tokens", "TokenList"),
}
"""Vocabularies that are no SentencePiece model: their bytes begin with the kind and a line end. Module and class, whose
constructor takes the bytes behind them."""


class Special(NamedTuple):
    """Ids that have a meaning; two may be the same."""

    padding: int = PAD
    unknown: int = UNK
    bos: int = BOS
    eos: int = EOS


class Spelling(NamedTuple):
    """What a piece brings to a text.

    Attributes:
        content: its bytes, without a space.
        left, right: whether it goes on with the word before it, where that lets it, and lets the one after it go on.
    """

    content: bytes
    left: bool
    right: bool


_KINDS = ("bpe", "unigram")
_SAMPLED = ("both", "source")
_RENEWED = ("none", "source", "target", "both")
_NORMALIZATIONS = ("nmt_nfkc", "nmt_nfkc_cf", "nfkc", "nfkc_cf", "identity")
_SPACE = "▁"
_BYTE = re.compile("<0x([0-9A-F]{2})>")
# The library's generator is seeded for the whole process.
_SEEDING = threading.Lock()


@dataclass
class VocabularyConfig:
    """How vocabularies are trained and used.

    Attributes:
        size: pieces of a vocabulary, the four special ones counted.
        kind: "bpe" or "unigram".
        joint: one vocabulary for both languages instead of one each.
        character_coverage: share of the characters of the training text that get a piece, in (0, 1].
        normalization: SentencePiece's rule: nmt_nfkc, nmt_nfkc_cf (lower case), nfkc, nfkc_cf or identity.
        byte_fallback: spell unknown characters as bytes (256 more pieces, within `size`).
        sampling: subword regularisation while training: probability of BPE-dropout, or alpha of unigram
            sampling; 0 is off.
        sampled: which sides sampling is for: both, or source, so that references stay in the pieces that a search
            would find.
        renew: what a run that begins with a model (--from) trains anew instead of keeping the model's: none, source,
            target or both; source or target alone is no joint vocabulary. Pieces that both have keep their weights.
    """

    size: int = 8000
    kind: str = "bpe"
    joint: bool = True
    character_coverage: float = 1.0
    normalization: str = "nmt_nfkc"
    byte_fallback: bool = False
    sampling: float = 0.0
    sampled: str = "both"
    renew: str = "none"

    def __post_init__(self) -> None:
        if self.size < 8:
            raise UserError(f"data.vocabulary.size is {self.size}; at least 8, usually 4000 to 32000.")
        choices = (
            ("kind", _KINDS),
            ("normalization", _NORMALIZATIONS),
            ("sampled", _SAMPLED),
            ("renew", _RENEWED),
        )
        for name, known in choices:
            value = getattr(self, name)
            if value not in known:
                raise UserError(f"data.vocabulary.{name} is {value!r}; known are {', '.join(known)}."
                                + did_you_mean(str(value), known))  # fmt: skip
        if not 0 < self.character_coverage <= 1:
            raise UserError(f"data.vocabulary.character_coverage is {self.character_coverage}; give 0 to 1.")
        if not 0 <= self.sampling < 1:
            raise UserError(f"data.vocabulary.sampling is {self.sampling}; give 0 (off) or a number below 1 (0.1).")


class Vocabulary(ABC):
    """Text to ids and back.

    Attributes:
        special: the ids of padding, unknown pieces, and of the beginning and the end of a sentence.
    """

    special = Special()

    @property
    @abstractmethod
    def model(self) -> bytes:
        """What `open_vocabulary` makes the same vocabulary of."""

    @abstractmethod
    def __len__(self) -> int: ...

    def __reduce__(self) -> tuple[Callable[[bytes], "Vocabulary"], tuple[bytes]]:
        return open_vocabulary, (self.model,)

    @abstractmethod
    def encode(self, lines: Sequence[str]) -> list[list[int]]:
        """The ids of each line, without padding, BOS and EOS."""

    @abstractmethod
    def sample(self, lines: Sequence[str], seed: int, strength: float = 0.1) -> list[list[int]]:
        """Like `encode`, in random pieces that depend on seed and lines only, in any process.

        Args:
            lines: the lines.
            seed: any integer >= 0, taken modulo 2^32.
            strength: probability of BPE-dropout or alpha of unigram sampling; 0 is the same as `encode`.

        Raises:
            UserError: a kind of vocabulary that has no random pieces.
        """

    @abstractmethod
    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The pieces of ids, all of them, the special ones by their names."""

    @abstractmethod
    def ids(self, pieces: Sequence[str]) -> list[int]:
        """The ids of pieces, as `pieces` names them.

        Raises:
            ValueError: a piece that the vocabulary lacks.
        """

    @abstractmethod
    def surfaces(self, line: str) -> list[str]:
        """The pieces of a line as they are spelt in it, those too that the vocabulary lacks."""

    def spellings(self) -> list[Spelling]:
        """How each piece is spelt, the special ones by their names."""
        return [_spell(piece) for piece in self.pieces(range(len(self)))]

    @abstractmethod
    def _text(self, ids: list[int]) -> str:
        """The text of ids, none of them special but unknown ones."""

    @property
    def end(self) -> str:
        """The piece of EOS."""
        return self.pieces([self.special.eos])[0]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids: stops at the first EOS, padding and BOS are left out.

        Raises:
            ValueError: an id outside of the vocabulary.
        """
        return self._text(self._content(ids))

    def unknown_share(self, encoded: Iterable[Sequence[int]]) -> float:
        """The share of unknown pieces among all ids; 0 for no ids."""
        unknown = total = 0
        for ids in encoded:
            unknown += sum(i == self.special.unknown for i in ids)
            total += len(ids)
        return unknown / total if total else 0.0

    def unknown_pieces(self, line: str) -> list[str]:
        """The parts of a line that no piece covers."""
        ids = self.encode([line])[0]
        return [surface for surface, i in zip(self.surfaces(line), ids, strict=True) if i == self.special.unknown]

    def checksum(self) -> str:
        """The sha256 (hexadecimal) of the model."""
        return hashlib.sha256(self.model).hexdigest()

    def _content(self, ids: Sequence[int]) -> list[int]:
        content = []
        for i in ids:
            if i == self.special.eos:
                break
            if i not in (self.special.padding, self.special.bos):
                content.append(self._checked(i))
        return content

    def _checked(self, i: int) -> int:
        if not 0 <= int(i) < len(self):
            raise ValueError(f"id {int(i)} is outside of the vocabulary of {len(self)} pieces")
        return int(i)


def _spell(piece: str) -> Spelling:
    """By the rules of SentencePiece."""
    if byte := _BYTE.fullmatch(piece):
        return Spelling(bytes([int(byte[1], 16)]), True, True)
    return Spelling(piece.replace(_SPACE, "").encode(errors="surrogatepass"), not piece.startswith(_SPACE), True)


def open_vocabulary(model: bytes) -> Vocabulary:
    """The vocabulary of which `Vocabulary.model` gave these bytes.

    Raises:
        UserError: they are damaged, or of no kind that this version knows.
    """
    kind, _, rest = model.partition(b"\n")
    if kind in KINDS:
        module, name = KINDS[kind]
        return getattr(import_module(module), name)(rest)
    return SentencePiece(model)


class SentencePiece(Vocabulary):
    """A SentencePiece model; the ids 0 to 3 are PAD, UNK, BOS, EOS."""

    def __init__(self, model: bytes) -> None:
        """Opens a model.

        Raises:
            UserError: the bytes are no SentencePiece model, or one with other special ids.
        """
        import sentencepiece

        try:
            # An empty model would load, with a message on standard error.
            if not model:
                raise RuntimeError
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError:
            raise UserError(
                f"The vocabulary ({len(model):,} bytes) is no whole SentencePiece model; copy it again or train anew."
            ) from None
        p = self._processor
        found = (p.pad_id(), p.unk_id(), p.bos_id(), p.eos_id())
        if found != (PAD, UNK, BOS, EOS):
            raise UserError(
                f"The SentencePiece model has the ids {found} for pad, unk, bos, eos; needed are "
                f"{(PAD, UNK, BOS, EOS)}. Train it with --pad_id 0 --unk_id 1 --bos_id 2 --eos_id 3."
            )
        self._model = bytes(model)
        self._segmenter: Segmenter | None = None

    @property
    def model(self) -> bytes:
        """The model as SentencePiece writes it to a file."""
        return self._model

    def __len__(self) -> int:
        return int(self._processor.get_piece_size())

    @classmethod
    def train(cls, lines: Iterable[str], config: VocabularyConfig, seed: int = 0) -> "SentencePiece":
        """Trains a vocabulary on raw lines; equal lines, config and seed give equal bytes.

        Args:
            lines: the training text, a few million lines at most (it is held in memory).
            config: size and kind.
            seed: of the generator that picks a sample when the text is larger than that.

        Raises:
            UserError: no text, or a size that the text cannot fill (the message names the largest possible)
                or that cannot hold its characters (names the smallest).
        """
        import sentencepiece

        buffer = io.BytesIO()
        try:
            with _SEEDING:
                sentencepiece.set_random_generator_seed(seed % 2**32)
                sentencepiece.SentencePieceTrainer.train(
                    sentence_iterator=_trainable(lines), model_writer=buffer, vocab_size=config.size,
                    model_type=config.kind, character_coverage=config.character_coverage,
                    normalization_rule_name=config.normalization, byte_fallback=config.byte_fallback,
                    pad_id=PAD, unk_id=UNK, bos_id=BOS, eos_id=EOS, num_threads=1, minloglevel=2,
                    input_sentence_size=5_000_000, shuffle_input_sentence=True, max_sentence_length=16_384,
                )  # fmt: skip
        except (RuntimeError, ValueError) as error:  # the latter of numbers that the library's types cannot hold
            raise UserError(_explained(str(error), config)) from None
        return cls(buffer.getvalue())

    def encode(self, lines: Sequence[str]) -> list[list[int]]:
        """The ids of each line, without BOS and EOS."""
        return self._processor.encode(list(lines), out_type=int, num_threads=1)

    def sample(self, lines: Sequence[str], seed: int, strength: float = 0.1) -> list[list[int]]:
        """Like `encode`, in random pieces (BPE-dropout, unigram sampling) depending on seed and lines only, in any
        process; see `nmt.text.segmentation`.

        Args:
            lines: the lines.
            seed: any integer >= 0, taken modulo 2^32.
            strength: probability of BPE-dropout or alpha of unigram sampling; 0 is the same as `encode`.
        """
        if strength == 0:
            return self.encode(lines)
        if self._segmenter is None:
            self._segmenter = Segmenter(self._processor)
        return self._segmenter.sample(lines, seed % 2**32, strength)

    def _text(self, ids: list[int]) -> str:
        return self._processor.decode(ids)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The pieces of ids, all of them, the special ones by their names (<pad>, <unk>, <s>, </s>)."""
        return [self._processor.id_to_piece(self._checked(i)) for i in ids]

    def ids(self, pieces: Sequence[str]) -> list[int]:
        """The ids of pieces, as `pieces` names them.

        Raises:
            ValueError: a piece that the vocabulary lacks.
        """
        found = [int(self._processor.piece_to_id(piece)) for piece in pieces]
        for piece, i in zip(pieces, found, strict=True):
            if i == UNK and piece != self._processor.id_to_piece(UNK):
                raise ValueError(f"the vocabulary has no piece '{piece}'")
        return found

    def surfaces(self, line: str) -> list[str]:
        """The pieces of a line as they are spelt in it, those too that the vocabulary lacks."""
        return self._processor.encode(line, out_type=str)


def train_vocabularies(
    pairs: "Iterable[Pair]", config: VocabularyConfig, seed: int = 0
) -> tuple[Vocabulary, Vocabulary]:
    """Trains the vocabularies of source and target; the same object twice when `config.joint`.

    Args:
        pairs: the lines; without `config.joint` they are read twice.
        config, seed: see `SentencePiece.train`.

    Raises:
        UserError: see `SentencePiece.train`.
    """
    if config.joint:
        both = SentencePiece.train((line for pair in pairs for line in pair), config, seed)
        return both, both
    source, target = (SentencePiece.train((pair[side] for pair in pairs), config, seed) for side in (0, 1))
    return source, target


def _trainable(lines: Iterable[str]) -> Iterator[str]:
    """Lines that the trainer can take: it stops at a NUL character."""
    return (line.replace("\0", " ") for line in lines if line.strip())


def _explained(message: str, config: VocabularyConfig) -> str:
    if largest := re.search(r"value <= (\d+)", message):
        return (
            f"data.vocabulary.size is {config.size}, but this text allows {largest[1]} pieces at most; "
            f"set data.vocabulary.size to {largest[1]} or less, or use more text."
        )
    if smallest := re.search(r"(\d+) vs (\d+)", message):
        return (
            f"data.vocabulary.size is {config.size}, but the characters of this text alone need {smallest[2]} "
            "pieces; set a larger data.vocabulary.size or a smaller data.vocabulary.character_coverage."
        )
    if "sentences_.empty" in message:
        return "The vocabulary cannot be trained: the text has no line with words."
    return f"SentencePiece cannot train the vocabulary: {' '.join(message.split())}"
