"""Checks of chapter 00: a stable softmax, surprise, shapes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from llm_lab.checks.grading import CheckFailed, expect_close, expect_given, expect_parts, passed


def check_stable_softmax(answer: Callable[[list[float]], list[float]]) -> None:
    """Equal to the formula, and finite for large scores."""
    for z in ([2.0, 1.0, 0.0, -3.0], [0.5], [1000.0, 999.0, 0.0], [-1000.0, -1001.0]):
        try:
            got = answer(list(z))
        except OverflowError as error:
            raise CheckFailed(
                f"scores {z}: {error}. e**1000 is too large for a float: subtract the largest "
                "score from all of them first"
            ) from error
        except ZeroDivisionError as error:
            raise CheckFailed(
                f"scores {z}: {error}. All powers were rounded to zero: after subtracting the "
                "*largest* score the largest power is exactly 1"
            ) from error
        expect_given(got, "stable_softmax")
        shares = list(got)
        expect_parts(shares, len(z), f"scores {z}: expected {len(z)} shares")
        powers = [math.exp(score - max(z)) for score in z]
        for share, power, score in zip(shares, powers, z):
            expect_close(
                share,
                power / sum(powers),
                name=f"stable_softmax({z}), share of {score:g}",
                hints={
                    power: "divide by the sum: the shares must add up to 1",
                    score / sum(z) if sum(z) else math.nan: "take the exponential of each score",
                    power / len(z): "divide by the sum of the powers, not by their number",
                },
            )
    passed("correct, and it does not break")


def check_surprise(answer: Callable[[float], float]) -> None:
    """Minus the natural logarithm."""
    for p in (0.5, 0.01, 1.0):
        expect_close(
            answer(p),
            -math.log(p),
            name=f"surprise({p})",
            hints={
                -math.log10(p): "this has base 10: use the natural logarithm",
                1 - p: "nearly right only for probable events: use the logarithm",
            },
        )
    try:
        zero = answer(0.0)
    except (ValueError, ZeroDivisionError) as error:
        raise CheckFailed(f"surprise(0.0) stops with '{error}': it should be math.inf") from error
    if zero != math.inf:
        raise CheckFailed(f"surprise(0.0) should be infinite, got {zero!r}")
    passed("nats, and infinity where it belongs")


def check_shape(answer: Callable[[str, dict[str, int]], Any]) -> None:
    """Letters to sizes."""
    sizes = {"B": 2, "T": 8, "V": 100, "H": 4}
    for letters, expected in (("B T V", (2, 8, 100)), ("B H T T", (2, 4, 8, 8)), ("V", (100,))):
        got = answer(letters, dict(sizes))
        if isinstance(got, list) and tuple(got) == expected:
            raise CheckFailed(f"the sizes are right, but a shape is a tuple: got the list {got}")
        if got != expected:
            advice = (
                "an axis may occur twice"
                if "T T" in letters
                else "keep the order of the letters, which are separated by spaces"
            )
            raise CheckFailed(f"shape({letters!r}) should be {expected}, got {got!r}: {advice}")
    passed("you can read every signature of the package")
