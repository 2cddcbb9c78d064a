"""The model of a gap is the formula by hand, sums to one, and uses both sides."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from llm_course.errors import DataError
from llm_lab.counting.ngram_gap import GapModel
from llm_town import generate_documents, tokenize

DOCUMENTS = [list("abcabd"), list("abba"), list("cab"), list("dd"), list("abcab")]
VOCABULARY = 6


def discounted(pairs: list[tuple[tuple, str]], context: tuple, token: str, lower: float) -> float:
    """One level of the formula, over the whole list of (context, token) each time."""
    counts = Counter(pairs)
    ones, twos = (sum(n == m for n in counts.values()) for m in (1, 2))
    discount = ones / (ones + 2 * twos) if ones else 0.5
    here = {t: n for (c, t), n in counts.items() if c == context}
    if not here:
        return lower
    kept = max(here.get(token, 0) - discount, 0)
    return (kept + discount * len(here) * lower) / sum(here.values())


def by_hand(document: list[str], place: int, width: int) -> float:
    def context(tokens: list[str], i: int, left: int, right: int) -> tuple:
        padded = ["-"] * 9 + tokens + ["-"] * 9
        return (*padded[i + 9 - left : i + 9], *padded[i + 10 : i + 10 + right])

    def level(left: int, right: int, lower: float) -> float:
        pairs = [(context(d, i, left, right), d[i]) for d in DOCUMENTS for i in range(len(d))]
        return discounted(pairs, context(document, place, left, right), document[place], lower)

    p = level(0, 0, 1 / VOCABULARY)
    if width:
        p = (level(1, 0, p) + level(0, 1, p)) / 2
    for k in range(1, width + 1):
        p = level(k, k, p)
    return p


@pytest.mark.parametrize("width", [0, 1, 2, 3])
def test_the_model_is_the_formula_by_hand(width: int) -> None:
    model = GapModel(3, VOCABULARY).fit(DOCUMENTS)
    for document in (list("abd"), list("cabba"), list("ddd"), list("xa"), list("b")):
        for place in range(len(document)):
            expected = by_hand(document, place, width)
            assert math.isclose(model.probability(document, place, width), expected)
        places = range(len(document))
        total = -sum(math.log(by_hand(document, place, width)) for place in places)
        assert math.isclose(model.nats(document, places, width), total)


@pytest.mark.parametrize("width", [0, 1, 2])
def test_probabilities_sum_to_one(width: int) -> None:
    model = GapModel(2, VOCABULARY).fit(DOCUMENTS)
    for document in (list("abd"), list("xax"), list("dcba")):
        for place in range(len(document)):
            filled = [[*document[:place], t, *document[place + 1 :]] for t in "abcdef"]
            total = math.fsum(model.probability(d, place, width) for d in filled)
            assert math.isclose(total, 1)
            assert all(model.probability(d, place, width) > 0 for d in filled)  # e, f unseen


def test_the_token_itself_is_hidden_and_both_sides_are_used() -> None:
    texts = [["left", word, word] for word in "pq" for _ in range(9)]
    model = GapModel(1, 4).fit(texts)
    assert model.probability(["left", "p", "p"], 1) > 0.85  # only the right side tells
    assert model.probability(["left", "p", "p"], 2) > 0.85  # and here only the left one
    assert model.probability(["left", "p", "p"], 1, 0) < 0.5


def test_on_town_neighbours_on_both_sides_are_worth_more_than_a_frequency() -> None:
    model = GapModel(2, 12_000).fit(tokenize(d.text) for d in generate_documents(800, seed=0))
    held_out = [tokenize(d.text) for d in generate_documents(40, seed=0, split="validation")]
    nats = [
        sum(model.nats(tokens, range(len(tokens)), width) for tokens in held_out)
        for width in range(3)
    ]
    assert nats[1] < 0.6 * nats[0]
    assert nats[2] < nats[0]


def test_bad_arguments_are_refused_with_their_range() -> None:
    for width, size, message in ((0, 5, "width must be at least 1, got 0"), (1, 0, "at least 1")):
        with pytest.raises(DataError, match=message):
            GapModel(width, size)
    with pytest.raises(DataError, match="fit the gap model"):
        GapModel(1, 5).probability(["a"], 0)
    with pytest.raises(DataError, match="at least one token"):
        GapModel(1, 5).fit([[]])
    model = GapModel(1, 5).fit([["a", "b"]])
    with pytest.raises(DataError, match="width must be from 0 to 1, got 2"):
        model.probability(["a"], 0, 2)
    with pytest.raises(DataError, match="place must be from 0 to 0, got 1"):
        model.probability(["a"], 1)
