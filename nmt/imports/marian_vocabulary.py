"""Marian's vocabularies: YAML or JSON from tokens to numbers, one token a line, or SentencePiece models."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from nmt.errors import UserError
from nmt.imports.recurrent import cut_of, read_bytes
from nmt.text.tokens import Cut

logger = logging.getLogger(__name__)

Side = tuple[list[str], list[int], Cut]
"""Tokens, their order (see `nmt.imports.recurrent.sort_tokens`) and how lines are cut."""

# Names of the end and of unknown tokens, Marian's and Nematus', and what the latter's numbers are.
_NAMES = (("</s>", "eos", 0), ("<unk>", "UNK", 1))
# Scalars as they stand: a token "1.0" or "no" is no number and no truth value.
_Loader: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)


def find_vocabularies(path: Path, settings: dict[str, Any], given: Sequence[str]) -> list[Path]:
    """The files of source and target.

    Args:
        path: of the model.
        settings: of the model; Nematus has them there.
        given: files that the flags name, or nothing.

    Raises:
        UserError: a file is not there, or nothing names it.
    """
    named = settings.get("vocabs")
    for beside in (f"{path.name}.decoder.yml", f"{path.name}.yml"):
        if named is None and (file := path.with_name(beside)).exists():
            found = _parse(read_bytes(file, "The configuration").decode(errors="replace"), file)
            named = found.get("vocabs") if isinstance(found, dict) else None
    files = []
    for number, side in enumerate(("source", "target")):
        flag = f"--{side}_vocabulary"
        if given[number]:
            files.append(Path(given[number]))
            continue
        if not isinstance(named, list) or len(named) != 2:
            raise UserError(f"{path} does not say where its vocabularies are; give {flag} FILE.")
        places = Path(str(named[number])), path.parent / str(named[number]), path.parent / Path(str(named[number])).name
        files.append(next((place for place in places if place.exists()), places[0]))
        if not files[-1].exists():
            raise UserError(f"{path} names the vocabulary {files[-1]}, which is not there; give {flag} FILE.")
    return files


def read_side(file: Path, subwords: str, rows: int, flag: str) -> Side:
    """A vocabulary for an embedding of so many rows, with padding and BOS, which Marian has not, behind them.

    Args:
        file: of the vocabulary.
        subwords: file of BPE codes or a SentencePiece model by which text is cut, or nothing.
        rows: of the embedding. Tokens beyond are unknown; rows without a token get a name.
        flag: that names subwords, for messages.

    Raises:
        UserError: the file is damaged, or has no end of the sentence or unknown token.
    """
    content = read_bytes(file, "The vocabulary")
    if file.suffix == ".fsv":
        raise UserError(f"{file} is a factored vocabulary, which has no counterpart here.")
    cut = Cut("words")
    if file.suffix == ".spm":
        cut = cut_of(content, str(file))
        tokens, special = _pieces(content, file)
    else:
        tokens, special = _tokens(content, file, rows)
    if subwords:
        cut = cut_of(read_bytes(Path(subwords), f"The subword model ({flag})"), subwords)
    elif cut.kind == "words" and any(token.endswith("@@") or token.startswith("▁") for token in tokens):
        remedy = f"give {flag} FILE, or text in pieces"
        logger.warning("%s holds pieces of words, but lines are cut at spaces; %s", file, remedy)
    if max(special) >= rows:
        raise UserError(f"{file} does not fit: the model has {rows} embeddings, and a special token is beyond them.")
    tokens = _named([*tokens[:rows], *[""] * (rows - len(tokens))], special)
    known = set(tokens)
    order = [rows, special[1], rows + 1, special[0]]
    order += [number for number in range(rows) if number not in special]
    return [*tokens, _unused("<pad>", known), _unused("<s>", known)], order, cut


def _named(tokens: list[str], special: Sequence[int]) -> list[str]:
    """Tokens of which none is empty, the special ones by Marian's names."""
    known = set(tokens)
    for number, (name, _, _) in zip(special, _NAMES, strict=True):
        tokens[number] = tokens[number] if name in known else name
    return [token or _unused(f"<unused{number}>", known) for number, token in enumerate(tokens)]


def _pieces(content: bytes, file: Path) -> tuple[list[str], list[int]]:
    """The pieces of a SentencePiece model, and the numbers of the end and of what is unknown."""
    import sentencepiece

    try:
        processor: Any = sentencepiece.SentencePieceProcessor(model_proto=content)
    except RuntimeError:
        raise UserError(f"{file} is no whole SentencePiece model; copy it again.") from None
    special = [processor.eos_id(), processor.unk_id()]
    if min(special) < 0:
        raise UserError(f"{file} has no end of the sentence; give the vocabulary that Marian was trained with.")
    return [processor.id_to_piece(number) for number in range(len(processor))], special


def _tokens(content: bytes, file: Path, rows: int) -> tuple[list[str], list[int]]:
    """The tokens of a file by their numbers below `rows`, and the numbers of the end and of what is unknown."""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise UserError(f"{file} is no vocabulary of Marian: it is not in UTF-8.") from None
    mapped = file.suffix in (".yml", ".yaml", ".json")
    lines = text.removesuffix("\n").split("\n")
    found = _parse(text, file) if mapped else {token: number for number, token in enumerate(lines)}
    numbers = {int(number): token for token, number in found.items() if 0 <= int(number) < rows}
    if not numbers:
        raise UserError(f"{file} is no vocabulary of Marian: it holds no token.")
    tokens = [numbers.get(number, "") for number in range(max(numbers) + 1)]
    special = []
    for name, other, number in _NAMES:
        if mapped and number < len(tokens) and tokens[number] in ("", other):
            special.append(number)
        elif name in tokens:
            special.append(tokens.index(name))
        else:
            raise UserError(f"{file} is no vocabulary of Marian: it has no token {name}.")
    return tokens, special


def _parse(text: str, file: Path) -> dict[Any, Any]:
    try:
        found = json.loads(text) if file.suffix == ".json" else yaml.load(text, Loader=_Loader)
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())[:100]
        raise UserError(f"{file} cannot be read as {file.suffix.removeprefix('.').upper()} ({reason}).") from None
    if not isinstance(found, dict):
        raise UserError(f"{file} holds no tokens with their numbers.")
    return found


def _unused(name: str, known: set[str]) -> str:
    while name in known:
        name += "_"
    return name
