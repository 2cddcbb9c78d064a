"""Every exercise of chapter 09: the solution passes; blanks and wrong answers are diagnosed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llm_course.checks import ch09
from llm_course.checks.grading import CheckFailed


def blank(*_: Any) -> Any:
    raise NotImplementedError("write your answer here")


def loss(logits: Tensor, labels: Tensor) -> Tensor:
    chosen = labels != -100
    picked = logits.log_softmax(-1).gather(-1, labels.clamp_min(0)[..., None]).squeeze(-1)
    return -picked[chosen].mean()


def over_positions(logits: Tensor, labels: Tensor) -> Tensor:
    picked = logits.log_softmax(1).gather(-1, labels.clamp_min(0)[..., None]).squeeze(-1)
    return -picked[labels != -100].mean()


def hide(
    ids: Tensor,
    chosen: Tensor,
    mask_id: int,
    ordinary: Tensor,
    generator: torch.Generator,
    masked: float = 0.8,
    replaced: float = 0.1,
) -> Tensor:
    draw = torch.rand(ids.shape, generator=generator)
    random = ordinary[torch.randint(len(ordinary), ids.shape, generator=generator)]
    hidden = torch.where(draw < masked, mask_id, random)
    return torch.where(chosen & (draw < masked + replaced), hidden, ids)


def in_place(ids: Tensor, *rest: Any) -> Tensor:
    return ids.copy_(hide(ids, *rest))


def everywhere(ids: Tensor, chosen: Tensor, *rest: Any) -> Tensor:
    return hide(ids, torch.ones_like(chosen), *rest)


def special_put_in(ids: Tensor, chosen: Tensor, mask_id: int, ordinary: Tensor, g: Any) -> Tensor:
    return hide(ids, chosen, mask_id, torch.arange(len(ordinary)), g)


def two_draws(ids: Tensor, chosen: Tensor, mask_id: int, ordinary: Tensor, g: Any) -> Tensor:
    read = torch.where(chosen & (torch.rand(ids.shape, generator=g) < 0.8), mask_id, ids)
    again = chosen & (read != mask_id) & (torch.rand(ids.shape, generator=g) < 0.1)
    return torch.where(again, ordinary[torch.randint(len(ordinary), ids.shape, generator=g)], read)


def one_draw_a_column(ids: Tensor, chosen: Tensor, mask_id: int, *rest: Any) -> Tensor:
    draw = torch.rand(ids.shape[1], generator=rest[-1])
    random = hide(ids, chosen, mask_id, *rest, masked=0.0, replaced=1.0)
    return torch.where(chosen & (draw < 0.8), mask_id, torch.where(draw < 0.9, random, ids))


def one_random(ids: Tensor, chosen: Tensor, mask_id: int, ordinary: Tensor, g: Any) -> Tensor:
    return hide(ids, chosen, mask_id, ordinary[torch.randint(len(ordinary), (1,), generator=g)], g)


def nsp(difference: Tensor, label: Tensor) -> Tensor:
    y = 1 - label
    return -(y * F.logsigmoid(difference) + (1 - y) * F.logsigmoid(-difference)).mean()


def with_logarithm(difference: Tensor, label: Tensor) -> Tensor:
    p = difference.sigmoid()
    return torch.where(label == 0, -p.log(), -(1 - p).log()).mean()


def ignoring(difference: Tensor, label: Tensor) -> Tensor:
    return -(label * F.logsigmoid(-difference)).mean()


def elsewhere(loss_of: Any, logits: Tensor, labels: Tensor, above: float = 0.0) -> bool:
    free = logits.detach().clone().requires_grad_()
    loss_of(free, labels).backward()
    assert free.grad is not None
    return bool((free.grad[labels == -100].abs() > above).any())


def on_the_argument(loss_of: Any, logits: Tensor, labels: Tensor) -> bool:
    loss_of(logits.requires_grad_(), labels).backward()
    assert logits.grad is not None
    return bool((logits.grad[labels == -100] != 0).any())


def summed(loss_of: Any, logits: Tensor, labels: Tensor) -> bool:
    free = logits.detach().clone().requires_grad_()
    loss_of(free, labels).backward()
    assert free.grad is not None
    return bool(free.grad[labels == -100].sum() != 0)


def first_row_only(loss_of: Any, logits: Tensor, labels: Tensor) -> bool:
    free = logits.detach().clone().requires_grad_()
    loss_of(free, labels).backward()
    assert free.grad is not None
    return bool((free.grad[0][labels[0] == -100] != 0).any())


def any_gradient(loss_of: Any, logits: Tensor, labels: Tensor) -> bool:
    return elsewhere(loss_of, logits, torch.full_like(labels, -100)) or True


WRONG: list[tuple[Callable[..., None], Callable[..., Any], str]] = [
    (ch09.check_masked_loss, lambda a, b: loss(a[:, :-1], b[:, 1:]), "its own position"),
    (ch09.check_masked_loss, lambda a, b: loss(a, b) * (b != -100).sum(), "this is the sum"),
    (ch09.check_masked_loss, lambda a, b: loss(a, b) * (b != -100).float().mean(), "all 14 places"),
    (ch09.check_masked_loss, lambda a, b: loss(a, b.clamp_min(0)), "token 0"),
    (ch09.check_masked_loss, lambda a, b: -loss(a, b), "sign"),
    (ch09.check_masked_loss, lambda a, b: loss(a, b) / math.log(2), "bits"),
    (
        ch09.check_masked_loss,
        lambda a, b: (loss(a[:1], b[:1]) + loss(a[1:], b[1:])) / 2,
        "means of the rows",
    ),
    (ch09.check_masked_loss, over_positions, "dim=-1"),
    (ch09.check_masked_loss, lambda a, b: -a.log_softmax(-1)[b != -100].mean(), "look up the one"),
    (ch09.check_hide, in_place, "changed its argument"),
    (ch09.check_hide, everywhere, "not chosen is changed"),
    (ch09.check_hide, special_put_in, "special token was put in"),
    (ch09.check_hide, lambda *a: hide(*a, masked=1.0, replaced=0.0), "All are hidden"),
    (ch09.check_hide, lambda *a: a[0], "Is anything put in"),
    (ch09.check_hide, two_draws, "10 % of the rest"),
    (ch09.check_hide, lambda *a: hide(*a, replaced=0.2), "must stay as it is"),
    (ch09.check_hide, one_random, "new one for each position"),
    (ch09.check_hide, lambda *a: None, "None"),
    (ch09.check_hide, lambda *a: hide(*a, replaced=0.0), "No random token"),
    (ch09.check_hide, one_draw_a_column, "draw a number for each token"),
    (ch09.check_hide, lambda *a: hide(*a).float(), "whole numbers"),
    (ch09.check_nsp_from_difference, lambda d, b: nsp(d, 1 - b), "y is turned around"),
    (ch09.check_nsp_from_difference, lambda d, b: nsp(d, b) * len(b), "take the mean"),
    (ch09.check_nsp_from_difference, lambda d, b: -nsp(d, b), "sign"),
    (ch09.check_nsp_from_difference, ignoring, "0 is a class"),
    (ch09.check_nsp_from_difference, with_logarithm, "logsigmoid"),
    (ch09.check_nsp_from_difference, lambda d, b: -F.logsigmoid(d).mean(), "as one that follows"),
    (ch09.check_teaches_elsewhere, on_the_argument, "gradients add up"),
    (ch09.check_teaches_elsewhere, summed, "a sum hides them"),
    (ch09.check_teaches_elsewhere, lambda *a: False, "multiplied by the mask"),
    (ch09.check_teaches_elsewhere, any_gradient, "an honest loss: expected False"),
    (ch09.check_teaches_elsewhere, first_row_only, "one position of the last row"),
    (ch09.check_teaches_elsewhere, lambda *a: elsewhere(*a, above=1e-8), "compare with zero"),
    (ch09.check_teaches_elsewhere, lambda *a: None, "True or False"),
]

RIGHT: list[tuple[Callable[..., None], Callable[..., Any]]] = [
    (ch09.check_masked_loss, loss),
    (ch09.check_hide, hide),
    (ch09.check_nsp_from_difference, nsp),
    (ch09.check_teaches_elsewhere, elsewhere),
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
