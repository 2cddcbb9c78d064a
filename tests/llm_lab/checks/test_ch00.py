"""Right and wrong answers to the exercises of chapter 00, for `test_contract`."""

from __future__ import annotations

import math

from check_answers import Right, Wrong

from llm_lab.checks import ch00


def stable(z: list[float]) -> list[float]:
    powers = [math.exp(score - max(z)) for score in z]
    return [power / sum(powers) for power in powers]


def plain(z: list[float]) -> list[float]:
    powers = [math.exp(score) for score in z]
    return [power / sum(powers) for power in powers]


RIGHT: Right = [
    (ch00.check_stable_softmax, stable),
    (ch00.check_surprise, lambda p: math.inf if p == 0 else -math.log(p)),
    (ch00.check_shape, lambda letters, sizes: tuple(sizes[x] for x in letters.split())),
]

WRONG: Wrong = [
    (ch00.check_stable_softmax, plain, "subtract the largest"),
    (ch00.check_stable_softmax, lambda z: [math.exp(s - max(z)) for s in z], "add up to 1"),
    (ch00.check_stable_softmax, lambda z: stable(z)[:1], "expected 4 shares"),
    (ch00.check_surprise, lambda p: math.log(p), "sign"),
    (ch00.check_surprise, lambda p: -math.log2(p), "bits"),
    (ch00.check_surprise, lambda p: -math.log(p), "math.inf"),
    (ch00.check_shape, lambda letters, sizes: [sizes[x] for x in letters.split()], "tuple"),
    (ch00.check_shape, lambda letters, sizes: tuple(sizes.values()), "order"),
    (
        ch00.check_shape,
        lambda letters, sizes: tuple(sizes[x] for x in dict.fromkeys(letters.split())),
        "twice",
    ),
]
