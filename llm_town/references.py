"""To whom a pronoun refers: where the story has named that person before."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from llm_town.document import Document, render, surfaces
from llm_town.grammar import town

Stretch = tuple[int, int]


class Reference(NamedTuple):
    """The pronoun text[start:end], and the stretches before it that name the same person."""

    start: int
    end: int
    name: str  # the slot: hero, friend, kin
    named: tuple[Stretch, ...]


def references(document: Document) -> Iterator[Reference]:
    """The pronouns of a story in their order; one that comes before its name is left out."""
    grammar = town()
    named: dict[str, list[Stretch]] = {}
    offset = 0
    for sentence in document.derivation.sentences:
        clause = grammar.clauses[sentence.clause]
        place = offset
        slots = zip(clause.slots, surfaces(sentence, grammar), clause.english.split("%s"))
        for slot, word, before in slots:
            place += len(before)
            stretch = (place, place + len(word))
            form = slot.form.rstrip("^")
            if slot.key:
                if earlier := named.get(slot.name):
                    yield Reference(*stretch, slot.name, tuple(earlier))
            else:
                start = place + (word.find(" ") + 1 if form in ("a", "the") else 0)
                end = stretch[1] - (2 if form == "s" else 0)  # without 's
                named.setdefault(slot.name, []).append((start, end))
            place += len(word)
        offset += len(render(sentence, grammar)) + 1  # the space between sentences
