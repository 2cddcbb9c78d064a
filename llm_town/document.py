"""A story with its derivation: the plot, and for each sentence its clause and the words in it.

The derivation keeps lemmas ("kettle"), names ("Mara") and, for pronouns, only she or he; the
surface follows from the clause. Spans, facts and the tone of a story are read off it, and every
labelled task of Town starts from them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from llm_town.grammar import FACTS, Grammar, town
from llm_town.lexicon import PRONOUNS

# A sentence ends at . ? or ! and perhaps a quotation mark, before a capital or a quotation mark.
BOUNDARY = re.compile(r'(?<=[.?!]) (?=[A-Z"])|(?<=[.?!]") (?=[A-Z"])')
ENTITY_TYPES = {
    "person": "PERSON",
    "village": "PLACE",
    "public": "PLACE",
    "nature": "PLACE",
    "shop": "PLACE",
    "job": "JOB",
    "event": "EVENT",
}
OTHER_THINGS = ("animal", "plant", "vehicle", "event")  # whose colour it is without a thing
GOOD = frozenset(("feel_good", "trait_good", "food_good", "thing_good"))
BAD = frozenset(("feel_bad", "trait_bad", "food_bad", "thing_bad"))


class Sentence(NamedTuple):
    """The clause of a sentence, by its id, and what fills the slots of the clause, in order."""

    clause: str
    fillers: tuple[str, ...]


class Derivation(NamedTuple):
    """A plot by its name and the sentences that tell it; hashable, and one-to-one with the text."""

    plot: str
    sentences: tuple[Sentence, ...]


class Span(NamedTuple):
    """A stretch text[start:end] of a document that names an entity."""

    start: int
    end: int
    type: str
    name: str  # the slot's name: hero, friend, home, job ...
    lemma: str


class Fact(NamedTuple):
    """What sentence number `sentence` says: (Mara, job, baker), (kettle, colour, red) ..."""

    sentence: int
    subject: str
    relation: str
    object: str


@dataclass(frozen=True, slots=True)
class Document:
    """A generated story: its text, its exact log-probability in nats and its derivation."""

    text: str
    log_prob: float
    derivation: Derivation

    @property
    def sentences(self) -> tuple[str, ...]:
        return tuple(split_sentences(self.text))

    @property
    def words(self) -> tuple[str, ...]:
        """The words as written, without punctuation."""
        return tuple(re.findall(r"[A-Za-z']+", self.text))


def split_sentences(text: str) -> list[str]:
    """The sentences of a text, which one space separates; quoted speech stays in its sentence."""
    return BOUNDARY.split(text)


def tokenize(text: str) -> list[str]:
    """Words and punctuation marks, the units of the n-gram baselines."""
    return re.findall(r"[A-Za-z']+|[^\sA-Za-z']", text)


def surfaces(sentence: Sentence, grammar: Grammar | None = None) -> tuple[str, ...]:
    """What each slot of a sentence prints, with its article where the clause gives it one."""
    grammar = grammar or town()
    entries, printed = grammar.entries, []
    for slot, filler in zip(grammar.clauses[sentence.clause].slots, sentence.fillers, strict=True):
        if slot.key:
            word = PRONOUNS[slot.form.rstrip("^")]["f" if filler == "she" else "m"]
            printed.append(word.capitalize() if slot.form.endswith("^") else word)
        else:
            printed.append(entries[filler].forms[slot.form])
    return tuple(printed)


def render(sentence: Sentence, grammar: Grammar | None = None) -> str:
    """The text of one sentence."""
    grammar = grammar or town()
    return grammar.clauses[sentence.clause].english % surfaces(sentence, grammar)


def fillers(sentence: Sentence, grammar: Grammar | None = None) -> dict[str, str]:
    """The names of the sentence's slots with their words: {"hero": "Mara", "job": "baker", ...}.

    A name that occurs only as a pronoun is left out.
    """
    slots = (grammar or town()).clauses[sentence.clause].slots
    return {s.name: word for s, word in zip(slots, sentence.fillers) if not s.key}


def spans(document: Document) -> list[Span]:
    """The entities of the text: persons, places, jobs and events, without their articles."""
    grammar = town()
    found, offset = [], 0
    for sentence in document.derivation.sentences:
        clause = grammar.clauses[sentence.clause]
        pieces = clause.english.split("%s")
        offset += len(pieces[0])
        slots = zip(clause.slots, sentence.fillers, surfaces(sentence, grammar))
        for (slot, filler, word), piece in zip(slots, pieces[1:]):
            entry = None if slot.key else grammar.entries[filler]
            if entry is not None and entry.kind in ENTITY_TYPES:
                start = offset + word.lower().rindex(entry.forms[""].lower())
                end = start + len(entry.lemma)
                found.append(Span(start, end, ENTITY_TYPES[entry.kind], slot.name, filler))
            offset += len(word) + len(piece)
        offset += 1  # the space between sentences
    return found


def facts(derivation: Derivation) -> list[Fact]:
    """What the story states, in its order: each newly drawn word that says something of another."""
    grammar = town()
    known: dict[str, str] = {}
    found = []
    for number, sentence in enumerate(derivation.sentences):
        slots = grammar.clauses[sentence.clause].slots
        known |= fillers(sentence, grammar)
        for slot, filler in zip(slots, sentence.fillers):
            if slot.table is not None and slot.name in FACTS:
                subject, relation = FACTS[slot.name]
                if subject == "thing" and "thing" not in known:
                    subject = next((name for name in OTHER_THINGS if name in known), subject)
                if subject in known:
                    found.append(Fact(number, known[subject], relation, filler))
    return found


def polarity(derivation: Derivation) -> tuple[int, int]:
    """How many words of good and of bad feeling, character, taste and quality the story has."""
    grammar = town()
    kinds = [
        grammar.entries[filler].kind
        for sentence in derivation.sentences
        for slot, filler in zip(grammar.clauses[sentence.clause].slots, sentence.fillers)
        if slot.table is not None
    ]
    return sum(kind in GOOD for kind in kinds), sum(kind in BAD for kind in kinds)
