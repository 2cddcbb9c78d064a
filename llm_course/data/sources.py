"""Documents from files and from the Hugging Face hub.

Text, csv and json files are read by the standard library, strictly: every error names the file and
the line. `datasets` is imported only where it is needed, for the hub and for parquet and arrow
files, because it reads a csv field `NA` as missing, fills up short rows without a word, and is not
on every GPU machine. With `streaming=True` nothing is kept in memory beyond one document (text by
lines or paragraphs, csv, JSON lines), so a text may be larger than the memory.
"""

from __future__ import annotations

import csv
import difflib
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, overload

from llm_course.data.records import (
    BadRecord,
    Record,
    csv_records,
    json_records,
    text_records,
)
from llm_course.data.splits import Documents, in_validation, split_documents, split_text
from llm_course.errors import ConfigError, DataError

__all__ = [
    "Documents",
    "hub_records",
    "in_validation",
    "load_hub",
    "read_documents",
    "read_records",
    "read_rows",
    "split_documents",
    "split_text",
]

TEXT_SUFFIXES = ("", ".txt", ".text", ".md")
CSV_SUFFIXES = (".csv", ".tsv")
JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
ARROW_SUFFIXES = (".parquet", ".arrow")  # read by `datasets`
UNITS = ("line", "paragraph", "file")

Paths = str | Path | Iterable[str | Path]
Unit = Literal["line", "paragraph", "file"]
Errors = Literal["strict", "skip"]


@overload
def read_documents(
    paths: Paths,
    *,
    column: str | None = ...,
    streaming: Literal[False] = ...,
    encoding: str = ...,
    document: Unit = ...,
    errors: Errors = ...,
) -> list[str]: ...


@overload
def read_documents(
    paths: Paths,
    *,
    column: str | None = ...,
    streaming: bool,
    encoding: str = ...,
    document: Unit = ...,
    errors: Errors = ...,
) -> list[str] | Documents: ...


def read_documents(
    paths: Paths,
    *,
    column: str | None = None,
    streaming: bool = False,
    encoding: str = "utf-8",
    document: Unit = "line",
    errors: Errors = "strict",
) -> list[str] | Documents:
    """The documents of text, csv, json, parquet and arrow files, in their order.

    `document` says what a document is in a text file: a line, a paragraph (paragraphs are parted by
    blank lines) or the whole file, whose text is then kept exactly, except that Windows line ends
    become "\\n". In the other formats a document is the text in `column`; it may be left out when
    there is one column, or one called "text". Blank documents are left out, a byte order mark too.

    `errors="skip"` leaves out broken lines and rows, and warns how many. `DataError` names the
    file, the line and the byte or column: missing or empty or blank file, bytes that are not
    `encoding`, NUL, ragged csv rows, bad JSON, a column that does not exist (lists those that do).
    A missing file is an error at once, the rest (with `streaming`) when it is read.
    """
    files = _existing(paths)
    _check_reading(files, column, encoding, document, errors)

    def read() -> Iterator[str]:
        for path in files:
            yield from _documents_of(path, column, encoding, document, errors == "skip")

    return Documents(read) if streaming else list(read())


def read_rows(
    paths: Paths,
    *,
    columns: Iterable[str] = (),
    encoding: str = "utf-8",
    errors: Errors = "strict",
) -> Iterator[dict[str, Any]]:
    """The rows of csv, json, parquet and arrow files: csv values are text, others as they are.

    `columns` must exist in every row. Errors as in `read_documents`.
    """
    files, wanted = _existing(paths), tuple(columns)
    _check_reading(files, None, encoding, "line", errors)
    for path in files:
        if path.suffix.lower() in TEXT_SUFFIXES:
            raise DataError(f"{path}: a text file has no columns; expected csv or json")
    return _rows_of(files, wanted, encoding, errors == "skip")


def read_records(
    paths: Paths, *, encoding: str = "utf-8", errors: Errors = "strict"
) -> Iterator[tuple[Path, Record]]:
    """The rows of `read_rows` with their file and line, for errors that say where."""
    files = _existing(paths)
    _check_reading(files, None, encoding, "line", errors)
    for path in files:
        if path.suffix.lower() in TEXT_SUFFIXES:
            raise DataError(f"{path}: a text file has no columns; expected csv or json")
    records = (_good(path, _records_of(path, encoding), errors == "skip") for path in files)
    return ((path, record) for path, found in zip(files, records) for record in found)


def hub_records(
    dataset_id: str,
    *,
    name: str | None = None,
    split: str = "train",
    cache_dir: str | Path | None = None,
) -> Iterator[Record]:
    """The rows of a data set on the Hugging Face hub with their numbers; errors as `load_hub`."""
    rows = _load_dataset(dataset_id, name=name, split=split, streaming=False, cache=cache_dir)
    return _numbered(dataset_id, rows)


@overload
def load_hub(
    dataset_id: str,
    *,
    name: str | None = ...,
    split: str = ...,
    column: str | None = ...,
    streaming: Literal[False] = ...,
    cache_dir: str | Path | None = ...,
) -> list[str]: ...


@overload
def load_hub(
    dataset_id: str,
    *,
    name: str | None = ...,
    split: str = ...,
    column: str | None = ...,
    streaming: bool,
    cache_dir: str | Path | None = ...,
) -> list[str] | Documents: ...


def load_hub(
    dataset_id: str,
    *,
    name: str | None = None,
    split: str = "train",
    column: str | None = None,
    streaming: bool = False,
    cache_dir: str | Path | None = None,
) -> list[str] | Documents:
    """The documents of a data set on the Hugging Face hub, or of a local folder in its layout.

    `name` is the configuration (subset) and `column` the one with the text, chosen as in
    `read_documents`. With `streaming` nothing is downloaded beyond what is read. `DataError` gives
    the reason when the data set, the split or the column is not there, or the hub is out of reach.
    """
    rows = _load_dataset(dataset_id, name=name, split=split, streaming=streaming, cache=cache_dir)

    def read() -> Iterator[str]:
        yield from _texts(Path(dataset_id), _numbered(dataset_id, rows), column)

    return Documents(read) if streaming else list(read())


def _existing(paths: Paths) -> list[Path]:
    files = [Path(paths)] if isinstance(paths, (str, Path)) else [Path(path) for path in paths]
    if not files:
        raise DataError("paths must name at least one file, got none")
    known = TEXT_SUFFIXES + CSV_SUFFIXES + JSON_SUFFIXES + ARROW_SUFFIXES
    for path in files:
        if path.is_dir():
            raise DataError(f"{path}: a folder; name the files in it")
        if not path.is_file():
            raise DataError(f"{path}: no such file{nearest(path)}")
        if path.suffix.lower() not in known:
            raise DataError(f"{path}: the name must end in one of {', '.join(known[1:])}")
    return files


def nearest(path: Path) -> str:
    """For an error: the file of the folder that is called nearly so."""
    try:
        siblings = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return f"; the folder {path.parent} is not there either"
    near = difflib.get_close_matches(path.name, siblings, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _check_reading(
    files: list[Path], column: str | None, encoding: str, document: str, errors: str
) -> None:
    if document not in UNITS:
        raise ConfigError(f"document must be one of {', '.join(UNITS)}, got {document!r}")
    if errors not in ("strict", "skip"):
        raise ConfigError(f"errors must be strict or skip, got {errors!r}")
    try:
        one_byte_lines = "\n".encode(encoding) == b"\n"
    except LookupError:
        raise ConfigError(f"encoding must be one that Python knows, got {encoding!r}") from None
    if not one_byte_lines:
        raise ConfigError(
            f"encoding must keep a line end as one byte, as utf-8, latin-1 and gb18030 do, "
            f"got {encoding!r}: convert the file to utf-8"
        )
    if column is not None and all(path.suffix.lower() in TEXT_SUFFIXES for path in files):
        raise DataError(f"{files[0]}: column={column!r} is for csv and json; a text file has none")


def _documents_of(
    path: Path, column: str | None, encoding: str, document: str, skip: bool
) -> Iterator[str]:
    if path.suffix.lower() in TEXT_SUFFIXES:
        records = text_records(path, encoding, document)
        texts: Iterator[str] = (record.value for record in _good(path, records, skip))
    else:
        texts = _texts(path, _good(path, _records_of(path, encoding), skip), column, skip)
    found = False
    for text in texts:
        if text and not text.isspace():
            found = True
            yield text
    if not found:
        kind = "is empty" if path.stat().st_size == 0 else "has no document with text in it"
        raise DataError(f"{path}: {kind}")


def _rows_of(
    files: list[Path], columns: tuple[str, ...], encoding: str, skip: bool
) -> Iterator[dict[str, Any]]:
    for path in files:
        found = False
        for record in _good(path, _records_of(path, encoding), skip):
            for column in columns:
                if column not in record.value:
                    place = f"record at {record.unit} {record.line}"
                    raise _no_column(path, place, column, record.value)
            found = True
            yield record.value
        if not found:
            raise DataError(f"{path}: has no rows")


def _records_of(path: Path, encoding: str) -> Iterator[Record | BadRecord]:
    suffix = path.suffix.lower()
    if suffix in CSV_SUFFIXES:
        # text/tab-separated-values knows no quotes: a " is a character like others
        return csv_records(path, encoding, csv.excel if suffix == ".csv" else None)
    if suffix in JSON_SUFFIXES:
        return json_records(path, encoding)
    rows = _load_dataset(suffix[1:], files=[str(path)], split="train", streaming=True)
    return _numbered(str(path), rows)


def _good(path: Path, records: Iterator[Record | BadRecord], skip: bool) -> Iterator[Record]:
    """The readable records; the first bad one is an error, or all are counted and left out."""
    bad, first = 0, ""
    for record in records:
        if isinstance(record, Record):
            yield record
        elif skip:
            bad, first = bad + 1, first or record.reason
        else:
            raise DataError(f"{path}: {record.reason}")
    if bad:
        warnings.warn(f"{path}: left out {bad} broken records, first: {first}", stacklevel=2)


def _texts(
    path: Path, records: Iterable[Record], column: str | None, skip: bool = False
) -> Iterator[str]:
    missing = 0
    for record in records:
        if column is None:
            column = _only_column(path, record.value)
        if column not in record.value:
            raise _no_column(path, f"{record.unit} {record.line}", column, record.value)
        text = record.value[column]
        if isinstance(text, str):
            yield text
        elif skip:
            missing += 1
        else:
            what = "nothing" if text is None else f"{text!r:.40} ({type(text).__name__})"
            place = f"{record.unit} {record.line}"
            raise DataError(f"{path}: {place}: column {column!r} holds {what}, expected text")
    if missing:
        warnings.warn(f"{path}: left out {missing} rows without text in {column!r}", stacklevel=2)


def _only_column(path: Path, row: dict[str, Any]) -> str:
    if "text" in row:
        return "text"
    if len(row) == 1:
        return next(iter(row))
    raise DataError(f"{path}: name the column with the text: one of {', '.join(map(repr, row))}")


def _no_column(path: Path, place: str, column: str, row: dict[str, Any]) -> DataError:
    there = ", ".join(map(repr, row)) or "none"
    return DataError(f"{path}: {place}: no column {column!r}; there are {there}")


def _load_dataset(
    source: str,
    *,
    split: str,
    streaming: bool,
    name: str | None = None,
    files: list[str] | None = None,
    cache: str | Path | None = None,
) -> Iterable[dict[str, Any]]:
    """One split of a hub data set, or of files in a format that only `datasets` reads."""
    try:
        import datasets
    except ImportError:
        raise DataError(
            f"{source}: needs the datasets library (pip install datasets); "
            "text, csv and json files are read without it"
        ) from None
    try:
        loaded: Iterable[dict[str, Any]] = datasets.load_dataset(
            source,
            name,
            data_files=files,
            split=split,
            streaming=streaming,
            cache_dir=None if cache is None else str(cache),
        )
    except (ValueError, OSError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        where = ", ".join(files) if files else source
        raise DataError(f"{where}: cannot load split {split!r}: {error}") from error
    return loaded


def _numbered(source: str, rows: Iterable[dict[str, Any]]) -> Iterator[Record]:
    """Rows as records; a stream can fail at any of them."""
    number = 0
    try:
        for number, row in enumerate(rows, 1):
            yield Record(number, row, "row")
    except (ValueError, OSError, RuntimeError) as error:
        raise DataError(f"{source}: cannot read row {number + 1}: {error}") from error
