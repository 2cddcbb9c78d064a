"""The n-gram baseline is interpolated Kneser-Ney: normalised, and equal to the formula by hand."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from llm_course.errors import DataError
from llm_lab.counting.ngram import NgramModel

DOCUMENTS = [list("abcabd"), list("abba"), list("cab"), list("dd")]


def by_hand(documents: list[list[str]], context: list[str], token: str, order: int) -> float:
    """Chen and Goodman's formula, written over strings and for the whole corpus each time."""
    padded = [["<s>"] * (order - 1) + d + ["</s>"] for d in documents]
    history = (["<s>"] * (order - 1) + context)[len(context) :]
    p = 1.0 / (len({t for d in documents for t in d}) + 2)
    for k in range(1, order + 1):
        counts: Counter[tuple[str, ...]] = Counter()
        width = k if k == order else k + 1
        for d in padded:
            for i in range(width - 1, len(d)):
                gram = tuple(d[i - width + 1 : i + 1])
                if gram[-1] != "<s>":
                    counts[gram] += 1
        if k < order:
            counts = Counter(gram[1:] for gram in counts)
        ones, twos = (sum(n == m for n in counts.values()) for m in (1, 2))
        discount = ones / (ones + 2 * twos) if ones else 0.5
        h = tuple(history[len(history) - k + 1 :]) if k > 1 else ()
        after = {gram[-1]: n for gram, n in counts.items() if gram[:-1] == h}
        total = sum(after.values())
        if total:
            p = (max(after.get(token, 0) - discount, 0) + discount * len(after) * p) / total
    return p


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_the_model_is_the_formula_by_hand(order: int) -> None:
    model = NgramModel(4).fit(DOCUMENTS)
    for document in (list("abd"), list("cabba"), list("ddd"), [], list("xa")):
        tokens = [*document, "</s>"]
        expected = -sum(
            math.log(by_hand(DOCUMENTS, tokens[:i], tokens[i], order)) for i in range(len(tokens))
        )
        assert math.isclose(model.nats(document, order), expected)
    alone = NgramModel(order).fit(DOCUMENTS)
    assert math.isclose(alone.nats(list("abd")), model.nats(list("abd"), order))


@pytest.mark.parametrize("order", [1, 2, 3])
def test_probabilities_sum_to_one(order: int) -> None:
    for context in (list("ab"), list("c"), [], list("dddd"), list("x")):
        total = sum(by_hand(DOCUMENTS, context, t, order) for t in [*"abcd", "x", "</s>"])
        assert math.isclose(total, 1.0)


def test_longer_contexts_help_where_there_is_something_to_learn() -> None:
    cycle = [list("abcabcabcabc") for _ in range(20)]
    model = NgramModel(3).fit(cycle)
    nats = [model.nats(cycle[0], order) for order in (1, 2, 3)]
    assert nats[0] > 2 * nats[1] > 2 * nats[2]


def test_bad_input_is_refused() -> None:
    with pytest.raises(DataError, match="order must be at least 1"):
        NgramModel(0)
    with pytest.raises(DataError, match="at least one document"):
        NgramModel(2).fit([])
    with pytest.raises(DataError, match="fit the n-gram model"):
        NgramModel(2).nats(["a"])
    with pytest.raises(DataError, match="from 1 to 2"):
        NgramModel(2).fit(DOCUMENTS).nats(["a"], order=3)
