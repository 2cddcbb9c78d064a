"""What a story has drawn, where it says so, and short sentences filled in from it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from llm_town.document import Derivation, Document, render, surfaces
from llm_town.grammar import town
from llm_town.lexicon import Table

SLOT = re.compile(r"\{(\w+)(?:\.(\w+\^?))?\}")


class Drawn(NamedTuple):
    """A word that a story has drawn, with the table of what could have stood there."""

    lemma: str
    table: Table


class Mention(NamedTuple):
    """The stretch text[start:end] where a story first says the word of a slot."""

    name: str
    lemma: str
    start: int
    end: int


def drawn(derivation: Derivation) -> dict[str, Drawn]:
    """The names of the slots with the words drawn for them; the first word, where there are two."""
    grammar = town()
    found: dict[str, Drawn] = {}
    for sentence in derivation.sentences:
        for slot, word in zip(grammar.clauses[sentence.clause].slots, sentence.fillers):
            if slot.table is not None:
                found.setdefault(slot.name, Drawn(word, slot.table))
    return found


def mentions(document: Document) -> Iterator[Mention]:
    """Where each drawn word stands, in the order of the text and without its article."""
    grammar = town()
    offset = 0
    for sentence in document.derivation.sentences:
        clause = grammar.clauses[sentence.clause]
        place = offset
        slots = zip(clause.slots, sentence.fillers, surfaces(sentence, grammar))
        for (slot, lemma, word), before in zip(slots, clause.english.split("%s")):
            place += len(before)
            # "the" prints no article before a mass noun.
            skipped = word.find(" ") + 1 if slot.form.rstrip("^") in ("a", "the") else 0
            if slot.table is not None:
                yield Mention(slot.name, lemma, place + skipped, place + len(word))
            place += len(word)
        offset += len(render(sentence, grammar)) + 1  # the space between sentences


def fill(pattern: str, words: Mapping[str, str]) -> str:
    """A pattern with its slots filled: "{hero} lost {thing.a}." -> "Mara lost a ring."."""
    entries = town().entries
    return SLOT.sub(lambda match: entries[words[match[1]]].forms[match[2] or ""], pattern)
