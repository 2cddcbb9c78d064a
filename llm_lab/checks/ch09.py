"""Checks of chapter 09: the masked-token loss, 80/10/10, next sentences, an idle mask."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llm_lab.checks.grading import (
    CheckFailed,
    at_labels,
    expect_close,
    expect_shape,
    expect_verdict,
    passed,
)

MASK_ID, FIRST, VOCAB = 3, 4, 1004  # ids below FIRST are special
Loss = Callable[[Tensor, Tensor], Tensor]


def _masked_loss_mistakes(logits: Tensor, labels: Tensor) -> dict[Any, str]:
    log_p, chosen = logits.log_softmax(-1), labels != -100
    picked = at_labels(log_p, labels)
    right = float(-picked[chosen].mean())
    n, places = int(chosen.sum()), labels.numel()
    row_means = [-picked[r][chosen[r]].mean() for r in range(2)]
    shifted = at_labels(log_p[:, :-1], labels[:, 1:])[labels[:, 1:] != -100]
    return {
        float(-shifted.mean()): "the labels are shifted: an output speaks about its own position",
        right * n: "this is the sum: divide by the number of chosen positions",
        right * n / places: (
            f"the sum is right, but it is divided by all {places} places; only {n} are chosen"
        ),
        float(-picked.mean()): "labels of -100 are counted as if they were token 0",
        float(sum(row_means) / 2): (
            "this is a mean of the means of the rows: they have different numbers of labels"
        ),
        float(-at_labels(logits.log_softmax(1), labels)[chosen].mean()): (
            "the softmax is taken over the positions: it must be taken over the tokens, dim=-1"
        ),
        float(-at_labels(logits, labels)[chosen].mean()): (
            "these are logits, not probabilities: take log_softmax first"
        ),
        float(-at_labels(logits.softmax(-1), labels)[chosen].mean()): (
            "these are probabilities, and the loss is made of their logarithms"
        ),
        float(-picked[labels > 0].mean()): (
            "token 0 is left out: 0 is an id like the others, only -100 does not count"
        ),
        float(-log_p[chosen].mean()): (
            "the mean is taken over all tokens of the vocabulary: look up the one that is "
            "in the label"
        ),
    }


def check_masked_loss(answer: Callable[[Tensor, Tensor], Tensor | float]) -> None:
    """The mean of F10 over the chosen positions."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 7, 9, generator=generator, dtype=torch.float64)
    labels = torch.randint(9, (2, 7), generator=generator)
    labels[0, [0, 1, 3, 4]], labels[1, [0, 2, 3, 4, 5, 6]] = -100, -100
    labels[0, 2] = 0
    picked = at_labels(logits.log_softmax(-1), labels)
    before = logits.clone(), labels.clone()
    try:
        got = answer(logits, labels)
    except NotImplementedError:  # a blank; it is a RuntimeError too
        raise
    except (RuntimeError, IndexError) as error:
        advice = "-100 is no id: put another one there, in a copy, before you look tokens up"
        raise CheckFailed(f"masked_loss stopped with {error}. Hint: {advice}") from error
    for name, now, then in zip(("logits", "labels"), (logits, labels), before):
        if not torch.equal(now, then):
            raise CheckFailed(
                f"masked_loss changed its argument {name}: work on a copy (masked_fill or "
                "clamp_min, without the final _)"
            )
    expect_close(
        got,
        float(-picked[labels != -100].mean()),
        name="masked_loss",
        hints=_masked_loss_mistakes(logits, labels),
    )
    passed("only the chosen positions count, each once")


def check_hide(answer: Callable[[Tensor, Tensor, int, Tensor, torch.Generator], Tensor]) -> None:
    """80/10/10 within five standard deviations on chosen tokens; nothing else is touched."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(FIRST, VOCAB, (400, 500), generator=generator)
    chosen = torch.rand(ids.shape, generator=generator) < 0.3
    before = ids.clone()
    ordinary, marked, state = torch.arange(FIRST, VOCAB), chosen.clone(), generator.get_state()
    read = answer(ids, marked, MASK_ID, ordinary, generator)
    expect_shape(read, tuple(ids.shape), name="what the model reads")
    if read.dtype != ids.dtype:
        raise CheckFailed(f"ids are whole numbers ({ids.dtype}), got {read.dtype}")
    if not torch.equal(ids, before):
        raise CheckFailed("hide changed its argument ids: work on a copy, or use torch.where")
    if not torch.equal(marked, chosen):
        raise CheckFailed("hide changed its argument chosen: make a new mask for each rule")
    if (read[~chosen] != ids[~chosen]).any():
        raise CheckFailed("a token that was not chosen is changed: it must stay as it is")
    put_in = read[chosen & (read != ids) & (read != MASK_ID)]
    if ((put_in < FIRST) | (put_in >= VOCAB)).any():
        raise CheckFailed(
            "a special token was put in as a random token: draw from ordinary_ids, "
            "not from the numbers up to its length"
        )
    _check_shares(read, ids, chosen, len(put_in))
    _check_random_tokens(answer, put_in)
    generator.set_state(state)
    if not torch.equal(answer(ids, chosen.clone(), MASK_ID, ordinary, generator), read):
        raise CheckFailed(
            "the same generator gives another result: pass generator=generator to torch.rand and "
            "to torch.randint"
        )
    passed("80 % [MASK], 10 % random, 10 % unchanged")


def _check_random_tokens(answer: Callable[..., Tensor], put_in: Tensor) -> None:
    """They are drawn for each position, from all ordinary ids."""
    if put_in.unique().numel() < 0.98 * (VOCAB - FIRST):
        raise CheckFailed(
            f"{put_in.unique().numel()} different random tokens were put in, of "
            f"{VOCAB - FIRST} in ordinary_ids: draw from all of them, anew for each position"
        )
    alike = torch.full((1, 1000), FIRST)
    generator = torch.Generator().manual_seed(1)
    every = torch.ones_like(alike, dtype=torch.bool)
    read = answer(alike, every, MASK_ID, torch.arange(FIRST, VOCAB), generator)
    if not ((read != FIRST) & (read != MASK_ID)).any():
        raise CheckFailed(
            "the random tokens are taken from the text itself: draw them from ordinary_ids"
        )


def _check_shares(read: Tensor, ids: Tensor, chosen: Tensor, n_random: int) -> None:
    """80, 10 and 10 percent of the chosen tokens, drawn for each token."""
    share = float((read[chosen] == MASK_ID).double().mean())
    for axis, line in ((0, "column"), (1, "row")):
        masked = ((read == MASK_ID) & chosen).sum(axis)
        alike = (masked == 0) | (masked == chosen.sum(axis))
        if alike.float().mean() > 0.5 and 0.1 < share < 0.95:
            raise CheckFailed(
                f"all chosen tokens of one {line} become the same: draw a number for each token, "
                "torch.rand(ids.shape, ...)"
            )
    n = int(chosen.sum())
    same = 0.1 + 0.1 / (VOCAB - FIRST)
    shares = {
        "[MASK]": (int((read[chosen] == MASK_ID).sum()), 0.8),
        "the same token": (int((read[chosen] == ids[chosen]).sum()), same),
        "another token": (n_random, 0.2 - same),
    }
    for name, (count, p) in shares.items():
        if abs(count - n * p) > 5 * math.sqrt(n * p * (1 - p)):
            raise CheckFailed(
                f"of the chosen tokens, {count / n:.1%} became {name}, expected {p:.0%}. "
                + _share_hint(count / n, name, n_random)
            )


def _share_hint(share: float, name: str, n_random: int) -> str:
    if name == "[MASK]" and share > 0.99:
        return "All are hidden: draw a number for each token."
    if name == "[MASK]" and share < 0.01:
        return "Is anything put in the place of a chosen token?"
    if name == "[MASK]" and share < 0.2:
        return "The shares of [MASK] and of the random tokens are exchanged."
    if name == "the same token" and share < 0.01:
        return "One in ten must stay as it is: the random tokens take its place."
    if name == "the same token" and n_random == 0:
        return "No random token is put in: what happens when the draw is between 0.8 and 0.9?"
    return (
        "Use one draw for each token: below 0.8, below 0.9, or above. A second draw of its own "
        "for the random tokens would take 10 % of the rest."
    )


def _nsp(difference: Tensor, y: Tensor) -> Tensor:
    return -(y * F.logsigmoid(difference) + (1 - y) * F.logsigmoid(-difference))


def _nsp_mistakes(difference: Tensor, label: Tensor) -> dict[Any, str]:
    right = _nsp(difference, 1 - label)
    return {
        float(_nsp(difference, label).mean()): (
            "y is turned around: next_sentence_label is 1 - y, and 0 means that B follows A"
        ),
        float(right.sum()): "this is the sum over the pairs: take the mean",
        float(right[label == 1].sum() / len(label)): "0 is a class: its pairs must count too",
        float(right[label == 0].sum() / len(label)): "the second term, of the label 1, is missing",
        float(-F.logsigmoid(difference).mean()): (
            "every pair is counted as one that follows: where the label is 1, it is "
            "log(1 - p) that counts, and 1 - sigmoid(x) = sigmoid(-x)"
        ),
        float(
            torch.where(label == 0, -F.logsigmoid(difference), F.logsigmoid(difference) - 1).mean()
        ): "log(1 - p) is not 1 - log p",
        float(
            -torch.where(label == 0, difference.sigmoid(), (-difference).sigmoid()).mean()
        ): "these are probabilities, and the loss is made of their logarithms",
    }


def check_nsp_from_difference(answer: Callable[[Tensor, Tensor], Tensor | float]) -> None:
    """The mean of F11, also where a sigmoid rounds to 0."""
    difference = torch.tensor([1.5, -0.4, 0.3, 2.0, -1.1], dtype=torch.float64)
    label = torch.tensor([0, 1, 1, 0, 0])

    expect_close(
        answer(difference, label),
        float(_nsp(difference, 1 - label).mean()),
        name="nsp_from_difference",
        hints=_nsp_mistakes(difference, label),
    )
    for far, y, what in (
        (200.0, 1, "200 when B does not follow"),
        (-200.0, 0, "-200 when it does"),
    ):
        expect_close(
            answer(torch.tensor([far]), torch.tensor([y])),
            200.0,
            name=f"the loss of a difference of {what}",
            hints={
                math.inf: "the sigmoid is rounded to 0 or 1, so this is log(0): use logsigmoid, "
                "and logsigmoid of the negative for 1 - p",
                100.0: "binary_cross_entropy cuts each logarithm off at -100: use logsigmoid",
                -math.log(1e-12): "1e-12 inside the logarithm hides the infinity, and the loss "
                "is wrong: use logsigmoid",
            },
        )
    passed("two-class cross-entropy from one number, for large numbers too")


def _honest(z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z.flatten(0, 1), y.flatten())


def _broken(z: Tensor, y: Tensor) -> Tensor:
    mean = F.cross_entropy(z.flatten(0, 1), y.flatten().clamp_min(0))
    return (mean * (y != -100)).sum() / (y != -100).sum()


def _losses_to_judge() -> list[tuple[Loss, bool, str]]:
    """Losses, whether they teach at a position of -100, and what they are."""

    def leaks(row: int, place: int, size: float) -> Loss:
        return lambda z, y: _honest(z, y) + size * z[row, place].square().sum()

    return [
        (_honest, False, "an honest loss"),
        (lambda z, y: _honest(z, y) * 1e-3, False, "an honest loss with small gradients"),
        (_broken, True, "a mean over all positions, multiplied by the mask"),
        (leaks(0, 0, 1.0), True, "a loss that also teaches the first position of the first row"),
        (leaks(2, 4, 1.0), True, "a loss that also teaches one position of the last row"),
        (leaks(1, 5, 1.0), True, "a loss that also teaches the last position of a row"),
        (lambda z, y: _honest(z, y) + z[0, 4, 6], True, "one gradient of 1: the others are 0"),
        (lambda z, y: _honest(z, y) - z[0, 4, 6], True, "one gradient of -1: compare with zero"),
        (leaks(1, 3, 1e-12), True, "a loss that teaches elsewhere a little: compare with zero"),
        (
            lambda z, y: _honest(z, y) + z[0, 4, 1] - z[0, 4, 2],
            True,
            "a gradient of 1 and one of -1: a sum hides them, test each number",
        ),
        (_honest, False, "the honest loss again: gradients add up, so take a fresh copy each time"),
    ]


def check_teaches_elsewhere(answer: Callable[[Loss, Tensor, Tensor], bool]) -> None:
    """Finds each mask that does nothing, and accuses no honest loss."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 6, 8, generator=generator, dtype=torch.float64)
    labels = torch.full((3, 6), -100)
    labels[0, 2], labels[1, 0], labels[2, 5] = 3, 0, 7
    for loss_of, expected, what in _losses_to_judge():
        expect_verdict(
            answer(loss_of, logits, labels),
            expected,
            name="teaches_elsewhere",
            case=what,
            advice={
                True: "Look at the gradient of every position whose label is -100.",
                False: "Chosen positions may have a gradient; only those of -100 must not.",
            },
        )
    passed("no mask that does nothing escapes")
