"""Right and wrong answers to the exercises of chapter 13, for `test_contract`."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import Any

from check_answers import Right, Wrong

from llm_course.configs import TrainConfig
from llm_course.training.optim import learning_rate
from llm_lab.checks import ch13


def ratio(losses: list[float], counts: list[int], log_probs: list[float]) -> float:
    return sum(a * b for a, b in zip(losses, counts)) / -sum(log_probs)


def mean_ratio(losses: list[float], counts: list[int], log_probs: list[float]) -> float:
    return sum(a * b / -p for a, b, p in zip(losses, counts, log_probs)) / len(losses)


def merge(words: dict[tuple[str, ...], int], weighted: bool = True, ties: int = 1) -> Any:
    counts: Counter[tuple[str, str]] = Counter()
    for pieces, number in words.items():
        for pair in itertools.pairwise(pieces):
            counts[pair] += number if weighted else 1
    best = max(counts.values())
    pairs = sorted(pair for pair in counts if counts[pair] == best)
    return pairs[0] if ties == 1 else pairs[-1]


def rate(step: int, total: int, warmup: int, lr: float, low: float) -> float:
    if step <= warmup:
        return lr * step / (warmup + 1)
    return low + (lr - low) * (1 + math.cos(math.pi * (step - 1 - warmup) / (total - warmup))) / 2


def packages(step: int, total: int, warmup: int, lr: float, low: float) -> float:
    return learning_rate(step, TrainConfig(max_steps=total, warmup_steps=warmup, lr=lr, min_lr=low))


def highest_before(step: int, total: int, warmup: int, lr: float, low: float) -> float:
    return lr * step / warmup if step <= warmup else rate(step, total, warmup, lr, low)


def linear(step: int, total: int, warmup: int, lr: float, low: float) -> float:
    if step <= warmup:
        return lr * step / (warmup + 1)
    return lr + (low - lr) * (step - 1 - warmup) / (total - warmup)


def shared(train: list[str], validation: list[str]) -> float:
    seen = {text.strip().lower() for text in train}
    return sum(text.strip().lower() in seen for text in validation) / len(validation)


def quarter(step: int, total: int, warmup: int, lr: float, low: float) -> float:
    done = (step - 1 - warmup) / (total - warmup)
    rises = step <= warmup
    return (
        rate(step, total, warmup, lr, low)
        if rises
        else low + (lr - low) * math.cos(math.pi / 2 * done)
    )


def one_early(step: int, total: int, warmup: int, lr: float, low: float) -> float:
    return rate(step if step <= warmup else step + 1, total, warmup, lr, low)


def once_in_a_row(words: dict[tuple[str, ...], int]) -> tuple[str, str]:
    """Counts places of a pair that do not overlap."""
    counts: Counter[tuple[str, str]] = Counter()
    for pieces, number in words.items():
        last = None
        for pair in itertools.pairwise(pieces):
            if pair == last:
                last = None
            else:
                counts[pair] += number
                last = pair
    return min(counts, key=lambda pair: (-counts[pair], pair))


RIGHT: Right = [
    (ch13.check_floor_ratio, ratio),
    (ch13.check_most_frequent_pair, merge),
    (ch13.check_learning_rate, rate),
    (ch13.check_learning_rate, packages),
    (ch13.check_shared_share, shared),
]

WRONG: Wrong = [
    (ch13.check_floor_ratio, mean_ratio, "mean of ratios"),
    (ch13.check_floor_ratio, lambda *a: 1 / ratio(*a), "upside down"),
    (ch13.check_floor_ratio, lambda a, b, c: sum(a) / -sum(c), "number of tokens"),
    (ch13.check_most_frequent_pair, lambda w: merge(w, weighted=False), "counts"),
    (ch13.check_most_frequent_pair, lambda w: merge(w, ties=-1), "smaller"),
    (ch13.check_most_frequent_pair, lambda w: list(merge(w)), "as a tuple"),
    (ch13.check_most_frequent_pair, once_in_a_row, "overlapping"),
    (ch13.check_learning_rate, quarter, "quarter of the wave"),
    (ch13.check_learning_rate, one_early, "one step early"),
    (ch13.check_learning_rate, highest_before, "the step after the warm-up has lr"),
    (ch13.check_learning_rate, lambda s, *a: rate(s - 1, *a), "count from 1"),
    (ch13.check_learning_rate, linear, "cosine"),
    (ch13.check_learning_rate, lambda s, t, w, lr, low: lr, "does not change"),
    (ch13.check_shared_share, lambda a, b: sum(x in a for x in b) / len(b), "strip"),
    (
        ch13.check_shared_share,
        lambda a, b: sum(x.lower() in {y.strip().lower() for y in a} for x in b) / len(b),
        "strip white space",
    ),
    (
        ch13.check_shared_share,
        lambda a, b: sum(any(x.strip().lower() in y.lower() for y in a) for x in b) / len(b),
        "compare whole documents",
    ),
    (ch13.check_shared_share, lambda a, b: shared(a, b) * len(b), "share is between"),
]
