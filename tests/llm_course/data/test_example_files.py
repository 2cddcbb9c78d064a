"""Labelled examples from files: every form that is read, and what is refused with its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llm_course.data.example_files import Columns, read_examples
from llm_course.data.examples import (
    Answer,
    QuestionExample,
    TaggedExample,
    TextExample,
    labels_of,
)
from llm_course.errors import ConfigError, DataError

CONTEXT = "Mara sold a ring to Oren."


def squad(**changes: Any) -> str:
    row = {
        "question": "Who sold it?",
        "context": CONTEXT,
        "answers": {"text": ["Mara"], "answer_start": [0]},
    }
    return json.dumps({**row, **changes}) + "\n"


def file(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_one_set_of_examples_is_read_alike_from_every_form(tmp_path: Path) -> None:
    rows = [('good, "really"', "1"), ("schlecht ☹", "0")]
    wanted = [TextExample(text, label) for text, label in rows]
    files = {
        "a.csv": 'text,label\n"good, ""really""",1\nschlecht ☹,0\n',
        "a.tsv": '\ufefflabel\ttext\n1\tgood, "really"\n0\tschlecht ☹\n',
        "a.jsonl": "".join(json.dumps({"text": t, "label": int(n)}) + "\n" for t, n in rows),
        "a.json": json.dumps([{"text": t, "label": n} for t, n in rows]),
        "b.csv": 'Review,Stars,text\n"good, ""really""",1,x\nschlecht ☹,0,y\n',
    }
    for name, content in files.items():
        columns = Columns(text="Review", label="Stars") if name == "b.csv" else None
        found = read_examples("classify", file(tmp_path, name, content), columns)
        assert found == wanted, name
    places = [e.place for e in read_examples("classify", tmp_path / "a.csv")]
    assert places == [f"{tmp_path / 'a.csv'}: line 2", f"{tmp_path / 'a.csv'}: line 3"]
    both = read_examples("classify", [tmp_path / "a.csv", tmp_path / "a.json"])
    assert both == wanted * 2
    assert read_examples("classify", tmp_path / "a.csv", labelled=False)[0].label is None


def test_another_encoding_is_read_when_it_is_named(tmp_path: Path) -> None:
    path = file(tmp_path, "a.csv", "text,label\ncafé,1\n“à”,0\n".encode("cp1252"))
    with pytest.raises(DataError, match="line 2, byte 4: 0xe9 is not utf-8"):
        read_examples("classify", path)
    found = read_examples("classify", path, encoding="cp1252")
    assert [e.text for e in found] == ["café", "“à”"]
    tagged = file(tmp_path, "a.conll", "é O\n".encode("latin-1"))
    assert read_examples("tag", tagged, encoding="latin-1")[0].words == ("é",)


def test_labels_of_json_are_names_of_classes(tmp_path: Path) -> None:
    values = [1, "1", 1.0, True, "yes ", -2]
    lines = "".join(json.dumps({"text": "a", "label": v}) + "\n" for v in values)
    found = read_examples("classify", file(tmp_path, "a.jsonl", lines))
    assert [e.label for e in found] == ["1", "1", "1", "true", "yes", "-2"]


def test_pairs_and_tags_and_questions_are_read(tmp_path: Path) -> None:
    path = file(tmp_path, "p.csv", "sentence1,sentence2,label\nA b,C d,same\n")
    assert read_examples("pair", path) == [TextExample("A b", "same", "C d")]
    tagged = TaggedExample(("Mara", "won"), ("B-PER", "O"))
    path = file(tmp_path, "t.jsonl", '{"tokens": ["Mara", "won"], "ner_tags": ["B-PER", "O"]}\n')
    assert read_examples("tag", path) == [tagged]
    path = file(tmp_path, "t.csv", "words,tags\nMara won,B-PER O\n")
    assert read_examples("tag", path) == [tagged]
    conll = "-DOCSTART- -X- O\n\nMara NNP B-PER\nwon VBD O\n\n\nMara NNP B-PER\r\nwon VBD O"
    assert read_examples("tag", file(tmp_path, "t.conll", conll)) == [tagged, tagged]
    path = file(tmp_path, "w.conll", "Mara\nwon\n")
    assert read_examples("tag", path, labelled=False) == [TaggedExample(("Mara", "won"))]


def test_every_form_of_an_answer_is_one_example(tmp_path: Path) -> None:
    wanted = [QuestionExample("Who sold it?", CONTEXT, (Answer("Mara", 0),))]
    qa = {"question": "Who sold it?", "answers": [{"text": "Mara", "answer_start": 0}]}
    gone = {"question": "Who ate it?", "answers": [], "is_impossible": True}
    nested = {"data": [{"paragraphs": [{"context": CONTEXT, "qas": [gone, qa]}]}]}
    forms = {
        "a.jsonl": squad(),
        "b.jsonl": squad(answers=[{"text": "Mara", "answer_start": 0}]),
        "c.jsonl": squad(answers={"text": ["Mara"]}),
        "d.jsonl": squad(answers="Mara"),
        "e.csv": f"question,context,answer,answer_start\nWho sold it?,{CONTEXT},Mara,0\n",
        "f.csv": f"question,context,answer\nWho sold it?,{CONTEXT},Mara\n",
        "g.json": json.dumps([json.loads(squad())]),
    }
    for name, content in forms.items():
        assert read_examples("qa", file(tmp_path, name, content)) == wanted, name
    with pytest.warns(UserWarning, match="left out 1 questions without an answer"):
        found = read_examples("qa", file(tmp_path, "h.json", json.dumps(nested, indent=1)))
    assert found == wanted
    assert found[0].place.endswith("h.json: item 1, question 2")
    assert len(read_examples("qa", tmp_path / "h.json", labelled=False)) == 2


BAD_FILES = [
    ("ragged", "classify", "a.csv", "text,label\na,1\nb\n", r"a\.csv: line 3: 1 fields, the .* 2"),
    ("open quote", "classify", "a.csv", 'text,label\n"a,1\n', r"a\.csv: line 2"),
    ("empty file", "classify", "a.csv", "", r"a\.csv: is empty"),
    ("header only", "classify", "a.csv", "text,label\n", r"a\.csv: has no examples"),
    (
        "no column",
        "classify",
        "a.csv",
        "review,label\na,1\n",
        "'text' or 'sentence'; there are .*--text-column",
    ),
    ("the columns", "classify", "a.csv", "review,label\na,1\n", "there are 'review', 'label'"),
    ("no label", "classify", "a.csv", "text,stars\na,1\n", "no column 'label'; .*--label-column"),
    (
        "empty text",
        "classify",
        "a.csv",
        "text,label\n a,1\n  ,0\n",
        r"line 3: column 'text' holds '  ' .str., exp",
    ),
    (
        "empty label",
        "classify",
        "a.csv",
        "text,label\na,1\nb,\n",
        "line 3: the label .* is '', no class",
    ),
    ("null text", "classify", "a.jsonl", '{"text": null, "label": 1}', "'text' holds nothing"),
    ("a number", "classify", "a.jsonl", '{"text": 3, "label": 1}', r"holds 3 \(int\)"),
    (
        "a list",
        "classify",
        "a.jsonl",
        '{"text": "a", "label": [1]}',
        r"\(list\), expected the name",
    ),
    (
        "half",
        "classify",
        "a.jsonl",
        '{"text": "a", "label": 0.5}',
        "'label' is 0.5, no class",
    ),
    (
        "gone later",
        "classify",
        "a.jsonl",
        '{"text": "a", "label": 1}\n{"text": "a", "labels": 1}\n',
        r"line 2: no column 'label'; there are 'text', 'labels'",
    ),
    ("not json", "classify", "a.jsonl", '{"text": "a"\n', r"a\.jsonl: line 1, column"),
    ("binary", "classify", "a.csv", b"text,label\na\0,1\n", "line 2, byte 2: NUL"),
    ("latin-1", "classify", "a.csv", b"text,label\n\xe9,1\n", "line 2, byte 1: 0xe9 is not utf-8"),
    ("text file", "classify", "a.txt", "some text", "must end in one of .csv, "),
    ("CoNLL", "classify", "a.conll", "Mara O\n", "must end in one of .csv, "),
    (
        "no second",
        "pair",
        "a.csv",
        "text,label\na,1\n",
        "'hypothesis' or .*; there are .*--pair-column",
    ),
    ("one twice", "tag", "a.jsonl", '{"tokens": ["a", "b"], "tags": ["O"]}', "2 words and 1 tags"),
    ("tags", "tag", "a.jsonl", '{"tokens": ["a"], "tags": ["PER"]}', "B-TYPE or I-TYPE, got 'PER'"),
    ("numbers", "tag", "a.jsonl", '{"tokens": ["a"], "tags": [3]}', "of 'a' must be O.*got 3"),
    (
        "BIOES",
        "tag",
        "a.conll",
        "a O\nb S-PER\n",
        r"a\.conll: line 1: the tag of 'b' .*got 'S-PER'",
    ),
    ("no words", "tag", "a.jsonl", '{"tokens": [], "tags": []}', "line 1: 0 words"),
    (
        "blank word",
        "tag",
        "a.jsonl",
        '{"tokens": [" "], "tags": ["O"]}',
        "the word must be .* got ' '",
    ),
    ("no list", "tag", "a.jsonl", '{"tokens": 3, "tags": []}', "expected a list"),
    (
        "no tag",
        "tag",
        "a.conll",
        "Mara O\nwon\n",
        "line 1: the tag of 'won' must be O, B-TYPE or I-TYPE, got ''",
    ),
    ("empty CoNLL", "tag", "a.conll", "\n\n", r"a\.conll: has no examples"),
    (
        "moved",
        "qa",
        "a.jsonl",
        squad() + squad(answers={"text": ["Oren"], "answer_start": [3]}),
        "line 2: the answer 'Oren' must begin at character 3 .*, but it begins at 20",
    ),
    (
        "before the text",
        "qa",
        "a.jsonl",
        squad(answers={"text": ["."], "answer_start": [-1]}),
        "must begin at character -1 ",
    ),
    ("elsewhere", "qa", "a.jsonl", squad(answers="Tam"), "answer 'Tam' .* is nowhere in it"),
    (
        "starts",
        "qa",
        "a.jsonl",
        squad(answers={"text": ["Mara"], "answer_start": []}),
        "expected an answer or SQuAD's .* of equal lengths",
    ),
    (
        "start of text",
        "qa",
        "a.jsonl",
        squad(answers={"text": ["Mara"], "answer_start": ["0"]}),
        "must begin at character '0' of its context, but it begins at 0",
    ),
    (
        "csv start",
        "qa",
        "a.csv",
        "question,context,answer,answer_start\nq,c,c,x\n",
        "must begin at character 'x' ",
    ),
    (
        "blank answer",
        "qa",
        "a.jsonl",
        squad(answers={"text": [" "]}),
        "the answer must be .* got ' '",
    ),
    ("no form", "qa", "a.jsonl", squad(answers=[1]), "expected an answer or SQuAD's"),
    ("none at all", "qa", "a.jsonl", squad(answers=[]), "none of its 1 questions has an answer"),
    (
        "empty context",
        "qa",
        "a.jsonl",
        squad(context=" "),
        "column 'context' holds ' '",
    ),
    ("cut SQuAD", "qa", "a.json", '{"data":\n [{"paragraphs":', r"a\.json: line 2, column 17: Exp"),
    ("no letter", "qa", "a.json", '{"data":\n ["\\ud83d"]}', "surrogates not allowed"),
    (
        "JSON",
        "classify",
        "a.json",
        '{\n "rows": []}',
        "item 1: no column 'text' or .* there are 'rows'",
    ),
    ("CoNLL .txt", "tag", "a.txt", "Mara B-PER\n", r"must end in one of .* \.conll, \.bio, \.iob"),
    (
        "half SQuAD",
        "qa",
        "a.json",
        '{"data": [{"paragraph": []}]}',
        "after question 0: expected SQuAD's .*'paragraphs'",
    ),
]


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("task", "name", "content", "message"),
    [b[1:] for b in BAD_FILES],
    ids=[b[0] for b in BAD_FILES],
)
def test_a_bad_file_is_refused_with_its_place(
    task: str, name: str, content: str | bytes, message: str, tmp_path: Path
) -> None:
    path = file(tmp_path, name, content)
    with pytest.raises(DataError, match=message) as refused:
        read_examples(task, path)
    assert str(path) in str(refused.value)


def test_a_column_that_does_not_exist_is_answered_with_those_that_do(tmp_path: Path) -> None:
    path = file(tmp_path, "a.csv", "review,stars\na,1\n")
    message = r"line 2: no column 'reviews'; there are 'review', 'stars': .*; did you mean 'review'"
    with pytest.raises(DataError, match=message):
        read_examples("classify", path, Columns(text="reviews", label="stars"))
    with pytest.raises(DataError, match="one column for two things"):
        read_examples("classify", path, Columns(text="stars", label="stars"))
    with pytest.raises(ConfigError, match="'classify' has no second text, got the column 'stars'"):
        read_examples("classify", path, Columns(text="review", pair="stars"))


def test_files_that_are_not_there_are_refused(tmp_path: Path) -> None:
    file(tmp_path, "train.conll", "a O\n")
    with pytest.raises(DataError, match=r"no such file; did you mean 'train\.conll'\?"):
        read_examples("tag", tmp_path / "trayn.conll")
    with pytest.raises(DataError, match="no such file"):
        read_examples("classify", tmp_path / "none.csv")
    with pytest.raises(DataError, match="a folder"):
        read_examples("classify", tmp_path)
    with pytest.raises(DataError, match="at least one file"):
        read_examples("classify", [])


def test_real_files_are_read_whole(shared_data: Path) -> None:
    def read(task: str, name: str, columns: Columns | None = None) -> list[Any]:
        return read_examples(task, shared_data / name, columns)

    assert len(read("classify", "sst2/dev.csv")) == 872
    assert labels_of("classify", read("classify", "trec6/train.csv")) == tuple("012345")
    mrpc = Columns(text="#1 String", pair="#2 String", label="Quality")
    found = read("pair", "mrpc/train.tsv", mrpc)
    assert len(found) == 3576  # with quotes as quotes, rows would merge
    assert any('"' in e.text for e in found)
    assert labels_of("pair", found) == ("0", "1")
    assert labels_of("pair", read("pair", "sick/val.csv"))[1] == "ENTAILMENT"
    assert read("tag", "wnut17/dev.conll") == read("tag", "wnut17/dev.jsonl")
    assert len(read("qa", "squad_answerable/validation.jsonl")) == 803
    with pytest.warns(UserWarning, match="left out 3168 questions"):
        assert len(read("qa", "squad2_half_dev/dev-v2.0.json")) == 2107 + 803
    with pytest.raises(DataError, match="no classes"):
        labels_of("pair", read("pair", "sick/val.csv", Columns(label="sentence_a", text="label")))
