"""Vocabularies of other toolkits: a list of tokens, and how a line is cut into them: at spaces, by BPE codes (Sennrich,
Haddow, Birch, ACL 2016) or by a SentencePiece model, whose pieces need not be those of the list."""

import base64
import dataclasses
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from nmt.errors import UserError
from nmt.text.vocabulary import UNK, Spelling, Vocabulary

KIND = b"tokens"


@dataclass(frozen=True)
class Cut:
    """How a line is cut.

    Attributes:
        kind: "words": at spaces; "bpe": by codes of subword-nmt; "sentencepiece".
        codes: the codes.
        separator: what stands behind a piece of BPE that goes on.
        restricted: whether BPE undoes the merges whose result is no token.
        model: the SentencePiece model.
        lowercase: whether lines are lower-cased first.
    """

    kind: Literal["words", "bpe", "sentencepiece"]
    codes: str = ""
    separator: str = "@@"
    restricted: bool = False
    model: bytes = b""
    lowercase: bool = False


class TokenList(Vocabulary):
    """Tokens, the first four of them padding, unknown, BOS and EOS, and how a line is cut into them."""

    def __init__(self, content: bytes) -> None:
        """Reads what `model` gave, without its kind.

        Raises:
            UserError: it is damaged, or the package for its BPE is missing.
        """
        try:
            told = json.loads(content)
            self._tokens: list[str] = list(told.pop("tokens"))
            told["model"] = base64.b64decode(told["model"])
            self._cut = Cut(**told)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"The list of tokens is damaged ({error}); copy it again.") from None
        self._content_bytes = content
        self._numbers = {token: number for number, token in enumerate(self._tokens)}
        self._bpe: Any = _bpe(self._cut, self._tokens) if self._cut.kind == "bpe" else None
        self._processor: Any = _processor(self._cut.model) if self._cut.kind == "sentencepiece" else None

    @classmethod
    def build(cls, tokens: Sequence[str], cut: Cut) -> "TokenList":
        """A vocabulary of tokens that are cut so."""
        told = {"tokens": list(tokens), **dataclasses.asdict(cut), "model": base64.b64encode(cut.model).decode()}
        return cls(json.dumps(told, ensure_ascii=False, sort_keys=True).encode())

    @property
    def model(self) -> bytes:
        return KIND + b"\n" + self._content_bytes

    def __len__(self) -> int:
        return len(self._tokens)

    def encode(self, lines: Sequence[str]) -> list[list[int]]:
        return [[self._numbers.get(token, UNK) for token in self.surfaces(line)] for line in lines]

    def sample(self, lines: Sequence[str], seed: int, strength: float = 0.1) -> list[list[int]]:
        if strength:
            raise UserError(
                f"data.vocabulary.sampling is {strength}, but an imported vocabulary has no random pieces; leave it out"
            )
        return self.encode(lines)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        return [self._tokens[self._checked(i)] for i in ids]

    def ids(self, pieces: Sequence[str]) -> list[int]:
        for piece in pieces:
            if piece not in self._numbers:
                raise ValueError(f"the vocabulary has no piece '{piece}'")
        return [self._numbers[piece] for piece in pieces]

    def surfaces(self, line: str) -> list[str]:
        if self._cut.lowercase:
            line = line.lower()
        if self._processor is not None:
            return self._processor.encode(line, out_type=str)
        return self._bpe.segment(line).split() if self._bpe is not None else line.split()

    def spellings(self) -> list[Spelling]:
        if self._processor is not None:
            return super().spellings()
        behind = self._cut.separator if self._cut.kind == "bpe" else ""
        return [
            Spelling(token.removesuffix(behind).encode(), True, bool(behind) and token.endswith(behind))
            for token in self._tokens
        ]

    def _text(self, ids: list[int]) -> str:
        pieces = self.pieces(ids)
        if self._processor is not None:
            return self._processor.decode(pieces)
        text = " ".join(pieces)
        if self._cut.kind == "bpe":
            text = text.replace(f"{self._cut.separator} ", "").removesuffix(self._cut.separator)
        return text


def _bpe(cut: Cut, tokens: list[str]) -> Any:
    try:
        from subword_nmt.apply_bpe import BPE
    except ImportError as error:
        raise UserError(f"BPE codes need subword-nmt ({error}); install the extra (pip install -e .[bpe]).") from None
    try:
        return BPE(io.StringIO(cut.codes), separator=cut.separator, vocab=set(tokens[4:]) if cut.restricted else None)
    except (SystemExit, ValueError, IndexError):
        raise UserError("The BPE codes cannot be read; give those that the model was trained with.") from None


def _processor(model: bytes) -> Any:
    import sentencepiece

    try:
        if not model:
            raise RuntimeError
        return sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError:
        raise UserError(f"The SentencePiece model ({len(model):,} bytes) cannot be read; copy it again.") from None
