"""Rows of text, csv, json and parquet files, each with its place; errors name file and line.

Text, csv and json are read by the standard library, strictly: `datasets` reads a csv field `NA` as
missing and fills up short rows without a word. It reads parquet, arrow and the hub. One row is held
at a time, but for a .json file that is one value over several lines.
"""

from __future__ import annotations

import codecs
import csv
import json
import reprlib
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from llm_course.errors import ConfigError, DataError, did_you_mean

TEXT_SUFFIXES = ("", ".txt", ".text", ".md")
CSV_SUFFIXES = (".csv", ".tsv")
ARROW_SUFFIXES = (".parquet", ".arrow")
TABLE_SUFFIXES = (*CSV_SUFFIXES, ".json", ".jsonl", ".ndjson", *ARROW_SUFFIXES)
UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# Python's own limit of 131,072 characters a csv field would refuse a long document.
FIELD_LIMIT = 2**31 - 1

Paths = str | Path | Iterable[str | Path]
Errors = Literal["strict", "skip"]
Row = tuple[str, dict[str, Any]]  # its place ("a.csv: line 3"), and its values by column


class BadRows:
    """What becomes of rows that cannot be used: stands around the reading of each, as `with bad:`.

    "strict": the first one is an error. "skip": all are left out and counted; `warn` says so.
    """

    def __init__(self, errors: Errors = "strict") -> None:
        if errors not in ("strict", "skip"):
            raise ConfigError(f"errors must be strict or skip, got {errors!r}")
        self.skip, self.count, self.first = errors == "skip", 0, ""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        left_out = self.skip and isinstance(error, DataError)
        if left_out:
            self.count, self.first = self.count + 1, self.first or str(error)
        return left_out

    def warn(self) -> None:
        if self.count:
            text = f"left out {self.count} broken rows, the first: {self.first}"
            warnings.warn(text, stacklevel=3)


def existing(paths: Paths, suffixes: Sequence[str]) -> list[Path]:
    """The files that are named; `DataError` for one that is not there, or of another kind."""
    files = [Path(paths)] if isinstance(paths, (str, Path)) else [Path(path) for path in paths]
    if not files:
        raise DataError("paths must name at least one file, got none")
    for path in files:
        if path.is_dir():
            raise DataError(f"{path}: a folder; name the files in it")
        if not path.is_file():
            near = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
            raise DataError(f"{path}: no such file{did_you_mean(path.name, near)}")
        if path.suffix.lower() not in suffixes:
            known = ", ".join(filter(None, suffixes))
            raise DataError(f"{path}: the name must end in one of {known}")
    return files


class Lines:
    """The decoded lines of a file, each with "\\n" at its end; `number` is that of the last one."""

    def __init__(self, path: Path, encoding: str, bad: BadRows) -> None:
        self.path, self.encoding, self.bad, self.number = path, encoding, bad, 0

    def __iter__(self) -> Iterator[str]:
        with self.path.open("rb") as file:
            for self.number, raw in enumerate(file, 1):
                with self.bad:
                    yield self._decoded(raw)

    def _decoded(self, raw: bytes) -> str:
        place = f"{self.path}: line {self.number}, byte"
        if self.number == 1:
            raw = raw.removeprefix(codecs.BOM_UTF8)
            if raw.startswith(UTF16_MARKS):
                raise DataError(f"{place} 1: UTF-16; convert the file to utf-8")
        if (nul := raw.find(b"\0")) >= 0:
            raise DataError(f"{place} {nul + 1}: NUL, so this is not a text file")
        try:
            text = raw.decode(self.encoding)
        except UnicodeDecodeError as error:
            wrong = f"0x{raw[error.start]:02x} is not {self.encoding}"
            raise DataError(f"{place} {error.start + 1}: {wrong}") from None
        except (LookupError, UnicodeError):
            known = "encoding must be one that Python knows"
            raise ConfigError(f"{known}, got {self.encoding!r}") from None
        return text[:-2] + "\n" if text.endswith("\r\n") else text


def read_rows(path: Path, encoding: str, bad: BadRows) -> Iterator[Row]:
    """The rows of a table by the ending of its name; csv values are text, others as they are."""
    suffix = path.suffix.lower()
    if suffix in ARROW_SUFFIXES:
        return dataset_rows(suffix[1:], "train", str(path))
    return (_csv_rows if suffix in CSV_SUFFIXES else _json_rows)(path, encoding, bad)


def _csv_rows(path: Path, encoding: str, bad: BadRows) -> Iterator[Row]:
    """Rows by the names in the first one. Quotes are strict, every row has as many fields.

    In .tsv a quote is a character like others: text/tab-separated-values knows no quotes.
    """
    csv.field_size_limit(FIELD_LIMIT)
    tabs: Any = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    lines, earlier = Lines(path, encoding, bad), bad.count
    reader = csv.reader(lines, strict=True, **(tabs if path.suffix.lower() == ".tsv" else {}))
    header: list[str] = []
    cells: list[str] | None = []
    while cells is not None:
        before, wrong = reader.line_num, ""
        try:
            cells = next(reader, None)
        except csv.Error as error:  # the next row begins on the next line
            cells, wrong = [], str(error)
        place = f"{path}: line {lines.number - (reader.line_num - before) + 1}"
        if header and cells and len(cells) != len(header):
            wrong = f"{len(cells)} fields, the header has {len(header)}"
        elif not header and bad.count > earlier:
            wrong = "the line before it cannot be read, so no column has a name"
        elif not header and cells and len(set(cells)) < len(cells):
            wrong = f"column {Counter(cells).most_common(1)[0][0]!r} is there twice"
        with bad if header else BadRows():  # without a header no row can be read
            if wrong:
                raise DataError(f"{place}: {wrong}")
            if header and cells:
                yield place, dict(zip(header, cells))
        header = header or cells or []


def _json_rows(path: Path, encoding: str, bad: BadRows) -> Iterator[Row]:
    """Objects, one a line; a .json file may also be one list of objects, or a single object."""
    lines = Lines(path, encoding, bad)
    whole = path.suffix.lower() == ".json" and not _has_an_object_a_line(path, encoding)
    for text in ["".join(lines)] if whole else lines:
        line = 1 if whole else lines.number
        if not text.strip():
            continue
        with bad:
            value = _parsed(text.rstrip(), path, line)
            for number, item in enumerate(value if whole and type(value) is list else [value], 1):
                with bad:
                    place = f"{path}: item {number}" if whole else f"{path}: line {line}"
                    if not isinstance(item, dict):
                        raise DataError(f"{place}: expected an object, got {shown(item)}")
                    yield place, item


def _has_an_object_a_line(path: Path, encoding: str) -> bool:
    """Whether the first line with text in it is an object."""
    first = next((line for line in Lines(path, encoding, BadRows("skip")) if line.strip()), "")
    try:
        return isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def _parsed(text: str, path: Path, line: int) -> Any:
    """The value of a JSON text that begins at this line."""
    try:
        value = json.loads(text)
        if "\\ud" in text or "\\uD" in text:  # may be half of a surrogate pair, no character
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        place = f"line {line + error.lineno - 1}, column {error.colno}"
        raise DataError(f"{path}: {place}: {error.msg}") from None
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits
        raise DataError(f"{path}: line {line}: {error}") from None
    return value


def dataset_rows(source: str, split: str, file: str | None = None) -> Iterator[Row]:
    """The rows of a hub data set, of a folder in its layout, or of a file in a format of its own.

    `DataError`: the data set or the split is not there, the hub is out of reach, no `datasets`.
    """
    name = file or source
    try:
        import datasets

        rows = datasets.load_dataset(source, data_files=file, split=split, streaming=bool(file))
        for number, row in enumerate(rows, 1):
            yield f"{name}: row {number}", row
    except ImportError:
        raise DataError(f"{name}: needs the datasets library (pip install datasets)") from None
    except Exception as error:  # the libraries behind it raise what they like
        raise DataError(f"{name}: cannot read split {split!r}: {error}") from error


def value_in(row: dict[str, Any], column: str, place: str, kinds: Any, wanted: str) -> Any:
    """The value in a column, of one of these types; `DataError` lists the columns there are."""
    if column not in row:
        raise DataError(f"{place}: no column {column!r}; there are {columns_of(row)}")
    if not isinstance(row[column], kinds):
        held = shown(row[column])
        raise DataError(f"{place}: column {column!r} holds {held}, expected {wanted}")
    return row[column]


def text_in(row: dict[str, Any], column: str, place: str) -> str:
    """The text in a column; a blank one is none."""
    text = str(value_in(row, column, place, str, "text"))
    if not text.strip():
        raise DataError(f"{place}: column {column!r} holds {shown(text)}, expected text")
    return text


def columns_of(row: dict[str, Any]) -> str:
    """The first columns, for messages."""
    some = ", ".join(map(reprlib.repr, list(row)[:20])) or "none"
    return some + (", ..." if len(row) > 20 else "")


def shown(value: Any) -> str:
    """A value and its type for messages, cut short however long or deep it is."""
    return "nothing" if value is None else f"{reprlib.repr(value)} ({type(value).__name__})"
