"""Labelled examples: texts with classes, pairs, tagged words, questions; Town's and your own.

`labelled_files.py` reads them from files. What a model sees of an example is its ids
(`objectives/labelled.py`); here everything is text, checked, with the place where it stood.
"""

from __future__ import annotations

import difflib
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any, Literal, TypeVar, get_args

from llm_course.data.splits import split_documents
from llm_course.errors import ConfigError, DataError, HeldOutError
from llm_town.tasks import entailment, entities, questions, sentiment

Task = Literal["classify", "tag", "qa", "pair"]
TASKS: tuple[str, ...] = get_args(Task)

SENTIMENTS = ("negative", "positive")
RELATIONS = ("entailed", "neutral", "contradicted")
MOST_CLASSES = 1000  # beyond that the column holds something else


@dataclass(frozen=True, slots=True)
class TextExample:
    """A text, or a pair of texts, and the name of its class."""

    text: str
    label: str | None = None
    pair: str | None = None
    place: str = field(default="", compare=False)  # the file and the line


@dataclass(frozen=True, slots=True)
class TaggedExample:
    """Words, and a BIO tag for each of them."""

    words: tuple[str, ...]
    tags: tuple[str, ...] | None = None
    place: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Answer:
    """An accepted answer: context[start : start + len(text)]."""

    text: str
    start: int


@dataclass(frozen=True, slots=True)
class QuestionExample:
    """A question, the text that answers it, and the accepted answers; the first one is learnt."""

    question: str
    context: str
    answers: tuple[Answer, ...] = ()
    place: str = field(default="", compare=False)


Example = TextExample | TaggedExample | QuestionExample
E = TypeVar("E", TextExample, TaggedExample, QuestionExample)

KINDS: dict[str, type] = {
    "classify": TextExample,
    "pair": TextExample,
    "tag": TaggedExample,
    "qa": QuestionExample,
}


def check_task(task: str) -> None:
    """Refuse a task that is none."""
    if task not in TASKS:
        near = difflib.get_close_matches(str(task), TASKS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"task must be one of {', '.join(TASKS)}, got {task!r}{hint}")


class HeldOut:
    """Examples that can be had once, after a score on the development set (the article's B6).

    Whoever looks at the test set twice has chosen something by it, and its score is too high. So
    this is enforced: `HeldOutError` the second time, and before there are development scores.
    """

    def __init__(self, examples: Sequence[Any]) -> None:
        self._examples = list(examples)
        self.opened = False

    def __len__(self) -> int:
        return len(self._examples)

    def open(self, dev_scores: Mapping[str, float] | None) -> list[Any]:
        """The examples, this one time."""
        if not dev_scores:
            raise HeldOutError(
                "the test set is for the end: compute the scores of the development set first "
                "(dev_scores)"
            )
        if self.opened:
            raise HeldOutError(
                "the test set was opened before: its score is known, and a second one would be a "
                "choice made by the test set. Choose by the development set, or prepare a new run"
            )
        self.opened = True
        return self._examples


@dataclass(frozen=True)
class Splits:
    """Examples to learn from, to choose by, and to report on; a shared HeldOut opens once in all.

    `test` may be a list: then each run that is prepared from these splits may open it once.
    """

    train: Sequence[Any]
    dev: Sequence[Any]
    test: Sequence[Any] | HeldOut = ()


# Town


def town_examples(
    task: str, n: int, seed: int = 0, split: str = "train", shift: str = "none"
) -> list[Any]:
    """Examples of Town: sentiment (classify), entities (tag), questions (qa), entailment (pair)."""
    check_task(task)
    made: dict[str, Any] = {
        "classify": _sentiments,
        "pair": _pairs,
        "tag": _tagged,
        "qa": _questions,
    }
    return list(made[task](n, seed, split, shift))


def _sentiments(*given: Any) -> list[TextExample]:
    return [TextExample(e.text, SENTIMENTS[e.label]) for e in sentiment.examples(*given)]


def _pairs(*given: Any) -> list[TextExample]:
    found = entailment.examples(*given)
    return [TextExample(e.premise, RELATIONS[e.label], e.hypothesis) for e in found]


def _tagged(*given: Any) -> list[TaggedExample]:
    return [TaggedExample(e.tokens, e.tags) for e in entities.examples(*given)]


def _questions(*given: Any) -> list[QuestionExample]:
    return [
        QuestionExample(e.question, e.context, (Answer(e.answer, e.start),))
        for e in questions.examples(*given)
    ]


def town_splits(
    task: str, n_train: int = 2000, n_held_out: int = 500, seed: int = 0, shift: str = "none"
) -> Splits:
    """Training, development and test examples of Town; `shift` is that of the test set.

    Only the training examples depend on the seed: what is reported is the same for all of them.
    """
    return Splits(
        town_examples(task, n_train, seed, "train"),
        town_examples(task, n_held_out, 0, "validation"),
        town_examples(task, n_held_out, 0, "test", shift),
    )


# Checks


def content(example: Any) -> str:
    """What a model reads of an example, with white space made alike: equal ones are duplicates."""
    if isinstance(example, TextExample):
        parts = (example.text, example.pair or "")
    elif isinstance(example, TaggedExample):
        parts = (" ".join(example.words), "")
    else:
        parts = (example.question, example.context)
    return "\n".join(" ".join(part.split()) for part in parts)


def split_off(examples: Sequence[E], share: float = 0.1, seed: int = 0) -> tuple[list[E], list[E]]:
    """Training and development examples, by a hash of the text: equal texts are on one side.

    Questions go with their context, so no text that is learnt from is asked about. A label that
    would be in the second part alone stays in the first. `DataError` where nothing is left to
    split off.
    """
    keys = [_key(example) for example in examples]
    if len(set(keys)) < 2:
        raise DataError(_too_few(len(examples), len(set(keys))))
    kept = set(split_documents(keys, share, seed)[0])
    known = {label for e, key in zip(examples, keys) if key in kept for label in _labels_in(e)}
    kept |= {key for e, key in zip(examples, keys) if not _labels_in(e) <= known}
    first = [e for e, key in zip(examples, keys) if key in kept]
    second = [e for e, key in zip(examples, keys) if key not in kept]
    if not second:
        raise DataError(_too_few(len(examples), len(set(keys))))
    return first, second


def _too_few(n: int, different: int) -> str:
    return (
        f"no development set can be split off: {n} examples, {different} of them different, are "
        "too few, since training needs one of each label; give development files (--dev-files)"
    )


def _labels_in(example: Any) -> set[str]:
    """The class of a text, the types of entities of tagged words."""
    if isinstance(example, TextExample):
        return {str(example.label)}
    if isinstance(example, TaggedExample):
        return {tag[2:] for tag in example.tags or () if tag != "O"}
    return set()


def _key(example: Any) -> str:
    return example.context if isinstance(example, QuestionExample) else content(example)


def labels_of(task: str, training: Sequence[Any]) -> tuple[str, ...]:
    """The class names of a training set in a fixed order; none for qa.

    Classes that are whole numbers come in their order, others alphabetically. For tags: O, then
    B- and I- of each type. `DataError`: one class only, or as many classes as examples.
    """
    check_task(task)
    if not training:
        raise DataError("training needs at least one example, got none")
    if task == "qa":
        return ()
    if task == "tag":
        kinds = sorted({tag[2:] for e in training for tag in e.tags or () if tag != "O"})
        if not kinds:
            raise DataError(f"the {len(training)} training examples have no entity: all tags are O")
        return ("O", *(f"{mark}-{kind}" for kind in kinds for mark in "BI"))
    counts = Counter(e.label for e in training)
    if len(counts) < 2:
        raise DataError(
            f"training needs at least 2 classes, all {len(training)} examples have the label "
            f"{next(iter(counts))!r}"
        )
    if len(counts) > MOST_CLASSES or (len(training) > 20 and 2 * len(counts) > len(training)):
        shown = ", ".join(map(repr, list(counts)[:3]))
        raise DataError(
            f"the label column has {len(counts)} different values in {len(training)} examples "
            f"({shown}, ...): these are no classes"
        )
    if all(re.fullmatch(r"-?\d{1,9}", str(label)) for label in counts):
        return tuple(sorted(map(str, counts), key=lambda label: (int(label), label)))
    return tuple(sorted(map(str, counts)))


def check_splits(task: str, splits: Splits) -> tuple[str, ...]:
    """The class names, once every split is usable; a text in training and elsewhere is a warning.

    `DataError` names the file and line of a label that training does not have, and of an example
    of the wrong kind or without a label.
    """
    check_task(task)
    parts = {"training": splits.train, "development": splits.dev, "test": _inside(splits.test)}
    if not splits.train or not splits.dev:
        empty = "training" if not splits.train else "development"
        raise DataError(f"the {empty} set has no examples")
    for name, examples in parts.items():
        for number, example in enumerate(examples):
            _check_example(task, example, example_place(name, number, example))
    labels = labels_of(task, splits.train)
    for name in ("development", "test"):
        for number, example in enumerate(parts[name]):
            _check_known(labels, example, example_place(name, number, example))
        _warn_of_duplicates(splits.train, parts[name], name)
    return labels


def _inside(test: Sequence[Any] | HeldOut) -> Sequence[Any]:
    """For checks of the form only: nothing is scored with it."""
    return test._examples if isinstance(test, HeldOut) else test


def held_out_hash(splits: Splits) -> str:
    """SHA-256 of the development and test examples, wherever their files lie."""
    parts = (splits.dev, _inside(splits.test))
    examples = [[replace(e, place="") for e in part] for part in parts]
    return sha256(repr(examples).encode()).hexdigest()


def example_place(name: str, number: int, example: Any) -> str:
    """Where an example stands: its file and line, or its number."""
    return getattr(example, "place", "") or f"{name} example {number}"


def _check_example(task: str, example: Any, place: str) -> None:
    unlabelled = True
    if not isinstance(example, KINDS[task]):
        raise DataError(
            f"{place}: the task {task!r} needs a {KINDS[task].__name__}, "
            f"got {type(example).__name__}"
        )
    if isinstance(example, TextExample):
        if (example.pair is None) != (task == "classify"):
            raise DataError(
                f"{place}: {'a pair of texts' if task == 'pair' else 'one text'} wanted"
            )
        check_not_blank(place, text=example.text, pair=example.pair)
        unlabelled = example.label is None
    elif isinstance(example, TaggedExample):
        unlabelled = example.tags is None
        check_tags(place, example.words, example.tags)
    elif isinstance(example, QuestionExample):
        unlabelled = not example.answers
        check_not_blank(place, question=example.question, context=example.context)
        for answer in example.answers:
            check_answer(place, example.context, answer)
    if unlabelled:
        raise DataError(f"{place}: no {'answer' if task == 'qa' else 'label'}")


def check_not_blank(place: str, **texts: str | None) -> None:
    """Refuse a text of white space alone."""
    for name, text in texts.items():
        if text is not None and not text.strip():
            raise DataError(f"{place}: the {name} is empty")


def check_tags(place: str, words: Sequence[Any], tags: Sequence[Any] | None) -> None:
    """Refuse words that are none, other numbers of words and tags, and what is no BIO tag."""
    if not words:
        raise DataError(f"{place}: no words")
    for number, word in enumerate(words, 1):
        if not isinstance(word, str) or not word.strip():
            raise DataError(f"{place}: word {number} is {word!r}, expected text")
    if tags is None:
        return
    if len(tags) != len(words):
        raise DataError(f"{place}: {len(words)} words but {len(tags)} tags")
    for number, tag in enumerate(tags, 1):
        if not isinstance(tag, str) or not re.fullmatch(r"O|[BI]-\S.*", tag):
            raise DataError(
                f"{place}: tag {number}, of {words[number - 1]!r:.40}, must be O, B-TYPE or "
                f"I-TYPE, got {tag!r:.40}"
            )


def check_answer(place: str, context: str, answer: Answer) -> None:
    """Refuse an answer that is not in its context where it says."""
    text, start = answer.text, answer.start
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{place}: the answer is {text!r}, expected text")
    if start < 0 or context[start : start + len(text)] != text:
        found = context.find(text)
        there = f"{context[max(start, 0) : max(start, 0) + len(text)]!r:.60} stands there"
        hint = f"it begins at {found}" if found >= 0 else "it is nowhere in it"
        raise DataError(
            f"{place}: the answer {text!r:.60} does not begin at character {start} of its context: "
            f"{there}, {hint}"
        )


def _check_known(labels: Sequence[str], example: Any, place: str) -> None:
    if isinstance(example, QuestionExample):
        return
    found = [str(example.label)] if isinstance(example, TextExample) else example.tags
    for label in found:
        if label not in labels:
            near = difflib.get_close_matches(label, labels, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            shown = ", ".join(map(repr, labels[:20])) + (", ..." if len(labels) > 20 else "")
            raise DataError(
                f"{place}: the label {label!r:.60} is not in the training data, which have "
                f"{shown}{hint}"
            )


def _warn_of_duplicates(training: Sequence[Any], others: Sequence[Any], name: str) -> None:
    known = set(map(content, training))
    again = [e for e in others if content(e) in known]
    if again:
        place = again[0].place
        warnings.warn(
            f"{len(again)} of {len(others)} {name} examples are in the training data too"
            f"{f', the first at {place}' if place else ''}: the {name} score is too high",
            stacklevel=4,
        )
