"""The floor that stories estimate is the exact entropy."""

from __future__ import annotations

import math

import pytest

from llm_town import (
    document_entropy,
    entropy_floor,
)
from llm_town.errors import DataError


def test_the_floor_estimated_from_stories_is_the_exact_entropy() -> None:
    floor = entropy_floor(4_000, seed=11, split="train")
    assert math.isclose(floor.exact_nats_per_document, document_entropy())
    error = abs(floor.nats_per_document - floor.exact_nats_per_document)
    assert error < 4 * floor.standard_error
    assert floor.standard_error < 0.25
    words = floor.nats_per_document / floor.words_per_document
    assert math.isclose(floor.nats_per_word, words)
    with pytest.raises(DataError, match="n must be at least 2"):
        entropy_floor(1)
