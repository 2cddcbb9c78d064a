"""Translation: a sentence of a story into Chinese, by the second grammar (`chinese.py`).

One sentence is one clause, so the combinations that this task holds out lie within a sentence:

- `unseen_name`: a sentence that names the hero, whose name is a held-out start and end;
- `unseen_template`: the clause and its first word (not a name, not a pronoun) are a held-out pair.

The word is one that has other places: it may stand in at least four clauses. So training shows the
clause with other words, and the word in other sentences, and never both together. A translator
that works word by word does not notice; one that has learnt whole phrases by heart does.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from llm_town.chinese import printed, translate
from llm_town.document import Document, Sentence, fillers, render, surfaces
from llm_town.grammar import Grammar, town
from llm_town.names import syllables
from llm_town.tasks.stories import (
    check_arguments,
    held_out,
    label_random,
    mean,
    stories,
)

NAMES = ("person", "village")
PLACES = 4  # clauses that a word can stand in, at least, before one of them is held out


@dataclass(frozen=True, slots=True)
class Example:
    """A sentence in English and in Chinese, and its derivation."""

    english: str
    chinese: str
    sentence: Sentence


class Link(NamedTuple):
    """A word of the English, with its names cut, and the Chinese that it became: two stretches."""

    english: tuple[int, int]
    chinese: tuple[int, int]


def template(sentence: Sentence, grammar: Grammar | None = None) -> tuple[str, str] | None:
    """The clause and its first word that is no name and no pronoun; None where there is none."""
    grammar = grammar or town()
    for slot, word in zip(grammar.clauses[sentence.clause].slots, sentence.fillers):
        if not slot.key and grammar.entries[word].kind not in NAMES:
            return sentence.clause, word
    return None


def held_out_template(sentence: Sentence) -> bool:
    """Whether training never shows this clause with this word, though it shows both."""
    grammar = town()
    found = template(sentence, grammar)
    return found is not None and _places(grammar)[found[1]] >= PLACES and held_out(found)


def examples(n: int, seed: int = 0, split: str = "train", shift: str = "none") -> Iterator[Example]:
    """Yield n sentences of different stories; the same seed gives the same on every machine.

    Stories that have no sentence of the wanted kind are passed over. Short sentences recur, so a
    sentence of one split may also stand in another; one with a held-out combination stands in no
    training set.
    """
    check_arguments(n, split, shift)
    choice = label_random("translation", seed).choice
    found = stories(seed, split, shift if shift == "unseen_name" else "none")
    while n > 0:
        candidates = _candidates(next(found), shift)
        if candidates:
            n -= 1
            sentence = choice(candidates)
            yield Example(render(sentence), translate(sentence), sentence)


def _candidates(story: Document, shift: str) -> list[Sentence]:
    return [
        sentence
        for sentence in story.derivation.sentences
        if held_out_template(sentence) == (shift == "unseen_template")
        and (shift != "unseen_name" or "hero" in fillers(sentence))
    ]


def cut_names(text: str, grammar: Grammar | None = None) -> str:
    """The text with spaces in each name: "Marna's friend sat." -> "Mar na 's friend sat."

    A name means nothing, it is only spelled; so its syllables are what can be translated.
    """
    grammar = grammar or town()
    tables = [grammar.tables[kind].index for kind in NAMES]

    def spelled(match: re.Match[str]) -> str:
        name, ending = match[1], match[2] or ""
        if not any(name in table for table in tables):
            return match[0]
        return " ".join([*syllables(name, grammar.lexicon), *filter(None, [ending])])

    return re.sub(r"\b([A-Z][a-z]+)('s)?", spelled, text)


def links(sentence: Sentence) -> list[Link]:
    """Which stretch of `cut_names(english)` became which stretch of the Chinese.

    Names go syllable by syllable, other words whole and without their article. Pronouns, measure
    words and what the clause itself says have no link.
    """
    grammar = town()
    words: dict[str, list[tuple[tuple[int, int], str]]] = {}
    place, clause = 0, grammar.clauses[sentence.clause]
    before = clause.english.split("%s")
    shown = surfaces(sentence, grammar)
    for slot, filler, surface, text in zip(clause.slots, sentence.fillers, shown, before):
        place += len(cut_names(text, grammar))
        surface = cut_names(surface, grammar)
        if not slot.key:
            words[slot.name] = _pieces(grammar, filler, surface, slot.form, place)
        place += len(surface)
    found, place = [], 0
    for name, form, text in printed(sentence, grammar):
        place += len(text)
        linked = words.get(name, []) if form in ("", "a") else []
        begin = place - sum(len(zh) for _, zh in linked)  # behind 一 and the measure word
        for english, zh in linked:
            found.append(Link(english, (begin, begin + len(zh))))
            begin += len(zh)
    return found


def _pieces(
    grammar: Grammar, lemma: str, surface: str, form: str, place: int
) -> list[tuple[tuple[int, int], str]]:
    """The stretches of a printed word, each with its Chinese."""
    entry = grammar.entries[lemma]
    if entry.kind not in NAMES:
        skipped = surface.find(" ") + 1 if form.rstrip("^") in ("a", "the") else 0
        return [((place + skipped, place + len(surface)), entry.zh)]
    found = []
    for syllable, zh in zip(syllables(lemma, grammar.lexicon), entry.zh, strict=True):
        found.append(((place, place + len(syllable)), zh))
        place += len(syllable) + 1
    return found


@cache
def _places(grammar: Grammar) -> Counter[str]:
    """In how many clauses each word can stand."""
    found: Counter[str] = Counter()
    for clause in grammar.clauses.values():
        words: set[str] = set()
        for slot in clause.slots:
            if not slot.key:
                kinds = (slot.kind,) if slot.kind else grammar.kinds_of[slot.name]
                words.update(e.lemma for kind in kinds for e in grammar.table(kind).entries)
        found.update(words)
    return found


def best_score(
    n: int = 2_000, seed: int = 0, split: str = "validation", shift: str = "none"
) -> float:
    """The best possible share of exact matches: the mean over n of max_y P(y | derivation).

    The Chinese follows from the English sentence alone, so it is 1.0. It is not asserted but
    reached: every sentence is parsed, and translated from what the parser found.
    """
    found = examples(n, seed, split, shift)
    return mean(float(translate(e.english) == e.chinese) for e in found)
