"""Encoded corpora: ids and lines of all pairs in one memory-mapped Arrow file, cached by what made it."""

import contextlib
import hashlib
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nmt.errors import UserError
from nmt.lines import atomic_path
from nmt.lock import lock_file
from nmt.pool import Spread, map_in_order
from nmt.text.vocabulary import UNK, Vocabulary

if TYPE_CHECKING:
    import pyarrow

    from nmt.text.pairs import Bitext, Pair, Pairs

logger = logging.getLogger(__name__)

_FORMAT = 1
# Rows of a record batch; all but the last are full, so a row's place is a division.
_CHUNK = 8192
# What an Arrow file begins with; a stream of batches follows.
_MAGIC = b"ARROW1\0\0"


class _DamagedError(Exception):
    """The cache file is not what it should be."""


class _Ids(NamedTuple):
    offsets: NDArray[np.int32]
    values: NDArray[np.int32]


class _Texts(NamedTuple):
    offsets: NDArray[np.int32]
    data: memoryview


class Encoded:
    """Ids and lines of pairs, in chunks of `_CHUNK` rows of which all but the last are full.

    Attributes:
        first: number of the first row.
        source_lengths: (rows,) int32, pieces of each source without EOS.
        target_lengths: (rows,) int32, pieces of each target without EOS.
    """

    first = 0

    def _take(
        self, source: list[_Ids], target: list[_Ids], source_lines: list[_Texts], target_lines: list[_Texts]
    ) -> None:
        self._source, self._target = source, target
        self._source_lines, self._target_lines = source_lines, target_lines
        self.source_lengths = _lengths(source)
        self.target_lengths = _lengths(target)

    def __len__(self) -> int:
        return len(self.source_lengths)

    def source(self, i: int) -> NDArray[np.int32]:
        """The ids of source `i`, (pieces,) int32, read-only, without EOS."""
        return _row(self._source, self._place(i))

    def target(self, i: int) -> NDArray[np.int32]:
        """The ids of target `i`, (pieces,) int32, read-only, without EOS."""
        return _row(self._target, self._place(i))

    def source_line(self, i: int) -> str:
        """The text of source `i` as it was read."""
        return _text(self._source_lines, self._place(i))

    def target_line(self, i: int) -> str:
        """The text of target `i` as it was read."""
        return _text(self._target_lines, self._place(i))

    def unknown_shares(self, unknown: tuple[int, int] = (UNK, UNK)) -> tuple[float, float]:
        """The share of unknown pieces, whose ids are given, among the ids of source and target."""
        return _unknown_share(self._source, unknown[0]), _unknown_share(self._target, unknown[1])

    def largest_ids(self) -> tuple[int, int]:
        """The largest id of source and target; -1 when there are only empty lines."""
        sides = (self._source, self._target)
        first, second = (max((int(c.values.max()) for c in side if len(c.values)), default=-1) for side in sides)
        return first, second

    def unknown_counts(self, unknown: tuple[int, int] = (UNK, UNK)) -> tuple[int, int]:
        """How many ids of source and target are unknown pieces."""
        first, second = (sum(int(np.count_nonzero(chunk.values == i)) for chunk in side)
                         for side, i in zip((self._source, self._target), unknown, strict=True))  # fmt: skip
        return first, second

    def first_unknown(self, side: str, unknown: int = UNK) -> int | None:
        """The first row that holds an unknown piece on a side ("source" or "target")."""
        chunks = self._source if side == "source" else self._target
        for number, chunk in enumerate(chunks):
            found = np.flatnonzero(chunk.values == unknown)
            if len(found):
                return self.first + number * _CHUNK + int(np.searchsorted(chunk.offsets, found[0], side="right")) - 1
        return None

    def _place(self, i: int) -> tuple[int, int]:
        row = int(i) - self.first
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        return divmod(row, _CHUNK)


class EncodedCorpus(Encoded):
    """The rows of an Arrow file, read through a memory map: opening costs no memory for the text.

    Attributes:
        path: the file.
        checksum: sha256 of what made it: lines, vocabularies and format.
    """

    def __init__(self, path: str | Path) -> None:
        """Opens a file that `encode_pairs` has written.

        Raises:
            UserError: the file is missing, damaged or of another format version.
        """
        self.path = Path(path)
        try:
            self._open()
        except _DamagedError as error:
            raise UserError(f"{path} is not a whole encoded corpus ({error}); delete it and encode again.") from None

    def _open(self) -> None:
        import pyarrow as pa

        try:
            reader = pa.ipc.open_file(pa.memory_map(str(self.path)))
            batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        except (pa.ArrowException, OSError) as error:
            raise _DamagedError(str(error)) from None
        metadata = reader.schema.metadata or {}
        if metadata.get(b"format") != str(_FORMAT).encode():
            raise _DamagedError(f"format {metadata.get(b'format')!r} instead of {_FORMAT}")
        self.checksum = metadata[b"checksum"].decode()
        sizes = [batch.num_rows for batch in batches]
        if any(size != _CHUNK for size in sizes[:-1]) or sum(sizes) != int(metadata[b"rows"]):
            raise _DamagedError("rows are missing")
        source, target = ([_ids_of(batch.column(side)) for batch in batches] for side in (0, 1))
        source_lines, target_lines = ([_texts_of(batch.column(side)) for batch in batches] for side in (2, 3))
        self._take(source, target, source_lines, target_lines)

    def __reduce__(self) -> tuple[type["EncodedCorpus"], tuple[Path]]:
        return EncodedCorpus, (self.path,)


class HeldCorpus(Encoded):
    """Rows in memory: about as many bytes as their text has, and 4 a piece.

    Args:
        pairs: the lines.
        vocabularies: encode sources and targets.
        first: number of the first row.
    """

    def __init__(self, pairs: "Iterable[Pair]", vocabularies: tuple[Vocabulary, Vocabulary], first: int = 0) -> None:
        self.first = first
        ids: tuple[list[_Ids], list[_Ids]] = ([], [])
        texts: tuple[list[_Texts], list[_Texts]] = ([], [])
        for lines in _chunks(pairs):
            for side, encoded in enumerate(_encode(vocabularies, lines)):
                ids[side].append(encoded)
                texts[side].append(_held(lines[side]))
        self._take(*ids, *texts)


def encode_pairs(
    pairs: "Pairs | Bitext",
    source_vocabulary: Vocabulary,
    target_vocabulary: Vocabulary,
    cache_dir: str | Path,
    max_unknown: float = 0.01,
    processes: int = 1,
    spread: Spread | None = None,
) -> EncodedCorpus:
    """Encodes pairs of lines, or opens what an earlier call with equal lines and vocabularies has left.

    Args:
        pairs: the lines; a `Bitext` is read twice, and a third time for what an earlier call has left.
        source_vocabulary: encodes the sources.
        target_vocabulary: encodes the targets.
        cache_dir: folder of the Arrow files, made when missing. A damaged file in it is made anew; what an
            interruption has left (`.part`) is gone on with.
        max_unknown: largest share of unknown pieces on either side; 1 accepts everything.
        processes: how many share the work; the file has the same bytes with any number.
        spread: computes a function over parts, in order, instead of them: on a cluster, say.

    Raises:
        UserError: no pairs, too many unknown pieces, or the folder cannot be written.
    """
    if not len(pairs):
        raise UserError(f"{pairs.name} holds no pairs of lines; check the files and the card's filter.")
    parts = (
        f"format {_FORMAT}",
        pairs.checksum(),
        source_vocabulary.checksum(),
        target_vocabulary.checksum(),
    )
    checksum = hashlib.sha256(" ".join(parts).encode()).hexdigest()
    path = Path(cache_dir) / f"encoded-{checksum[:20]}.arrow"
    vocabularies = source_vocabulary, target_vocabulary
    corpus = _cached(path, checksum, vocabularies)
    if corpus is None:
        with _place(path) as (place, old):
            _write(place, pairs, vocabularies, checksum, spread or partial(map_in_order, processes=processes), old)
        corpus = EncodedCorpus(path)
    check_unknown(corpus, pairs.name, vocabularies, max_unknown)
    return corpus


def _cached(path: Path, checksum: str, vocabularies: tuple[Vocabulary, Vocabulary]) -> EncodedCorpus | None:
    if not path.exists():
        return None
    corpus = EncodedCorpus.__new__(EncodedCorpus)
    corpus.path = path
    try:
        corpus._open()
        if corpus.checksum != checksum:
            raise _DamagedError("its checksum is another one")
        if any(i >= len(v) for i, v in zip(corpus.largest_ids(), vocabularies, strict=True)):
            raise _DamagedError("it holds ids outside of the vocabulary")
    except _DamagedError as error:
        logger.warning("The cache file %s is damaged (%s); encoding again", path, error)
        return None
    return corpus


@contextlib.contextmanager
def _place(path: Path) -> Iterator[tuple[Path, Path | None]]:
    """Where a file grows, and what is left of an attempt that broke off there; it has its name when it is whole.

    One process at a time goes on with what is left in a folder; another one that encodes there begins anew.
    """
    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            folder = os.open(path.parent, os.O_RDONLY)
            stack.callback(os.close, folder)
            lock_file(folder)
        except OSError:
            yield stack.enter_context(atomic_path(path)), None
            return
        part = path.with_name(f"{path.name}.part")
        try:
            yield part, part
            os.replace(part, path)
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror or error}.") from error


def _write(
    path: Path,
    pairs: "Pairs | Bitext",
    vocabularies: tuple[Vocabulary, Vocabulary],
    checksum: str,
    spread: Spread,
    old: Path | None = None,
) -> None:
    import pyarrow as pa

    metadata = {"format": str(_FORMAT), "checksum": checksum, "rows": str(len(pairs))}
    ids, text = pa.list_(pa.int32()), pa.string()
    schema = pa.schema(
        [("source", ids), ("target", ids), ("source_line", text), ("target_line", text)], metadata=metadata
    )
    done = _salvaged(old, schema, pairs, vocabularies) if old is not None else []
    if done:
        logger.info("%s is gone on with behind %s pairs", old, f"{len(done) * _CHUNK:,}")
    # Beside what is left, which has to last until it is copied.
    growing = path.with_name(f"{path.name}.new") if done else path
    with pa.OSFile(str(growing), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for batch in done:
            writer.write_batch(batch)
        if done:
            os.replace(growing, path)
        encoded = spread(partial(_encode, vocabularies), _chunks(pairs, len(done)))
        for both, lines in zip(encoded, _chunks(pairs, len(done)), strict=True):
            columns = [
                *(pa.ListArray.from_arrays(pa.array(side.offsets), pa.array(side.values)) for side in both),
                *(pa.array(side, text) for side in lines),
            ]
            writer.write_batch(pa.record_batch(columns, schema=schema))


def _salvaged(
    old: Path, schema: "pyarrow.Schema", pairs: "Iterable[Pair]", vocabularies: tuple[Vocabulary, Vocabulary]
) -> "list[pyarrow.RecordBatch]":
    """The whole batches at the beginning of a file that broke off; its table of contents, at the end, is not needed."""
    import pyarrow as pa

    done: list[pyarrow.RecordBatch] = []
    try:
        stream = pa.memory_map(str(old))
        stream.seek(len(_MAGIC))
        reader = pa.ipc.open_stream(stream)
        if not reader.schema.equals(schema, check_metadata=True):
            return done
        for batch, lines in zip(reader, _chunks(pairs), strict=False):
            batch.validate(full=True)
            # A machine that went down may have left zeros, which are valid, too. Where 0 is a piece like others, the
            # rest is encoded anew.
            same = all(batch.column(2 + side).to_pylist() == lines[side] for side in (0, 1))
            ids = [_ids_of(batch.column(side)).values for side in (0, 1)]
            known = all(not len(i) or (i.min() > 0 and i.max() < len(v))
                        for i, v in zip(ids, vocabularies, strict=True))  # fmt: skip
            if batch.num_rows != _CHUNK or not (same and known):
                break
            done.append(batch)
    except (pa.ArrowException, OSError, UnicodeDecodeError, _DamagedError):
        pass
    return done


def _encode(
    vocabularies: tuple[Vocabulary, Vocabulary], lines: tuple[Sequence[str], Sequence[str]]
) -> tuple[_Ids, _Ids]:
    """The ids of source and target lines; arrays cost less than lists on their way between processes."""
    first, second = (_joined(v.encode(side)) for v, side in zip(vocabularies, lines, strict=True))
    return first, second


def _joined(rows: list[list[int]]) -> _Ids:
    offsets = np.zeros(len(rows) + 1, np.int32)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    return _Ids(offsets, np.fromiter(chain.from_iterable(rows), np.int32, int(offsets[-1])))


def _chunks(pairs: "Iterable[Pair]", first: int = 0) -> Iterator[tuple[list[str], list[str]]]:
    """Lines of source and target, `_CHUNK` of each, from the chunk of that number on."""
    rest = islice(pairs, first * _CHUNK, None)
    while chunk := list(islice(rest, _CHUNK)):
        yield [pair[0] for pair in chunk], [pair[1] for pair in chunk]


def check_unknown(corpus: Encoded, name: str, vocabularies: tuple[Vocabulary, Vocabulary], max_unknown: float) -> None:
    """Raises UserError when too many pieces of a side are unknown.

    Args:
        corpus: the ids.
        name: what the message calls it.
        vocabularies: of source and target.
        max_unknown: largest share of unknown pieces on either side.
    """
    unknown = vocabularies[0].special.unknown, vocabularies[1].special.unknown
    for side, share, vocabulary in zip(("source", "target"), corpus.unknown_shares(unknown), vocabularies, strict=True):
        row = corpus.first_unknown(side, vocabulary.special.unknown) if share > max_unknown else None
        if row is not None:
            line = corpus.source_line(row) if side == "source" else corpus.target_line(row)
            example = "".join(vocabulary.unknown_pieces(line))[:1]
            raise UserError(
                f"{name}: {share:.1%} of the pieces of the {side} are unknown to its vocabulary (more "
                f"than {max_unknown:.1%}), for example {example!r} in line {row + 1:,}. Are the languages in "
                "the right order? Otherwise train a new vocabulary on this text, with character_coverage 1.0 or "
                "byte_fallback."
            )


def _ids_of(column: "pyarrow.ListArray") -> _Ids:
    offsets = np.asarray(column.offsets)
    values = np.asarray(column.values)
    if offsets[0] != 0 or offsets[-1] > len(values) or np.any(np.diff(offsets) < 0):
        raise _DamagedError("offsets of ids are out of order")
    if len(values) and values.min() < 0:
        raise _DamagedError("negative ids")
    return _Ids(offsets, values)


def _texts_of(column: "pyarrow.StringArray") -> _Texts:
    _, offset_buffer, data = column.buffers()
    offsets = np.frombuffer(offset_buffer, dtype=np.int32)[column.offset : column.offset + len(column) + 1]
    size = data.size if data is not None else 0
    if offsets[-1] > size or np.any(np.diff(offsets) < 0):
        raise _DamagedError("offsets of lines are out of order")
    return _Texts(offsets, memoryview(data) if data is not None else memoryview(b""))


def _held(lines: list[str]) -> _Texts:
    encoded = [line.encode() for line in lines]
    offsets = np.zeros(len(lines) + 1, np.int32)
    np.cumsum([len(line) for line in encoded], out=offsets[1:])
    return _Texts(offsets, memoryview(b"".join(encoded)))


def _lengths(chunks: list[_Ids]) -> NDArray[np.int32]:
    parts: list[Any] = [np.diff(chunk.offsets) for chunk in chunks]
    return np.concatenate(parts).astype(np.int32) if parts else np.zeros(0, np.int32)


def _row(chunks: list[_Ids], place: tuple[int, int]) -> NDArray[np.int32]:
    chunk, row = chunks[place[0]], place[1]
    return chunk.values[chunk.offsets[row] : chunk.offsets[row + 1]]


def _text(chunks: list[_Texts], place: tuple[int, int]) -> str:
    chunk, row = chunks[place[0]], place[1]
    return bytes(chunk.data[chunk.offsets[row] : chunk.offsets[row + 1]]).decode("utf-8")


def _unknown_share(chunks: list[_Ids], unknown: int) -> float:
    total = sum(len(chunk.values) for chunk in chunks)
    return sum(int(np.count_nonzero(chunk.values == unknown)) for chunk in chunks) / total if total else 0.0
