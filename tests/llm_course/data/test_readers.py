"""Hostile and odd files: each reader gives what is in them, or a message with the file's name."""

from __future__ import annotations

import codecs
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm_course.data.corpora import read_documents
from llm_course.data.example_files import CONLL_SUFFIXES, read_examples
from llm_course.data.examples import KINDS
from llm_course.data.pair_files import read_pairs
from llm_course.errors import DataError, did_you_mean

pytestmark = pytest.mark.unchecked  # a type check would refuse some values before we do

LONG = b"word " * 200_000
SQUAD = b'{"context": "c d", "question": "q", "answers": {"text": ["d"], "answer_start": [2]}}'

HOSTILE: dict[str, bytes] = {
    # no text
    "empty": b"",
    "a blank": b" ",
    "only line ends": b"\n" * 1000,
    "only carriage returns": b"\r" * 1000,
    "byte order mark": codecs.BOM_UTF8,
    "two marks": codecs.BOM_UTF8 * 2,
    "mark and rows": codecs.BOM_UTF8 + b"text,label\na,1\nb,2\n",
    "one byte": b"\xff",
    "one quote": b'"',
    "one brace": b"{",
    "one bracket": b"[",
    # encodings
    "UTF-16": "text,label\na,1\n".encode("utf-16"),
    "UTF-16 without a mark": "text,label\na,1\n".encode("utf-16-le"),
    "UTF-32": "text,label\na,1\n".encode("utf-32"),
    "latin-1": "text,label\né,1\nb,2\n".encode("latin-1"),
    "cp1252": "text,label\n“a”,1\n".encode("cp1252"),
    "gb18030": "text,label\n好,1\n".encode("gb18030"),
    "overlong UTF-8": b"text,label\n\xc0\xaf,1\n",
    "a surrogate in UTF-8": b"text,label\n\xed\xa0\x80,1\n",
    "cut in a character": "text,label\né".encode()[:-1],
    "NUL": b"text,label\na\0b,1\n",
    "only NUL": b"\0" * 100_000,
    "gzip": b"\x1f\x8b\x08\x00" + bytes(range(256)) * 40,
    "zip": b"PK\x03\x04" + bytes(range(256)) * 40,
    "escape sequences": b"text,label\n\x1b[31mred\x1b[0m,1\n\x07,2\n",
    # lines
    "a line of 10 MB": LONG * 10,
    "a field of 1 MB": b'text,label\n"' + LONG + b'",1\n',
    "a header of 1 MB": LONG + b",label\na,1\n",
    "100,000 columns": b"a," * 100_000 + b"b\n" + b"1," * 100_000 + b"2\n",
    "as many different columns": b",".join(b"%d" % n for n in range(200_000)) + b"\n",
    "carriage returns": b"text,label\ra,1\rb,2\r",
    "mixed line ends": b"text,label\r\na,1\nb,2\r\n",
    "no last line end": b"text,label\na,1",
    "other line ends": "text,label\na\u2028b,1\nc\x85d,2\nx\x0cy,3\n".encode(),
    # csv
    "quoted line ends": b'text,label\n"a\nb\r\nc",1\nd,2\n',
    "open quote": b'text,label\n"a,1\nb,2\n',
    "open quote of 1 MB": b'text,label\n"' + LONG,
    "quote inside": b'text,label\na"b,1\n"c"d,2\n',
    "only quotes": b'"' * 100_001,
    "ragged": b"text,label\na,1\nb\nc,3,4\n",
    "doubled header": b"text,text,label\na,b,1\n",
    "blank header": b",,\na,b,c\n",
    "header only": b"text,label\n",
    "numbers as header": b"1,2\n3,4\n",
    "semicolons": b"text;label\na;1\nb;0\n",
    "tabs": b"text\tlabel\na\t1\nb\t0\n",
    "blank cells": b"text,label\n,\n , \n",
    "formulas": b'text,label\n"=1+1","@x"\n',
    # json
    "nested 10,000 deep": b"[" * 10_000 + b"]" * 10_000,
    "objects 10,000 deep": b'{"text":' * 10_000 + b"1" + b"}" * 10_000,
    "900 deep in a column": b'{"text": ' + b"[" * 900 + b"]" * 900 + b', "label": 1}',
    "a key twice": b'{"text": "a", "text": "b", "label": 1}\n',
    "numbers for text": b'{"text": 3, "label": 1}\n{"text": 1e999, "label": 1}\n',
    "NaN": b'{"text": NaN, "label": NaN}\n{"text": "a", "label": Infinity}\n',
    "a number of 100,000 digits": b'{"text": "a", "label": ' + b"9" * 100_000 + b"}",
    "1e308": b'{"text": "a", "label": 1e308}\n{"text": "a", "label": -0.0}\n',
    "half a surrogate pair": b'{"text": "\\ud800", "label": "\\udfff"}\n',
    "null": b"null\n",
    "null values": b'{"text": null, "label": null, "tokens": null, "answers": null}\n',
    "a list of lists": b"[[], [[]], [1]]",
    "an empty object": b"{}\n",
    "an empty key": b'{"": "a"}\n',
    "lists for text": b'{"text": ["a"], "label": {"b": 1}, "tokens": [["a"]], "tags": [["O"]]}',
    "tags that are null": b'{"tokens": ["a", "b"], "tags": ["O", null]}',
    "cut short": b'[{"text": "a", "label": 1}, {"text": "b"',
    "two lists": b'[{"text": "a"}]\n[{"text": "b"}]\n',
    "a comment": b'// text\n{"text": "a"}\n',
    # questions
    "SQuAD": b'{"data": [{"paragraphs": [{"context": "c", "qas": [{"question": "q"}]}]}]}',
    "SQuAD of numbers": b'{"data": [1, 2]}',
    "SQuAD of texts": b'{"data": ["paragraphs"]}',
    "SQuAD with a text for questions": b'{"data": [{"paragraphs": [{"context": 1, "qas": "ab"}]}]}',
    "an answer that is true": SQUAD.replace(b"[2]", b"[true]"),
    "an answer far out": SQUAD.replace(b"[2]", b"[99999999999999999999999999]"),
    "answers that are numbers": SQUAD.replace(b'["d"]', b"[1]"),
    "answers of other lengths": SQUAD.replace(b"[2]", b"[2, 3]"),
    "answers that are one text": SQUAD.replace(b'["d"]', b'"d"'),
    # words
    "a word of 1 MB": b"w" * 1_000_000 + b" O\n",
    "one column": b"a\nb\n\nO\n",
    "tags alone": b"O\nB-X\n",
    "20,000 words": b"a O\n" * 20_000,
}
SUFFIXES = (".txt", ".csv", ".tsv", ".json", ".jsonl", *CONLL_SUFFIXES[:1])


def readings(path: Path) -> dict[str, Callable[[], list[Any]]]:
    """Every way to read a file by the ending of its name."""
    found: dict[str, Callable[[], list[Any]]] = {}
    if path.suffix == ".conll":
        return {"tag": lambda: read_examples("tag", path)}
    if path.suffix == ".txt":
        for unit in ("line", "paragraph", "file"):
            found[unit] = lambda unit=unit: read_documents(path, document=unit)  # type: ignore[misc]
        return {**found, "skip": lambda: read_documents(path, errors="skip")}
    for task in KINDS:
        found[task] = lambda task=task: read_examples(task, path)  # type: ignore[misc]
        found[f"{task}, bare"] = lambda task=task: read_examples(task, path, labelled=False)  # type: ignore[misc]
    found["documents"] = lambda: read_documents(path, column="text")
    found["documents, skip"] = lambda: read_documents(path, errors="skip")
    found["latin-1"] = lambda: read_documents(path, encoding="latin-1")
    found["pairs"] = lambda: read_pairs(path, source="text", target="label")
    found["pairs, skip"] = lambda: read_pairs(path, source="text", target="label", errors="skip")
    return found


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_is_read_or_refused_in_a_short_line(
    content: bytes, suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    for read in readings(path).values():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # rows that were left out
            try:
                found, message = read(), str(path)
            except DataError as error:
                found, message = ["refused"], str(error)
        assert found
        assert message.startswith(str(path))
        assert len(message) < 500 + len(str(path))
        assert message.isprintable()


def test_the_nearest_name_is_found_and_a_long_one_costs_little() -> None:
    assert did_you_mean("texd", ["label", "text"]) == "; did you mean 'text'?"
    assert did_you_mean("quite another", ["label", "text"]) == ""
    assert did_you_mean("x" * 10_000_000, (str(n) for n in range(10_000_000))) == ""
