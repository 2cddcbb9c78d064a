"""Every exercise of chapter 07: the solution passes; blanks and wrong answers are diagnosed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from llm_course.checks import ch07
from llm_course.checks.grading import CheckFailed
from llm_course.configs import TransformerConfig
from llm_course.models.transformer import Transformer
from llm_course.objectives.batching import shift_right


def blank(*_: Any) -> Any:
    raise NotImplementedError("write your answer here")


def cross(
    y: Tensor,
    states: Tensor,
    w_q: Tensor,
    w_k: Tensor,
    w_v: Tensor,
    mask: Tensor,
    scale: float | None = None,
    dim: int = -1,
    fill: float = -torch.inf,
) -> Tensor:
    q, k, v = y @ w_q, states @ w_k, states @ w_v
    scores = q @ k.T * (q.shape[-1] ** -0.5 if scale is None else scale)
    return scores.masked_fill(~mask, fill).softmax(dim).nan_to_num() @ v


def no_mask(*a: Tensor) -> Tensor:
    return cross(*a[:5], torch.ones_like(a[5]))


def turned_mask(*a: Tensor) -> Tensor:
    return cross(*a[:5], ~a[5])


def of_the_target(y: Tensor, states: Tensor, *a: Tensor) -> Tensor:
    return cross(y, y, *a[:3], torch.ones(len(y)).bool())


def exchanged(y: Tensor, states: Tensor, *a: Tensor) -> Tensor:
    return cross(states, states, *a)


def keys_as_values(y: Tensor, states: Tensor, *a: Tensor) -> Tensor:
    return cross(y, states, a[0], a[1], a[1], a[3])


def masks(n: int, source: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ones(n, n).tril().bool(), source.expand(n, -1)


def changed_masks(
    own: Callable[[Tensor], Tensor] = lambda m: m, source: Callable[[Tensor], Tensor] = lambda m: m
) -> Callable[[int, Tensor], tuple[Tensor, Tensor]]:
    def answer(n: int, source_mask: Tensor) -> tuple[Tensor, Tensor]:
        first, second = masks(n, source_mask)
        return own(first), source(second)

    return answer


def count(
    vocab: int, n: int, m: int, d: int, f: int, tied: bool, bias: bool, **forgotten: int
) -> int:
    attention = 4 * d * d + 4 * d * bias
    ff = 2 * d * f + forgotten.get("ff_bias", 1) * (f + d)
    decoder = forgotten.get("attentions", 2) * attention + ff + forgotten.get("norms", 3) * 2 * d
    tables = forgotten.get("tables", 1 if tied else 2)
    return tables * vocab * d + n * (attention + ff + 4 * d) + m * decoder


def without_bias(*a: Any) -> int:
    return count(*a[:6], False)


def smoothed(
    logits: Tensor,
    labels: Tensor,
    epsilon: float,
    *,
    own: Callable[[float], float] = lambda e: 1 - e,
    each: Callable[[float, int], float] = lambda e, v: e / v,
) -> Tensor:
    log_p, counted = logits.log_softmax(-1), labels != -100
    picked = log_p.gather(-1, labels.clamp_min(0)[..., None]).squeeze(-1)
    wanted = own(epsilon) * picked + each(epsilon, logits.shape[-1]) * log_p.sum(-1)
    return -(wanted * counted).sum() / counted.sum()


def others_only(logits: Tensor, labels: Tensor, epsilon: float) -> Tensor:
    share = epsilon / (logits.shape[-1] - 1)
    return smoothed(
        logits, labels, epsilon, own=lambda e: 1 - e - share, each=lambda e, v: e / (v - 1)
    )


def summed(logits: Tensor, labels: Tensor, epsilon: float) -> Tensor:
    return smoothed(logits, labels, epsilon) * (labels != -100).sum()


def pads_counted(logits: Tensor, labels: Tensor, epsilon: float) -> Tensor:
    return smoothed(logits, labels.clamp_min(0), epsilon)


def shifted_again(logits: Tensor, labels: Tensor, epsilon: float) -> Tensor:
    return smoothed(logits[:, :-1], labels[:, 1:], epsilon)


def with_ignored(labels: Tensor, start: int, pad: int) -> Tensor:
    return torch.cat([torch.full_like(labels[:, :1], start), labels[:, :-1]], 1)


def one_longer(labels: Tensor, start: int, pad: int) -> Tensor:
    return shift_right(torch.cat([labels, labels[:, :1]], 1), start, pad)


def rolled(labels: Tensor, start: int, pad: int) -> Tensor:
    shifted = labels.roll(1, 1)
    first = shifted[:, :1].clone()
    return torch.cat([first, shift_right(labels, start, pad)[:, 1:]], 1)


def in_place(labels: Tensor, start: int, pad: int) -> Tensor:
    labels[labels == -100] = pad
    return shift_right(labels, start, pad)


def unshifted(labels: Tensor, start: int, pad: int) -> Tensor:
    return labels.masked_fill(labels == -100, pad)


CROSS, MASKS = ch07.check_cross_attention, ch07.check_decoder_masks
COUNT, SMOOTH, SHIFT = (
    ch07.check_count_parameters,
    ch07.check_smoothed_loss,
    ch07.check_decoder_input,
)

WRONG: list[tuple[Callable[..., None], Callable[..., Any], str]] = [
    (CROSS, no_mask, "the padding is attended to"),
    (CROSS, turned_mask, "True means attend"),
    (CROSS, of_the_target, "must come from the encoder's states"),
    (CROSS, exchanged, "must come from the decoder's y"),
    (CROSS, keys_as_values, "use w_v"),
    (CROSS, lambda *a: cross(*a, scale=1.0), r"not divided by sqrt\(d_k\)"),
    (CROSS, lambda *a: cross(*a, scale=6**-0.5), "the width of a query"),
    (CROSS, lambda *a: cross(*a, dim=0), "dim=-1"),
    (CROSS, lambda *a: cross(*a, fill=0.0), "fill with -inf"),
    (MASKS, changed_masks(own=lambda m: m.T), "upside down"),
    (MASKS, changed_masks(own=lambda m: m.tril(-1)), "the diagonal is True"),
    (MASKS, changed_masks(own=lambda m: ~m), "PyTorch's convention"),
    (MASKS, changed_masks(own=torch.ones_like), "see its own answer"),
    (MASKS, changed_masks(own=lambda m: m.float()), "must be bool"),
    (MASKS, changed_masks(source=lambda m: m.tril()), "the whole source is known"),
    (MASKS, changed_masks(source=torch.ones_like), "source_mask is not used"),
    (MASKS, changed_masks(source=lambda m: ~m), "PyTorch's convention"),
    (MASKS, changed_masks(source=lambda m: m[0]), "shape"),
    (MASKS, lambda n, source: masks(n, source)[0], "two masks"),
    (COUNT, lambda *a: count(*a, attentions=1), "cross-attention is missing"),
    (COUNT, lambda *a: count(*a, norms=2), "three norms"),
    (COUNT, lambda *a: count(*a, ff_bias=0), "two biases"),
    (COUNT, lambda *a: count(*a, tables=1), "the head has its own table"),
    (COUNT, lambda *a: count(*a, tables=2), "the head is the same table"),
    (COUNT, lambda *a: count(*a, tables=3), "share one table"),
    (COUNT, without_bias, "four projections"),
    (SMOOTH, others_only, "all V a share"),
    (SMOOTH, lambda *a: smoothed(*a, each=lambda e, v: e), "not times their sum"),
    (SMOOTH, lambda *a: smoothed(*a, each=lambda e, v: 0.0), "share of the other tokens"),
    (SMOOTH, lambda *a: smoothed(*a, own=lambda e: 1.0), "keeps 1 - epsilon"),
    (SMOOTH, lambda a, b, e: smoothed(a, b, 1 - e), "exchanged"),
    (SMOOTH, lambda a, b, e: smoothed(a, b, 0.0), "without smoothing"),
    (SMOOTH, summed, "divide by the number"),
    (SMOOTH, pads_counted, "-100 are counted"),
    (SMOOTH, shifted_again, "nothing is shifted here"),
    (SMOOTH, lambda *a: -smoothed(*a), "sign"),
    (SHIFT, with_ignored, "put pad_id in its place"),
    (SHIFT, one_longer, "never read"),
    (SHIFT, rolled, "came around"),
    (SHIFT, in_place, "labels were changed"),
    (SHIFT, unshifted, "read its own answer"),
    (SHIFT, lambda a, s, p: shift_right(a, p, p), "start_id"),
    (SHIFT, lambda a, s, p: shift_right(a, s, s), "not start_id"),
    (SHIFT, lambda a, s, p: None, "None"),
]

RIGHT: list[tuple[Callable[..., None], Callable[..., Any]]] = [
    (CROSS, cross),
    (MASKS, masks),
    (COUNT, count),
    (SMOOTH, smoothed),
    (SHIFT, shift_right),
]


@pytest.mark.parametrize("tied", [True, False])
def test_the_count_of_the_check_is_that_of_the_model(tied: bool) -> None:
    sizes = {"vocab_size": 50, "n_layers": 2, "n_decoder_layers": 3, "d_model": 24, "d_ff": 20}
    model = Transformer(TransformerConfig(**sizes, n_heads=3, tied=tied))
    parameters = sum(p.numel() for p in model.parameters())
    assert ch07._count(*sizes.values(), tied, False) == parameters
    assert ch07._count(*sizes.values(), tied, False, cross=False) != parameters


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
