"""Labelled examples: Town's, those of files, their checks, and a test set that opens once."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from llm_course.data.example_files import Columns, read_examples
from llm_course.data.examples import (
    TASKS,
    Answer,
    HeldOut,
    QuestionExample,
    Splits,
    TaggedExample,
    TextExample,
    check_splits,
    labels_of,
    split_off,
    town_examples,
    town_splits,
)
from llm_course.errors import ConfigError, DataError, HeldOutError
from llm_course.training.scores import entities

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


# Town


@pytest.mark.parametrize("task", TASKS)
def test_the_splits_of_town_are_usable_and_have_no_text_in_common(task: str) -> None:
    splits = town_splits(task, 60, 20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a duplicate would warn
        labels = check_splits(task, splits)
    assert len(splits.train) == 60
    assert len(splits.dev) == len(splits.test) == 20
    assert len(labels) == {"classify": 2, "pair": 3, "tag": 9, "qa": 0}[task]
    assert town_examples(task, 5, 1) == town_examples(task, 5, 1)
    assert town_examples(task, 5, 1) != town_examples(task, 5, 2)
    assert town_examples(task, 5, 0, "test", "unseen_name") != town_examples(task, 5, 0, "test")


def test_the_answers_of_town_stand_in_their_context_and_its_tags_are_entities() -> None:
    for example in town_examples("qa", 20):
        (answer,) = example.answers
        assert example.context[answer.start :].startswith(answer.text)
    for example in town_examples("tag", 20):
        assert entities(example.tags)


def test_a_task_that_is_none_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="classify, tag, qa, pair, got 'clasifie'; did you mean"):
        town_examples("clasifie", 1)
    with pytest.raises(DataError, match="shift must be 'none' for the split 'train'"):
        town_examples("qa", 1, 0, "train", "unseen_name")


# Files


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
    assert found[0].place.endswith("h.json: question 2")
    assert len(read_examples("qa", tmp_path / "h.json", labelled=False)) == 2


BAD_FILES = [
    ("ragged", "classify", "a.csv", "text,label\na,1\nb\n", r"a\.csv: line 3: 1 fields, the .* 2"),
    ("open quote", "classify", "a.csv", 'text,label\n"a,1\n', r"a\.csv: line 2"),
    ("empty file", "classify", "a.csv", "", r"a\.csv: is empty"),
    ("header only", "classify", "a.csv", "text,label\n", r"a\.csv: has no examples"),
    ("no column", "classify", "a.csv", "review,label\na,1\n", "'text' or 'sentence' for the text"),
    ("the columns", "classify", "a.csv", "review,label\na,1\n", "there are 'review', 'label'"),
    ("no label", "classify", "a.csv", "text,stars\na,1\n", "for the label; .*--label-column"),
    ("empty text", "classify", "a.csv", "text,label\n a,1\n  ,0\n", "line 3: .*'text' is empty"),
    ("empty label", "classify", "a.csv", "text,label\na,1\nb,\n", "line 3: .*'label' is empty"),
    ("null text", "classify", "a.jsonl", '{"text": null, "label": 1}', "'text' holds nothing"),
    ("a number", "classify", "a.jsonl", '{"text": 3, "label": 1}', r"holds 3 \(int\)"),
    (
        "a list",
        "classify",
        "a.jsonl",
        '{"text": "a", "label": [1]}',
        r"\(list\), expected the name",
    ),
    ("half", "classify", "a.jsonl", '{"text": "a", "label": 0.5}', r"0\.5 \(float\)"),
    (
        "gone later",
        "classify",
        "a.jsonl",
        '{"text": "a", "label": 1}\n{"text": "a", "labels": 1}\n',
        r"line 2: no column 'label'; there are 'text', 'labels'; did you mean 'labels'\?",
    ),
    ("not json", "classify", "a.jsonl", '{"text": "a"\n', r"a\.jsonl: line 1, column"),
    ("binary", "classify", "a.csv", b"text,label\na\0,1\n", "line 2, byte 2: NUL"),
    ("latin-1", "classify", "a.csv", b"text,label\n\xe9,1\n", "line 2, byte 1: 0xe9 is not utf-8"),
    ("text file", "classify", "a.txt", "some text", "a text file has no columns"),
    ("CoNLL", "classify", "a.conll", "Mara O\n", "is for the task 'tag', got 'classify'"),
    ("no second", "pair", "a.csv", "text,label\na,1\n", "'hypothesis' or .* for the second text"),
    ("one twice", "tag", "a.jsonl", '{"tokens": ["a", "b"], "tags": ["O"]}', "2 words but 1 tags"),
    ("tags", "tag", "a.jsonl", '{"tokens": ["a"], "tags": ["PER"]}', "B-TYPE or I-TYPE, got 'PER'"),
    ("numbers", "tag", "a.jsonl", '{"tokens": ["a"], "tags": [3]}', "of 'a', must be O.*got 3"),
    ("BIOES", "tag", "a.conll", "a O\nb S-PER\n", r"a\.conll: line 2: .*got 'S-PER'"),
    ("no words", "tag", "a.jsonl", '{"tokens": [], "tags": []}', "line 1: no words"),
    ("blank word", "tag", "a.jsonl", '{"tokens": [" "], "tags": ["O"]}', "word 1 is ' '"),
    ("no list", "tag", "a.jsonl", '{"tokens": 3, "tags": []}', "expected a list"),
    ("no tag", "tag", "a.conll", "Mara O\nwon\n", "line 2: expected a word and its tag, got 'won'"),
    ("empty CoNLL", "tag", "a.conll", "\n\n", r"a\.conll: has no examples"),
    (
        "moved",
        "qa",
        "a.jsonl",
        squad() + squad(answers={"text": ["Oren"], "answer_start": [3]}),
        "line 2: the answer 'Oren' does not begin at character 3.*'a so' stands.*begins at 20",
    ),
    (
        "before the text",
        "qa",
        "a.jsonl",
        squad(answers={"text": ["."], "answer_start": [-1]}),
        "does not begin at character -1",
    ),
    ("elsewhere", "qa", "a.jsonl", squad(answers="Tam"), "'Tam' is nowhere in its context"),
    (
        "starts",
        "qa",
        "a.jsonl",
        squad(answers={"text": ["Mara"], "answer_start": []}),
        "1 answers, but answer_start is",
    ),
    (
        "start of text",
        "qa",
        "a.jsonl",
        squad(answers={"text": ["Mara"], "answer_start": ["0"]}),
        "answer_start must be a whole number, got '0'",
    ),
    (
        "csv start",
        "qa",
        "a.csv",
        "question,context,answer,answer_start\nq,c,c,x\n",
        "whole number, got 'x'",
    ),
    ("blank answer", "qa", "a.jsonl", squad(answers={"text": [" "]}), "holds the answer ' '"),
    ("no form", "qa", "a.jsonl", squad(answers=[1]), "expected an answer or SQuAD's"),
    ("none at all", "qa", "a.jsonl", squad(answers=[]), "none of its 1 questions has an answer"),
    ("empty context", "qa", "a.jsonl", squad(context=" "), "'context' is empty"),
    ("cut SQuAD", "qa", "a.json", '{"data":\n [{"paragraphs":', r"a\.json: line 2, column 17: Exp"),
    ("no letter", "qa", "a.json", '{"data":\n ["\\ud83d"]}', "half of a surrogate pair"),
    ("key twice", "qa", "a.json", '{"data":\n [{"a": 1, "a": 2}]}', r"a\.json: key 'a' is there"),
    (
        "JSON",
        "classify",
        "a.json",
        '{\n "rows": []}',
        "line 1, .* is one list of objects, or an obj",
    ),
    ("CoNLL .txt", "tag", "a.txt", "Mara B-PER\n", r"a name that ends in \.conll, \.bio, \.iob"),
    ("half SQuAD", "qa", "a.json", '{"data": [{"paragraph": []}]}', "a list 'paragraphs'"),
]


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
    message = r"line 2: no column 'reviews'; there are 'review', 'stars'; did you mean 'review'\?"
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


# Splits and labels


def texts(*labels: str) -> list[TextExample]:
    return [TextExample(f"text {i} {label}", label) for i, label in enumerate(labels)]


def test_classes_come_in_one_order_whatever_the_order_of_the_examples() -> None:
    assert labels_of("classify", texts("b", "a", "b")) == ("a", "b")
    assert labels_of("classify", texts("10", "9", "-1")) == ("-1", "9", "10")
    assert labels_of("classify", texts("1", "01")) == labels_of("classify", texts("01", "1"))
    tags = [TaggedExample(("x",), ("B-PER",)), TaggedExample(("x",), ("I-LOC",))]
    assert labels_of("tag", tags) == ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")


def test_sets_that_teach_nothing_are_refused() -> None:
    with pytest.raises(DataError, match="at least 2 classes, all 3 examples have the label 'a'"):
        labels_of("classify", texts("a", "a", "a"))
    with pytest.raises(DataError, match="no entity: all tags are O"):
        labels_of("tag", [TaggedExample(("x",), ("O",))])
    with pytest.raises(DataError, match=r"30 different values in 30 examples.*no classes"):
        labels_of("classify", texts(*(str(i / 7) for i in range(30))))
    with pytest.raises(DataError, match="at least one example, got none"):
        labels_of("qa", [])
    with pytest.raises(DataError, match="the development set has no examples"):
        check_splits("classify", Splits(texts("a", "b"), []))


@pytest.mark.parametrize("name", ["dev", "test"])
def test_a_label_that_training_does_not_have_is_refused_with_its_place(name: str) -> None:
    parts = {"dev": [TextExample("one", "good")], "test": [TextExample("two", "good")]}
    parts[name] = [TextExample("new", "godo", place="d.csv: line 9")]
    message = "d.csv: line 9: the label 'godo' is not in .*'bad', 'good'; did you mean 'good'"
    with pytest.raises(DataError, match=message):
        check_splits("classify", Splits(texts("good", "bad"), **parts))
    tagged = [TaggedExample(("x",), ("B-PER",))]
    # A type that training knows may have an I- that it does not know, but no type may be new.
    check_splits("tag", Splits(tagged, [TaggedExample(("y", "z"), ("B-PER", "I-PER"))]))
    with pytest.raises(DataError, match="the label 'B-LOC' is not in the training data"):
        check_splits("tag", Splits(tagged, [TaggedExample(("y",), ("B-LOC",))]))


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (TextExample("a", "x", "b"), "one text wanted"),
        (TextExample("a"), "development example 0: no label"),
        (TextExample("\n", "x"), "the text is empty"),
        (TaggedExample(("a",), ("O",)), "needs a TextExample, got TaggedExample"),
    ],
)
def test_examples_made_in_python_are_checked_too(example: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_splits("classify", Splits(texts("x", "y"), [example]))


def test_texts_of_the_training_data_in_another_set_are_a_warning_with_their_number() -> None:
    training = texts("a", "b", "c")
    again = [TextExample("text  0\na", "b", place="t.csv: line 4"), TextExample("new", "a")]
    with pytest.warns(UserWarning, match=r"1 of 2 test examples .* first at t\.csv: line 4"):
        check_splits("classify", Splits(training, [again[1]], again))


def test_a_part_that_is_split_off_has_no_text_of_the_rest() -> None:
    examples = [TextExample(f"text {i % 40}", str(i % 3)) for i in range(200)]
    training, dev = split_off(examples, 0.2, seed=1)
    assert len(training) + len(dev) == 200
    assert 10 <= len(dev) <= 70
    assert not {e.text for e in training} & {e.text for e in dev}
    assert split_off(examples, 0.2, seed=1) == (training, dev)
    questions = [QuestionExample(f"q{i}", f"context {i % 7}") for i in range(70)]
    first, second = split_off(questions, 0.3)
    assert first
    assert second
    assert not {e.context for e in first} & {e.context for e in second}
    with pytest.raises(DataError, match=r"1 examples, 1 of them different.*--dev-files"):
        split_off(texts("a"))
    with pytest.raises(DataError, match="2 examples, 2 of them different"):
        split_off(texts("a", "b"))  # each label is needed in training
    few = [TextExample(f"text {i}", "rare" if i == 3 else "often") for i in range(12)]
    for seed in range(20):
        training, dev = split_off(few, 0.4, seed)
        assert "rare" in {e.label for e in training}
        assert len(training) + len(dev) == 12


@pytest.mark.covers("B6")
def test_held_out_examples_are_given_once_and_only_after_the_development_scores() -> None:
    held = HeldOut([1, 2])
    assert len(held) == 2
    for nothing in (None, {}):
        with pytest.raises(HeldOutError, match="development set first"):
            held.open(nothing)
    assert held.open({"accuracy": 0.5}) == [1, 2]
    with pytest.raises(HeldOutError, match="opened before"):
        held.open({"accuracy": 0.9})


# Real files


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
