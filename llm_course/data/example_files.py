"""Labelled examples from csv, tsv, json and CoNLL files; an error names the file and the line."""

from __future__ import annotations

import contextlib
import difflib
import json
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from llm_course.data.examples import (
    Answer,
    QuestionExample,
    TaggedExample,
    TextExample,
    check_answer,
    check_not_blank,
    check_tags,
    check_task,
)
from llm_course.data.records import BadRecord, Record, decoded_lines, parse_json
from llm_course.data.sources import TEXT_SUFFIXES, Paths, nearest, read_records
from llm_course.errors import ConfigError, DataError

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
    paths: Paths,
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
    those that do), an empty text, other numbers of words and tags, a tag that is not BIO, an answer
    that is not at its place in the context, a file without examples.
    """
    check_task(task)
    columns = columns or Columns()
    if columns.pair is not None and "pair" not in USUAL[task]:
        raise ConfigError(
            f"the task {task!r} has no second text, got the column {columns.pair!r} for one"
        )
    files = [paths] if isinstance(paths, (str, Path)) else list(paths)
    found: list[Any] = []
    unanswered = 0
    for path in map(Path, files):
        examples, skipped = _read_file(task, path, columns, labelled, encoding)
        if not examples:
            empty = path.stat().st_size == 0
            raise DataError(f"{path}: {'is empty' if empty else 'has no examples'}")
        found += examples
        unanswered += skipped
    if not found:
        raise DataError("paths must name at least one file, got none")
    if unanswered:
        warnings.warn(f"left out {unanswered} questions without an answer", stacklevel=2)
    return found


def _read_file(
    task: str, path: Path, columns: Columns, labelled: bool, encoding: str
) -> tuple[list[Any], int]:
    """The examples of one file, and how many questions had no answer."""
    if path.suffix.lower() in CONLL_SUFFIXES:
        if task != "tag":
            raise DataError(f"{path}: a CoNLL file is for the task 'tag', got {task!r}")
        _check_there(path)
        return list(_conll(path, labelled, encoding)), 0
    if task == "tag" and path.suffix.lower() in TEXT_SUFFIXES and path.is_file():
        raise DataError(
            f"{path}: a text file has no columns; expected csv or json, or CoNLL with a name "
            f"that ends in {', '.join(CONLL_SUFFIXES)}"
        )
    records: Iterable[tuple[Path, Record]]
    if task == "qa" and path.suffix.lower() == ".json" and path.is_file():
        nested = _squad_rows(path, encoding)
        records = nested if nested is not None else read_records(path, encoding=encoding)
    else:
        records = read_records(path, encoding=encoding)
    make = {"classify": _text, "pair": _text, "tag": _tagged, "qa": _question}[task]
    names: dict[str, str] | None = None
    found, skipped = [], 0
    for _, record in records:
        place = f"{path}: {record.unit} {record.line}"
        names = names or _names(task, columns, record.value, labelled, place)
        for name in names.values():
            if name not in record.value:
                raise _no_column(place, name, record.value)
        example = make(record.value, names, place)
        if isinstance(example, QuestionExample) and labelled and not example.answers:
            skipped += 1
        else:
            found.append(example)
    if skipped and not found:
        raise DataError(f"{path}: none of its {skipped} questions has an answer")
    return found, skipped


def _check_there(path: Path) -> None:
    if path.is_dir():
        raise DataError(f"{path}: a folder; name the files in it")
    if not path.is_file():
        raise DataError(f"{path}: no such file{nearest(path)}")


# Columns


def _names(
    task: str, columns: Columns, row: dict[str, Any], labelled: bool, place: str
) -> dict[str, str]:
    """Role to the name of its column, from what the caller says or the usual names."""
    names = {}
    for role, usual in USUAL[task].items():
        if role == "label" and not labelled:
            continue
        wanted = getattr(columns, role)
        if wanted is None:
            wanted = next((name for name in usual if name in row), None)
            if wanted is None:
                raise _unnamed(place, task, role, usual, row)
        elif wanted not in row:
            raise _no_column(place, wanted, row)
        names[role] = wanted
    if len(set(names.values())) < len(names):
        raise DataError(f"{place}: one column for two things: {names}")
    return names


def _no_column(place: str, name: str, row: dict[str, Any]) -> DataError:
    there = ", ".join(map(repr, row)) or "none"
    near = difflib.get_close_matches(name, row, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return DataError(f"{place}: no column {name!r}; there are {there}{hint}")


def _unnamed(
    place: str, task: str, role: str, usual: Sequence[str], row: dict[str, Any]
) -> DataError:
    what = {"text": "text", "pair": "second text", "label": "label"}[role]
    if task == "tag":
        what = {"text": "words", "label": "tags"}[role]
    if task == "qa":
        what = {"text": "context", "pair": "question", "label": "answers"}[role]
    there = ", ".join(map(repr, row)) or "none"
    return DataError(
        f"{place}: no column {' or '.join(map(repr, usual))} for the {what}; there are {there}: "
        f"name one with --{role}-column"
    )


def _text_in(row: dict[str, Any], column: str, place: str) -> str:
    value = row[column]
    if not isinstance(value, str):
        what = "nothing" if value is None else f"{value!r:.40} ({type(value).__name__})"
        raise DataError(f"{place}: column {column!r} holds {what}, expected text")
    check_not_blank(place, **{f"text in column {column!r}": value})
    return value


# One row


def _text(row: dict[str, Any], names: dict[str, str], place: str) -> TextExample:
    pair = _text_in(row, names["pair"], place) if "pair" in names else None
    label = _label_in(row, names["label"], place) if "label" in names else None
    return TextExample(_text_in(row, names["text"], place), label, pair, place)


def _label_in(row: dict[str, Any], column: str, place: str) -> str:
    """A label as text; whole numbers and truth values of json are labels too."""
    value = row[column]
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # 1.0 of one writer is 1 of another
    if not isinstance(value, (str, int)):
        what = "nothing" if value is None else f"{value!r:.40} ({type(value).__name__})"
        raise DataError(f"{place}: column {column!r} holds {what}, expected the name of a class")
    check_not_blank(place, **{f"label in column {column!r}": str(value)})
    return str(value).strip()


def _tagged(row: dict[str, Any], names: dict[str, str], place: str) -> TaggedExample:
    words = _listed(row, names["text"], place)
    tags = _listed(row, names["label"], place) if "label" in names else None
    check_tags(place, words, tags)
    return TaggedExample(tuple(words), None if tags is None else tuple(tags), place)


def _listed(row: dict[str, Any], column: str, place: str) -> list[Any]:
    """A list of json; in a csv file the words are parted by spaces."""
    value = row[column]
    if isinstance(value, str):
        return value.split()
    if not isinstance(value, list):
        what = "nothing" if value is None else f"{value!r:.40} ({type(value).__name__})"
        raise DataError(f"{place}: column {column!r} holds {what}, expected a list")
    return value


def _question(row: dict[str, Any], names: dict[str, str], place: str) -> QuestionExample:
    context = _text_in(row, names["text"], place)
    question = _text_in(row, names["pair"], place)
    answers: tuple[Answer, ...] = ()
    if "label" in names:
        answers = tuple(_answers(row, names["label"], context, place))
    return QuestionExample(question, context, answers, place)


def _answers(row: dict[str, Any], column: str, context: str, place: str) -> Iterator[Answer]:
    value = row[column]
    if isinstance(value, str) and value.lstrip().startswith("{"):
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(value)  # a csv file that was written from such rows
    for text, start in _texts_and_starts(value, row, column, place):
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{place}: column {column!r} holds the answer {text!r:.40}")
        if start is None:
            start = context.find(text)
            if start < 0:
                raise DataError(f"{place}: the answer {text!r:.60} is nowhere in its context")
        if isinstance(start, bool) or not isinstance(start, int):
            raise DataError(f"{place}: answer_start must be a whole number, got {start!r:.40}")
        answer = Answer(text, start)
        check_answer(place, context, answer)
        yield answer


def _texts_and_starts(
    value: Any, row: dict[str, Any], column: str, place: str
) -> list[tuple[Any, Any]]:
    """SQuAD's forms of the answers as (text, start or None)."""
    if value is None or value == "" or value == []:
        return []
    if isinstance(value, str):
        start = row.get("answer_start")
        if isinstance(start, str):
            if not start.strip().isdecimal():
                raise DataError(f"{place}: answer_start must be a whole number, got {start!r:.40}")
            start = int(start)
        return [(value, start)]
    if isinstance(value, dict) and isinstance(value.get("text"), list):
        texts, starts = value["text"], value.get("answer_start")
        if starts is None:
            return [(text, None) for text in texts]
        if not isinstance(starts, list) or len(starts) != len(texts):
            raise DataError(f"{place}: {len(texts)} answers, but answer_start is {starts!r:.40}")
        return list(zip(texts, starts))
    if isinstance(value, list) and all(isinstance(each, dict) for each in value):
        return [(each.get("text"), each.get("answer_start")) for each in value]
    raise DataError(
        f"{place}: column {column!r} holds {value!r:.40}, expected an answer or SQuAD's "
        '{"text": [...], "answer_start": [...]}'
    )


# Whole files of other forms


def _squad_rows(path: Path, encoding: str) -> Iterator[tuple[Path, Record]] | None:
    """The rows of SQuAD's nested file, numbered; None for a list, or one object a line."""
    lines = []
    for line in decoded_lines(path, encoding):
        if isinstance(line, BadRecord):
            return None
        lines.append(line.value)
    first = next((line for line in lines if not line.isspace()), None)
    if first is None:
        return None
    whole = parse_json("".join(lines), 1)
    if isinstance(whole, BadRecord):
        if isinstance(parse_json(first, 1), BadRecord):
            raise DataError(f"{path}: {whole.reason}")
        return None
    if not isinstance(whole.value, dict) or not isinstance(whole.value.get("data"), list):
        return None
    return _nested(path, whole.value["data"])


def _nested(path: Path, articles: list[Any]) -> Iterator[tuple[Path, Record]]:
    number = 0
    for article in articles:
        for paragraph in _part(article, "paragraphs", f"{path}: after question {number}"):
            for entry in _part(paragraph, "qas", f"{path}: after question {number}"):
                number += 1
                if not isinstance(entry, dict):
                    raise DataError(f"{path}: question {number} is no object")
                context = paragraph.get("context")
                answers = entry.get("answers") or []
                row = {"context": context, "question": entry.get("question"), "answers": answers}
                yield path, Record(number, row, "question")


def _part(value: Any, name: str, place: str) -> list[Any]:
    if not isinstance(value, dict) or not isinstance(value.get(name), list):
        raise DataError(f"{place}: expected an object with a list {name!r}, as in SQuAD's file")
    found: list[Any] = value[name]
    return found


def _conll(path: Path, labelled: bool, encoding: str) -> Iterator[TaggedExample]:
    """Sentences parted by blank lines; a line is a word, and its tag in the last column."""
    words: list[str] = []
    tags: list[str] = []
    begin = 1
    end = Record(0, "\n")
    for record in chain(decoded_lines(path, encoding), [end]):
        if isinstance(record, BadRecord):
            raise DataError(f"{path}: {record.reason}")
        line = record.value.rstrip("\n")
        if not line.strip() or line.startswith("-DOCSTART-"):
            if words:
                place = f"{path}: line {begin}"
                check_tags(place, words, tags if labelled else None)
                yield TaggedExample(tuple(words), tuple(tags) if labelled else None, place)
            words, tags = [], []
            continue
        cells = line.split("\t") if "\t" in line else line.split()
        if labelled and len(cells) < 2:
            raise DataError(
                f"{path}: line {record.line}: expected a word and its tag, got {line!r:.60}"
            )
        begin = begin if words else record.line
        words.append(cells[0])
        tags.append(cells[-1])
        if labelled:
            check_tags(f"{path}: line {record.line}", words[-1:], tags[-1:])
