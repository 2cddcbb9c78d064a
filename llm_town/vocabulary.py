"""How many words Town has: stems, printed words and names."""

from __future__ import annotations

from dataclasses import dataclass

from llm_town.grammar import tokens, town
from llm_town.lexicon import PRONOUNS


@dataclass(frozen=True)
class Vocabulary:
    """Counts of the lexicon's stems, of the stems that stories use, and of what is printed."""

    stems: int
    stems_used: int
    words: frozenset[str]  # lower-case, as printed, without names
    names: int  # of people and villages together


def vocabulary() -> Vocabulary:
    """Count the words of the grammar, not of a sample."""
    grammar = town()
    words: set[str] = {"a", "an", "some", "the"}
    used: set[str] = set()
    named = {e.lemma for kind in ("person", "village") for e in grammar.table(kind).entries}
    for clause in grammar.clauses.values():
        words.update(token for token in tokens(clause.english) if token.isalpha())
        for slot in clause.slots:
            fillers = grammar.fillers(slot)
            form = slot.form.rstrip("^")
            if form in PRONOUNS:
                words.update(fillers)
                continue
            printed = {word: lemma for word, lemma in fillers.items() if lemma not in named}
            words.update(printed)
            used.update(printed.values())
    stems = [e for entries in grammar.lexicon.values() for e in entries if e.pos != "syllable"]
    return Vocabulary(len(stems), len(used), frozenset(words), len(named))
