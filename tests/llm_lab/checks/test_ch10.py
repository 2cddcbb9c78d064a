"""Right and wrong answers to the exercises of chapter 10, for `test_contract`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from check_answers import Right, Wrong
from torch import Tensor

from llm_lab.checks import ch10


def layout(lengths: list[int], width: int) -> tuple[Tensor, Tensor]:
    number = torch.full((width,), len(lengths))
    position_ids = torch.zeros(width, dtype=torch.long)
    begin = 0
    for text, length in enumerate(lengths):
        number[begin : begin + length] = text
        position_ids[begin : begin + length] = torch.arange(length)
        begin += length
    return position_ids, number[:, None] == number[None, :]


def blind_padding(lengths: list[int], width: int) -> tuple[Tensor, Tensor]:
    position_ids, mask = layout(lengths, width)
    mask[sum(lengths) :] = False
    return position_ids, mask


def padding_in_view(lengths: list[int], width: int) -> tuple[Tensor, Tensor]:
    position_ids, mask = layout(lengths, width)
    mask[:, sum(lengths) :] = True
    return position_ids, mask


def blind_to_the_first(lengths: list[int], width: int) -> tuple[Tensor, Tensor]:
    position_ids, mask = layout(lengths, width)
    mask[1, 0] = False
    return position_ids, mask


def counted(hidden: Tensor, labels: Tensor, head: Callable) -> tuple[Tensor, Tensor]:
    chosen = labels != -100
    return head(hidden[chosen]), labels[chosen]


def late(hidden: Tensor, labels: Tensor, head: Callable) -> tuple[Tensor, Tensor]:
    chosen = labels != -100
    return head(hidden)[chosen], labels[chosen]


def positive(hidden: Tensor, labels: Tensor, head: Callable) -> tuple[Tensor, Tensor]:
    return head(hidden[labels > 0]), labels[labels > 0]


def places(hidden: Tensor, labels: Tensor, head: Callable) -> tuple[Tensor, Tensor]:
    chosen = labels != -100
    return head(hidden[chosen]), chosen.nonzero()[:, 1]


def in_another_order(hidden: Tensor, labels: Tensor, head: Callable) -> tuple[Tensor, Tensor]:
    chosen = labels != -100
    return head(hidden[chosen].flip(0)), labels[chosen]


def loss(parts: Any) -> float:
    total = 0.0
    for name in ("mlm", "nsp"):
        total += sum(p[name][0] for p in parts) / sum(p[name][1] for p in parts)
    return total


def mean_of_means(parts: Any) -> float:
    kept = {n: [s / c for s, c in (p[n] for p in parts) if c] for n in ("mlm", "nsp")}
    return sum(sum(values) / len(values) for values in kept.values())


def sums(parts: Any) -> float:
    return sum(p[n][0] for p in parts for n in ("mlm", "nsp"))


def floor(distributions: Any, words: list[str], single: set[str]) -> float:
    nats = 0.0
    for distribution, word in zip(distributions, words):
        known = sum(p for other, p in distribution.items() if other in single)
        nats -= math.log(distribution[word] / known)
    return nats / len(words)


def plain_floor(distributions: Any, words: list[str], single: set[str]) -> float:
    return floor(distributions, words, {w for d in distributions for w in d})


def uniform_floor(distributions: Any, words: list[str], single: set[str]) -> float:
    return floor([dict.fromkeys(d, 1.0) for d in distributions], words, single)


WRONG: Wrong = [
    (ch10.check_packed_layout, lambda n, w: None, "two tensors"),
    (ch10.check_packed_layout, lambda n, w: (torch.arange(w), layout(n, w)[1]), "begin at 0 again"),
    (ch10.check_packed_layout, lambda n, w: (layout(n, w)[0] + 1, layout(n, w)[1]), "difference"),
    (ch10.check_packed_layout, lambda n, w: (layout(n, w)[0], layout(n, w)[1].long()), "bool"),
    (ch10.check_packed_layout, lambda n, w: (layout(n, w)[0], ~layout(n, w)[1]), "turned around"),
    (
        ch10.check_packed_layout,
        lambda n, w: (layout(n, w)[0], torch.ones(w, w).bool()),
        "every token sees every other",
    ),
    (
        ch10.check_packed_layout,
        lambda n, w: (layout(n, w)[0], layout(n, w)[1].tril()),
        "causal mask",
    ),
    (ch10.check_packed_layout, blind_padding, "a softmax over nothing"),
    (ch10.check_packed_layout, padding_in_view, "belongs to another text"),
    (ch10.check_packed_layout, blind_to_the_first, "belongs to the same text"),
    (ch10.check_scores_where_counted, late, "applied to 15 positions"),
    (ch10.check_scores_where_counted, positive, "a token like the others"),
    (ch10.check_scores_where_counted, places, "these are the places"),
    (ch10.check_scores_where_counted, in_another_order, "the scores is wrong"),
    (ch10.check_scores_where_counted, lambda *a: None, "two tensors"),
    (ch10.check_bert_loss, mean_of_means, "mean of means"),
    (ch10.check_bert_loss, sums, "this is the sum"),
    (ch10.check_bert_loss, lambda parts: sums(parts) / 42, "count of its own"),
    (ch10.check_bert_loss, lambda parts: loss(parts) / 2, "not their mean"),
    (ch10.check_bert_loss, lambda parts: 118 / 30, "term is missing"),
    (
        ch10.check_bert_loss,
        lambda parts: sum(p["mlm"][0] / p["mlm"][1] for p in parts),
        "division by zero",
    ),
    (ch10.check_hidden_word_floor, plain_floor, "single piece: divide"),
    (ch10.check_hidden_word_floor, uniform_floor, "not equally likely"),
    (ch10.check_hidden_word_floor, lambda *a: 3 * floor(*a), "take the mean"),
    (ch10.check_hidden_word_floor, lambda *a: -floor(*a), "sign"),
    (ch10.check_hidden_word_floor, lambda *a: floor(*a) / math.log(2), "bits"),
]

RIGHT: Right = [
    (ch10.check_packed_layout, layout),
    (ch10.check_scores_where_counted, counted),
    (ch10.check_bert_loss, loss),
    (ch10.check_hidden_word_floor, floor),
]
