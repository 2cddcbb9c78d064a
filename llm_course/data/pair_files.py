"""Pairs of texts, such as a sentence and its translation, from files and from the hub."""

from __future__ import annotations

from collections.abc import Iterable

from llm_course.data import readers
from llm_course.data.readers import TABLE_SUFFIXES, BadRows, Errors, Paths, text_in
from llm_course.errors import ConfigError, DataError

Pair = tuple[str, str]


def read_pairs(
    paths: Paths, *, source: str, target: str, encoding: str = "utf-8", errors: Errors = "strict"
) -> list[Pair]:
    """The texts in two columns of csv, json, parquet and arrow files, in their order.

    `DataError` names the file and the line where a column is missing or holds no text;
    `errors="skip"` leaves such rows out, and warns how many.
    """
    files, bad = readers.existing(paths, TABLE_SUFFIXES), BadRows(errors)
    rows = (row for path in files for row in readers.read_rows(path, encoding, bad))
    return _pairs(rows, source, target, bad, ", ".join(map(str, files)))


def load_hub_pairs(dataset_id: str, *, source: str, target: str, split: str) -> list[Pair]:
    """The pairs of a split of a hub data set, or of a local folder in its layout."""
    rows = readers.dataset_rows(dataset_id, split)
    return _pairs(rows, source, target, BadRows(), f"{dataset_id}, split {split!r}")


def _pairs(
    rows: Iterable[readers.Row], source: str, target: str, bad: BadRows, where: str
) -> list[Pair]:
    """Of columns, or of one column "translation" that holds both, as many data sets have it."""
    if source == target:
        raise ConfigError(f"source and target must be two columns, got {source!r} twice")
    found = []
    for place, row in rows:
        if source not in row and isinstance(row.get("translation"), dict):
            row = row["translation"]
        with bad:
            found.append((text_in(row, source, place), text_in(row, target, place)))
    bad.warn()
    if not found:
        raise DataError(f"{where}: no pair of texts")
    return found
