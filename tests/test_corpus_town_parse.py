"""Town's parser: text and derivation are one-to-one, and three levels of judgement differ."""

from __future__ import annotations

import math
import re

import pytest

from llm_course.corpus.town import (
    Derivation,
    ParseError,
    Sentence,
    facts_hold,
    generate_documents,
    log_probability,
    parse,
    parse_sentence,
    render,
    sentence_parses,
    town,
)
from llm_course.corpus.town.chinese import check_chinese, translate, translate_document
from llm_course.errors import DataError


def test_ten_thousand_stories_are_read_back_to_the_same_derivation_and_probability() -> None:
    for story in generate_documents(10_000, seed=3):
        derivation = parse(story.text)
        assert derivation == story.derivation
        assert log_probability(derivation) == story.log_prob
        assert hash(derivation) == hash(story.derivation)


STORY = next(d for d in generate_documents(500, seed=1) if d.derivation.plot == "bargain")


def test_sentences_render_as_they_stand() -> None:
    assert tuple(map(render, STORY.derivation.sentences)) == STORY.sentences


def replaced(text: str, old: str, new: str) -> str:
    """The last occurrence of a word, replaced."""
    head, found, tail = text.rpartition(old)
    assert found, (old, text)
    return head + new + tail


def test_a_story_with_a_wrong_fact_parses_but_is_not_true() -> None:
    colour = re.search(r"an? (\w+) \w+", STORY.sentences[-4]) or re.search(r".", "")
    assert facts_hold(STORY.text)
    assert facts_hold(STORY.derivation)
    hero = STORY.derivation.sentences[0].fillers[0]
    other = "Zanken" if hero != "Zanken" else "Marna"
    assert colour is not None
    for changed in (replaced(STORY.text, hero, other), replaced(STORY.text, "coins", "coins")):
        derivation = parse(changed)
        assert facts_hold(changed) == (changed == STORY.text)
        assert math.isinf(log_probability(derivation)) == (changed != STORY.text)


@pytest.mark.parametrize(("old", "new"), [(" she ", " he "), (" her ", " his ")])
def test_a_wrong_pronoun_is_seen(old: str, new: str) -> None:
    stories = (d for d in generate_documents(200, seed=2) if old in d.text)
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
        ("Mara was a green baker in the town of Belford.", "'green', word 4"),
        ("Marla was a kind baker in the town of", "breaks off"),
        ("Marla was an kind baker in the town of Belford.", "writes 'Marla was a kind"),
        ("marla was a kind baker in the town of Belford.", "writes 'Marla was a kind"),
        ("Marla was a kind baker in the town of Belford !", "'!', word 11"),
        ("", "breaks off"),
    ],
)
def test_what_is_not_town_is_refused_with_its_place(sentence: str, message: str) -> None:
    sentence = sentence.replace("Mara ", "Marla ")
    with pytest.raises(ParseError, match=re.escape(message)):
        parse_sentence(sentence)
    with pytest.raises(ParseError, match="sentence 1"):
        parse(sentence + " " + STORY.text)
    assert not sentence_parses(sentence)
    assert sentence_parses("Marla was a kind baker in the town of Belford.")


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
        check_chinese(clause)


def test_translation_is_chinese_and_one_to_one() -> None:
    english: dict[str, str] = {}
    for story in generate_documents(1_500, seed=8):
        for sentence, text in zip(story.derivation.sentences, story.sentences):
            chinese = translate(sentence)
            assert not re.search(r"[A-Za-z{}]", chinese), chinese
            assert english.setdefault(chinese, text) == text
        assert translate_document(story) == "".join(map(translate, story.sentences))


def test_names_are_spelled_with_fixed_characters() -> None:
    assert translate("Marla was a kind baker in the town of Belbury.").startswith("玛拉是贝堡镇上")
    with pytest.raises(ParseError):
        translate("Marla was a blue baker.")
