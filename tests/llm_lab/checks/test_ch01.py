"""Right and wrong answers to the exercises of chapter 01, for `test_contract`."""

from __future__ import annotations

import math

from check_answers import Right, Wrong

from llm_lab.checks import ch01


def gated(n_layers: int, d: int, f: int, v: int) -> int:
    return n_layers * (4 * d * d + 3 * d * f + 2 * d) + d + 2 * v * d


def days(n: float, tokens: float, devices: int, peak: float, mfu: float) -> float:
    return 6 * n * tokens / (devices * peak * mfu) / 86_400


def longest(memory: float, weights: float, n_layers: int, d: int, rows: int) -> int:
    return max(0, math.floor((memory - weights) / (4 * n_layers * d * rows)))


def bend(peak: float, bandwidth: float, size: float) -> float:
    return peak * size / 2 / bandwidth


def negative(memory: float, weights: float, n_layers: int, d: int, rows: int) -> int:
    return int((memory - weights) // (4 * n_layers * d * rows))


def strictly(memory: float, weights: float, n_layers: int, d: int, rows: int) -> int:
    """One too few where the last token fits exactly."""
    return max(0, math.ceil((memory - weights) / (4 * n_layers * d * rows)) - 1)


WRONG: Wrong = [
    (ch01.check_gated_parameters, lambda n, d, f, v: gated(n, d, f, v) - v * d, "not tied"),
    (ch01.check_gated_parameters, lambda n, d, f, v: gated(n, d, f, v) - n * d * f, "three"),
    (ch01.check_gated_parameters, lambda n, d, f, v: gated(n, d, f, v) - d, "at the end"),
    (ch01.check_gated_parameters, lambda n, d, f, v: gated(n, d, f, v) + 4 * n * d, "no biases"),
    (ch01.check_gated_parameters, lambda n, d, f, v: gated(1, d, f, v), "multiply by n_layers"),
    (ch01.check_training_days, lambda *a: days(*a) / 3, "forward pass only"),
    (ch01.check_training_days, lambda *a: days(*a) * 86_400, "seconds"),
    (ch01.check_training_days, lambda *a: days(*a) * 60, "minutes of a day"),
    (ch01.check_training_days, lambda *a: int(days(*a)), "do not round"),
    (ch01.check_training_days, lambda *a: days(*a) * a[2], "divide by n_devices"),
    (ch01.check_training_days, lambda *a: days(*a) * a[4], "divide by mfu"),
    (ch01.check_training_days, lambda *a: days(*a) * a[4] ** 2, "takes longer"),
    (ch01.check_longest_text, lambda m, w, n, d, r: (m - w) // (2 * n * d * r), "key and a value"),
    (ch01.check_longest_text, lambda m, w, n, d, r: longest(m, 0, n, d, r), "subtract them"),
    (ch01.check_longest_text, lambda m, w, n, d, r: longest(m, w, n, d, 1), "own cache"),
    (ch01.check_longest_text, lambda m, w, n, d, r: (m - w) / (4 * n * d * r), "round down"),
    (ch01.check_longest_text, negative, "negative length"),
    (ch01.check_longest_text, strictly, "exactly one token"),
    (ch01.check_rows_at_bend, lambda p, b, s: 2 * bend(p, b, s), "two operations"),
    (ch01.check_rows_at_bend, lambda p, b, s: p / b, "ratio of the two speeds"),
    (ch01.check_rows_at_bend, lambda p, b, s: bend(p, b, 2), "bytes_per_weight as it is given"),
    (ch01.check_rows_at_bend, lambda p, b, s: p / 2 / b / s, "fewer bytes"),
    (ch01.check_rows_at_bend, lambda p, b, s: 1 / bend(p, b, s), "turned around"),
]

RIGHT: Right = [
    (ch01.check_gated_parameters, gated),
    (ch01.check_training_days, days),
    (ch01.check_longest_text, longest),
    (ch01.check_rows_at_bend, bend),
]
