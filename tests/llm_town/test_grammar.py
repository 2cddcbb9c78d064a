"""The grammar checks itself, and no sentence belongs to two clauses."""

from __future__ import annotations

import math
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

from llm_town import (
    Grammar,
    generate_documents,
    town,
)
from llm_town.errors import DataError
from llm_town.grammar import ARTICLES, CLAUSES_FILE, PLOTS, Clause, tokens
from llm_town.lexicon import (
    CLOSED_FILE,
    LEXICON_FILE,
    read_lexicon,
)


def changed_grammar(folder: Path, old: str, new: str) -> Grammar:
    text = CLAUSES_FILE.read_text(encoding="utf-8")
    assert old in text
    path = folder / "clauses.tsv"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    return Grammar(read_lexicon(LEXICON_FILE, CLOSED_FILE), path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("paid the {price} coins", "paid the {cost} coins", "{'cost'} not bound"),
        ("{+job2:job-job}", "{+job2:job-hobby}", "{'hobby'} not bound"),
        ("{+trait.a:trait_good}", "{+trait.a:trait_great}", "no class 'trait_great'"),
        ("{+hero:person}", "{+hero person}", "cannot read the slots"),
        ('buy\t"{price}', 'enjoy\t"{price}', "the clauses of beat 'buy' must stand together"),
        ("buy\t{hero}", "buy {hero}", "expected beat, English and Chinese"),
    ],
)
def test_a_bad_grammar_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        changed_grammar(tmp_path, old, new)


def test_plots_that_can_tell_the_same_story_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PLOTS, "copy", PLOTS["repair"])
    with pytest.raises(DataError, match="'repair' and 'copy' can tell the same story"):
        Grammar(read_lexicon(), CLAUSES_FILE)


def possible_words(clause: Clause, grammar: Grammar) -> list[list[frozenset[str]]]:
    """For each way to write a clause, the words that may stand at each place."""
    ways: list[list[frozenset[str]]] = [[]]
    slots = iter(clause.slots)
    for token in tokens(clause.english):
        if token != "%s":
            ways = [[*way, frozenset([token])] for way in ways]
            continue
        slot = next(slots)
        fill = frozenset(grammar.fillers(slot))
        if slot.form.rstrip("^") == "a":
            ways = [[*way, ARTICLES, fill] for way in ways]
        elif slot.form.rstrip("^") == "the":
            ways = [[*way, *more, fill] for way in ways for more in ([], [frozenset(["the"])])]
        else:
            ways = [[*way, fill] for way in ways]
    return ways


def test_no_sentence_belongs_to_two_clauses() -> None:
    grammar = town()
    ways = [(c.id, w) for c in grammar.clauses.values() for w in possible_words(c, grammar)]
    by_length: dict[int, list[tuple[str, list[frozenset[str]]]]] = {}
    for key, way in ways:
        by_length.setdefault(len(way), []).append((key, way))
    for group in by_length.values():
        for (one, a), (two, b) in combinations(group, 2):
            same = all(not x.isdisjoint(y) for x, y in zip(a, b))
            assert not same or one == two, (one, two)


def test_plots_come_as_often_as_they_should() -> None:
    grammar, n = town(), 6_000
    counts = Counter(d.derivation.plot for d in generate_documents(n, seed=4))
    for entry, p in zip(grammar.plot_table.entries, grammar.plot_table.p):
        assert abs(counts[entry.lemma] / n - p) < 5 * math.sqrt(p / n)
