"""Right and wrong answers to the exercises of chapter 08, for `test_contract`."""

from __future__ import annotations

import math
from collections import Counter

import torch
from check_answers import Right, Wrong
from torch import Tensor

from llm_lab.checks import ch08


def grams(tokens: list[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))


def precision(written: list[str], reference: list[str], n: int) -> float:
    ours, theirs = grams(written, n), grams(reference, n)
    return (ours & theirs).total() / max(ours.total(), 1)


def unclipped(written: list[str], reference: list[str], n: int) -> float:
    theirs = grams(reference, n)
    ours = grams(written, n)
    return sum(c for g, c in ours.items() if g in theirs) / max(ours.total(), 1)


def recall(written: list[str], reference: list[str], n: int) -> float:
    return precision(reference, written, n)


def unguarded(written: list[str], reference: list[str], n: int) -> float:
    return (grams(written, n) & grams(reference, n)).total() / grams(written, n).total()


def short_is_empty(written: list[str], reference: list[str], n: int) -> float:
    return 0.0 if len(written) <= n else precision(written, reference, n)


def step(sums: Tensor, log_p: Tensor, k: int) -> list[tuple[int, int, float]]:
    best, places = (sums[:, None] + log_p).flatten().topk(k)
    width = log_p.shape[1]
    return [(int(p) // width, int(p) % width, float(s)) for s, p in zip(best, places)]


def tokens_alone(sums: Tensor, log_p: Tensor, k: int) -> list[tuple[int, int, float]]:
    return step(torch.zeros_like(sums), log_p, k)


def each_prefix(sums: Tensor, log_p: Tensor, k: int) -> list[tuple[int, int, float]]:
    return [(w, int(row.argmax()), float(sums[w] + row.max())) for w, row in enumerate(log_p)]


def without_sums(sums: Tensor, log_p: Tensor, k: int) -> list[tuple[int, int, float]]:
    return [(w, v, float(log_p[w, v])) for w, v, _ in step(sums, log_p, k)]


def by_prefixes(sums: Tensor, log_p: Tensor, k: int) -> list[tuple[int, int, float]]:
    best, places = (sums[:, None] + log_p).flatten().topk(k)
    rows = log_p.shape[0]
    return [(int(p) // rows, int(p) % rows, float(s)) for s, p in zip(best, places)]


def mean_mass(weights: Tensor, relation: Tensor) -> float:
    masses = (weights * relation).sum(-1) / relation.sum(-1)
    return masses.nanmean().item()


def largest_mass(weights: Tensor, relation: Tensor) -> float:
    return (weights * relation).amax(-1)[relation.any(-1)].mean().item()


def mass(weights: Tensor, relation: Tensor) -> float:
    masses = (weights * relation).sum(-1)
    return masses[relation.any(-1)].mean().item()


WRONG: Wrong = [
    (ch08.check_clipped_precision, unclipped, "clip the counts"),
    (ch08.check_clipped_precision, recall, "clipped_precision"),
    (ch08.check_clipped_precision, unguarded, "shorter than n"),
    (ch08.check_clipped_precision, lambda a, b, n: precision(a, b, 1), "stretches of n"),
    (ch08.check_clipped_precision, short_is_empty, "one n-gram, not none"),
    (ch08.check_brevity_penalty, lambda c, r: math.exp(r / c - 1), "sign is turned"),
    (ch08.check_brevity_penalty, lambda c, r: math.exp(r - c), "not a difference"),
    (ch08.check_brevity_penalty, lambda c, r: math.exp(1 - c / r), "upside down"),
    (ch08.check_brevity_penalty, lambda c, r: math.exp(1 - r / c), "at most 1"),
    (ch08.check_brevity_penalty, lambda c, r: min(1.0, c / r), "ratio of the lengths"),
    (ch08.check_beam_step, tokens_alone, "add the sum of each prefix"),
    (ch08.check_beam_step, each_prefix, "all extensions together"),
    (ch08.check_beam_step, lambda *a: step(*a)[::-1], "turned around"),
    (ch08.check_beam_step, without_sums, "prefix's sum in it"),
    (ch08.check_beam_step, lambda *a: [x[:2] for x in step(*a)], "prefix, token, sum"),
    (
        ch08.check_beam_step,
        lambda *a: [(v, w, s) for w, v, s in step(*a)],
        "prefix comes first",
    ),
    (ch08.check_beam_step, by_prefixes, "number of tokens V"),
    (ch08.check_beam_step, lambda *a: None, "without `return`"),
    (ch08.check_mass_on, mean_mass, "add their attention up"),
    (ch08.check_mass_on, largest_mass, "not only the largest"),
    (ch08.check_mass_on, lambda w, r: (w * r).sum(-1).mean().item(), "does not count"),
    (ch08.check_mass_on, lambda w, r: w[r].mean().item(), "over the keys of a query first"),
    (ch08.check_mass_on, lambda w, r: w[r].sum().item(), "take the mean"),
]

RIGHT: Right = [
    (ch08.check_clipped_precision, precision),
    (ch08.check_brevity_penalty, lambda c, r: min(1.0, math.exp(1 - r / c))),
    (ch08.check_beam_step, step),
    (ch08.check_mass_on, mass),
]
