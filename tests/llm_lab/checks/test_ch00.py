"""Every exercise of chapter 00: the solution passes; blanks and wrong answers are diagnosed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from llm_lab.checks import ch00
from llm_lab.checks.grading import CheckFailed


def blank(*_: Any) -> Any:
    raise NotImplementedError("write your answer here")


def stable(z: list[float]) -> list[float]:
    powers = [math.exp(score - max(z)) for score in z]
    return [power / sum(powers) for power in powers]


def plain(z: list[float]) -> list[float]:
    powers = [math.exp(score) for score in z]
    return [power / sum(powers) for power in powers]


RIGHT: list[tuple[Callable[..., None], Callable[..., Any]]] = [
    (ch00.check_stable_softmax, stable),
    (ch00.check_surprise, lambda p: math.inf if p == 0 else -math.log(p)),
    (ch00.check_shape, lambda letters, sizes: tuple(sizes[x] for x in letters.split())),
]

WRONG: list[tuple[Callable[..., None], Callable[..., Any], str]] = [
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


@pytest.mark.parametrize(("check", "answer"), RIGHT)
def test_the_solution_passes(check: Callable[..., None], answer: Callable[..., Any]) -> None:
    check(answer)


@pytest.mark.parametrize("check", [check for check, _ in RIGHT])
def test_a_blank_answer_fails(check: Callable[..., None]) -> None:
    with pytest.raises(NotImplementedError, match="write your answer"):
        check(blank)


@pytest.mark.parametrize(("check", "answer", "diagnosis"), WRONG)
def test_a_wrong_answer_is_diagnosed(
    check: Callable[..., None], answer: Callable[..., Any], diagnosis: str
) -> None:
    with pytest.raises(CheckFailed, match=diagnosis):
        check(answer)
