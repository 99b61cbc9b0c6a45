"""What the importers of recurrent models share: safe reading, weights by name, and a model of these."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nmt.checkpoint import Checkpoint
from nmt.errors import UserError
from nmt.models import RNNsearchConfig, make_recurrent
from nmt.text.tokens import Cut, TokenList


def read_checkpoint(path: Path, classes: Sequence[Any] = ()) -> dict[str, Any]:
    """A file of torch.save that holds tensors, plain Python values and the `classes`, and nothing else. A pair of a
    class and a name is the class that is taken where the file asks for the name.

    Raises:
        UserError: there is no such file, it is damaged, or it holds what could run code.
    """
    import pickle

    try:
        with torch.serialization.safe_globals(list(classes)):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        what = f"it holds {named[1]}" if named else "it is no file of torch.save"
        raise UserError(f"{path} is refused: {what}, and only tensors and plain values are read.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from None
    except (RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({' '.join(str(error).split())[:100]}); copy it again.") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} is no checkpoint: it holds a {type(found).__name__}.")
    return found


def read_bytes(path: Path, what: str) -> bytes:
    """The content of a file that belongs to a model."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{what} {path} cannot be read: {error.strerror or error}.") from None


@contextmanager
def making_sense(path: Path) -> Iterator[None]:
    """Where settings and weights are read that others wrote: some that make no sense are a UserError."""
    try:
        yield
    except UserError:
        raise
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(f"{path} has settings or weights that make no sense ({reason}).") from None


class Weights:
    """The weights of a peer's model, each of which is taken once.

    Args:
        found: by their names there.
        path: of the file, for messages.
    """

    def __init__(self, found: Mapping[str, Any], path: Path) -> None:
        self._found = {name: value.float() for name, value in found.items() if isinstance(value, Tensor)}
        self.path = path

    def __contains__(self, name: str) -> bool:
        return name in self._found

    def __getitem__(self, name: str) -> Tensor:
        """Without taking it."""
        if name not in self._found:
            raise UserError(f"{self.path} has no weight {name}; is it a recurrent model?")
        return self._found[name]

    def take(self, name: str) -> Tensor:
        """A weight.

        Raises:
            UserError: there is none of the name.
        """
        value = self[name]
        del self._found[name]
        return value

    def check_taken(self) -> None:
        """UserError if something is left that the import does not know."""
        if self._found:
            names = ", ".join(sorted(self._found)[:5])
            raise UserError(
                f"{self.path} holds {len(self._found)} weights that no recurrent model of ours has: {names}."
            )

    def layers(self, prefix: str) -> int:
        """How many layers a recurrent part of torch has."""
        count = 0
        while f"{prefix}.weight_hh_l{count}" in self:
            count += 1
        return count

    def take_recurrent(self, prefix: str, ours: str) -> dict[str, Tensor]:
        """A recurrent part of torch, by the names of ours."""
        names = [name for name in self._found if name.startswith(f"{prefix}.")]
        return {f"{ours}.{name.removeprefix(f'{prefix}.')}": self.take(name) for name in names}


def cell_of(weight_hh: Tensor, path: Path) -> str:
    """The kind of a cell, of its weights (gates * hidden, hidden)."""
    gates = len(weight_hh) / weight_hh.shape[1]
    if gates not in (3, 4):
        raise UserError(f"{path} has recurrent cells of {gates:g} gates; only GRU and LSTM can be imported.")
    return "gru" if gates == 3 else "lstm"


def stack_of(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Layers of one direction, cells.weight_ih_l0, as cells, cells.0.weight_ih."""
    return {re.sub(r"^cells\.(\w+)_l(\d+)$", r"cells.\2.\1", name): value for name, value in found.items()}


def sort_tokens(tokens: Sequence[str], special: Sequence[str], path: Path) -> list[int]:
    """The order in which tokens have padding, unknown, BOS and EOS in front: where each of ours is there."""
    numbers = {token: number for number, token in enumerate(tokens)}
    if len(numbers) < len(tokens):
        raise UserError(f"{path} has a vocabulary in which a token stands twice.")
    if missing := [name for name in special if name not in numbers]:
        raise UserError(f"{path} has a vocabulary without {', '.join(missing)}.")
    first = [numbers[name] for name in special]
    return first + [number for number in range(len(tokens)) if number not in first]


def cut_of(content: bytes, name: str) -> Cut:
    """How lines are cut by the content of a file, which is a SentencePiece model or BPE codes.

    Raises:
        UserError: it is neither; `name` names it.
    """
    # A SentencePiece model begins with its first piece, the field 1.
    if content.startswith(b"\n"):
        return Cut("sentencepiece", model=content)
    try:
        return Cut("bpe", codes=content.decode())
    except UnicodeDecodeError:
        raise UserError(f"{name} holds neither a SentencePiece model nor BPE codes.") from None


def restrict(model: bytes, tokens: Sequence[str]) -> bytes:
    """A SentencePiece model that makes those of its pieces alone that are tokens or single characters."""
    from sentencepiece import sentencepiece_model_pb2

    proto: Any = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    proto.ParseFromString(model)
    known = set(tokens)
    for piece in proto.pieces:
        if piece.type == piece.NORMAL and len(piece.piece) > 1 and piece.piece not in known:
            piece.type = piece.UNUSED
    return proto.SerializeToString()


def assemble(
    config: RNNsearchConfig,
    state: dict[str, Tensor],
    sides: Sequence[tuple[Sequence[str], Sequence[int], Cut]],
    info: dict[str, Any],
    path: Path,
) -> Checkpoint:
    """The checkpoint.

    Args:
        config: of the model.
        state: its weights, rows of vocabularies as they are there.
        sides: tokens, their order (see `sort_tokens`) and how lines are cut, of source and target.
        info: of the checkpoint.
        path: of what is imported, for messages.
    """
    orders = [torch.tensor(order) for _, order, _ in sides]
    rows = {"source_embedding.weight": 0, "target_embedding.weight": 1, "output.weight": 1, "output.bias": 1}
    for name, side in rows.items():
        if len(state[name]) != len(orders[side]):
            raise UserError(f"{path} has {len(state[name])} rows in {name}, but {len(orders[side])} tokens.")
        state[name] = state[name].index_select(0, orders[side])
    source, target = (TokenList.build([tokens[number] for number in order], cut) for tokens, order, cut in sides)
    if source.model == target.model:
        source = target
    model = make_recurrent(config, len(source), len(target))
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"{path} does not fit ({' '.join(str(error).split())[:200]}).") from None
    return Checkpoint(model.eval(), source, target, info)


def refuse_unless(fits: bool, path: Path, reason: Callable[[], str] | str) -> None:
    """UserError with the reason, unless it fits."""
    if not fits:
        raise UserError(f"{path} cannot be imported: {reason() if callable(reason) else reason}.")
