"""The second grammar: every clause of Town has a Chinese pattern beside its English one.

A Chinese slot `{x}` prints the word's Chinese, `{x.m}` its measure word, `{x.a}` both after 一
(一把水壶), or 一些 before a mass noun; `{x.she}` and `{x.him}` print 她 or 他, `{x.her}` 她的 or
他的. Names are spelled with the fixed characters of their syllables.
"""

from __future__ import annotations

import re

from llm_town.document import Sentence
from llm_town.errors import DataError
from llm_town.grammar import Grammar, town
from llm_town.lexicon import PRONOUNS, Entry

SLOT = re.compile(r"\{(\w+)(?:\.(\w+))?\}")
THIRD_PERSON = {"she": "她", "he": "他"}


def translate(sentence: Sentence | str, grammar: Grammar | None = None) -> str:
    """The Chinese of one sentence, given as its derivation or as English text.

    Raises ParseError where a text is not a sentence of Town.
    """
    grammar = grammar or town()
    if isinstance(sentence, str):
        from llm_town.parse import parse_sentence

        sentence = parse_sentence(sentence, grammar)
    return "".join(piece for _, _, piece in printed(sentence, grammar))


def printed(sentence: Sentence, grammar: Grammar | None = None) -> list[tuple[str, str, str]]:
    """The Chinese in pieces: (name, form, text) of a slot, or ("", "", text) of the clause."""
    grammar = grammar or town()
    clause = grammar.clauses[sentence.clause]
    words: dict[str, Entry | str] = {}
    for slot, filler in zip(clause.slots, sentence.fillers, strict=True):
        if slot.key:
            words.setdefault(slot.name, filler)
        else:
            words[slot.name] = grammar.entries[filler]
    parts = [*SLOT.split(clause.chinese), "", ""]  # text, name, form, text, name, form, ..., text
    found = []
    for text, name, form in zip(parts[0::3], parts[1::3], parts[2::3]):
        found.append(("", "", text))
        if name:
            found.append((name, form or "", _chinese(words[name], form or "")))
    return found


def _chinese(word: Entry | str, form: str) -> str:
    if form in PRONOUNS:
        pronoun = word if isinstance(word, str) else PRONOUNS["she"][word.gender]
        return THIRD_PERSON[pronoun] + ("的" if form == "her" else "")
    if isinstance(word, str):
        raise DataError(f"a pronoun has no Chinese form {form!r}")
    measure = word.measure or "个"
    if form == "a":
        return f"一些{word.zh}" if "mass" in word.marks else f"一{measure}{word.zh}"
    if form not in ("", "m"):
        raise DataError(f"Chinese words have no form {form!r}, asked of {word.lemma!r}")
    return measure if form == "m" else word.zh
