"""Right and wrong answers to the exercises of chapter 07, for `test_contract`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from check_answers import Right, Wrong
from torch import Tensor

from llm_course.batches.pairs import shift_right
from llm_course.configs import TransformerConfig
from llm_course.models.transformer import Transformer
from llm_lab.checks import ch07


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


def of_the_target(y: Tensor, states: Tensor, *a: Tensor) -> Tensor:
    return cross(y, y, *a[:3], torch.ones(len(y)).bool())


def exchanged(y: Tensor, states: Tensor, *a: Tensor) -> Tensor:
    return cross(states, states, *a)


def masked_late(y: Tensor, states: Tensor, *a: Tensor) -> Tensor:
    weights = ((y @ a[0]) @ (states @ a[1]).T / a[0].shape[1] ** 0.5).softmax(-1)
    return (weights * a[3]) @ (states @ a[2])


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
    norm = forgotten.get("norm_parts", 2) * d
    decoder = forgotten.get("attentions", 2) * attention + ff + forgotten.get("norms", 3) * norm
    decoder -= forgotten.get("unbiased", 0) * 4 * d * bias
    tables = forgotten.get("tables", 1 if tied else 2)
    return tables * vocab * d + n * (attention + ff + 2 * norm) + m * decoder


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


def pads_spread(logits: Tensor, labels: Tensor, epsilon: float) -> Tensor:
    even = epsilon * logits.log_softmax(-1).mean()
    return (1 - epsilon) * smoothed(logits, labels, 0.0) - even


def mean_of_logits(logits: Tensor, labels: Tensor, epsilon: float) -> Tensor:
    even = epsilon * logits.mean(-1)[labels != -100].mean()
    return (1 - epsilon) * smoothed(logits, labels, 0.0) - even


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


WRONG: Wrong = [
    (ch07.check_cross_attention, no_mask, "the padding is attended to"),
    (ch07.check_cross_attention, lambda *a: cross(*a[:5], ~a[5]), "True means attend"),
    (ch07.check_cross_attention, of_the_target, "must come from the encoder's states"),
    (ch07.check_cross_attention, exchanged, "must come from the decoder's y"),
    (ch07.check_cross_attention, keys_as_values, "use w_v"),
    (ch07.check_cross_attention, lambda *a: cross(*a, scale=1.0), r"not divided by sqrt\(d_k\)"),
    (ch07.check_cross_attention, masked_late, "after the softmax"),
    (ch07.check_cross_attention, lambda *a: cross(*a, scale=1 / 3), r"\*root\* of d_k"),
    (ch07.check_cross_attention, lambda *a: cross(*a, scale=6**-0.5), "the width of a query"),
    (ch07.check_cross_attention, lambda *a: cross(*a, dim=0), "dim=-1"),
    (ch07.check_cross_attention, lambda *a: cross(*a, fill=0.0), "fill with -inf"),
    (ch07.check_decoder_masks, changed_masks(own=lambda m: m.T), "upside down"),
    (ch07.check_decoder_masks, changed_masks(own=lambda m: m.tril(-1)), "the diagonal is True"),
    (ch07.check_decoder_masks, changed_masks(own=lambda m: ~m), "PyTorch's convention"),
    (ch07.check_decoder_masks, changed_masks(own=torch.ones_like), "see its own answer"),
    (ch07.check_decoder_masks, changed_masks(own=lambda m: m.float()), "must be bool"),
    (
        ch07.check_decoder_masks,
        changed_masks(source=lambda m: m.tril()),
        "the whole source is known",
    ),
    (ch07.check_decoder_masks, changed_masks(source=torch.ones_like), "source_mask is not used"),
    (ch07.check_decoder_masks, changed_masks(source=lambda m: ~m), "PyTorch's convention"),
    (ch07.check_decoder_masks, changed_masks(source=lambda m: m[0]), "shape"),
    (ch07.check_decoder_masks, lambda n, source: masks(n, source)[0], "two masks"),
    (ch07.check_count_parameters, lambda *a: count(*a, attentions=1), "cross-attention is missing"),
    (ch07.check_count_parameters, lambda *a: count(*a, norms=2), "three norms"),
    (ch07.check_count_parameters, lambda *a: count(*a, ff_bias=0), "two biases"),
    (ch07.check_count_parameters, lambda *a: count(*a, norm_parts=0), "norms are missing"),
    (ch07.check_count_parameters, lambda *a: count(*a, norm_parts=1), "d weights and d biases"),
    (
        ch07.check_count_parameters,
        lambda *a: count(*a, unbiased=1),
        "cross-attention has biases too",
    ),
    (ch07.check_count_parameters, lambda *a: count(*a, tables=0), "table of the tokens is missing"),
    (ch07.check_count_parameters, lambda *a: count(*a, tables=1), "the head has its own table"),
    (ch07.check_count_parameters, lambda *a: count(*a, tables=2), "the head is the same table"),
    (ch07.check_count_parameters, lambda *a: count(*a, tables=3), "share one table"),
    (ch07.check_count_parameters, lambda *a: count(*a[:6], False), "four projections"),
    (ch07.check_smoothed_loss, others_only, "all V a share"),
    (ch07.check_smoothed_loss, lambda *a: smoothed(*a, each=lambda e, v: e), "not times their sum"),
    (
        ch07.check_smoothed_loss,
        lambda *a: smoothed(*a, each=lambda e, v: 0.0),
        "share of the other tokens",
    ),
    (ch07.check_smoothed_loss, lambda *a: smoothed(*a, own=lambda e: 1.0), "keeps 1 - epsilon"),
    (ch07.check_smoothed_loss, lambda a, b, e: smoothed(a, b, 1 - e), "exchanged"),
    (ch07.check_smoothed_loss, lambda a, b, e: smoothed(a, b, 0.0), "without smoothing"),
    (ch07.check_smoothed_loss, summed, "divide by the number"),
    (ch07.check_smoothed_loss, pads_counted, "-100 are counted"),
    (ch07.check_smoothed_loss, pads_spread, "leave out -100 there"),
    (ch07.check_smoothed_loss, mean_of_logits, "not of the log-probabilities"),
    (ch07.check_smoothed_loss, shifted_again, "nothing is shifted here"),
    (ch07.check_smoothed_loss, lambda *a: -smoothed(*a), "sign"),
    (ch07.check_decoder_input, with_ignored, "put pad_id in its place"),
    (ch07.check_decoder_input, one_longer, "never read"),
    (ch07.check_decoder_input, lambda a, s, p: a[:, :-1], "start token is missing"),
    (ch07.check_decoder_input, lambda a, s, p: shift_right(a, s, 0), "not always 1 and 0"),
    (ch07.check_decoder_input, lambda a, s, p: shift_right(a, 1, p), "not always 1 and 0"),
    (ch07.check_decoder_input, rolled, "came around"),
    (ch07.check_decoder_input, in_place, "labels were changed"),
    (ch07.check_decoder_input, unshifted, "read its own answer"),
    (ch07.check_decoder_input, lambda a, s, p: shift_right(a, p, p), "start_id"),
    (ch07.check_decoder_input, lambda a, s, p: shift_right(a, s, s), "not start_id"),
    (ch07.check_decoder_input, lambda a, s, p: None, "None"),
]

RIGHT: Right = [
    (ch07.check_cross_attention, cross),
    (ch07.check_decoder_masks, masks),
    (ch07.check_count_parameters, count),
    (ch07.check_smoothed_loss, smoothed),
    (ch07.check_decoder_input, shift_right),
]


@pytest.mark.parametrize("tied", [True, False])
def test_the_count_of_the_check_is_that_of_the_model(tied: bool) -> None:
    sizes = {"vocab_size": 50, "n_layers": 2, "n_decoder_layers": 3, "d_model": 24, "d_ff": 20}
    model = Transformer(TransformerConfig(**sizes, n_heads=3, tied=tied))
    parameters = sum(p.numel() for p in model.parameters())
    assert ch07._count(*sizes.values(), tied, False) == parameters
    assert ch07._count(*sizes.values(), tied, False, cross=False) != parameters
