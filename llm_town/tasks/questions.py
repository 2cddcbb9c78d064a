"""Questions: a question about a fact, answered by a stretch of the story."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from llm_town.document import Document
from llm_town.parse import parse
from llm_town.tasks.mentions import drawn, fill, mentions
from llm_town.tasks.stories import check_arguments, label_random, mean, stories

# (the slot that answers, the question, the plots in which it is asked; none: all plots).
QUESTIONS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("job", "What was the job of {hero}?", ()),
    ("home", "In or near which town did {hero} live?", ()),
    ("job2", "What was the job of {friend}?", ()),
    ("colour", "What colour was the {thing}?", ()),
    ("colour", "What colour was the {animal}?", ("animal",)),
    ("colour", "What colour was the {plant}?", ("garden",)),
    ("colour", "What colour was the {vehicle}?", ("journey",)),
    ("price", "How many coins did the {thing} cost?", ("bargain", "too_dear")),
    ("price", "How many coins did the repair cost?", ("repair",)),
    ("price", "How many coins did {hero} earn?", ("work",)),
    ("place", "Where did {hero} lose the {thing}?", ("found", "gone")),
    ("place", "Where was the {event}?", ("party", "rained_off")),
    ("feel", "How did {hero} feel in the end?", ("bargain", "too_dear", "repair", "bad_news")),
    ("friend", "Who sold the {thing}?", ("bargain",)),
    ("friend", "Who repaired the {thing}?", ("repair",)),
    ("friend", "Who found the {thing}?", ("found",)),
    ("friend", "Who wrote the letter?", ("good_news", "bad_news")),
    ("friend", "Whose was the {animal}?", ("animal",)),
    ("friend", "Who borrowed the {thing}?", ("loan",)),
    ("town2", "Where did {hero} travel to?", ("journey", "visit")),
)


@dataclass(frozen=True, slots=True)
class Example:
    """A question, a story, and the answer context[start : start + len(answer)]."""

    question: str
    context: str
    answer: str
    start: int


def askable(document: Document) -> list[Example]:
    """All questions that a story answers, no two of them alike."""
    words = {name: word.lemma for name, word in drawn(document.derivation).items()}
    places = {mention.name: mention for mention in reversed(list(mentions(document)))}
    found = []
    for slot, pattern, plots in QUESTIONS:
        if slot in words and (not plots or document.derivation.plot in plots):
            try:
                question = fill(pattern, words)
            except KeyError:  # it asks about something that this story does not have
                continue
            start, end = places[slot].start, places[slot].end
            found.append(Example(question, document.text, document.text[start:end], start))
    return found


def examples(n: int, seed: int = 0, split: str = "train", shift: str = "none") -> Iterator[Example]:
    """Yield n questions of a split, one a story; the same seed gives the same on every machine."""
    check_arguments(n, split, shift)
    choice = label_random("questions", seed).choice
    documents = stories(seed, split, shift)
    for _ in range(n):
        yield choice(askable(next(documents)))


def answer(question: str, context: str) -> tuple[str, int]:
    """The answer and its start, read from the story through the parser."""
    document = Document(context, 0.0, parse(context))
    return next((e.answer, e.start) for e in askable(document) if e.question == question)


def best_score(
    n: int = 2_000, seed: int = 0, split: str = "validation", shift: str = "none"
) -> float:
    """The best possible share of exact matches: the mean over n of max_y P(y | derivation).

    The answer and its place follow from the question and the derivation, so it is 1.0. It is not
    asserted but reached: every story is parsed, and the question answered from what was found.
    """
    found = examples(n, seed, split, shift)
    return mean(float(answer(e.question, e.context) == (e.answer, e.start)) for e in found)
