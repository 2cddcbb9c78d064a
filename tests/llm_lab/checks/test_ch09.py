"""Right and wrong answers to the exercises of chapter 09, for `test_contract`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from check_answers import Right, Wrong
from torch import Tensor

from llm_lab.checks import ch09


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


def elsewhere_at(part: Any) -> Callable[..., bool]:
    """A test that looks at a part of the gradients only."""

    def answer(loss_of: Any, logits: Tensor, labels: Tensor) -> bool:
        free = logits.detach().clone().requires_grad_()
        loss_of(free, labels).backward()
        assert free.grad is not None
        return bool(part(free.grad.masked_fill((labels != -100)[..., None], 0.0)))

    return answer


def changes_labels(logits: Tensor, labels: Tensor) -> Tensor:
    value = loss(logits, labels)
    labels.masked_fill_(labels == -100, 0)
    return value


def without_token_0(logits: Tensor, labels: Tensor) -> Tensor:
    return loss(logits, labels.masked_fill(labels == 0, -100))


def changes_chosen(ids: Tensor, chosen: Tensor, *rest: Any) -> Tensor:
    read = hide(ids, chosen, *rest)
    chosen &= read != ids
    return read


def neighbours(ids: Tensor, chosen: Tensor, mask_id: int, ordinary: Tensor, g: Any) -> Tensor:
    draw = torch.rand(ids.shape, generator=g)
    hidden = torch.where(draw < 0.8, mask_id, ids.roll(1, 1))
    return torch.where(chosen & (draw < 0.9), hidden, ids)


def other_generator(ids: Tensor, chosen: Tensor, mask_id: int, ordinary: Tensor, g: Any) -> Tensor:
    return hide(ids, chosen, mask_id, ordinary, torch.default_generator)


def clamped(limit: float) -> Callable[[Tensor, Tensor], Tensor]:
    def answer(difference: Tensor, label: Tensor) -> Tensor:
        p = torch.where(label == 0, difference, -difference).sigmoid()
        return -(p.log().clamp_min(-100) if limit == 100 else (p + limit).log()).mean()

    return answer


def one_side(difference: Tensor, label: Tensor) -> Tensor:
    """Exact for the label 1 only."""
    p = difference.sigmoid().log()
    return -torch.where(label == 0, p, F.logsigmoid(-difference)).mean()


def looked_up_at_once(logits: Tensor, labels: Tensor) -> Tensor:
    return -logits.log_softmax(-1).gather(-1, labels[..., None]).mean()


WRONG: Wrong = [
    (ch09.check_masked_loss, looked_up_at_once, "-100 is no id"),
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
    (ch09.check_masked_loss, changes_labels, "changed its argument labels"),
    (ch09.check_masked_loss, without_token_0, "token 0 is left out"),
    (ch09.check_hide, changes_chosen, "changed its argument chosen"),
    (ch09.check_hide, neighbours, "draw them from ordinary_ids"),
    (ch09.check_hide, other_generator, "pass generator=generator"),
    (ch09.check_hide, lambda *a: hide(*a, masked=0.1, replaced=0.8), "are exchanged"),
    (
        ch09.check_hide,
        lambda i, c, m, o, g: hide(i, c, m, o[: len(o) // 2 + 20], g),
        "draw from all of them",
    ),
    (ch09.check_hide, lambda ids, *rest: ids.copy_(hide(ids, *rest)), "changed its argument"),
    (ch09.check_hide, everywhere, "not chosen is changed"),
    (ch09.check_hide, special_put_in, "special token was put in"),
    (ch09.check_hide, lambda *a: hide(*a, masked=1.0, replaced=0.0), "All are hidden"),
    (ch09.check_hide, lambda *a: a[0], "Is anything put in"),
    (ch09.check_hide, two_draws, "10 % of the rest"),
    (ch09.check_hide, lambda *a: hide(*a, replaced=0.2), "must stay as it is"),
    (ch09.check_hide, one_random, "anew for each position"),
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
    (ch09.check_nsp_from_difference, one_side, "when it does"),
    (ch09.check_nsp_from_difference, clamped(100), "cuts each logarithm off"),
    (ch09.check_nsp_from_difference, clamped(1e-12), "hides the infinity"),
    (ch09.check_teaches_elsewhere, elsewhere_at(lambda g: g[:, :-1].any()), "last position of a"),
    (ch09.check_teaches_elsewhere, elsewhere_at(lambda g: g.max() > 0), "one gradient of -1"),
    (ch09.check_teaches_elsewhere, elsewhere_at(lambda g: g.min() < 0), "one gradient of 1"),
    (ch09.check_teaches_elsewhere, lambda *a: np.bool_(elsewhere(*a)), "bool_? of numpy"),
    (ch09.check_teaches_elsewhere, on_the_argument, "gradients add up"),
    (ch09.check_teaches_elsewhere, summed, "a sum hides them"),
    (ch09.check_teaches_elsewhere, lambda *a: False, "multiplied by the mask"),
    (ch09.check_teaches_elsewhere, any_gradient, "an honest loss: expected False"),
    (ch09.check_teaches_elsewhere, first_row_only, "one position of the last row"),
    (ch09.check_teaches_elsewhere, lambda *a: elsewhere(*a, above=1e-8), "compare with zero"),
    (ch09.check_teaches_elsewhere, lambda *a: None, "True or False"),
]

RIGHT: Right = [
    (ch09.check_masked_loss, loss),
    (ch09.check_hide, hide),
    (ch09.check_nsp_from_difference, nsp),
    (ch09.check_teaches_elsewhere, elsewhere),
]
