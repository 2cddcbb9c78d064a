"""Translation: a sentence of a story into Chinese, by the second grammar (`chinese.py`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from llm_course.corpus.town.chinese import translate
from llm_course.corpus.town.document import Document, Sentence, fillers, render
from llm_course.corpus.town.tasks.stories import check_arguments, label_random, mean, stories
from llm_course.errors import DataError


@dataclass(frozen=True, slots=True)
class Example:
    """A sentence in English and in Chinese."""

    english: str
    chinese: str


def examples(n: int, seed: int = 0, split: str = "train", shift: str = "none") -> Iterator[Example]:
    """Yield n sentences, one of each story; the same seed gives the same on every machine.

    Under the shift unseen_name it is a sentence that names the hero. There is no unseen_template:
    one sentence is one clause, and all clauses are seen. Short sentences recur, so a sentence of
    one split may also stand in another.
    """
    check_arguments(n, split, shift)
    if shift == "unseen_template":
        raise DataError(
            "shift must be 'none' or 'unseen_name' for translation, got 'unseen_template': "
            "one sentence is one clause, and all clauses are seen"
        )
    choice = label_random("translation", seed).choice
    for story in islice(stories(seed, split, shift), n):
        sentence = choice(_candidates(story, shift))
        yield Example(render(sentence), translate(sentence))


def _candidates(story: Document, shift: str) -> list[Sentence]:
    sentences = story.derivation.sentences
    return [s for s in sentences if shift == "none" or "hero" in fillers(s)]


def best_score(
    n: int = 2_000, seed: int = 0, split: str = "validation", shift: str = "none"
) -> float:
    """The best possible share of exact matches: the mean over n of max_y P(y | derivation).

    The Chinese follows from the English sentence alone, so it is 1.0. It is not asserted but
    reached: every sentence is parsed, and translated from what the parser found.
    """
    found = examples(n, seed, split, shift)
    return mean(float(translate(e.english) == e.chinese) for e in found)
