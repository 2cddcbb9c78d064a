"""Labelled examples: texts with classes, pairs, tagged words, questions; and sets of them.

`example_files.py` reads them from files. What a model sees of an example is its ids
(`batches/labelled.py`); here everything is text, checked when an example is made.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from reprlib import repr as short
from typing import Any

from llm_course.data.corpora import split_documents
from llm_course.errors import ConfigError, DataError, HeldOutError, did_you_mean
from llm_town.tasks import entailment, entities, questions, sentiment

SENTIMENTS = ("negative", "positive")
RELATIONS = ("entailed", "neutral", "contradicted")
MOST_CLASSES = 1000  # beyond that the column holds something else


@dataclass(frozen=True, slots=True)
class TextExample:
    """A text, or a pair of texts, and the name of its class."""

    text: str
    label: str | None = None
    pair: str | None = None
    place: str = field(default="", compare=False, repr=False)  # the file and the line

    def __post_init__(self) -> None:
        _check_text(self.place, "text", self.text)
        if self.pair is not None:
            _check_text(self.place, "second text", self.pair)


@dataclass(frozen=True, slots=True)
class TaggedExample:
    """Words, and a BIO tag for each of them."""

    words: tuple[str, ...]
    tags: tuple[str, ...] | None = None
    place: str = field(default="", compare=False, repr=False)

    def __post_init__(self) -> None:
        tags = ("O",) * len(self.words) if self.tags is None else self.tags
        if not self.words or len(tags) != len(self.words):
            raise _at(self.place, f"{len(self.words)} words and {len(tags)} tags")
        for word, tag in zip(self.words, tags):
            _check_text(self.place, "word", word)
            if not isinstance(tag, str) or not re.fullmatch(r"O|[BI]-\S.*", tag):
                wanted = f"the tag of {short(word)} must be O, B-TYPE or I-TYPE"
                raise _at(self.place, f"{wanted}, got {short(tag)}")


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
    place: str = field(default="", compare=False, repr=False)

    def __post_init__(self) -> None:
        _check_text(self.place, "question", self.question)
        _check_text(self.place, "context", self.context)
        for text, start in ((answer.text, answer.start) for answer in self.answers):
            _check_text(self.place, "answer", text)
            if type(start) is not int or start < 0 or not self.context.startswith(text, start):
                found = self.context.find(text)
                there = f"it begins at {found}" if found >= 0 else "it is nowhere in it"
                wanted = f"the answer {short(text)} must begin at character {short(start)}"
                raise _at(self.place, f"{wanted} of its context, but {there}")


def _check_text(place: str, name: str, text: Any) -> None:
    if not isinstance(text, str) or not text.strip():
        raise _at(place, f"the {name} must be text that is not blank, got {short(text)}")


def _at(place: str, what: str) -> DataError:
    return DataError(f"{place}: {what}" if place else what)


KINDS: dict[str, type] = {
    "classify": TextExample,
    "tag": TaggedExample,
    "qa": QuestionExample,
    "pair": TextExample,
}


def check_task(task: str) -> None:
    """Refuse a task that is none."""
    if task not in KINDS:
        near = did_you_mean(str(task), KINDS)
        raise ConfigError(f"task must be one of {', '.join(KINDS)}, got {task!r}{near}")


def check_kind(task: str, example: Any, place: str) -> None:
    """Refuse an example of another task."""
    if not isinstance(example, KINDS[task]):
        wanted, found = KINDS[task].__name__, type(example).__name__
        raise DataError(f"{place}: the task {task!r} needs a {wanted}, got {found}")


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


def town_examples(
    task: str, n: int, seed: int = 0, split: str = "train", shift: str = "none"
) -> list[Any]:
    """Examples of Town: sentiment (classify), entities (tag), questions (qa), entailment (pair)."""
    check_task(task)
    given: Any = (n, seed, split, shift)
    if task == "classify":
        return [TextExample(e.text, SENTIMENTS[e.label]) for e in sentiment.examples(*given)]
    if task == "pair":
        pairs = entailment.examples(*given)
        return [TextExample(e.premise, RELATIONS[e.label], e.hypothesis) for e in pairs]
    if task == "tag":
        return [TaggedExample(e.tokens, e.tags) for e in entities.examples(*given)]
    asked = questions.examples(*given)
    return [QuestionExample(e.question, e.context, (Answer(e.answer, e.start),)) for e in asked]


def town_splits(task: str, n_train: int = 2000, n_held_out: int = 500, seed: int = 0) -> Splits:
    """Training, development and test examples of Town.

    Only the training examples depend on the seed: what is reported is the same for all of them.
    """
    return Splits(
        town_examples(task, n_train, seed, "train"),
        town_examples(task, n_held_out, 0, "validation"),
        town_examples(task, n_held_out, 0, "test"),
    )


def content(example: Any) -> str:
    """What a model reads of an example, with white space made alike: equal ones are duplicates."""
    if isinstance(example, TaggedExample):
        return " ".join(example.words)
    if isinstance(example, TextExample):
        parts = (example.text, example.pair or "")
    else:
        parts = (example.question, example.context)
    return "\n".join(" ".join(part.split()) for part in parts)


def labels_in(example: Any) -> set[str]:
    """The class of a text, the types of entities of tagged words; a question has none."""
    if isinstance(example, TextExample):
        return {str(example.label)}
    return {tag[2:] for tag in getattr(example, "tags", None) or () if tag != "O"}


def split_off(
    examples: Sequence[Any], share: float = 0.1, seed: int = 0
) -> tuple[list[Any], list[Any]]:
    """Training and development examples, by a hash of the text: equal texts are on one side.

    Questions go with their context, so no text that is learnt from is asked about. A label that
    would be in the second part alone stays in the first. `DataError` where nothing is left to
    split off.
    """
    keys = [e.context if isinstance(e, QuestionExample) else content(e) for e in examples]
    different = len(set(keys))
    kept = set(keys)
    if different > 1:
        kept = set(split_documents(keys, share, seed)[0])
        known = {label for e, key in zip(examples, keys) if key in kept for label in labels_in(e)}
        kept |= {key for e, key in zip(examples, keys) if not labels_in(e) <= known}
    if len(kept) == different:
        raise DataError(
            f"no development set can be split off: {len(keys)} examples, {different} of them "
            "different, are too few, since training needs one of each label; give development "
            "files (--dev-files)"
        )
    first = [e for e, key in zip(examples, keys) if key in kept]
    return first, [e for e, key in zip(examples, keys) if key not in kept]


def labels_of(task: str, training: Sequence[Any]) -> tuple[str, ...]:
    """The class names of a training set in a fixed order; none for qa.

    Classes that are whole numbers come in their order, others alphabetically. For tags: O, then
    B- and I- of each type. `DataError`: one class only, or as many classes as examples.
    """
    check_task(task)
    n = len(training)
    counts = Counter(label for example in training for label in labels_in(example))
    shown = ", ".join(map(short, [*counts][:3]))
    if not n:
        raise DataError("training needs at least one example, got none")
    if task == "qa":
        return ()
    if task == "tag" and not counts:
        raise DataError(f"the {n} training examples have no entity: all tags are O")
    if task == "tag":
        return ("O", *(f"{mark}-{kind}" for kind in sorted(counts) for mark in "BI"))
    if len(counts) < 2:
        raise DataError(
            f"training needs at least 2 classes, all {n} examples have the label {shown}"
        )
    if len(counts) > MOST_CLASSES or (n > 20 and 2 * len(counts) > n):
        found = f"{len(counts)} different values in {n} examples ({shown}, ...)"
        raise DataError(f"the label column has {found}: these are no classes")
    whole = all(re.fullmatch(r"-?\d{1,9}", label) for label in counts)
    return tuple(sorted(counts, key=lambda label: (int(label) if whole else 0, label)))


def check_splits(task: str, splits: Splits) -> tuple[str, ...]:
    """The class names, once every split is usable; a text in training and elsewhere is a warning.

    `DataError` names the file and line of a label that training does not have, and of an example
    of the wrong kind or without a label.
    """
    check_task(task)
    parts = {"training": splits.train, "development": splits.dev, "test": _inside(splits.test)}
    for name, examples in parts.items():
        if not examples and name != "test":
            raise DataError(f"the {name} set has no examples")
        for number, example in enumerate(examples):
            _check_labelled(task, example, example_place(name, number, example))
    labels = labels_of(task, splits.train)
    known = set().union(*map(labels_in, splits.train))
    learnt = set(map(content, splits.train))
    for name in ("development", "test"):
        for number, example in enumerate(parts[name]):
            for new in labels_in(example) - known:
                place, near = example_place(name, number, example), did_you_mean(new, known)
                there = ", ".join(map(short, sorted(known)[:20]))
                raise DataError(
                    f"{place}: the label {short(new)} is not in the training data ({there}){near}"
                )
        if again := [e for e in parts[name] if content(e) in learnt]:
            warnings.warn(
                f"{len(again)} of {len(parts[name])} {name} examples are in the training data too, "
                f"the first at {again[0].place or short(content(again[0]))}: the {name} score is "
                "too high",
                stacklevel=3,
            )
    return labels


def _check_labelled(task: str, example: Any, place: str) -> None:
    check_kind(task, example, place)
    if isinstance(example, TextExample) and (example.pair is None) == (task == "pair"):
        raise DataError(f"{place}: {'a pair of texts' if task == 'pair' else 'one text'} wanted")
    role = {"tag": "tags", "qa": "answers"}.get(task, "label")
    if not getattr(example, role):
        raise DataError(f"{place}: no {role}")


def _inside(test: Sequence[Any] | HeldOut) -> Sequence[Any]:
    """For checks of the form only: nothing is scored with it."""
    return test._examples if isinstance(test, HeldOut) else test


def held_out_hash(splits: Splits) -> str:
    """SHA-256 of the development and test examples, wherever their files lie."""
    return sha256(repr([list(splits.dev), list(_inside(splits.test))]).encode()).hexdigest()


def example_place(name: str, number: int, example: Any) -> str:
    """Where an example stands: its file and line, or its number."""
    return getattr(example, "place", "") or f"{name} example {number}"
