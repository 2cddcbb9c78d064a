"""Labelled examples from csv, tsv, json and CoNLL files; an error names the file and the line."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from llm_course.data import readers
from llm_course.data.examples import Answer, QuestionExample, TaggedExample, TextExample, check_task
from llm_course.data.readers import Row, text_in, value_in
from llm_course.errors import ConfigError, DataError, did_you_mean

CONLL_SUFFIXES = (".conll", ".bio", ".iob")

# The columns that are looked for where none is named: those of Town's tasks and of public sets.
USUAL: dict[str, dict[str, tuple[str, ...]]] = {
    "classify": {"text": ("text", "sentence"), "label": ("label",)},
    "pair": {
        "text": ("premise", "sentence1", "sentence_a", "text"),
        "pair": ("hypothesis", "sentence2", "sentence_b", "pair"),
        "label": ("label",),
    },
    "tag": {"text": ("tokens", "words"), "label": ("ner_tags", "tags")},
    "qa": {"text": ("context",), "pair": ("question",), "label": ("answers", "answer")},
}


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The names of columns; None: the usual ones of the task.

    For tag `text` is the list of words and `label` that of their tags; for qa `text` is the
    context, `pair` the question and `label` the answers.
    """

    text: str | None = None
    pair: str | None = None
    label: str | None = None


def read_examples(
    task: str,
    paths: readers.Paths,
    columns: Columns | None = None,
    *,
    labelled: bool = True,
    encoding: str = "utf-8",
) -> list[Any]:
    """The examples of files, in their order: csv, tsv (no quotes), json, jsonl; CoNLL for tag.

    Labels are text: 1 and "1" are one class. The answers of qa are those of SQuAD, as
    {"text": [...], "answer_start": [...]}, as a list of {"text", "answer_start"}, or one text,
    whose first place in the context is taken; SQuAD's nested file is read too. Questions without
    an answer are left out and counted. With `labelled=False` labels are neither needed nor read.

    `DataError` names file and line: what `read_rows` refuses, a column that does not exist (lists
    those that do), what is no example (see `examples.py`), a file without examples.
    """
    check_task(task)
    columns = columns or Columns()
    if columns.pair is not None and "pair" not in USUAL[task]:
        raise ConfigError(f"the task {task!r} has no second text, got the column {columns.pair!r}")
    suffixes = readers.TABLE_SUFFIXES + (CONLL_SUFFIXES if task == "tag" else ())
    found: list[Any] = []
    unanswered = 0
    for path in readers.existing(paths, suffixes):
        examples: list[Any] = []
        names: dict[str, str] = {}
        for place, row in _rows(task, path, encoding):
            names = names or _names(task, columns, row, labelled, place)
            examples.append(_example(task, row, names, place))
        usable = [e for e in examples if task != "qa" or not labelled or e.answers]
        if not usable:
            why = f"none of its {len(examples)} questions has an answer"
            why = why if examples else "has no examples" if path.stat().st_size else "is empty"
            raise DataError(f"{path}: {why}")
        found += usable
        unanswered += len(examples) - len(usable)
    if unanswered:
        warnings.warn(f"left out {unanswered} questions without an answer", stacklevel=2)
    return found


def _rows(task: str, path: Path, encoding: str) -> Iterator[Row]:
    """The rows of a file, in each of the forms that this task knows."""
    if path.suffix.lower() in CONLL_SUFFIXES:
        return _sentences(readers.Lines(path, encoding, readers.BadRows()))
    rows = readers.read_rows(path, encoding, readers.BadRows())
    return _questions(rows) if task == "qa" else rows


def _sentences(lines: readers.Lines) -> Iterator[Row]:
    """CoNLL: a word a line, its tag in the last column; blank lines part the sentences."""
    for between, group in groupby(lines, lambda x: not x.strip() or x.startswith("-DOCSTART-")):
        place = f"{lines.path}: line {lines.number}"
        if not between:
            cells = [x.rstrip("\n").split("\t" if "\t" in x else None) for x in group]
            tags = [x[-1] if len(x) > 1 else "" for x in cells]  # no word is its own tag
            yield place, {"tokens": [x[0] for x in cells], "tags": tags}


def _questions(rows: Iterator[Row]) -> Iterator[Row]:
    """The questions of SQuAD's nested file; other rows as they are."""
    for place, row in rows:
        if not isinstance(row.get("data"), list):
            yield place, row
            continue
        number = 0
        try:
            for paragraph in (p for article in row["data"] for p in article["paragraphs"]):
                for entry in paragraph["qas"]:
                    number += 1
                    asked = {"context": paragraph["context"], "answers": [], **entry}
                    yield f"{place}, question {number}", asked
        except (KeyError, TypeError) as error:
            form = 'SQuAD\'s {"data": [{"paragraphs": [{"context": ..., "qas": [...]}]}]}'
            wrong = f"expected {form}, got {error!r:.60}"
            raise DataError(f"{place}, after question {number}: {wrong}") from None


def _names(
    task: str, columns: Columns, row: dict[str, Any], labelled: bool, place: str
) -> dict[str, str]:
    """Role to the name of its column, from what the caller says or the usual names."""
    names = {}
    for role, usual in USUAL[task].items():
        if role == "label" and not labelled:
            continue
        name = getattr(columns, role) or next((name for name in usual if name in row), None)
        if name not in row:
            wanted = repr(name) if name else " or ".join(map(repr, usual))
            there = f"{readers.columns_of(row)}: name one with --{role}-column"
            near = did_you_mean(name or usual[0], row)
            raise DataError(f"{place}: no column {wanted}; there are {there}{near}")
        names[role] = name
    if len(set(names.values())) < len(names):
        raise DataError(f"{place}: one column for two things: {names}")
    return names


def _example(task: str, row: dict[str, Any], names: dict[str, str], place: str) -> Any:
    """The example in a row, which checks itself."""
    if task == "tag":
        words = _listed(row, names["text"], place)
        tags = _listed(row, names["label"], place) if "label" in names else None
        return TaggedExample(words, tags, place)
    text = text_in(row, names["text"], place)
    pair = text_in(row, names["pair"], place) if "pair" in names else None
    if task == "qa":
        answers = _answers(row, names["label"], text, place) if "label" in names else ()
        return QuestionExample(pair or "", text, answers, place)
    label = _label(row, names["label"], place) if "label" in names else None
    return TextExample(text, label, pair, place)


def _label(row: dict[str, Any], column: str, place: str) -> str:
    """A label as text; whole numbers and truth values of json are labels too."""
    value = value_in(row, column, place, (str, int, float), "the name of a class")
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # 1.0 of one writer is 1 of another
    if isinstance(value, float) or not str(value).strip():
        raise DataError(f"{place}: the label in column {column!r} is {value!r}, no class")
    return str(value).lower() if isinstance(value, bool) else str(value).strip()


def _listed(row: dict[str, Any], column: str, place: str) -> tuple[Any, ...]:
    """A list of json; in a csv file the words are parted by spaces."""
    value = value_in(row, column, place, (str, list), "a list")
    return tuple(value.split() if isinstance(value, str) else value)


def _answers(row: dict[str, Any], column: str, context: str, place: str) -> tuple[Answer, ...]:
    """Each of SQuAD's forms; an answer without a start gets its first place in the context."""
    value = value_in(row, column, place, object, "an answer")
    if isinstance(value, str) and value.lstrip().startswith("{"):
        with suppress(ValueError, RecursionError):
            value = json.loads(value)  # a csv file that was written from such rows
    try:
        if isinstance(value, str) and value:
            start = row.get("answer_start")
            if isinstance(start, str) and start.strip().isdecimal():
                start = int(start)
            value = [{"text": value, "answer_start": start}]
        elif isinstance(value, dict):
            texts, starts = value["text"], value.get("answer_start")
            starts = [None] * len(texts) if starts is None else starts
            value = [{"text": t, "answer_start": s} for t, s in zip(texts, starts, strict=True)]
        found = [(each["text"], each.get("answer_start")) for each in value or ()]
        return tuple(Answer(t, context.find(t) if s is None else s) for t, s in found)
    except (AttributeError, KeyError, TypeError, ValueError):
        held = f"column {column!r} holds {readers.shown(value)}"
        form = 'SQuAD\'s {"text": [...], "answer_start": [...]} of equal lengths'
        raise DataError(f"{place}: {held}, expected an answer or {form}") from None
