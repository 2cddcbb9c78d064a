"""Documents from files: what is read, how it is split, and which errors say where."""

from __future__ import annotations

import csv
import json
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from llm_course.data.corpora import load_hub, read_documents, split_documents, split_text
from llm_course.data.readers import BadRows, dataset_rows, read_rows
from llm_course.errors import ConfigError, DataError


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def rows(path: Path) -> list[dict[str, Any]]:
    return [row for _, row in read_rows(path, "utf-8", BadRows())]


def test_a_text_is_read_by_lines_paragraphs_or_whole(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "\ufeffone\r\ntwo\r\n\n \n\nthree é\nfour")
    assert read_documents(path) == ["one", "two", "three é", "four"]
    assert read_documents(path, document="paragraph") == ["one\ntwo", "three é\nfour"]
    assert read_documents([path], document="file") == ["one\ntwo\n\n \n\nthree é\nfour"]
    assert read_documents(str(path), encoding="utf-8") == read_documents(path)
    latin = write(tmp_path / "latin.txt", "caf\xe9\n".encode("latin-1"))
    assert read_documents(latin, encoding="latin-1") == ["café"]


def test_csv_and_tsv_are_read_as_the_text_they_hold(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'text,label\n007,1\nNA,2\n"a ""b"",\nc",3\n\n')
    assert read_documents(path) == ["007", "NA", 'a "b",\nc']
    assert read_documents(path, column="label") == ["1", "2", "3"]
    assert rows(path)[1] == {"text": "NA", "label": "2"}
    tsv = write(tmp_path / "a.tsv", 'x\ty\n"quoted\tas it is\n')
    assert read_documents(tsv, column="x") == ['"quoted']


def test_why_csv_is_not_read_by_datasets(tmp_path: Path) -> None:
    """The control: it turns NA into nothing, and fills up a short row without a word."""
    datasets = pytest.importorskip("datasets")
    path = write(tmp_path / "a.csv", "text,label\nNA,2\nshort\n")
    found = list(datasets.load_dataset("csv", data_files=str(path), split="train", streaming=True))
    assert found == [{"text": None, "label": 2.0}, {"text": "short", "label": None}]
    with pytest.raises(DataError, match="line 3: 1 fields, the header has 2"):
        read_documents(path)


def test_json_is_read_as_lines_or_as_one_list(tmp_path: Path) -> None:
    lines = write(tmp_path / "a.jsonl", '{"text": "a\\u00e9", "n": 1}\n\n{"text": "b"}\n')
    assert read_documents(lines) == ["aé", "b"]
    whole = write(tmp_path / "a.json", '\n [{"q": "a", "n": 1},\n {"q": "b"}]')
    assert read_documents(whole, column="q") == ["a", "b"]
    also_lines = write(tmp_path / "b.json", '{"q": "a"}\n{"q": "b"}\n')
    assert read_documents([whole, also_lines], column="q") == ["a", "b", "a", "b"]
    assert rows(lines) == [{"text": "aé", "n": 1}, {"text": "b"}]
    single = write(tmp_path / "c.json", '{"q":\n "a"}')  # one object over two lines
    assert read_documents(single) == ["a"]


def test_parquet_is_read_through_datasets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"text": ["a", "b"]}).to_parquet(str(tmp_path / "a.parquet"))
    assert read_documents(tmp_path / "a.parquet") == ["a", "b"]
    write(tmp_path / "b.parquet", b"no parquet at all")
    with pytest.raises(DataError, match=r"b\.parquet"):
        read_documents(tmp_path / "b.parquet")


def test_a_hub_data_set_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A local folder stands for the hub: the same loader reads both."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "set"
    folder.mkdir()
    write(folder / "train.csv", "text,label\none,1\ntwo,2\n")
    write(folder / "test.csv", "text,label\nthree,3\n")
    assert load_hub(str(folder)) == ["one", "two"]
    assert [row["text"] for _, row in dataset_rows(str(folder), "test")] == ["three"]
    with pytest.raises(DataError, match="row 1: no column 'body'; there are 'text', 'label'"):
        load_hub(str(folder), column="body")
    with pytest.raises(DataError, match=r"column 'label' holds . .int., expected text"):
        load_hub(str(folder), column="label")
    with pytest.raises(DataError, match="cannot read split 'none'"):
        list(dataset_rows(str(folder), "none"))
    with pytest.raises(DataError, match="cannot read split 'train'"):
        load_hub("no-such-person/no-such-set")


def test_text_csv_and_json_need_no_datasets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)  # importing it now fails
    assert read_documents(write(tmp_path / "a.txt", "a")) == ["a"]
    assert read_documents(write(tmp_path / "a.csv", "text\na\n")) == ["a"]
    assert read_documents(write(tmp_path / "a.json", '{"text": "a"}')) == ["a"]
    with pytest.raises(DataError, match="pip install datasets"):
        load_hub("someone/something")


BAD = [
    # name, content, arguments, message
    ("a.txt", b"", {}, "is empty"),
    ("a.txt", b" \n\n\t\n", {}, "no document with text"),
    ("a.txt", b"\xef\xbb\xbf", {}, "no document with text"),
    ("a.txt", b"good\nbad \xff\n", {}, "line 2, byte 5: 0xff is not utf-8"),
    ("a.txt", b"caf\xe9", {}, "line 1, byte 4: 0xe9 is not utf-8"),
    ("a.txt", b"a\nb\0c\n", {}, "line 2, byte 2: NUL"),
    ("a.txt", "text".encode("utf-16"), {}, "UTF-16; convert"),
    ("a.txt", b"a", {"column": "x"}, "column='x' is for tables"),
    ("a.pdf", b"a", {}, "must end in one of .txt"),
    ("a.csv", b"", {}, "is empty"),
    ("a.csv", b"text,label\n", {}, "no document with text"),
    ("a.csv", b"text,label\na,1\nb\n", {}, "line 3: 1 fields, the header has 2"),
    ("a.csv", b'text,label\n"a\nb",1\nc,1,2\n', {}, "line 4: 3 fields, the header has 2"),
    ("a.csv", b'text,label\n"a\nb,1\n', {}, "line 2: unexpected end of data"),
    ("a.csv", b'text,label\n"a"b,1\n', {}, "line 2: ',' expected after"),
    ("a.csv", b"text,text\na,1\n", {}, "line 1: column 'text' is there twice"),
    ("a.csv", b"x,y\na,1\n", {}, "name the column with the text: one of 'x', 'y'"),
    ("a.csv", b"x,y\na,1\n", {"column": "z"}, "line 2: no column 'z'; there are 'x', 'y'"),
    ("a.csv", b"text,y\na,1\n\xff,1\n", {}, "line 3, byte 1: 0xff is not utf-8"),
    ("a.jsonl", b'{"text": "a"}\n{"text": \n', {}, r"line 2, column \d+: Expecting value"),
    ("a.jsonl", b'{"text": "a"}\n["a"]\n', {}, r"line 2: expected an object, got \['a'\] .list"),
    ("a.jsonl", b'{"text": "a"}\n[]\n', {}, r"line 2: expected an object, got \[\] .list"),
    ("a.jsonl", b'{"text": "a"}\n{"text": null}\n', {}, "line 2: column 'text' holds nothing"),
    ("a.jsonl", b'{"text": 3}\n', {}, "line 1: column 'text' holds 3 .int., expected text"),
    ("a.jsonl", b'{"text": "a"}\n{"x": "b"}\n', {}, "line 2: no column 'text'; there are 'x'"),
    ("a.jsonl", b'{"text": "\\ud800"}\n', {}, "line 1: .* surrogates not allowed"),
    ("a.jsonl", b'{"text": ' + b"[" * 100_000, {}, "line 1: maximum recursion"),
    ("a.jsonl", b'{"text": "a", "n": ' + b"9" * 5000 + b"}", {}, "line 1: Exceeds the limit"),
    ("a.json", b'[{"text": "a"},\n {"text": }]', {}, "line 2, column 11: Expecting value"),
    ("a.json", b'[{"text": "a"}, 3]', {}, "item 2: expected an object, got 3 .int"),
    ("a.json", b"[]", {}, "no document with text"),
    ("a.json", b'[{"text": "a\xff"}]', {}, "line 1, byte 13: 0xff is not utf-8"),
]


@pytest.mark.parametrize(("name", "content", "options", "message"), BAD)
def test_bad_files_are_refused_with_file_and_place(
    tmp_path: Path, name: str, content: bytes, options: dict[str, str], message: str
) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(DataError, match=message) as caught:
        read_documents(path, **options)
    assert str(caught.value).startswith(str(path))


def test_missing_files_folders_and_unknown_settings_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "story.txt", "a")
    with pytest.raises(DataError, match=r"storx\.txt: no such file; did you mean 'story\.txt'"):
        read_documents(tmp_path / "storx.txt")
    with pytest.raises(DataError, match=r"none/a\.txt: no such file"):
        read_documents(tmp_path / "none" / "a.txt")
    with pytest.raises(DataError, match="a folder"):
        read_documents(tmp_path)
    with pytest.raises(DataError, match="at least one file"):
        read_documents([])
    for encoding in ("utf-9", "undefined", "hex"):
        with pytest.raises(ConfigError, match=f"that Python knows, got '{encoding}'"):
            read_documents(tmp_path / "story.txt", encoding=encoding)
    for share in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match="between 0 and 1"):
            split_documents(["a", "b"], share)
    with pytest.raises(DataError, match="at least 2 different documents, got 1"):
        split_documents(["a", "a "], 0.5)
    with pytest.raises(DataError, match="a text of 1 characters is too short"):
        split_text("a")


@pytest.mark.unchecked
def test_choices_that_are_none_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "story.txt", "a")
    with pytest.raises(ConfigError, match="document must be line, paragraph or file, got 'page'"):
        read_documents(path, document="page")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="errors must be strict or skip, got 'ignore'"):
        read_documents(path, errors="ignore")  # type: ignore[arg-type]


def test_broken_records_can_be_left_out_and_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'{"text": "a"}\n{\n\xff\n{"text": "b"}\n')
    with pytest.warns(UserWarning, match="left out 2 broken rows, the first: .*line 2"):
        assert read_documents(path, errors="skip") == ["a", "b"]
    path = write(tmp_path / "a.csv", b"text,n\na,1\nb\n\xff,1\nc,1\n")
    with pytest.warns(UserWarning, match="left out 2 broken rows, the first: .*line 3"):
        assert read_documents(path, errors="skip") == ["a", "c"]
    path = write(tmp_path / "b.csv", b"te\xff,n\na,1\nb,2\n")  # not a header, so no row has names
    with pytest.raises(DataError, match="line 2: the line before it cannot be read"):
        read_documents(path, errors="skip")
    path = write(tmp_path / "a.txt", b"a\n\xff\nb")
    with pytest.warns(UserWarning, match="left out 1 broken rows, the first: .*line 2, byte 1"):
        assert read_documents(path, errors="skip") == ["a", "b"]


def test_long_lines_and_fields_are_read(tmp_path: Path) -> None:
    long = "word " * 2_000_000
    assert read_documents(write(tmp_path / "a.txt", long)) == [long]
    assert read_documents(write(tmp_path / "a.csv", f"text\n{long}\n")) == [long]
    assert read_documents(write(tmp_path / "a.jsonl", json.dumps({"text": long}))) == [long]


def test_random_bytes_are_read_or_refused_by_every_reader(tmp_path: Path) -> None:
    draw = random.Random(0)
    seeds = [b'text,label\n"a ""b""",1\n', b'{"text": "a"}\n{"text": "b"}\n', b'[{"text": "a"}]']
    refused = Counter[str]()
    for n in range(1000):
        raw = bytearray(draw.choice(seeds) * draw.randrange(1, 4))
        for _ in range(draw.randrange(1, 6)):
            raw[draw.randrange(len(raw))] = draw.choice([draw.randrange(256), 10, 34, 0])
        suffix = (".txt", ".csv", ".tsv", ".jsonl", ".json")[n % 5]
        path = write(tmp_path / f"a{suffix}", bytes(raw))
        try:
            assert all(text.strip() for text in read_documents(path))
        except DataError:
            refused[suffix] += 1
    assert min(refused.values()) > 50


def test_the_split_has_no_overlap_and_keeps_duplicates_together() -> None:
    documents = [f"document number {n % 800}" + " " * (n % 3) for n in range(2000)]
    train, validation = split_documents(documents, 0.2, seed=1)
    assert sorted(train + validation) == sorted(documents)
    assert not {t.strip() for t in train} & {t.strip() for t in validation}
    assert 0.15 < len(validation) / len(documents) < 0.25
    assert split_documents(documents[::-1], 0.2, seed=1) == (train[::-1], validation[::-1])
    assert split_documents(documents, 0.2, seed=2)[1] != validation

    shuffled = documents[:]  # the control: a split of a shuffled list has duplicates on both sides
    random.Random(0).shuffle(shuffled)
    assert {t.strip() for t in shuffled[:1600]} & {t.strip() for t in shuffled[1600:]}


def test_a_document_never_changes_sides_when_others_are_added() -> None:
    documents = [f"document number {n}" for n in range(500)]
    _, few = split_documents(documents[:250])
    _, many = split_documents(documents)
    assert set(few) == set(many) & set(documents[:250])


def test_both_sides_of_a_tiny_split_have_a_document() -> None:
    for n in range(40):
        for share in (0.01, 0.5, 0.99):
            documents = [f"a {n}", f"b {n}", f"b {n} "]
            train, validation = split_documents(documents, share)
            assert train
            assert validation
            assert sorted(train + validation) == sorted(documents)


def test_continuous_text_is_cut_once() -> None:
    train, validation = split_text("0123456789" * 10, 0.1)
    assert train + validation == "0123456789" * 10
    assert len(validation) == 10


def test_real_files_are_read_as_the_standard_readers_read_them(shared_data: Path) -> None:
    text = (shared_data / "tinyshakespeare" / "input.txt").read_text(encoding="utf-8")
    assert read_documents(shared_data / "tinyshakespeare" / "input.txt", document="file") == [text]
    train, validation = split_text(text)
    assert (len(train), len(validation)) == (1_003_854, 111_540)  # as in nanoGPT
    with (shared_data / "sst2" / "train.csv").open(encoding="utf-8", newline="") as file:
        expected = [row["text"] for row in csv.DictReader(file)]
    assert read_documents(shared_data / "sst2" / "train.csv") == expected
    assert len(expected) == 6920
    assert len(rows(shared_data / "mrpc" / "train.tsv")) == 3576
    poems = read_documents(shared_data / "chinese_tang300" / "tang300.jsonl")
    assert len(poems) == 366
    assert len(read_documents(shared_data / "chinese_songci" / "valid.txt")) == 1000
    train_set, validation_set = split_documents(expected)
    assert not set(train_set) & set(validation_set)
    chapters = read_documents(shared_data / "gutenberg_en" / "moby_dick.txt", document="paragraph")
    assert len(chapters) > 2000


def test_datasets_and_our_reader_agree_on_a_real_csv(shared_data: Path) -> None:
    datasets = pytest.importorskip("datasets")
    path = shared_data / "trec6" / "test.csv"
    found = datasets.load_dataset("csv", data_files=str(path), split="train", streaming=True)
    assert [row["text"] for row in found] == read_documents(path)
