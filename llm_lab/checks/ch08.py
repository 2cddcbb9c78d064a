"""Checks of chapter 08: clipped precision, the brevity penalty, a step of beams, mass on links."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from llm_lab.checks.grading import CheckFailed, expect_close, expect_equal, expect_given, passed


def check_clipped_precision(answer: Callable[[list[str], list[str], int], float]) -> None:
    """The share of n-grams that are in the reference, each at most as often as there."""
    clip = "an n-gram counts at most as often as it is in the reference: clip the counts"
    single = "these are single tokens: take stretches of n tokens"
    number = "a row of 4 tokens has 3 pairs: divide by the number of n-grams written"
    recall = "divide by what was written, not by the reference: that would be recall"
    cases: list[tuple[str, str, int, float, dict[Any, str]]] = [  # a letter is a token
        ("aaaa", "ab", 1, 0.25, {1.0: clip}),
        ("abcd", "abce", 2, 2 / 3, {3 / 4: single, 0.5: number}),
        ("ab", "abcd", 1, 1.0, {0.5: recall}),
        ("ab", "abcd", 3, 0.0, {}),
        ("ab", "ab", 2, 1.0, {0.0: "a text of n tokens has one n-gram, not none"}),
        ("abab", "abcab", 2, 2 / 3, {1.0: "a pair may be there twice: count, no sets"}),
    ]
    for written, reference, n, expected, hints in cases:
        name = f"clipped_precision({written!r}, {reference!r}, {n})"
        try:
            got = answer(list(written), list(reference), n)
        except ZeroDivisionError:
            raise CheckFailed(
                f"{name} divides by 0: a text shorter than n has no n-grams"
            ) from None
        expect_close(got, expected, name=name, hints=hints)
    passed("repeating a right word earns nothing")


def check_brevity_penalty(answer: Callable[[int, int], float]) -> None:
    """1 for a long text, exp(1 - r / c) for a short one."""
    short = math.exp(1 - 10 / 8)
    expect_close(
        answer(8, 10),
        short,
        name="brevity_penalty(8, 10)",
        hints={
            math.exp(10 / 8 - 1): "the sign is turned around: a penalty is at most 1",
            math.exp(10 - 8): "the exponent is 1 - r / c, not a difference of lengths",
            math.exp(1 - 8 / 10): "the fraction is upside down: reference over written",
            0.8: "this is the ratio of the lengths: BLEU takes exp(1 - r / c)",
            1.0: "the text is too short, so the penalty must be below 1",
        },
    )
    expect_close(
        answer(12, 10),
        1.0,
        name="brevity_penalty(12, 10)",
        hints={math.exp(1 - 10 / 12): "a long text is not rewarded: at most 1"},
    )
    expect_close(answer(10, 10), 1.0, name="brevity_penalty(10, 10)")
    passed("short texts pay")


def check_beam_step(
    answer: Callable[[Tensor, Tensor, int], Sequence[tuple[int, int, float]]],
) -> None:
    """The k best extensions over all prefixes together."""
    sums = torch.tensor([-1.0, -1.5], dtype=torch.float64)
    p = torch.tensor([[0.1, 0.2, 0.7], [0.9, 0.06, 0.04]], dtype=torch.float64)
    log_p = p.log()
    totals = {(w, v): (sums[w] + log_p[w, v]).item() for w in range(2) for v in range(3)}
    best = sorted(totals, key=lambda place: -totals[place])[:3]
    got = _triples(answer(sums, log_p, 3))
    places = [(int(item[0]), int(item[1])) for item in got]
    alone = sorted(
        ((w, v) for w in range(2) for v in range(3)), key=lambda place: -log_p[place].item()
    )[:3]
    each = [(0, 2), (1, 0)]
    # A place in the flat table is prefix * V + token, and V is 3; here it is divided by W = 2.
    by_rows = [divmod(3 * w + v, 2) for w, v in best]
    expect_equal(
        places,
        best,
        name="the prefixes and tokens of beam_step",
        hints={
            tuple(map(tuple, alone)): "add the sum of each prefix: these are the best tokens alone",
            tuple(each): "take the k best of all extensions together, not the best of each prefix",
            tuple((v, w) for w, v in best): "the prefix comes first, then the token",
            tuple(by_rows): "divide the place by the number of tokens V, not by that of prefixes",
            tuple(reversed(best)): "the best comes first: the order is turned around",
        },
    )
    expect_close(
        [float(item[2]) for item in got],
        [totals[place] for place in best],
        name="the sums of beam_step",
        hints={
            tuple(log_p[place].item() for place in best): "the sum has the prefix's sum in it too"
        },
    )
    passed("good prefixes may have two children, poor ones none")


def _triples(given: Any) -> list[tuple[float, ...]]:
    """The answer of beam_step, whose items must be (prefix, token, sum)."""
    expect_given(given, "beam_step")
    got = [tuple(item) for item in given]
    if any(len(item) != 3 for item in got):
        raise CheckFailed(f"beam_step must give (prefix, token, sum) for each, got {got}")
    return got


def check_mass_on(answer: Callable[[Tensor, Tensor], float]) -> None:
    """The attention mass on links, over the queries that have one."""
    # 4 queries, 2 of them with links, 3 links: each mistake divides by another number.
    weights = torch.tensor(
        [[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.2, 0.2, 0.6], [0.3, 0.4, 0.3]], dtype=torch.float64
    )
    relation = torch.zeros(4, 3, dtype=torch.bool)
    relation[0, 0] = relation[2, 1] = relation[2, 2] = True
    expect_close(
        answer(weights, relation),
        (0.7 + 0.8) / 2,
        name="mass_on",
        hints={
            (0.7 + 0.8) / 4: "a query without a link does not count: leave it out of the mean",
            (0.7 + 0.8) / 3: "sum over the keys of a query first, then take the mean",
            (0.7 + 0.8) / 12: "this is a mean over all pairs: sum over keys, mean over queries",
            (0.7 + 0.4) / 2: "a query may have several right keys: add their attention up",
            (0.7 + 0.6) / 2: "a query may have several right keys: add all, not only the largest",
            (0.7 + 0.8): "take the mean over the queries that have a link",
        },
    )
    passed("one number for each head")
