"""Records of text, csv and json files with their line numbers; a broken one is a value, not an end.

Each reader yields `Record(line, value)` or `BadRecord(reason)`, and reads one record at a time.
"""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Python's own limit of 131,072 characters a csv field would refuse a long document.
FIELD_LIMIT = 2**31 - 1

UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True)
class Record:
    """A value and the line (from 1) where it begins, or its number in a list."""

    line: int
    value: Any
    unit: str = "line"


@dataclass(frozen=True)
class BadRecord:
    """Why a record cannot be read: line, then byte or column, then what is wrong."""

    reason: str


class _Tab(csv.Dialect):
    delimiter = "\t"
    quoting = csv.QUOTE_NONE
    lineterminator = "\n"


def decoded_lines(path: Path, encoding: str) -> Iterator[Record | BadRecord]:
    """The lines of a file with their ends, decoded one by one; a byte order mark is dropped."""
    with path.open("rb") as file:
        for line, raw in enumerate(file, 1):
            if line == 1:
                raw = raw.removeprefix(codecs.BOM_UTF8)
                if raw.startswith(UTF16_MARKS):
                    yield BadRecord("line 1, byte 1: UTF-16; convert the file to utf-8")
                    return
            nul = raw.find(b"\0")
            if nul >= 0:
                yield BadRecord(f"line {line}, byte {nul + 1}: NUL, so this is not a text file")
                continue
            try:
                text = raw.decode(encoding)
            except UnicodeDecodeError as error:
                place = f"line {line}, byte {error.start + 1}"
                yield BadRecord(f"{place}: 0x{raw[error.start]:02x} is not {encoding}")
                continue
            yield Record(line, text[:-2] + "\n" if text.endswith("\r\n") else text)


def text_records(path: Path, encoding: str, unit: str) -> Iterator[Record | BadRecord]:
    """Lines without their ends, paragraphs, or the whole file; blank ones included."""
    parts: list[str] = []
    begin = 1
    for record in decoded_lines(path, encoding):
        if isinstance(record, BadRecord):
            yield record
        elif unit == "line":
            yield Record(record.line, record.value.rstrip("\n"))
        elif unit == "file" or not record.value.isspace():
            begin = begin if parts else record.line
            parts.append(record.value)
        elif parts:
            yield Record(begin, "".join(parts).rstrip("\n"))
            parts = []
    if parts:
        whole = "".join(parts)
        yield Record(begin, whole if unit == "file" else whole.rstrip("\n"))


def csv_records(
    path: Path, encoding: str, dialect: type[csv.Dialect] | None
) -> Iterator[Record | BadRecord]:
    """Rows as dicts of text, by the names in the first row; `dialect=None` means tabs, no quotes.

    Quotes are read strictly and every row must have as many fields as the first. A bad row does
    not end the reading: the next begins on the next line.
    """
    csv.field_size_limit(FIELD_LIMIT)
    lines = _TextLines(path, encoding)
    reader = csv.reader(lines, dialect or _Tab, strict=True)
    header: list[str] | None = None
    while True:
        before, bad, row = reader.line_num, None, None
        try:
            row = next(reader, None)
        except csv.Error as error:
            bad = str(error)
        undecodable = lines.take_bad()
        yield from undecodable
        if (row is None and bad is None) or (undecodable and header is None):
            return
        begin = lines.line - (reader.line_num - before) + 1
        if header is None and row is not None:
            header = row or None  # blank lines may come first
            bad = _twice(row)
        elif row and header is not None and len(row) != len(header):
            bad = f"{len(row)} fields, the header has {len(header)}"
        elif row and header is not None:
            yield Record(begin, dict(zip(header, row)))
        if bad is not None:
            yield BadRecord(f"line {begin}: {bad}")
            if header is None or row is header:
                return  # without names no row can be read


def json_records(path: Path, encoding: str) -> Iterator[Record | BadRecord]:
    """Objects of a JSON-lines file (one a line), or of a file that is one list of objects."""
    if path.suffix.lower() == ".json" and _is_list(path, encoding):
        yield from _json_list(path, encoding)
        return
    is_json = path.suffix.lower() == ".json"
    hint = "; a .json file is one list of objects, or an object on each line" if is_json else ""
    for record in decoded_lines(path, encoding):
        if isinstance(record, BadRecord):
            yield record
        elif not record.value.isspace():
            found = _json_object(record.line, record.value.rstrip())
            yield BadRecord(found.reason + hint) if isinstance(found, BadRecord) else found
            hint = ""


class _TextLines:
    """The decoded lines for `csv.reader`, the number of the last one, and what was undecodable."""

    def __init__(self, path: Path, encoding: str) -> None:
        self.line = 0
        self._bad: list[BadRecord] = []
        self._records = decoded_lines(path, encoding)

    def __iter__(self) -> Iterator[str]:
        for record in self._records:
            if isinstance(record, BadRecord):
                self._bad.append(record)
                continue
            self.line = record.line
            yield record.value

    def take_bad(self) -> list[BadRecord]:
        bad, self._bad = self._bad, []
        return bad


def _twice(names: list[str]) -> str | None:
    again = next((name for name in names if names.count(name) > 1), None)
    return None if again is None else f"column {again!r} is there twice"


def _is_list(path: Path, encoding: str) -> bool:
    """Whether the first character that is not white space opens a list."""
    for record in decoded_lines(path, encoding):
        if isinstance(record, BadRecord):
            return False
        if not record.value.isspace():
            return bool(record.value.lstrip().startswith("["))
    return False


def _json_list(path: Path, encoding: str) -> Iterator[Record | BadRecord]:
    """The objects of one JSON list by their numbers: json does not tell their lines."""
    lines = []
    for record in decoded_lines(path, encoding):
        if isinstance(record, BadRecord):
            yield record
            return
        lines.append(record.value)
    items = parse_json("".join(lines), 1)
    if isinstance(items, BadRecord):
        yield items
        return
    for number, item in enumerate(items.value, 1):
        if isinstance(item, dict):
            yield Record(number, item, "item")
        else:
            yield BadRecord(f"item {number}: expected an object, got {type(item).__name__}")


def _json_object(line: int, text: str) -> Record | BadRecord:
    record = parse_json(text, line)
    if isinstance(record, Record) and not isinstance(record.value, dict):
        return BadRecord(f"line {line}: expected an object, got {type(record.value).__name__}")
    return record


def parse_json(text: str, line: int) -> Record | BadRecord:
    """The value of a text that begins at `line`; json tells the place of some faults only."""
    begin = "" if "\n" in text.strip() else f"line {line}: "
    try:
        value = json.loads(text, object_pairs_hook=_unique)
        if "\\ud" in text or "\\uD" in text:  # escapes can spell half a surrogate pair
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        place = f"line {line + error.lineno - 1}, column {error.colno}"
        return BadRecord(f"{place}: {error.msg}")
    except UnicodeEncodeError:
        return BadRecord(f"{begin}an escape is half of a surrogate pair, so no character")
    except RecursionError:
        return BadRecord(f"{begin}nested too deeply")
    except ValueError as error:  # a repeated key, or a number of thousands of digits
        return BadRecord(f"{begin}{error}")
    return Record(line, value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(n for n in names if names.count(n) > 1)!r} is there twice")
    return found
