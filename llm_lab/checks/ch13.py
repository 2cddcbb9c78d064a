"""Checks of chapter 13: the floor ratio, one merge, the learning rate, copies in the split."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from llm_course.configs import TrainConfig
from llm_course.training.optim import learning_rate
from llm_lab.checks.grading import CheckFailed, expect_close, passed


def check_floor_ratio(answer: Callable[[list[float], list[int], list[float]], float]) -> None:
    """Model nats over generator nats, both summed over documents."""
    losses, counts, log_probs = [2.0, 3.0, 2.5], [100, 20, 60], [-180.0, -40.0, -120.0]
    nats = [loss * count for loss, count in zip(losses, counts)]
    floor = -sum(log_probs)
    mean_of_ratios = sum(n / -p for n, p in zip(nats, log_probs)) / 3
    expect_close(
        answer(losses, counts, log_probs),
        sum(nats) / floor,
        name="floor_ratio",
        hints={
            mean_of_ratios: "this is the mean of ratios: sum first, then divide once",
            -sum(nats) / floor: "the sign: a log-probability is negative, a loss is positive",
            floor / sum(nats): "upside down: the model's nats go over the floor",
            sum(losses) / floor: "losses are means: multiply each by its number of tokens",
            sum(losses) / 3 * sum(counts) / floor: (
                "documents of different lengths weigh the same here: multiply each loss by its "
                "own count"
            ),
        },
    )
    passed("a ratio of two sums")


def check_most_frequent_pair(answer: Callable[[dict[tuple[str, ...], int]], Any]) -> None:
    """The next merge of byte-pair encoding."""
    cases: list[tuple[dict[str, int], str, str]] = [  # a word is given as its pieces
        (
            {"n e w": 1, "n e t": 1, "n e": 1, "l o w": 6, "l o t": 2},
            "l o",
            "each word brings its pairs as often as it occurs: use the counts",
        ),
        ({"b a": 2, "a b": 2}, "a b", "two pairs are equally frequent: the smaller"),
        ({"a b a b": 1, "c d": 1}, "a b", "a pair can occur twice in one word: count both places"),
        (
            {"a a a": 2, "b c": 3},
            "a a",
            "in a a a the pair a, a occurs twice: count overlapping places too",
        ),
        ({"t h e": 9, "th e": 10}, "th e", "pieces may be longer than a letter"),
        ({"x y": 1, "z": 50}, "x y", "a word of one piece has no pair"),
        (
            {"a b": 3, "q r": 2, "q r s": 2},
            "q r",
            "add up the counts of a pair over all words that hold it",
        ),
    ]
    for counts, best, advice in cases:
        words = {tuple(word.split()): count for word, count in counts.items()}
        expected = tuple(best.split())
        got = answer(dict(words))
        if isinstance(got, list):
            raise CheckFailed(f"return the pair as a tuple, got the list {got!r}")
        if got != expected:
            raise CheckFailed(f"for {words} expected {expected}, got {got!r}: {advice}")
    passed("the next merge")


def check_learning_rate(answer: Callable[[int, int, int, float, float], float]) -> None:
    """The schedule of `train`: linear warm-up, then a cosine."""
    max_steps, warmup, lr, low = 100, 20, 2.0, 0.5
    config = TrainConfig(max_steps=max_steps, warmup_steps=warmup, lr=lr, min_lr=low)

    def cosine(done: float) -> float:
        return low + (lr - low) * (1 + math.cos(math.pi * done)) / 2

    for step in (1, 10, 20, 21, 60, 99, 100):
        done = (step - 1 - warmup) / 80
        quarter = low + (lr - low) * math.cos(math.pi / 2 * done)
        constant = {lr: "the rate does not change here: warm up, then fall"}
        expect_close(
            answer(step, max_steps, warmup, lr, low),
            learning_rate(step, config),
            name=f"learning_rate at step {step} of {max_steps}, warm-up {warmup}",
            hints={
                lr * (step - 1) / (warmup + 1): "steps count from 1: the first rate is above 0",
                lr * step / warmup: "divide by warmup_steps + 1: the step after the warm-up has lr",
                low + (lr - low) * step / (warmup + 1): "the warm-up begins at 0, not at min_lr",
                cosine((step - 1) / max_steps): "the cosine begins after the warm-up",
                lr + (low - lr) * done: "this falls along a straight line: use a cosine",
                lr * (1 + math.cos(math.pi * done)) / 2: "falls towards min_lr, not towards 0",
                quarter: "this is a quarter of the wave: use (1 + cos(pi * d)) / 2",
                cosine(done + 1 / 80): "one step early: the step after the warm-up has lr itself",
                **(constant if step != warmup + 1 else {}),
            },
        )
    passed("up in a line, down along a cosine")


def check_shared_share(answer: Callable[[list[str], list[str]], float]) -> None:
    """Copies between the two parts of a split."""
    train = ["Mara lost a key.", " It rained all day. ", "The baker sang."]
    validation = ["mara lost a key.", "It rained all day. \n", "Nobody came.", "Nobody came."]
    expect_close(
        answer(train, validation),
        0.5,
        name="shared_share",
        hints={
            0.0: "no copy was found: strip white space and ignore case on both sides",
            0.25: "one of two copies was missed: strip white space *and* ignore case",
            2 / 3: "divide by the number of validation documents, copies among them included",
            2.0: "a share is between 0 and 1: divide by the number of validation documents",
        },
    )
    expect_close(answer(["a"], ["b"]), 0.0, name="shared_share of different texts")
    expect_close(
        answer(["The baker sang all day."], ["baker sang"]),
        0.0,
        name="shared_share of a text and a part of it",
        hints={1.0: "a part of a document is no copy of it: compare whole documents"},
    )
    passed("copies are found")
