"""Labelled examples: Town's, what is none, splits, and a test set that opens once."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest

from llm_course.data.examples import (
    KINDS,
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

# Town


@pytest.mark.parametrize("task", KINDS)
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
    message = r"d.csv: line 9: the label 'godo' is not in .*'bad', 'good'.; did you mean 'good'"
    with pytest.raises(DataError, match=message):
        check_splits("classify", Splits(texts("good", "bad"), **parts))
    tagged = [TaggedExample(("x",), ("B-PER",))]
    # A type that training knows may have an I- that it does not know, but no type may be new.
    check_splits("tag", Splits(tagged, [TaggedExample(("y", "z"), ("B-PER", "I-PER"))]))
    with pytest.raises(DataError, match="the label 'LOC' is not in the training data"):
        check_splits("tag", Splits(tagged, [TaggedExample(("y",), ("B-LOC",))]))


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (TextExample("a", "x", "b"), "one text wanted"),
        (TextExample("a"), "development example 0: no label"),
        (TaggedExample(("a",), ("O",)), "needs a TextExample, got TaggedExample"),
    ],
)
def test_examples_made_in_python_are_checked_too(example: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_splits("classify", Splits(texts("x", "y"), [example]))


MARA = "Mara sold it."


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TextExample("\n", "x"), r"the text must be text that is not blank, got '\\n'"),
        (lambda: TextExample("a", "x", " "), "the second text must be text"),
        (lambda: TextExample("", place="a.csv: line 3"), "a.csv: line 3: the text must be"),
        (lambda: TextExample(3), "the text must be text that is not blank, got 3"),
        (lambda: TaggedExample(()), "0 words and 0 tags"),
        (lambda: TaggedExample(("a", "b"), ("O",)), "2 words and 1 tags"),
        (lambda: TaggedExample(("a", ""), ("O", "O")), "the word must be text"),
        (lambda: TaggedExample(("a",), ("PER",)), "the tag of 'a' must be O, B-TYPE or I-TYPE"),
        (lambda: TaggedExample(("a",), (None,)), "I-TYPE, got None"),
        (lambda: QuestionExample("who?", " "), "the context must be text"),
        (lambda: QuestionExample("who?", MARA, (Answer(" ", 4),)), "the answer must be text"),
        (lambda: QuestionExample("who?", MARA, (Answer("Mara", 1),)), "character 1 .* begins at 0"),
        (lambda: QuestionExample("who?", MARA, (Answer("Mara", True),)), "must begin at .*True"),
        (lambda: QuestionExample("who?", MARA, (Answer("Oren", 0),)), "is nowhere in it"),
    ],
)
def test_what_is_no_example_cannot_be_made(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        make()


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
