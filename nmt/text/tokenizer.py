"""Tokenizers of transformers as vocabularies: their files, kept in one piece."""

import base64
import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nmt.errors import UserError
from nmt.huggingface import cause_of, library
from nmt.text.vocabulary import Special, Vocabulary

_KIND = b"tokenizer\n"
# What the model has embeddings for and the tokenizer no piece: a search may choose it all the same.
_UNUSED = "<unused {}>"
_SPACE, _BYTE_SPACE, _INSIDE = "▁", "Ġ", "##"
# No folder before it, and no code.
_NAME = re.compile(r"(?!.*\.py$)[\w-]+(\.[\w-]+)*")


class TokenizerVocabulary(Vocabulary):
    """A tokenizer, of the source or of the target side.

    Its pieces are told as SentencePiece spells them, "▁" where a word begins: alignments and phrases of a search go by
    that. Byte-level tokenizers (GPT-2, BART) begin a word with "Ġ", word pieces (BERT) go on inside of one with "##".
    """

    def __init__(self, model: bytes) -> None:
        """Opens what `pack` has packed.

        Raises:
            UserError: the bytes are damaged, or transformers is not installed or cannot open them.
        """
        try:
            content = json.loads(model)
            files = {name: base64.b64decode(text) for name, text in content["files"].items()}
            self.special, self._size = Special(*content["special"]), int(content["size"])
            self._side = str(content["side"])
            if odd := [name for name in files if not _NAME.fullmatch(name)]:
                raise ValueError(f"it holds a file {odd[0]!r}")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"The tokenizer ({len(model):,} bytes) is damaged ({error}); import the model again."
            ) from None
        self._bytes, self._files = bytes(model), files
        with tempfile.TemporaryDirectory() as folder:
            self.write_files(Path(folder))
            self.tokenizer = open_tokenizer(folder)
        names = self.tokenizer.get_vocab()
        marks = (_SPACE, _BYTE_SPACE, _INSIDE)
        self._mark = max(marks, key=lambda mark: sum(name.startswith(mark) for name in names))
        self._special_names = frozenset(self.tokenizer.all_special_tokens)

    @property
    def model(self) -> bytes:
        return _KIND + self._bytes

    def write_files(self, folder: Path) -> None:
        """Writes the tokenizer's own files, as its `save_pretrained` wrote them."""
        for name, content in self._files.items():
            (folder / name).write_bytes(content)

    def __len__(self) -> int:
        return self._size

    def encode(self, lines: Sequence[str]) -> list[list[int]]:
        if not lines:
            return []
        name = "text_target" if self._side == "target" else "text"
        # A line of any length is no cause for a warning: LengthLimit tells what happens to it.
        found = self.tokenizer(**{name: list(lines)}, add_special_tokens=False, verbose=False)["input_ids"]
        kept, unknown = {self.special.padding, self.special.bos, self.special.eos}, self.special.unknown
        # "</s>" in a text is a word, not an end, and an unknown one; without a piece for that it is left out.
        instead = [unknown] if unknown < self._size and unknown not in kept else []
        return [[j for i in ids for j in ([i] if i not in kept else instead)] for ids in found]

    def sample(self, lines: Sequence[str], seed: int, strength: float = 0.1) -> list[list[int]]:
        if strength == 0:
            return self.encode(lines)
        raise UserError("a tokenizer of transformers has no random pieces; set data.vocabulary.sampling to 0")

    def pieces(self, ids: Sequence[int]) -> list[str]:
        known = len(self.tokenizer)
        return [
            self._spelt(str(self.tokenizer.convert_ids_to_tokens(i))) if i < known else _UNUSED.format(i)
            for i in map(self._checked, ids)
        ]

    def _spelt(self, name: str) -> str:
        if name in self._special_names:
            return name
        if self._mark == _INSIDE:
            return name.removeprefix(_INSIDE) if name.startswith(_INSIDE) else _SPACE + name
        return _SPACE + name[1:] if self._mark == _BYTE_SPACE and name.startswith(_BYTE_SPACE) else name

    def _named(self, piece: str) -> str:
        """The tokenizer's name of a piece: the inverse of `_spelt`."""
        if piece in self._special_names:
            return piece
        if self._mark == _INSIDE:
            return piece.removeprefix(_SPACE) if piece.startswith(_SPACE) else _INSIDE + piece
        return _BYTE_SPACE + piece[1:] if self._mark == _BYTE_SPACE and piece.startswith(_SPACE) else piece

    def ids(self, pieces: Sequence[str]) -> list[int]:
        found = self.tokenizer.convert_tokens_to_ids([self._named(piece) for piece in pieces])
        unused = {_UNUSED.format(i): i for i in range(len(self.tokenizer), self._size)}
        for place, piece in enumerate(pieces):
            found[place] = unused.get(piece, found[place])
            if found[place] is None or self.pieces([found[place]]) != [piece]:
                raise ValueError(f"the vocabulary has no piece '{piece}'")
        return found

    def surfaces(self, line: str) -> list[str]:
        names, ids = self.tokenizer.tokenize(line), self.encode([line])[0]
        return [self._spelt(name) for name in names] if len(names) == len(ids) else self.pieces(ids)

    def _text(self, ids: list[int]) -> str:
        known = [i for i in ids if i < len(self.tokenizer)]
        return str(self.tokenizer.decode(known, skip_special_tokens=True)).strip()


def open_tokenizer(name: str, revision: str = "main") -> Any:
    """A tokenizer of transformers; no code that comes with it is run.

    Raises:
        UserError: transformers is not installed or cannot open it.
    """
    with library("a tokenizer of transformers") as transformers:
        try:
            return transformers.AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
        except Exception as error:  # what it raises for a damaged file depends on the file
            raise UserError(f"the tokenizer of {name} cannot be opened: {cause_of(error)}") from None


def pack(tokenizer: Any, side: str, size: int, special: Special) -> bytes:
    """What `TokenizerVocabulary` opens: the tokenizer's own files, in one text.

    Args:
        tokenizer: of transformers.
        side: "source" or "target".
        size: how many ids the model knows, which may be more than the tokenizer has.
        special: the ids with a meaning.
    """
    # Where it was opened from is none of its own settings; without, equal tokenizers have equal bytes.
    for name in ("is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(name, None)
    with tempfile.TemporaryDirectory() as folder, library("a tokenizer of transformers"):
        tokenizer.save_pretrained(folder)
        files = {path.name: base64.b64encode(path.read_bytes()).decode() for path in sorted(Path(folder).iterdir())}
    content = {"files": files, "side": side, "size": size, "special": list(special)}
    return json.dumps(content, sort_keys=True).encode()
