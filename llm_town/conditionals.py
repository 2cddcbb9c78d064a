r"""The exact distribution of one hidden word of a story, given all its other words.

$$P(w_i \mid w_{/i}) = \frac{p(w_1 \dots w_i \dots w_n)}{\sum_v p(w_1 \dots v \dots w_n)}$$

Each word v that the grammar allows in the place of $w_i$ is put there, the story is read anew, and
its exact probability is known. Words that are not listed make a text that Town never writes. So
no model that sees the rest of the story can have a smaller mean of $-\log p$ over stories of Town.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain

from llm_town.document import (
    Derivation,
    Document,
    Sentence,
    render,
    split_sentences,
)
from llm_town.english import log_probability
from llm_town.errors import DataError
from llm_town.grammar import Clause, Grammar, town
from llm_town.parse import ParseError, clauses_around, plot_of

WORD = re.compile(r"[A-Za-z']+")


def word_spans(text: str) -> Iterator[tuple[int, int]]:
    """Where each word of a text begins and ends; "Mara's" is one word."""
    for match in WORD.finditer(text):
        yield match.span()


def conditional(document: Document, start: int, end: int) -> dict[str, float]:
    """P(word | all other words) for the word text[start:end], over all words as written.

    The probabilities sum to 1, and words of probability 0 are left out. As with the floor, the
    draw is that of the generator: which split a story falls into is not looked at.

    Raises:
        DataError: text[start:end] is not one whole word, or the text is not a story of Town.
    """
    grammar = town()
    number, before, after = _around(document.text, start, end)
    sentences = document.derivation.sentences
    log_p: dict[str, float] = {}
    later = sentences[number + 1 :]
    for word, sentence in _sentences_around(before, after, later, grammar):
        told = (*sentences[:number], sentence, *later)
        try:
            plot = plot_of(told, grammar)
        except ParseError:
            continue
        value = log_probability(Derivation(plot, told), grammar)
        if value > -math.inf:
            log_p[word] = value
    if document.text[start:end] not in log_p:
        raise DataError(f"no story of Town has this text: {document.text!r}")
    largest = max(log_p.values())
    weights = {word: math.exp(value - largest) for word, value in log_p.items()}
    total = math.fsum(weights.values())
    return {word: weight / total for word, weight in weights.items()}


def given(distribution: Mapping[str, float], allowed: set[str]) -> dict[str, float]:
    """The same distribution where it is also known that the word is an allowed one.

    A model of pieces that reads one [MASK] is told that the word is a single piece; this is what
    it can be compared to. `DataError` when no word of the distribution is allowed.
    """
    kept = {word: p for word, p in distribution.items() if word in allowed}
    total = math.fsum(kept.values())
    if not total:
        raise DataError(f"no word of the distribution is allowed, it has {len(distribution)} words")
    return {word: p / total for word, p in kept.items()}


def _sentences_around(
    before: str, after: str, later: tuple[Sentence, ...], grammar: Grammar
) -> Iterator[tuple[str, Sentence]]:
    """The sentences `before`, one word, `after`: the word as written, and the reading.

    A word that cannot be right, because the same or a later sentence recalls another one in its
    place, may be left out; all others are there, also those that are not true to the facts.
    """
    for clause, filled in clauses_around(before, after, grammar):
        choices: Iterable[str] = ("",)
        if None in filled:
            place = filled.index(None)
            told = _recalled(clause, place, filled, later, grammar)
            known = grammar.fillers(clause.slots[place]).values()
            choices = dict.fromkeys(known if told is None else {told} & set(known))
        for choice in choices:
            words = tuple(choice if word is None else word for word in filled)
            sentence = Sentence(clause.id, words)
            text = render(sentence, grammar)
            word = text[len(before) : len(text) - len(after)]
            if WORD.fullmatch(word) and text == f"{before}{word}{after}":
                yield word, sentence


def _recalled(
    clause: Clause,
    place: int,
    filled: tuple[str | None, ...],
    later: tuple[Sentence, ...],
    grammar: Grammar,
) -> str | None:
    """What the story recalls of a slot, before it binds the name anew; None if it never does."""
    slot = clause.slots[place]
    if slot.key:
        return None
    rest = zip(clause.slots[place + 1 :], filled[place + 1 :])
    for other, word in chain(
        rest, *(zip(grammar.clauses[s.clause].slots, s.fillers) for s in later)
    ):
        if other.name == slot.name and not other.key:
            return word if other.table is None else None
    return None


def _around(text: str, start: int, end: int) -> tuple[int, str, str]:
    """The number of the sentence that holds a word, and what stands before and after in it."""
    if (start, end) not in set(word_spans(text)):
        raise DataError(f"text[{start}:{end}] must be one whole word, got {text[start:end]!r}")
    offset = 0
    for number, sentence in enumerate(split_sentences(text)):
        if start < offset + len(sentence):
            return number, sentence[: start - offset], sentence[end - offset :]
        offset += len(sentence) + 1  # the space between sentences
    raise AssertionError("a word lies in a sentence")
