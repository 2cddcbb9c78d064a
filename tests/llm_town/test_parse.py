"""Town's parser: text and derivation are one-to-one, and three levels of judgement differ."""

from __future__ import annotations

import math
import re

import pytest

from llm_town import (
    Derivation,
    ParseError,
    Sentence,
    facts_hold,
    fillers,
    generate_documents,
    log_probability,
    parse,
    parse_sentence,
    render,
    sentence_parses,
    town,
)
from llm_town.chinese import SLOT, translate
from llm_town.errors import DataError
from llm_town.lexicon import PRONOUNS


def test_ten_thousand_stories_are_read_back_to_the_same_derivation_and_probability() -> None:
    for story in generate_documents(10_000, seed=3):
        derivation = parse(story.text)
        assert derivation == story.derivation
        assert log_probability(derivation) == story.log_prob
        assert hash(derivation) == hash(story.derivation)


STORY = next(d for d in generate_documents(500, seed=1) if d.derivation.plot == "bargain")


def test_sentences_render_as_they_stand() -> None:
    assert tuple(map(render, STORY.derivation.sentences)) == STORY.sentences


def last_replaced(text: str, old: str, new: str) -> str:
    head, found, tail = text.rpartition(old)
    assert found, (old, text)
    return head + new + tail


def test_a_story_with_a_wrong_fact_parses_but_is_not_true() -> None:
    words = {
        name: filler for s in STORY.derivation.sentences for name, filler in fillers(s).items()
    }
    assert facts_hold(STORY.text)
    assert facts_hold(STORY.derivation)
    wrong = {"hero": "Zanken", "thing": "kettle", "price": "fifty"}
    for name, other in wrong.items():
        assert words[name] != other
        told = last_replaced(STORY.text, words[name], other)
        derivation = parse(told)
        assert not facts_hold(told)
        assert log_probability(derivation) == -math.inf


@pytest.mark.parametrize(("old", "new"), [(" she ", " he "), (" her mother ", " his mother ")])
def test_a_wrong_pronoun_is_seen(old: str, new: str) -> None:
    stories = (d for d in generate_documents(500, seed=2) if old in d.text)
    story = next(stories)
    swapped = story.text.replace(old, new, 1)
    assert all(map(sentence_parses, story.sentences))
    parse(swapped)
    assert not facts_hold(swapped)


def test_the_levels_are_sentences_then_plots_then_facts() -> None:
    shuffled = " ".join(reversed(STORY.sentences))
    assert all(map(sentence_parses, STORY.sentences))
    with pytest.raises(ParseError, match="no plot goes on"):
        parse(shuffled)
    with pytest.raises(ParseError, match="no plot goes on with the end"):
        parse(" ".join(STORY.sentences[:-1]))
    assert not facts_hold(shuffled)


@pytest.mark.parametrize(
    ("sentence", "message"),
    [
        ("In Belbury there lived a green baker called Marla.", "'green', word 6"),
        ("In Belbury there lived a kind", "breaks off"),
        ("In Belbury there lived an kind baker called Marla.", "writes 'In Belbury there lived a"),
        ("in Belbury there lived a kind baker called Marla.", "writes 'In Belbury there lived a"),
        ("In Belbury there lived a kind baker called marla.", "writes 'In Belbury there lived a"),
        ("In Belbury there lived a kind baker called Marla!", "'!', word 10"),
        ("", "breaks off"),
    ],
)
def test_what_is_not_town_is_refused_with_its_place(sentence: str, message: str) -> None:
    with pytest.raises(ParseError, match=re.escape(message)):
        parse_sentence(sentence)
    with pytest.raises(ParseError, match="sentence 1"):
        parse(sentence + " " + STORY.text)
    assert not sentence_parses(sentence)
    assert sentence_parses("In Belbury there lived a kind baker called Marla.")


def test_impossible_derivations_have_probability_zero() -> None:
    first, *rest = STORY.derivation.sentences
    assert log_probability(Derivation("bargain", (first,))) == -math.inf
    assert log_probability(Derivation("bargain", (*STORY.derivation.sentences, first))) == -math.inf
    wrong = Sentence(first.clause, tuple("kettle" for _ in first.fillers))
    assert log_probability(Derivation("bargain", (wrong, *rest))) == -math.inf
    with pytest.raises(DataError, match="plot must be one of"):
        log_probability(Derivation("opera", ()))


def test_every_clause_has_a_chinese_pattern_with_words_it_knows() -> None:
    for clause in town().clauses.values():
        words = {slot.name for slot in clause.slots if not slot.key}
        people = words | {slot.name for slot in clause.slots if slot.key}
        for name, form in SLOT.findall(clause.chinese):
            assert name in (people if form in PRONOUNS else words), clause.id
        assert not re.search(r"[A-Za-z]", SLOT.sub("", clause.chinese)), clause.id


def test_translation_is_chinese_and_one_to_one() -> None:
    english: dict[str, str] = {}
    for story in generate_documents(1_500, seed=8):
        for sentence, text in zip(story.derivation.sentences, story.sentences):
            chinese = translate(sentence)
            assert not re.search(r"[A-Za-z{}]", chinese), chinese
            assert english.setdefault(chinese, text) == text


def test_names_are_spelled_with_fixed_characters() -> None:
    chinese = "贝堡住着一位善良的面包师，名叫玛拉。"
    assert translate("In Belbury there lived a kind baker called Marla.") == chinese
    with pytest.raises(ParseError):
        translate("In Belbury there lived a blue baker called Marla.")
