"""Checks of chapter 10: packed rows, the head where it counts, the mean of two terms, a floor."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from llm_lab.checks.grading import (
    CheckFailed,
    expect_close,
    expect_equal,
    expect_mask,
    expect_parts,
    expect_shape,
    passed,
)

Terms = Mapping[str, tuple[float, int]]


def check_packed_layout(answer: Callable[[list[int], int], tuple[Tensor, Tensor]]) -> None:
    """Positions that restart, and a mask that keeps texts apart; padding is a text of its own."""
    for lengths, width in (([3, 2], 7), ([2, 1, 4], 7), ([5], 5)):
        name = f"packed_layout({lengths}, {width})"
        got = answer(lengths, width)
        expect_parts(got, 2, f"{name} should return two tensors, position_ids and mask")
        position_ids, mask = got
        texts = [*lengths, *([width - sum(lengths)] if sum(lengths) < width else [])]
        places = [place for length in texts for place in range(length)]
        expect_shape(position_ids, (width,), name=f"position_ids of {name}")
        padded = places[: sum(lengths)] + [0] * (width - sum(lengths))
        allowed = [places, padded]  # nobody reads the position of padding
        if position_ids.tolist() not in allowed:
            expect_equal(
                position_ids,
                places,
                name=f"position_ids of {name}",
                hints={
                    tuple(range(width)): "positions must begin at 0 again in each text",
                    tuple(place + 1 for place in places): "the first position is 0",
                },
            )
        expect_mask(mask, (width, width), name=f"mask of {name}")
        _check_mask(mask, texts, sum(lengths), name)
    passed("texts share a row and do not see each other")


def _check_mask(mask: Tensor, texts: list[int], held: int, name: str) -> None:
    right = torch.block_diag(*[torch.ones(n, n) for n in texts]).bool()
    tokens = slice(0, held)
    if torch.equal(mask[tokens], right[tokens]):
        if not mask[held:].any(-1).all():
            raise CheckFailed(
                f"{name}: a row of padding may look nowhere, and a softmax over nothing is nan: "
                "let padding see itself"
            )
        return
    if torch.equal(mask, ~right):
        raise CheckFailed(f"{name}: the mask is turned around; True means: may look there")
    if mask.all():
        raise CheckFailed(f"{name}: every token sees every other one, also those of other texts")
    if torch.equal(mask, right.tril()):
        raise CheckFailed(f"{name}: a BERT sees both sides; this is a causal mask")
    i, j = (mask[tokens] != right[tokens]).nonzero()[0].tolist()
    verb = "may" if mask[i, j] else "may not"
    other = "another text" if mask[i, j] else "the same text"
    raise CheckFailed(f"{name}: place {i} {verb} look at place {j}, which belongs to {other}")


def check_scores_where_counted(
    answer: Callable[[Tensor, Tensor, Callable[[Tensor], Tensor]], tuple[Tensor, Tensor]],
) -> None:
    """The head sees the counted positions and no others; scores and labels go together."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 5, 4, generator=generator)
    labels = torch.full((3, 5), -100)
    labels[0, 1], labels[0, 4], labels[2, 0] = 6, 0, 3
    weight = torch.randn(4, 7, generator=generator)
    seen: list[int] = []

    def head(rows: Tensor) -> Tensor:
        seen.append(rows.shape[:-1].numel())
        return rows @ weight

    got = answer(hidden, labels, head)
    expect_parts(got, 2, "the answer should be two tensors, scores and labels")
    scores, targets = got
    if sum(seen) > 3:
        raise CheckFailed(
            f"the head was applied to {sum(seen)} positions, but only 3 are counted: "
            "choose the rows of hidden first"
        )
    expect_equal(
        targets,
        [6, 0, 3],
        name="the labels",
        hints={
            (6, 3): "a label of 0 is a token like the others: compare with -100",
            (1, 4, 0): "these are the places of the labels, not the labels",
        },
    )
    expect_close(scores, hidden[labels != -100] @ weight, name="the scores")
    passed("the head works where a label counts, and nowhere else")


def check_bert_loss(answer: Callable[[Sequence[Terms]], float]) -> None:
    """The sum of two means, each over the counts of all micro-batches."""
    parts: list[Terms] = [
        {"mlm": (30.0, 10), "nsp": (1.5, 2)},
        {"mlm": (88.0, 20), "nsp": (4.5, 6)},
        {"mlm": (0.0, 0), "nsp": (0.8, 4)},
    ]

    def over(name: str) -> tuple[float, int]:
        return sum(p[name][0] for p in parts), sum(p[name][1] for p in parts)

    (mlm, n_mlm), (nsp, n_nsp) = over("mlm"), over("nsp")
    try:
        got = answer(parts)
    except ZeroDivisionError:
        raise CheckFailed(
            "a division by zero: a micro-batch in which no token was chosen has the sum 0 and the "
            "count 0. Add up first, and divide once"
        ) from None
    counted = [[p[name] for p in parts if p[name][1]] for name in ("mlm", "nsp")]
    means = [sum(s / n for s, n in terms) / len(terms) for terms in counted]
    expect_close(
        got,
        mlm / n_mlm + nsp / n_nsp,
        name="bert_loss",
        hints={
            sum(means): "this is a mean of means: the parts have different numbers of labels",
            mlm + nsp: "this is the sum: divide each term by its count",
            (mlm + nsp) / (n_mlm + n_nsp): "each of the two terms has a count of its own",
            mlm / n_mlm: "the next-sentence term is missing",
            (mlm / n_mlm + nsp / n_nsp) / 2: "F9 is the sum of the two terms, not their mean",
        },
    )
    passed("add up sums and counts, then divide, then add the terms")


def check_hidden_word_floor(
    answer: Callable[[list[dict[str, float]], list[str], set[str]], float],
) -> None:
    """The mean of -log p, where it is known that the word is a single piece."""
    distributions = [
        {"red": 0.5, "blue": 0.25, "vermilion": 0.25},
        {"she": 1.0},
        {"happy": 0.2, "glad": 0.1, "exuberant": 0.7},
    ]
    words, single = ["blue", "she", "happy"], {"red", "blue", "she", "happy", "glad", "old"}
    right = -(math.log(0.25 / 0.75) + math.log(1.0) + math.log(0.2 / 0.3)) / 3
    plain = -(math.log(0.25) + math.log(0.2)) / 3
    expect_close(
        answer(distributions, words, single),
        right,
        name="hidden_word_floor",
        hints={
            plain: (
                "this is the floor without the knowledge that the word is a single piece: divide "
                "by the probability of all single pieces"
            ),
            right * 3: "this is the sum over the words: take the mean",
            -(math.log(1 / 2) + math.log(1 / 2)) / 3: (
                "the words that remain are not equally likely: keep their probabilities"
            ),
        },
    )
    passed("no model that reads one [MASK] can do better on average")
