"""Exact conditionals of one hidden word, pronouns and whom they refer to."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest

from llm_town import (
    Document,
    ParseError,
    generate_documents,
    log_probability,
    parse,
    town,
)
from llm_town.conditionals import conditional, given, word_spans
from llm_town.errors import DataError
from llm_town.parse import clauses_around, plot_of
from llm_town.references import references
from llm_town.vocabulary import vocabulary

STORIES = list(generate_documents(60, seed=4, split="validation"))
STORY = min(STORIES, key=lambda story: len(story.text))


def by_brute_force(text: str, start: int, end: int, words: set[str]) -> dict[str, float]:
    """Every word of the language in this place, the whole text parsed from nothing each time."""
    found = {}
    for word in words:
        try:
            log_p = log_probability(parse(text[:start] + word + text[end:]))
        except ParseError:
            continue
        if log_p > -math.inf:
            found[word] = math.exp(log_p)
    total = math.fsum(found.values())
    return {word: p / total for word, p in found.items()}


def printed_words() -> set[str]:
    """Every word that Town prints inside a sentence, but for the names of people and villages."""
    return set(vocabulary().words) | {"she", "he", "her", "his", "him", "a", "an", "the", "The"}


def some_places() -> Iterator[tuple[Document, int, int]]:
    """An article, a pronoun, a colour, a feeling, a word that is fixed, and a name."""
    for wanted in (" a ", " she ", " red ", "The "):
        story = next(d for d in STORIES if wanted in d.text)
        start = story.text.index(wanted) + wanted.startswith(" ")
        yield story, start, start + len(wanted.strip())


@pytest.mark.parametrize("place", list(some_places()), ids=lambda place: place[0].text[:12])
def test_a_conditional_is_what_parsing_every_word_in_its_place_gives(
    place: tuple[Document, int, int],
) -> None:
    story, start, end = place
    names = {entry.lemma for entry in town().tables["person"].entries[:100]}
    expected = by_brute_force(story.text, start, end, printed_words() | names)
    got = conditional(story, start, end)
    assert got.keys() == expected.keys()
    assert all(math.isclose(got[word], p) for word, p in expected.items())


def test_a_first_name_that_is_never_repeated_has_the_probability_of_its_table() -> None:
    table = town().tables["village"]
    for story in STORIES:
        home = story.derivation.sentences[0].fillers[0]
        if home in table.index and story.text.count(home) == 1:
            start = story.text.index(home)
            found = conditional(story, start, start + len(home))
            if len(found) == len(table.entries):  # no other village of the story forbids one
                assert math.isclose(found[home], table.p[table.index[home]])
                return
    raise AssertionError("no such story")


def test_probabilities_sum_to_one_and_a_repeated_word_is_certain() -> None:
    sizes = []
    for start, end in word_spans(STORY.text):
        found = conditional(STORY, start, end)
        assert math.isclose(math.fsum(found.values()), 1)
        assert STORY.text[start:end] in found
        sizes.append(len(found))
    assert 1 in sizes
    assert max(sizes) > 10
    told_twice = next(d for d in STORIES if d.text.count(" red ") > 1)
    start = told_twice.text.rindex(" red ") + 1
    assert conditional(told_twice, start, start + 3) == {"red": 1.0}


def test_what_is_known_besides_shifts_the_probabilities() -> None:
    assert given({"red": 0.2, "blue": 0.3, "scarlet": 0.5}, {"red", "blue"}) == {
        "red": pytest.approx(0.4),
        "blue": pytest.approx(0.6),
    }
    with pytest.raises(DataError, match="no word of the distribution is allowed, it has 1"):
        given({"red": 1.0}, {"blue"})


@pytest.mark.parametrize(("start", "end"), [(0, 1), (0, 100), (-1, 3), (3, 5)])
def test_a_place_that_is_not_a_word_is_refused(start: int, end: int) -> None:
    with pytest.raises(DataError, match="must be one whole word"):
        conditional(STORY, start, end)


def test_a_text_that_town_does_not_write_is_refused() -> None:
    other = next(d for d in STORIES if d.derivation.plot != STORY.derivation.plot)
    mixed = Document(STORY.text, 0.0, other.derivation)
    start, end = list(word_spans(STORY.text))[-1]
    with pytest.raises((DataError, IndexError)):
        conditional(mixed, start, end)


def test_clauses_around_a_gap_hold_one_free_slot_or_none() -> None:
    found = clauses_around("It was a ", " morning, and Marford was still quiet.")
    assert [(clause.id, words) for clause, words in found] == [("when.1", (None, "Marford"))]
    fixed = clauses_around("It was a cold ", ", and Marford was still quiet.")
    assert [(clause.id, words) for clause, words in fixed] == [("when.1", ("cold", "Marford"))]
    assert clauses_around("It was a ", " evening.") == []


def test_the_plot_is_that_of_the_parser() -> None:
    for story in STORIES:
        assert plot_of(story.derivation.sentences) == story.derivation.plot
    with pytest.raises(ParseError, match="no plot goes on"):
        plot_of(STORY.derivation.sentences[:-1])


def test_a_pronoun_refers_to_a_person_named_before_it() -> None:
    person = town().tables["person"]
    pronouns = {"f": {"she", "her"}, "m": {"he", "his", "him"}}
    count = 0
    for story in STORIES:
        for start, end, slot, named in references(story):
            names = {story.text[a:b] for a, b in named}
            assert len(names) == 1
            assert max(b for _, b in named) < start
            word, name = story.text[start:end], names.pop()
            if slot in ("hero", "friend"):
                gender = person.entries[person.index[name]].gender
                assert word.lower() in pronouns[gender]
            count += 1
    assert count > 60
