"""Pairs of texts, such as a sentence and its translation, from files and from the hub."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path

from llm_course.data.records import Record
from llm_course.data.sources import Errors, Paths, hub_records, read_records
from llm_course.errors import ConfigError, DataError

Pair = tuple[str, str]


def read_pairs(
    paths: Paths, *, source: str, target: str, encoding: str = "utf-8", errors: Errors = "strict"
) -> list[Pair]:
    """The texts in two columns of csv, json, parquet and arrow files, in their order.

    `DataError` names the file and the line where a column is missing or holds no text;
    `errors="skip"` leaves out rows without both texts, and warns how many.
    """
    _check_columns(source, target)
    records = read_records(paths, encoding=encoding, errors=errors)
    found, blank = _pairs(records, source, target, errors == "skip")
    if not found:
        names = paths if isinstance(paths, (str, Path)) else ", ".join(map(str, paths))
        raise DataError(f"{names}: no pair of texts")
    if blank:
        warnings.warn(f"left out {blank} rows without both texts", stacklevel=2)
    return found


def load_hub_pairs(
    dataset_id: str,
    *,
    source: str,
    target: str,
    name: str | None = None,
    split: str = "train",
    cache_dir: str | Path | None = None,
) -> list[Pair]:
    """The pairs of a data set on the Hugging Face hub, or of a local folder in its layout.

    A row holds both texts by their columns, or one column "translation" that does, as many data
    sets of translation have it. `DataError` as in `load_hub`, and for a row without both texts.
    """
    _check_columns(source, target)
    rows = hub_records(dataset_id, name=name, split=split, cache_dir=cache_dir)
    found, _ = _pairs(((Path(dataset_id), row) for row in rows), source, target, False)
    if not found:
        raise DataError(f"{dataset_id}: split {split!r} has no pair of texts")
    return found


def _check_columns(source: str, target: str) -> None:
    if source == target:
        raise ConfigError(f"source and target must be two columns, got {source!r} twice")


def _pairs(
    records: Iterable[tuple[Path, Record]], source: str, target: str, skip: bool
) -> tuple[list[Pair], int]:
    """All pairs, and how many rows lacked a text."""
    found: list[Pair] = []
    blank = 0
    for path, record in records:
        row, place = record.value, f"{path}: {record.unit} {record.line}"
        if source not in row and isinstance(row.get("translation"), dict):
            row = row["translation"]
        texts = []
        for column in (source, target):
            if column not in row:
                there = ", ".join(map(repr, row)) or "none"
                raise DataError(f"{place}: no column {column!r}; there are {there}")
            text = row[column]
            if isinstance(text, str) and text.strip():
                texts.append(text)
            elif not skip:
                raise DataError(f"{place}: column {column!r} holds {text!r:.40}, expected text")
        if len(texts) == 2:
            found.append((texts[0], texts[1]))
        else:
            blank += 1
    return found, blank
