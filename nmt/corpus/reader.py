"""Reads one split of a corpus by its specification: bitext, TSV, JSON lines, Parquet, a translation memory, a hub."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nmt.errors import UserError, did_you_mean
from nmt.lines import iterate_lines, iterate_parallel

Pair = tuple[str, str]

_FORMS: dict[str, tuple[str, ...]] = {
    "source": ("target",),
    "tsv": ("columns",),
    "jsonl": ("columns", "translation"),
    "parquet": ("columns", "translation"),
    "memory": (),
    "sacrebleu": (),
    "hub": ("config", "split", "revision", "columns", "translation"),
}
_HELP = (
    "use {source: FILE, target: FILE}, {tsv: FILE, columns: [0, 1]}, {jsonl: FILE}, {parquet: FILE}, {memory: FILE}, "
    "{sacrebleu: TEST SET} or {hub: NAME, split: NAME}, or a list of these"
)


def check_spec(spec: Any, where: str) -> None:
    """Checks a reader specification, or a list of them, without touching a file.

    Raises:
        UserError: not one of the forms, or an unknown key.
    """
    if spec == []:
        raise UserError(f"{where}: an empty list is not a way to read a split; {_HELP}.")
    for part in _parts(spec):
        _form_of(part, where)


def _parts(spec: Any) -> list[Any]:
    return spec if isinstance(spec, list) else [spec]


def _form_of(spec: Any, where: str) -> str:
    """The form of one specification: the key of `_FORMS` that it has; it is checked without touching a file."""
    forms = [form for form in _FORMS if isinstance(spec, Mapping) and form in spec]
    if len(forms) != 1:
        raise UserError(f"{where}: {spec!r} is not a way to read a split; {_HELP}.")
    form = forms[0]
    for key in spec:
        if key != form and key not in _FORMS[form]:
            raise UserError(f"{where}: unknown key {key!r} beside {form!r}; {_HELP}."
                            + did_you_mean(str(key), _FORMS[form]))  # fmt: skip
    if not isinstance(spec[form], str) or (form == "source" and not isinstance(spec.get("target"), str)):
        raise UserError(f"{where}: {dict(spec)!r} lacks the name of a file; {_HELP}.")
    columns = spec.get("columns")
    if columns is not None and (not isinstance(columns, (list, tuple)) or len(columns) != 2):
        raise UserError(f"{where}: columns is {columns!r}; give two, the source's and the target's.")
    if form == "tsv" and any(type(c) is not int or c < 0 for c in columns or ()):
        raise UserError(f"{where}: columns is {columns!r}; give two numbers, the first column is 0.")
    return form


def files_of(spec: Any) -> list[str]:
    """The files that a specification reads, as written there; none for a data set on the hub."""
    keys = ("source", "target", "tsv", "jsonl", "parquet", "memory")
    return [str(part[key]) for part in _parts(spec) for key in keys if key in part]


def iterate_spec(
    spec: Any, directory: Path, languages: tuple[str, str], name: str, streaming: bool = False
) -> Iterator[Pair]:
    """Reads the pairs of lines of both languages one by one.

    Args:
        spec: a checked specification, or a list of them, one after the other; see data/README.md.
        directory: the folder that relative names start from.
        languages: codes of source and target, the keys of a `translation` field.
        name: what is read, for messages.
        streaming: whether a data set of the hub is read from there, instead of being downloaded first.

    Raises:
        UserError: a file or record cannot be read (with its number).
    """
    for part in _parts(spec):
        yield from _iterate_one(part, directory, languages, name, streaming)


def _iterate_one(
    spec: Mapping[str, Any], directory: Path, languages: tuple[str, str], name: str, streaming: bool
) -> Iterator[Pair]:
    form = _form_of(spec, name)
    if form == "source":
        return iterate_parallel(directory / spec["source"], directory / spec["target"])
    if form == "tsv":
        return _iterate_tsv(directory / spec["tsv"], spec.get("columns", [0, 1]))
    if form == "jsonl":
        path = directory / spec["jsonl"]
        return pick_columns(_iterate_jsonl(path), spec, languages, str(path))
    if form == "parquet":
        return pick_columns(_iterate_parquet(directory / spec["parquet"]), spec, languages, name)
    if form == "memory":
        from nmt.corpus.memory import read_memory

        return zip(*read_memory(directory / spec["memory"], languages), strict=True)
    if form == "sacrebleu":
        from nmt.corpus.testset import published_test_set

        found = published_test_set(spec["sacrebleu"], "-".join(languages))
        return zip(found.source, found.references[0], strict=True)
    from nmt.corpus.hub import read_hub

    # A copy in the corpus folder comes before the hub.
    local = directory / spec["hub"]
    rows = read_hub(
        str(local) if local.is_dir() else spec["hub"], spec.get("split", name.rpartition("/")[2]),
        config=spec.get("config"), revision=spec.get("revision"), place=local, streaming=streaming,
    )  # fmt: skip
    return pick_columns(rows, spec, languages, name)


def pick_columns(rows: Any, spec: Mapping[str, Any], languages: tuple[str, str], name: str) -> Iterator[Pair]:
    """Takes source and target out of records (an iterable of mappings).

    Columns come from `columns`, or from the field `translation` (another name: `translation: FIELD`) keyed by
    language, or, without both, are named like the languages. Line ends inside a text become spaces.

    Raises:
        UserError: a record lacks a column or holds no text there.
    """
    source, target = spec.get("columns") or languages
    nested = spec.get("translation", None if "columns" in spec else "translation")
    for number, row in enumerate(rows, start=1):
        record = row
        if nested is not None and isinstance(row, Mapping) and ("translation" in spec or nested in row):
            record = row.get(nested)
        try:
            yield _line_of(record, source), _line_of(record, target)
        except _NoTextError as error:
            fields = ", ".join(map(str, row)) if isinstance(row, Mapping) else repr(row)[:60]
            raise UserError(
                f"{name}, record {number:,}: {error}; the record has {fields}. Set `columns` or `translation`."
            ) from None


class _NoTextError(Exception):
    """A record holds none in a column."""


def _line_of(record: Any, column: Any) -> str:
    text = record.get(column) if isinstance(record, Mapping) else None
    if not isinstance(text, str):
        raise _NoTextError(f"no text in {column!r}")
    try:
        # JSON can spell halves of characters.
        text.encode()
    except UnicodeEncodeError:
        raise _NoTextError(f"half a character (a lone surrogate) in {column!r}") from None
    return text if "\n" not in text else " ".join(text.split("\n"))


def _iterate_tsv(path: Path, columns: list[int]) -> Iterator[Pair]:
    source, target = columns
    for number, line in enumerate(iterate_lines(path), start=1):
        cells = line.split("\t")
        if len(cells) <= max(columns):
            raise UserError(
                f"{path}, line {number:,}: {len(cells)} column(s), but column {max(columns)} is wanted "
                "(the first is 0); check `columns` and the tabs."
            )
        yield cells[source], cells[target]


def _iterate_jsonl(path: Path) -> Iterator[Any]:
    for number, line in enumerate(iterate_lines(path), start=1):
        try:
            yield json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {number:,}: not JSON ({error.msg}); one record a line.") from None


def _iterate_parquet(path: Path) -> Iterator[Mapping[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read as Parquet: {' '.join(str(error).split())[:200]}") from None
