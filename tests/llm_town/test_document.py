"""Spans, facts and the tone of a story describe its text."""

from __future__ import annotations

from collections import Counter

from llm_town import (
    facts,
    generate_documents,
    polarity,
    spans,
)


def test_spans_facts_and_polarity_describe_the_text() -> None:
    kinds: Counter[str] = Counter()
    signs: Counter[int] = Counter()
    for story in generate_documents(300, seed=6):
        for span in spans(story):
            assert story.text[span.start : span.end].lower() == span.lemma.lower()
            kinds[span.type] += 1
        stated = facts(story.derivation)
        relations = {fact.relation for fact in stated}
        assert {"job", "home"} <= relations
        for fact in stated:
            assert fact.object.lower() in story.sentences[fact.sentence].lower()
        good, bad = polarity(story.derivation)
        signs[(good > bad) - (good < bad)] += 1
    assert {"PERSON", "PLACE", "JOB", "EVENT"} <= set(kinds)
    assert min(signs[1], signs[-1]) > 30
