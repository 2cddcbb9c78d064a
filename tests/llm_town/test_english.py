"""The generator: the same stories everywhere, splits, lengths."""

from __future__ import annotations

import hashlib
from itertools import combinations

import pytest

from llm_town import (
    SPLITS,
    generate_documents,
    split_of,
    split_sentences,
)
from llm_town.errors import DataError

SAMPLE_SHA256 = "eec2e0ca5a25eb86d31b3d9d34ad15621aef04bc8a96340e5710626eedcb6b4d"


def test_the_same_seed_gives_the_same_stories_on_every_machine() -> None:
    def text_sample(seed: int) -> str:
        return "".join(f"{document.text}\n" for document in generate_documents(200, seed))

    sample = text_sample(0)
    assert sample == text_sample(0)
    assert sample != text_sample(1)
    assert hashlib.sha256(sample.encode()).hexdigest() == SAMPLE_SHA256


def test_splits_are_disjoint_and_decided_by_the_text() -> None:
    texts = {s: {d.text for d in generate_documents(300, seed=0, split=s)} for s in SPLITS}
    for split, found in texts.items():
        assert all(split_of(text) == split for text in found)
    for one, two in combinations(texts.values(), 2):
        assert not one & two
    with pytest.raises(DataError, match="split must be one of"):
        next(generate_documents(1, split="dev"))
    with pytest.raises(DataError, match="n must be at least 0"):
        next(generate_documents(-1))


def test_stories_have_the_promised_length() -> None:
    for story in generate_documents(500, seed=5):
        assert " ".join(story.sentences) == story.text
        assert story.sentences == tuple(split_sentences(story.text))
        assert 5 <= len(story.sentences) <= 9
        assert 40 <= len(story.words) <= 110
