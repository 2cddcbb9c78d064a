"""Checks of chapter 07: cross-attention, its masks, parameters, label smoothing, shift right."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from torch import Tensor

from llm_lab.checks.grading import (
    CheckFailed,
    at_labels,
    draw,
    expect_close,
    expect_equal,
    expect_mask,
    expect_parts,
    passed,
)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    scores = q @ k.T * scale
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(dim=-1) @ v


def _cross_attention_mistakes(
    y: Tensor, states: Tensor, w_q: Tensor, w_k: Tensor, w_v: Tensor, mask: Tensor
) -> dict[Tensor, str]:
    """What each usual mistake makes of the inputs, and its diagnosis."""
    q, k, v = y @ w_q, states @ w_k, states @ w_v
    d_model, d_k = w_q.shape
    scale = d_k**-0.5
    scores = q @ k.T * scale
    hidden = scores.masked_fill(~mask, -torch.inf)
    return {
        _attend(q, k, v, None, scale): "source_mask is not used: the padding is attended to",
        _attend(q, k, v, ~mask, scale): "the mask is turned around: True means attend",
        _attend(q, k, v, mask, 1.0): "the scores are not divided by sqrt(d_k)",
        _attend(q, k, v, mask, 1 / d_k): "divide by the *root* of d_k, not by d_k itself",
        _attend(q, k, v, mask, d_model**-0.5): "divide by the root of d_k, the width of a query",
        _attend(q, y @ w_k, y @ w_v, None, scale): (
            "keys and values come from y: they must come from the encoder's states"
        ),
        _attend(states @ w_q, k, v, mask, scale): "the queries must come from the decoder's y",
        _attend(q, k, states @ w_k, mask, scale): "the keys are also used as values: use w_v",
        hidden.softmax(dim=0).nan_to_num() @ v: (
            "the softmax runs over the queries: each *query's* weights must sum to 1 (dim=-1)"
        ),
        scores.softmax(dim=-1).masked_fill(~mask, 0.0) @ v: (
            "the mask is applied after the softmax: the weights that are left do not sum to 1; "
            "hide the scores before it"
        ),
        scores.masked_fill(~mask, 0.0).softmax(dim=-1) @ v: (
            "a score of 0 is not hidden: fill with -inf before the softmax"
        ),
        hidden.softmax(dim=-1): "these are the weights: multiply them by the values",
    }


def check_cross_attention(answer: Callable[..., Tensor]) -> None:
    """F8 for one head, with a padding mask of the source."""
    y, states = draw(4, 6), draw(5, 6, seed=1)
    w_q, w_k, w_v = draw(3, 6, 3, seed=2)
    mask = torch.tensor([True, True, True, False, True])
    expect_close(
        answer(y, states, w_q, w_k, w_v, mask),
        _attend(y @ w_q, states @ w_k, states @ w_v, mask, 3**-0.5),
        name="cross_attention",
        hints=_cross_attention_mistakes(y, states, w_q, w_k, w_v, mask),
    )
    passed("queries of the target, keys and values of the source, and no padding")


def check_decoder_masks(answer: Callable[[int, Tensor], tuple[Tensor, Tensor]]) -> None:
    """The causal mask [T, T] and the padding mask [T, S]."""
    for n_target, source_mask in (
        (4, torch.tensor([True, True, True, False, True, False])),
        (3, torch.tensor([True, True, False])),
    ):
        pair = answer(n_target, source_mask)
        expect_parts(pair, 2, "decoder_masks must return two masks")
        _check_own_mask(pair[0], torch.ones(n_target, n_target).tril().bool())
        _check_source_mask(pair[1], source_mask.expand(n_target, -1))
    passed("causal over the target, and the whole source but its padding")


BLOCKED = "this is PyTorch's convention, True = blocked; here True = attend"


def _check_own_mask(got: Tensor, causal: Tensor) -> None:
    expect_mask(got, tuple(causal.shape), name="the mask of the self-attention")
    expect_equal(
        got,
        causal,
        name="the mask of the self-attention",
        hints={
            causal.T: "it is upside down: rows are queries, and a query sees earlier keys",
            causal.tril(-1): "a position must see itself: the diagonal is True",
            ~causal: BLOCKED,
            torch.ones_like(causal): "nothing is hidden: a position would see its own answer",
        },
    )


def _check_source_mask(got: Tensor, padding: Tensor) -> None:
    sees_all = torch.ones_like(padding)
    expect_mask(got, tuple(padding.shape), name="the mask of the cross-attention")
    expect_equal(
        got,
        padding,
        name="the mask of the cross-attention",
        hints={
            padding.tril(): "it is causal as well: the whole source is known, whatever is written",
            sees_all.tril(): "it is causal and forgets the padding: it should be source_mask",
            ~padding: BLOCKED,
            sees_all: "source_mask is not used: the padding is attended to",
        },
    )


def _count(
    vocab_size: int,
    n_layers: int,
    n_decoder_layers: int,
    d: int,
    d_ff: int,
    tied: bool,
    attention_bias: bool,
    *,
    cross: bool = True,
    cross_bias: bool = True,
    norm_parts: int = 2,
    decoder_norms: int = 3,
    ff_bias: bool = True,
    tables: int | None = None,
) -> int:
    """Equation (eq-07-parameters) with what an answer may forget."""
    attention = 4 * d * d + (4 * d if attention_bias else 0)
    ff = 2 * d * d_ff + (d_ff + d if ff_bias else 0)
    encoder = attention + ff + 2 * norm_parts * d
    decoder = (2 if cross else 1) * attention + ff + decoder_norms * norm_parts * d
    if attention_bias and not cross_bias:
        decoder -= 4 * d
    tables = (1 if tied else 2) if tables is None else tables
    return tables * vocab_size * d + n_layers * encoder + n_decoder_layers * decoder


def _count_mistakes(case: tuple[Any, ...]) -> dict[int, str]:
    """What each usual mistake counts, and its diagnosis."""
    *sizes, bias = case
    return {
        _count(*case, tables=3): "source and target share one table",
        _count(*case, tables=1): "when tied is False, the head has its own table",
        _count(*case, tables=2): "when tied is True, the head is the same table",
        _count(*case, cross=False): (
            "a decoder block has two attention layers: cross-attention is missing"
        ),
        _count(*case, decoder_norms=2): "a decoder block has three norms",
        _count(*case, norm_parts=1): "a norm has 2 d numbers: d weights and d biases",
        _count(*case, norm_parts=0): "the norms are missing: 2 d numbers each",
        _count(*case, tables=0): "the table of the tokens is missing",
        _count(*case, cross_bias=False): (
            "the cross-attention has biases too when attention_bias is True"
        ),
        _count(*case, ff_bias=False): "the feed-forward layer has two biases",
        _count(*sizes, not bias): (
            "attention_bias says whether the four projections have biases: 4 d numbers in each "
            "attention layer"
        ),
    }


def check_count_parameters(answer: Callable[..., int]) -> None:
    """The formula of the chapter, with a head of its own and with biases."""
    # The small sizes come first: where d_ff = 4 d, two different mistakes give the same number.
    for sizes in ((50, 2, 3, 24, 20), (37_000, 6, 6, 512, 2048)):
        for tied, bias in product((True, False), (False, True)):
            case = (*sizes, tied, bias)
            hints = _count_mistakes(case)
            name = f"count_parameters{case}"
            expect_equal(answer(*case), _count(*case), name=name, hints=hints)
    passed("every parameter is counted once")


def _smoothed(log_p: Tensor, labels: Tensor, own: float, each: float) -> float:
    """The mean loss with weight `own` on the right token and `each` on every token, added."""
    counted = labels != -100
    wanted = own * at_labels(log_p, labels) + each * log_p.sum(-1)
    return float(-(wanted * counted).sum() / counted.sum())


def _smoothing_mistakes(logits: Tensor, labels: Tensor, epsilon: float) -> dict[float, str]:
    """What each usual mistake makes of the inputs, and its diagnosis."""
    log_p, counted = logits.log_softmax(-1), labels != -100
    n_counted, n_vocab = int(counted.sum()), logits.shape[-1]
    share, others, rest = epsilon / n_vocab, epsilon / (n_vocab - 1), 1 - epsilon

    def mean(own: float, each: float) -> float:
        return _smoothed(log_p, labels, own, each)

    right = mean(rest, share)
    return {
        mean(1.0, 0.0): "this is the loss without smoothing",
        mean(rest - others, others): "the other V - 1 tokens share epsilon: give all V a share",
        mean(rest, epsilon): "epsilon times the *mean* of the logarithms, not times their sum",
        mean(rest, 0.0): "the share of the other tokens is missing",
        mean(epsilon, rest / n_vocab): "epsilon and 1 - epsilon are exchanged",
        mean(1.0, share): "the right token keeps 1 - epsilon, not 1",
        rest * mean(1.0, 0.0) - epsilon * float(log_p.mean()): (
            "the epsilon part is averaged over all places: leave out -100 there"
        ),
        rest * mean(1.0, 0.0) - epsilon * float(logits.mean(-1)[counted].mean()): (
            "the epsilon part takes the mean of the logits, not of the log-probabilities"
        ),
        _smoothed(log_p, labels.clamp_min(0), rest, share): (
            "labels of -100 are counted as if they were token 0"
        ),
        _smoothed(log_p[:, :-1], labels[:, 1:], rest, share): (
            "nothing is shifted here: the decoder's input was shifted before"
        ),
        right * n_counted: "this is the sum: divide by the number of counted labels",
        right * n_counted / labels.numel(): (
            f"divided by all {labels.numel()} places; only {n_counted} labels count"
        ),
    }


def check_smoothed_loss(answer: Callable[[Tensor, Tensor, float], Tensor | float]) -> None:
    """The mean of the smoothed loss over counted labels."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 6, 9, generator=generator, dtype=torch.float64)
    labels = torch.randint(9, (2, 6), generator=generator)
    labels[0, 4:] = -100
    for epsilon in (0.1, 0.3, 0.0):
        expect_close(
            answer(logits, labels, epsilon),
            _smoothed(logits.log_softmax(-1), labels, 1 - epsilon, epsilon / logits.shape[-1]),
            name=f"smoothed_loss with epsilon = {epsilon}",
            hints=_smoothing_mistakes(logits, labels, epsilon),
        )
    passed("a share for every token, and a mean over what counts")


def check_decoder_input(answer: Callable[[Tensor, int, int], Tensor]) -> None:
    """The target shifted right by one, without -100."""
    for start_id, pad_id in ((1, 0), (12, 10)):
        _check_shift(answer, start_id, pad_id)
    passed("the decoder reads one token behind")


def _check_shift(answer: Callable[[Tensor, int, int], Tensor], start_id: int, pad_id: int) -> None:
    labels = torch.tensor([[5, 9, 4, 2], [7, 2, -100, -100], [3, 8, 2, -100]])
    before = labels.clone()
    got = answer(labels, start_id, pad_id)
    if not torch.equal(labels, before):
        raise CheckFailed("the labels were changed: copy them, the loss needs them unshifted")
    for columns, reason in (
        (labels.shape[1] + 1, "the last label is never read, so leave it out"),
        (labels.shape[1] - 1, "the start token is missing"),
    ):
        if isinstance(got, Tensor) and got.shape == (len(labels), columns):
            raise CheckFailed(
                f"decoder_input should have the shape {tuple(labels.shape)}, "
                f"got {tuple(got.shape)}: {reason}"
            )
    raw = torch.cat([torch.full((3, 1), start_id), labels[:, :-1]], dim=1)
    expect_equal(
        got,
        raw.masked_fill(raw == -100, pad_id),
        name=f"decoder_input with start_id = {start_id}, pad_id = {pad_id}",
        hints=_shift_mistakes(labels, raw, start_id, pad_id),
    )


def _shift_mistakes(labels: Tensor, raw: Tensor, start_id: int, pad_id: int) -> dict[Tensor, str]:
    """What each usual mistake gives; `raw` is shifted and still holds -100."""
    right = raw.masked_fill(raw == -100, pad_id)
    ones, pads = torch.ones(3, 1).long(), torch.full((3, 1), pad_id)
    left = torch.cat([labels[:, 1:], pads], dim=1)
    fixed = "the ids are the arguments start_id and pad_id, not always 1 and 0"
    to_the_left = "shifted to the left: the start token comes first"
    return {
        raw.masked_fill(raw == -100, 0): fixed,
        torch.cat([ones, right[:, 1:]], dim=1): fixed,
        torch.cat([ones, raw[:, 1:].clamp_min(0)], dim=1): fixed,
        raw: "-100 is not a token: put pad_id in its place",
        labels.masked_fill(labels == -100, pad_id): (
            "nothing is shifted: each position would read its own answer"
        ),
        left.masked_fill(left == -100, pad_id): to_the_left,
        torch.cat([pads, right[:, 1:]], dim=1): "the first token must be start_id",
        raw.masked_fill(raw == -100, start_id): "-100 becomes pad_id, not start_id",
        right.roll(-1, 1): to_the_left,
        torch.cat([labels[:, -1:], right[:, 1:]], dim=1): (
            "the last label came around to the first place (roll): put start_id there"
        ),
    }
