"""Checks of chapter 04: the softmax backward, masks, the cost of attention, and its stream."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from llm_course.models.layers import attention, attention_weights
from llm_lab.checks.grading import CheckFailed, draw, expect_close, passed


def check_softmax_backward(answer: Callable[[Tensor, Tensor], Tensor]) -> None:
    """The gradient of the scores, from the weights and the gradient of the weights."""
    scores = (2 * draw(3, 5)).requires_grad_()
    weights, upstream = scores.softmax(dim=-1), draw(3, 5, seed=1)
    (right,) = torch.autograd.grad(weights, scores, upstream)
    a = weights.detach()
    product = a * upstream
    expect_close(
        answer(a.clone(), upstream.clone()),
        right,
        name="softmax_backward",
        tolerance=1e-9,
        hints={
            product: "only the diagonal of the matrix is there: every weight depends on all scores",
            product * (1 - a): "this is the gradient of a sigmoid: the row has other weights too",
            product - a * product.sum(): "the sum goes over the whole tensor: take it in each row",
            product - a * product.sum(dim=0): "the sum goes over the queries: take it in each row",
            a * (upstream - upstream.mean(dim=-1, keepdim=True)): (
                "the mean must be weighted by attention, not a plain one"
            ),
            upstream - product.sum(dim=-1, keepdim=True): (
                "the factor a_j in front of the bracket is missing"
            ),
        },
    )
    passed("a score rises only if its value is better than the weighted mean")


def check_masked_attention(answer: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> None:
    """The mask before the softmax, and zero for a query without keys."""
    q, k, v = draw(4, 8), draw(6, 8, seed=1), draw(6, 5, seed=2)
    mask = torch.tensor(
        [
            [True, False, False, False, False, True],
            [True, True, True, False, False, False],
            [False, False, False, True, True, False],
            [True, True, True, True, True, False],
        ]
    )
    scores = q @ k.mT / math.sqrt(8)
    late = attention_weights(q, k).masked_fill(~mask, 0.0) @ v
    expect_close(
        answer(q.clone(), k.clone(), v.clone(), mask.clone()),
        attention(q, k, v, mask),
        name="masked_attention",
        tolerance=1e-9,
        hints={
            attention(q, k, v): "the mask has no effect: `masked_fill` returns a new tensor",
            attention(q, k, v, ~mask): "the mask is turned around: True means attend",
            late: "the mask acts after the softmax: the rows no longer sum to 1, and they leak",
            scores.masked_fill(~mask, 0.0).softmax(-1) @ v: (
                "a forbidden score of 0 is an ordinary score, with the power 1: use -inf"
            ),
            scores.masked_fill(~mask, -math.inf).softmax(0).nan_to_num(0.0) @ v: (
                "the softmax goes over the queries: use dim=-1, the keys"
            ),
            attention(q, k, v, mask, scale=1.0): "divide the scores by the root of d_k",
            attention(q, k, v, mask, scale=1 / 8): "divide by the root of d_k, not by d_k",
        },
    )
    _check_empty_row(answer, q, k, v, mask)
    passed("nothing forbidden is seen, and an empty row does no harm")


def _check_empty_row(
    answer: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor,
) -> None:
    mask = mask.clone()
    mask[1] = False
    q, k, v = (tensor.clone().requires_grad_() for tensor in (q, k, v))
    result = answer(q, k, v, mask)
    if result[1].isnan().any():
        raise CheckFailed(
            "the output of a query that may look at nothing is NaN: its softmax is 0 / 0"
        )
    expect_close(
        result,
        attention(q, k, v, mask),
        name="masked_attention with an empty row",
        tolerance=1e-9,
        hints={
            torch.cat([result[:1], v.mean(0, keepdim=True), result[2:]]): (
                "the query that may look at nothing gets the mean of all values: give it zero"
            )
        },
    )
    result.sum().backward()
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if tensor.grad is None or not tensor.grad.isfinite().all():
            raise CheckFailed(
                f"the output is right, but the gradient of {name} is NaN: a NaN that is hidden "
                "after the softmax returns in the backward pass. Replace the scores of an empty "
                "row before it"
            )


def check_attention_share(answer: Callable[[int, int], float]) -> None:
    """The part of a layer's multiply-adds that grows with the square of the length."""
    length, width = 300, 64
    lookup, projections = 2 * length * length * width, 4 * length * width * width

    def share(a: float, b: float) -> float:
        return a / (a + b)

    expect_close(
        answer(length, width),
        share(lookup, projections),
        name=f"attention_share({length}, {width})",
        hints={
            share(
                lookup / 2, projections
            ): "the average of the values is missing: it costs as much",
            share(
                lookup, 3 * projections / 4
            ): "there are four projections: also one on the output",
            share(2 * lookup, projections): (
                "a multiplication and its addition count once, in the lookup as in the projections"
            ),
            share(lookup, projections / 4): "there are four projections, this is one",
            share(lookup, projections / length): "all T positions pass each projection, not one",
            share(projections, lookup): "this is the share of the projections",
            lookup / projections: "this is a ratio of the two: divide by their sum",
        },
    )
    expect_close(answer(128, 64), 0.5, name="attention_share(128, 64)")
    passed("at T = 2 D, lookup and projections cost the same")


def check_streaming_attention(answer: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """One query, key by key, for small scores and for very large ones."""
    query, values = draw(8), draw(7, 5, seed=2)
    keys = draw(7, 8, seed=1)
    keys = keys[(keys @ query).argsort()]  # the largest score comes last: every step rescales
    right = attention(query[None], keys, values)[0]
    powers = (keys @ query / math.sqrt(8)).exp()
    expect_close(
        answer(query.clone(), keys.clone(), values.clone()),
        right,
        name="streaming_attention",
        tolerance=1e-9,
        hints={
            powers @ values: "divide by the sum of the powers at the end",
            right * powers.sum() / powers.max(): "divide by the sum of the powers at the end",
            attention(query[None], keys, values, scale=1.0)[0]: (
                "the scores are not divided by the root of d_k"
            ),
            _not_rescaled(query, keys, values): (
                "when a new largest score comes, multiply both sums by exp(old - new)"
            ),
            _not_rescaled(query, keys, values, rescale_total=True): (
                "the sum of the powers is rescaled, but the weighted sum of the values is not"
            ),
        },
    )
    with _OneByOne(len(keys)):
        answer(query, keys, values)
    for order in (keys, keys.flip(0)):  # the largest last, and first
        try:
            large = answer(400 * query, order, values)
        except (OverflowError, ZeroDivisionError):  # of plain numbers
            large = torch.tensor(math.nan)
        if not large.isfinite().all():
            raise CheckFailed(
                "with scores of about 1000 the answer is not finite: keep powers of score minus "
                "largest score, which are at most 1"
            )
        right = attention(400 * query[None], order, values)[0]
        expect_close(large, right, name="streaming_attention, large scores", tolerance=1e-9)
    passed("three things in memory, however many keys there are")


class _OneByOne(TorchFunctionMode):
    """Refuses what holds a number for each key at once; parts and copies of the keys may be had."""

    computing = ("mul", "matmul", "mm", "mv", "exp", "softmax", "einsum", "sum", "stack", "tensor")

    def __init__(self, n_keys: int) -> None:
        super().__init__()
        self.n_keys = n_keys

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func.__name__.strip("_") in self.computing and self.n_keys in getattr(made, "shape", ()):
            raise CheckFailed(
                f"all {self.n_keys} scores are there at once (in {func.__name__}): read the keys "
                "one by one, and keep only the largest score and the two sums"
            )
        return made


def _not_rescaled(
    query: Tensor, keys: Tensor, values: Tensor, rescale_total: bool = False
) -> Tensor:
    """What comes out when a new largest score changes later powers but not the sums."""
    largest, total, mixed = -math.inf, 0.0, torch.zeros_like(values[0])
    for key, value in zip(keys, values):
        score = float(query @ key) / math.sqrt(len(query))
        old, largest = largest, max(largest, score)
        power = math.exp(score - largest)
        total = (total * math.exp(old - largest) if rescale_total else total) + power
        mixed = mixed + power * value
    return mixed / total
