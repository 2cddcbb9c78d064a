"""Sentences of a text by rules."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_course.data.sentences import split_sentences
from llm_town import generate_documents


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ('He said "Go." Then he left.', ['He said "Go."', "Then he left."]),
        ("Mr. Brown met Dr. Green. They talked.", ["Mr. Brown met Dr. Green.", "They talked."]),
        ("J. K. Hill wrote it. It sold.", ["J. K. Hill wrote it.", "It sold."]),
        ("It cost 3.50 in all. 20 came.", ["It cost 3.50 in all.", "20 came."]),
        ("wait... and see. Well…  Yes.", ["wait... and see.", "Well…", "Yes."]),
        ("A line\nbreak here. New one.", ["A line break here.", "New one."]),
        ("他来了。她走了！为什么？", ["他来了。", "她走了！", "为什么？"]),
        ("“好。”他说。", ["“好。”", "他说。"]),
        ("Été fini. École ouverte.", ["Été fini.", "École ouverte."]),
        ("", []),
        ("  \n ", []),
    ],
)
def test_sentences_end_where_a_reader_ends_them(text: str, sentences: list[str]) -> None:
    assert split_sentences(text) == sentences


def test_nothing_is_lost_but_white_space() -> None:
    text = 'Dr. A. met B.  (At 5 p.m.) "Yes!" he said... No? 好。OK.'
    assert "".join("".join(split_sentences(text)).split()) == "".join(text.split())


def test_the_stories_of_town_fall_into_their_own_sentences() -> None:
    for story in generate_documents(300, 5, "train"):
        assert split_sentences(story.text) == list(story.sentences)


def test_most_paragraphs_of_a_novel_fall_into_sentences_that_begin_with_a_capital(
    shared_data: Path,
) -> None:
    path = shared_data / "gutenberg_en/pride_and_prejudice.txt"
    paragraphs = path.read_text(encoding="utf-8").split("\n\n")
    sentences = [s for p in paragraphs for s in split_sentences(p)]
    assert len(sentences) > 4000
    letters = [next((c for c in s if c.isalnum()), "A") for s in sentences]
    assert sum(c.isupper() or c.isdigit() for c in letters) / len(letters) > 0.97
    assert not any(s.endswith(("Mr.", "Mrs.")) for s in sentences)


@pytest.mark.parametrize(
    "text", ["." * 200_000, "A word. " * 20_000, ". " * 50_000, "a. " + '"' * 200_000]
)
def test_the_cost_grows_with_the_length_only(text: str) -> None:
    """A rule that looked back to the beginning at each stop would take minutes here."""
    assert "".join("".join(split_sentences(text)).split()) == "".join(text.split())
