"""Scores of predictions: classes, entities, answers. All are shares from 0 to 1."""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple

from llm_course.errors import DataError


def accuracy(predicted: Sequence[Hashable], true: Sequence[Hashable]) -> float:
    """The share of predictions that are right; `DataError` for none, or for unequal numbers."""
    _check(predicted, true)
    return sum(p == t for p, t in zip(predicted, true)) / len(true)


def macro_f1(predicted: Sequence[Hashable], true: Sequence[Hashable]) -> float:
    """The mean of the F1 of every class that is true or predicted somewhere.

    A rare class weighs as much as a frequent one. The F1 of a class without a right prediction
    is 0.
    """
    _check(predicted, true)
    classes = set(predicted) | set(true)
    right = Counter(t for p, t in zip(predicted, true) if p == t)
    n_predicted, n_true = Counter(predicted), Counter(true)
    return sum(2 * right[c] / (n_predicted[c] + n_true[c]) for c in classes) / len(classes)


def entities(tags: Iterable[str]) -> set[tuple[str, int, int]]:
    """(type, first, last) of each entity in a row of BIO tags, by the rules of conlleval.

    An entity begins at a B-, and at an I- that does not continue one of its type; it ends before
    the next O, B- or other type. (seqeval's default mode and the CoNLL-2003 script do so.)
    """
    found: set[tuple[str, int, int]] = set()
    kind, first, last = "", 0, -1
    for place, tag in enumerate([*tags, "O"]):
        mark, _, new = tag.partition("-")
        if tag != "O" and (mark not in ("B", "I") or not new):
            raise DataError(f"a tag must be O, B-TYPE or I-TYPE, got {tag!r} at place {place}")
        if kind and (mark != "I" or new != kind):
            found.add((kind, first, last))
            kind = ""
        if mark != "O" and not kind:
            kind, first = new, place
        last = place
    return found


def entity_scores(
    predicted: Sequence[Sequence[str]], true: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Precision, recall and F1 of whole entities over all rows: type, beginning and end count.

    Each is 0 where its denominator is 0.
    """
    _check(predicted, true)
    right = n_predicted = n_true = 0
    for number, (p, t) in enumerate(zip(predicted, true)):
        if len(p) != len(t):
            raise DataError(f"row {number} has {len(t)} tags, but {len(p)} are predicted")
        found, wanted = entities(p), entities(t)
        right += len(found & wanted)
        n_predicted += len(found)
        n_true += len(wanted)
    return {
        "precision": right / n_predicted if n_predicted else 0.0,
        "recall": right / n_true if n_true else 0.0,
        "f1": 2 * right / (n_predicted + n_true) if n_predicted + n_true else 0.0,
    }


def normal_answer(text: str) -> str:
    """An answer without capitals, punctuation, articles and additional white space.

    As the evaluation script of SQuAD does (Rajpurkar et al. 2016).
    """
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def answer_scores(predicted: Sequence[str], true: Sequence[Sequence[str]]) -> dict[str, float]:
    """Exact match and F1 of words as SQuAD has them, each with the best of the accepted answers."""
    _check(predicted, true)
    exact = overlap = 0.0
    for number, (answer, accepted) in enumerate(zip(predicted, true)):
        if not accepted:
            raise DataError(f"question {number} must have at least one accepted answer, got none")
        exact += max(normal_answer(answer) == normal_answer(one) for one in accepted)
        overlap += max(_word_f1(answer, one) for one in accepted)
    return {"exact_match": exact / len(true), "f1": overlap / len(true)}


def _word_f1(predicted: str, true: str) -> float:
    found, wanted = normal_answer(predicted).split(), normal_answer(true).split()
    if not found or not wanted:  # no answer is right only where none is wanted
        return float(found == wanted)
    common = sum((Counter(found) & Counter(wanted)).values())
    return 2 * common / (len(found) + len(wanted))


class CalibrationBin(NamedTuple):
    """Predictions of about one confidence: their mean confidence, the share that is right, n."""

    confidence: float
    right: float
    n: int


def calibration_bins(
    confidence: Sequence[float], right: Sequence[bool], n_bins: int = 10
) -> list[CalibrationBin]:
    """Predictions in `n_bins` bins of equal width from 0 to 1, those that are not empty.

    Confidence is the probability of the predicted class. A bin holds its upper end.
    """
    _check(confidence, right)
    if n_bins < 1:
        raise DataError(f"n_bins must be at least 1, got {n_bins}")
    inside: dict[int, list[tuple[float, bool]]] = {}
    for c, r in zip(confidence, right):
        if not 0 <= c <= 1 + 1e-6:
            raise DataError(f"confidence must be from 0 to 1, got {c}")
        number = min(max(math.ceil(c * n_bins) - 1, 0), n_bins - 1)
        inside.setdefault(number, []).append((c, bool(r)))
    return [
        CalibrationBin(
            sum(c for c, _ in found) / len(found), sum(r for _, r in found) / len(found), len(found)
        )
        for _, found in sorted(inside.items())
    ]


def calibration_error(
    confidence: Sequence[float], right: Sequence[bool], n_bins: int = 10
) -> float:
    r"""Expected calibration error $\sum_b \frac{n_b}{n}\,|\text{right}_b - \text{confidence}_b|$.

    Guo et al. 2017, eq. (3).
    """
    bins = calibration_bins(confidence, right, n_bins)
    return sum(b.n * abs(b.right - b.confidence) for b in bins) / len(right)


def _check(predicted: Sequence[object], true: Sequence[object]) -> None:
    if len(predicted) != len(true) or not true:
        raise DataError(
            f"there must be as many predictions as labels, and at least one, got {len(predicted)} "
            f"and {len(true)}"
        )
