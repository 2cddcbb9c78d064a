"""Documents of files and of the Hugging Face hub, and their split for validation."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Literal

from llm_course.data import readers
from llm_course.data.readers import TABLE_SUFFIXES, TEXT_SUFFIXES, BadRows, Errors, Lines, Paths
from llm_course.errors import ConfigError, DataError

Unit = Literal["line", "paragraph", "file"]


def read_documents(
    paths: Paths,
    *,
    column: str | None = None,
    encoding: str = "utf-8",
    document: Unit = "line",
    errors: Errors = "strict",
) -> list[str]:
    """The documents of text, csv, json, parquet and arrow files, in their order, blank ones not.

    `document` says what a document is in a text file: a line, a paragraph (blank lines part them)
    or the whole file, kept exactly but for Windows line ends. In a table it is the text in
    `column`, which may be left out when there is one column, or one called "text".

    `errors="skip"` leaves out broken rows, and warns how many. `DataError` names file, line and
    byte or column: no file, no text, not `encoding`, NUL, ragged rows, bad JSON, no such column.
    """
    files = readers.existing(paths, (*TEXT_SUFFIXES, *TABLE_SUFFIXES))
    if column is not None and all(path.suffix.lower() in TEXT_SUFFIXES for path in files):
        raise DataError(f"{files[0]}: column={column!r} is for tables; a text file has no columns")
    bad = BadRows(errors)
    found: list[str] = []
    for path in files:
        if path.suffix.lower() in TEXT_SUFFIXES:
            texts = _units(Lines(path, encoding, bad), document)
        else:
            texts = _column(readers.read_rows(path, encoding, bad), column, bad)
        filled = [text for text in texts if text.strip()]
        if not filled:
            bad.warn()
            why = "has no document with text in it" if path.stat().st_size else "is empty"
            raise DataError(f"{path}: {why}")
        found += filled
    bad.warn()
    return found


def load_hub(dataset_id: str, column: str | None = None) -> list[str]:
    """The training documents of a hub data set, or of a local folder in its layout."""
    return list(_column(readers.dataset_rows(dataset_id, "train"), column, BadRows()))


def _units(lines: Lines, document: Unit) -> Iterator[str]:
    if document == "line":
        return (line.removesuffix("\n") for line in lines)
    if document == "paragraph":
        return ("".join(part).removesuffix("\n") for _, part in groupby(lines, str.isspace))
    if document == "file":
        return iter(["".join(lines)])
    raise ConfigError(f"document must be line, paragraph or file, got {document!r}")


def _column(rows: Iterator[readers.Row], column: str | None, bad: BadRows) -> Iterator[str]:
    for place, row in rows:
        if column is None:
            column = next(iter(row)) if len(row) == 1 else "text"
            if column not in row:
                there = readers.columns_of(row)
                raise DataError(f"{place}: name the column with the text: one of {there}")
        with bad:
            yield readers.value_in(row, column, place, str, "text")


def split_documents(
    documents: Iterable[str], validation: float = 0.1, seed: int = 0
) -> tuple[list[str], list[str]]:
    """Training and validation documents without overlap, by a hash of each one's words alone.

    So equal documents (up to white space) are on one side, and none changes sides when others are
    added. Where the rule leaves a side empty, the document nearest to the border moves. `DataError`
    when there are fewer than two different documents.
    """
    _check_share(validation)
    placed = [(_place(text, seed), text) for text in documents]
    places = sorted({place for place, _ in placed})
    if len(places) < 2:
        raise DataError(f"a split needs at least 2 different documents, got {len(places)}")
    border = min(max(validation, places[1]), places[-1])  # so that both sides have one
    training = [text for place, text in placed if place >= border]
    return training, [text for place, text in placed if place < border]


def split_text(text: str, validation: float = 0.1) -> tuple[str, str]:
    """A continuous text cut once: the last `validation` of its characters are the second part."""
    _check_share(validation)
    cut = int(len(text) * (1 - validation))
    if not 0 < cut < len(text):
        raise DataError(
            f"a text of {len(text)} characters is too short to keep {validation:.0%} for validation"
        )
    return text[:cut], text[cut:]


def _check_share(validation: float) -> None:
    if not 0 < validation < 1:
        raise ConfigError(f"validation must be between 0 and 1, got {validation}")


def _place(text: str, seed: int) -> float:
    """A document's place in [0, 1), the same on every machine."""
    words = f"{seed}\n{' '.join(text.split())}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(words, digest_size=6).digest(), "big") / 2**48
