"""What a new run takes over of the model that it begins with, and what it tells of that: weights of the same name and
shape, and of a renewed vocabulary the rows of the pieces that the model knows."""

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nmt.checkpoint import Checkpoint
from nmt.errors import UserError
from nmt.freezing import group_of
from nmt.models import REGULARISATION, Recurrent, RNNsearchConfig
from nmt.text.vocabulary import Vocabulary


@dataclass
class Transfer:
    """What was taken over; numbers are those of tensors' entries, and what several names share counts once.

    Attributes:
        source: the model file.
        told: what the file tells of its model: objective, text, dev BLEU.
        loaded: tensors that are the model's, by their name.
        rows: tensors with a row a piece, of a renewed vocabulary: rows that are the model's, and all.
        fresh_rows: how the other rows begin, for those tensors that have any.
        reset: tensors that begin anew, and why.
        reset_sizes: their sizes.
        ignored: tensors of the model that have no place, and why.
        settings: keys of section model that differ: the model's value and the run's.
        kept: the sides whose vocabulary is the model's.
        ignored_keys: of the run's configuration, what the model decides.
    """

    source: str
    told: dict[str, Any] = field(default_factory=dict)
    loaded: dict[str, int] = field(default_factory=dict)
    rows: dict[str, tuple[int, int]] = field(default_factory=dict)
    fresh_rows: dict[str, str] = field(default_factory=dict)
    reset: dict[str, str] = field(default_factory=dict)
    reset_sizes: dict[str, int] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)
    settings: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)
    ignored_keys: list[str] = field(default_factory=list)

    def as_row(self) -> dict[str, Any]:
        """All of it, with every name, as what JSON can hold."""
        return dataclasses.asdict(self)

    def warnings(self) -> Iterator[str]:
        """What begins anew though the model was trained."""
        if self.reset:
            count = sum(self.reset_sizes.values())
            yield f"begin anew ({_count(self.reset)}, {count:,} parameters): {_grouped(self.reset)}"

    def lines(self) -> Iterator[str]:
        """The report, short: names by module."""
        known = f"{_count(self.loaded)}, {sum(self.loaded.values()):,} parameters"
        sides = {2: "vocabularies", 1: f"{self.kept[0]} vocabulary" if self.kept else ""}.get(len(self.kept))
        with_vocabularies = f" and {sides}" if sides else ""
        whole = not (self.reset or self.rows or self.ignored)
        what = "all weights" if whole else f"{known} (of {', '.join(_groups(self.loaded)) or 'no module'})"
        dev = self.told.get("dev", {})
        score = f" (dev BLEU {dev['bleu']:.2f})" if "bleu" in dev else ""
        yield f"loaded {what}{with_vocabularies} of {self.source}{score}" + (f": {known}" if whole else "")
        alike: dict[tuple[int, int, str], list[str]] = {}
        for name, counts in self.rows.items():
            alike.setdefault((*counts, self.fresh_rows.get(name, "")), []).append(name)
        for (copied, count, how), names in alike.items():
            others = f"; the others begin as {how}" if how else ""
            yield f"loaded {copied:,} of {count:,} rows of {', '.join(names)}: the pieces that the model has{others}"
        for name, (theirs, ours) in self.settings.items():
            yield f"model.{name} is {ours}; the loaded model has {theirs}"
        keys = f"; ignored: {' and '.join(self.ignored_keys)}" if self.ignored_keys else ""
        yield f"reset: optimiser, schedule, count of updates, best dev BLEU{keys}"
        if self.ignored:
            yield f"ignored of the loaded model ({_count(self.ignored)}): {_grouped(self.ignored)}"


def transfer(found: Checkpoint, new: Checkpoint, source: str = "") -> Transfer:
    """Copies the weights of a model into a fresh one.

    A tensor of the same name and shape is the model's. Of a vocabulary that is another than the model's, rows of the
    embeddings and of the output layer are copied where both have a piece of that spelling, and where an id has the same
    meaning (padding, unknown, BOS, EOS). The other rows begin as the mean of the copied ones (Hewitt, "Initializing new
    word embeddings for pretrained language models", 2021): a new piece is then no likelier than the known ones are on
    average, and no row that was drawn outweighs those that were trained. Where there is none, they are as drawn.

    Args:
        found: the model.
        new: with weights as they were drawn, which stay where nothing is copied; changed in place.
        source: the model's file, for messages.

    Raises:
        UserError: nothing of the model fits.
    """
    theirs, ours = found.model.state_dict(), new.model.state_dict()
    told = {key: value for key, value in found.info.items() if key in ("objective", "train", "dev", "imported")}
    done = Transfer(source, told, settings=_changed(found, new))
    places = _shared_places(found, new)
    done.kept = [side for side in ("source", "target") if side not in places]
    if not places:
        done.ignored_keys.append("data.vocabulary but for sampling and sampled")
    if not isinstance(new.model, Recurrent):
        done.ignored_keys.append("section model")
    row_sides = new.model.row_sides if isinstance(new.model, Recurrent) else {}
    first_names: dict[int, str] = {}
    for name, tensor in ours.items():
        # Tied weights are one tensor under several names.
        first = first_names.setdefault(tensor.data_ptr(), name) if tensor.numel() else name
        other = theirs.get(name)
        if first != name:
            if other is not None and other.data_ptr() != theirs[first].data_ptr():
                done.ignored[name] = f"tied to {first}"
            continue
        side = row_sides.get(name)
        if other is not None and side in places and other.shape[1:] == tensor.shape[1:]:
            special = getattr(new, f"{side}_vocabulary").special
            done.rows[name] = int((places[side] >= 0).sum()), len(tensor)
            if how := _copy_rows(tensor, other, places[side], special):
                done.fresh_rows[name] = how
        elif other is not None and other.shape == tensor.shape:
            tensor.copy_(other)
            done.loaded[name] = tensor.numel()
        else:
            why = "new" if other is None else f"{_shape(tensor)}, was {_shape(other)}"
            done.reset[name], done.reset_sizes[name] = why, tensor.numel()
    done.ignored |= {name: "not here" for name in theirs if name not in ours}
    if not done.loaded and not any(copied for copied, _ in done.rows.values()):
        raise UserError(
            f"nothing of {source} fits the model that is asked for; leave the keys of section model out, they come "
            "with it, or begin without --from"
        )
    return done


def shape_of(found: Checkpoint, asked: RNNsearchConfig, given: Collection[str] | None = None) -> RNNsearchConfig:
    """The shape of a loaded model, with what is asked for explicitly, and with the dropout of the configuration.

    Args:
        found: the model.
        asked: section model of the configuration.
        given: its keys that were given; None: those that are not as by default.

    Raises:
        UserError: the model has settings of its own, or what is asked for makes no model.
    """
    default = RNNsearchConfig()
    other = {name for name, value in dataclasses.asdict(asked).items() if value != getattr(default, name)}
    if not isinstance(found.model, Recurrent):
        for name in sorted(other):
            raise UserError(
                f"model.{name} is {getattr(asked, name)}, but the loaded model is of transformers and has its own "
                "settings; leave it out"
            )
        return asked
    names = {*(other if given is None else given), *REGULARISATION}
    have: RNNsearchConfig = found.model.config
    try:
        return dataclasses.replace(have, **{name: getattr(asked, name) for name in names})
    except UserError as error:
        raise UserError(f"{error}; the other settings are those of the loaded model") from None


def _changed(found: Checkpoint, new: Checkpoint) -> dict[str, tuple[Any, Any]]:
    theirs, ours = (dataclasses.asdict(each.model.config) for each in (found, new))  # type: ignore[call-overload]
    return {
        name: (theirs[name], value)
        for name, value in ours.items()
        if name not in REGULARISATION and name in theirs and theirs[name] != value
    }


def _shared_places(found: Checkpoint, new: Checkpoint) -> dict[str, Tensor]:
    """For each side whose vocabulary is another: of each piece its id in the model's vocabulary, -1 where it has
    none."""
    places = {}
    for side in ("source", "target"):
        old, renewed = (getattr(each, f"{side}_vocabulary") for each in (found, new))
        if old.checksum() != renewed.checksum():
            places[side] = shared_ids(old, renewed)
    return places


def shared_ids(old: Vocabulary, new: Vocabulary) -> Tensor:
    """(new pieces,): of each piece the id of the same in the old vocabulary, or -1."""
    known = {piece: number for number, piece in enumerate(old.pieces(range(len(old))))}
    ids = [known.get(piece, -1) for piece in new.pieces(range(len(new)))]
    # By their meaning: other toolkits spell them otherwise.
    for here, there in zip(new.special, old.special, strict=True):
        ids[here] = there
    return torch.tensor(ids)


def _copy_rows(tensor: Tensor, other: Tensor, places: Tensor, special: Collection[int]) -> str:
    """Fills a tensor of one vocabulary with rows of another; tells how what is new begins, "" where nothing is."""
    known = places >= 0
    tensor[known] = other.index_select(0, places[known])
    if known.all():
        return ""
    words = known.clone()
    words[list(special)] = False
    if not words.any():
        return "they are drawn, for no piece is shared"
    tensor[~known] = tensor[words].double().mean(dim=0).to(tensor.dtype)
    return "the mean of these"


def _shape(tensor: Tensor) -> str:
    return " by ".join(map(str, tensor.shape)) or "a number"


def _count(names: Collection[str]) -> str:
    return f"{len(names)} tensor" + ("s" if len(names) != 1 else "")


def _groups(names: Collection[str]) -> list[str]:
    return list(dict.fromkeys(map(group_of, names)))


def _grouped(names: Mapping[str, str], shown: int = 2) -> str:
    """Names by module, and why of the first ones."""
    told = []
    for group in _groups(names):
        why = {name.removeprefix(f"{group}."): names[name] for name in names if group_of(name) == group}
        if len(set(why.values())) == 1:
            parts, what = list(why)[:shown], f"{next(iter(why.values()))}: "
        else:
            parts, what = [f"{name} {reason}" for name, reason in why.items()][:shown], ""
        more = [f"{len(why) - shown} more"] if len(why) > shown else []
        told.append(f"{group} ({what}{'; '.join(parts + more)})")
    return ", ".join(told)
