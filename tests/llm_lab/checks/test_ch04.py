"""Right and wrong answers to the exercises of chapter 04, for `test_contract`."""

from __future__ import annotations

import math

import torch
from check_answers import Right, Wrong
from torch import Tensor

from llm_lab.checks import ch04


def backward(a: Tensor, g: Tensor, dim: int | None = -1) -> Tensor:
    mean = (a * g).sum() if dim is None else (a * g).sum(dim=dim, keepdim=True)
    return a * (g - mean)


def masked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor,
    *,
    power: float = -0.5,
    fill: float = -math.inf,
    empty_rows: bool = True,
    zero: bool = True,
) -> Tensor:
    scores = q @ k.mT * k.shape[-1] ** power
    empty = ~mask.any(-1, keepdim=True) & torch.tensor(empty_rows)
    weights = scores.masked_fill(~mask & ~empty, fill).masked_fill(empty, 0.0).softmax(-1)
    return (weights.masked_fill(empty, 0.0) if zero else weights) @ v


def late(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return masked(q, k, torch.eye(len(k), dtype=q.dtype), torch.ones_like(mask)) * mask @ v


def hidden_nan(*inputs: Tensor) -> Tensor:
    return masked(*inputs, empty_rows=False).nan_to_num(0.0)


def over_queries(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    scores = (q @ k.mT * k.shape[-1] ** -0.5).masked_fill(~mask, -math.inf)
    return scores.softmax(0) @ v


def share(length: int, width: int, matrices: int = 4, products: int = 2) -> float:
    lookup = length * length * products * width
    return lookup / (lookup + matrices * length * width * width)


def stream(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    root: bool = True,
    safe: bool = True,
    total_shrinks: bool = True,
    values_shrink: bool = True,
    divides: bool = True,
) -> Tensor:
    largest = torch.tensor(-math.inf if safe else 0.0, dtype=query.dtype)
    total, mixed = torch.zeros_like(largest), torch.zeros_like(values[0])
    for key, value in zip(keys, values):
        score = query @ key / (math.sqrt(len(query)) if root else 1.0)
        new = torch.maximum(largest, score) if safe else largest
        shrink, power, largest = (largest - new).exp(), (score - new).exp(), new
        total = (total * shrink if total_shrinks else total) + power
        mixed = (mixed * shrink if values_shrink else mixed) + power * value
    return mixed / total if divides else mixed


def at_once(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return (keys @ query / math.sqrt(len(query))).softmax(0) @ values


def kept_scores(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return torch.stack([key @ query / math.sqrt(len(query)) for key in keys]).softmax(0) @ values


def plain_numbers(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    total, mixed = 0.0, torch.zeros_like(values[0])
    for key, value in zip(keys, values):
        power = math.exp(float(query @ key) / math.sqrt(len(query)))
        total, mixed = total + power, mixed + power * value
    return mixed / total


WRONG: Wrong = [
    (ch04.check_softmax_backward, lambda a, g: a * g, "only the diagonal"),
    (ch04.check_softmax_backward, lambda a, g: a * (1 - a) * g, "sigmoid"),
    (ch04.check_softmax_backward, lambda a, g: backward(a, g, None), "whole tensor"),
    (ch04.check_softmax_backward, lambda a, g: backward(a, g, 0), "over the queries"),
    (ch04.check_softmax_backward, lambda a, g: a * (g - g.mean(-1, keepdim=True)), "weighted"),
    (ch04.check_softmax_backward, lambda a, g: backward(a, g) / a, "factor a_j"),
    (ch04.check_softmax_backward, lambda a, g: -backward(a, g), "sign"),
    (ch04.check_masked_attention, lambda *a: masked(*a[:3], torch.ones_like(a[3])), "no effect"),
    (ch04.check_masked_attention, lambda *a: masked(*a[:3], ~a[3]), "True means attend"),
    (ch04.check_masked_attention, late, "after the softmax"),
    (ch04.check_masked_attention, lambda *a: masked(*a, fill=0.0), "ordinary score"),
    (ch04.check_masked_attention, over_queries, "dim=-1"),
    (ch04.check_masked_attention, lambda *a: masked(*a, power=0.0), "root of d_k"),
    (ch04.check_masked_attention, lambda *a: masked(*a, power=-1.0), "not by d_k"),
    (ch04.check_masked_attention, lambda *a: masked(*a, empty_rows=False), "NaN: its softmax"),
    (ch04.check_masked_attention, lambda *a: masked(*a, zero=False), "mean of all values"),
    (ch04.check_masked_attention, hidden_nan, "gradient of . is NaN"),
    (ch04.check_attention_share, lambda t, d: share(t, d, products=1), "values is missing"),
    (ch04.check_attention_share, lambda t, d: share(t, d, matrices=3), "also one on the output"),
    (ch04.check_attention_share, lambda t, d: share(t, d, matrices=1), "this is one"),
    (ch04.check_attention_share, lambda t, d: share(t, d, products=4), "count once"),
    (ch04.check_attention_share, lambda t, d: 2 * t * t / (2 * t * t + 4 * d), "not one"),
    (ch04.check_attention_share, lambda t, d: 1 - share(t, d), "share of the projections"),
    (ch04.check_attention_share, lambda t, d: 2 * t / (4 * d), "ratio"),
    (ch04.check_streaming_attention, lambda *a: stream(*a, divides=False), "divide by the sum"),
    (ch04.check_streaming_attention, lambda *a: stream(*a, root=False), "root of d_k"),
    (ch04.check_streaming_attention, at_once, "scores are there at once"),
    (ch04.check_streaming_attention, kept_scores, "scores are there at once"),
    (ch04.check_streaming_attention, plain_numbers, "not finite"),
    (ch04.check_streaming_attention, lambda *a: stream(*a, safe=False), "not finite"),
    (ch04.check_streaming_attention, lambda *a: stream(*a, values_shrink=False), "values is not"),
    (
        ch04.check_streaming_attention,
        lambda *a: stream(*a, total_shrinks=False, values_shrink=False),
        "multiply both sums",
    ),
]

RIGHT: Right = [
    (ch04.check_softmax_backward, backward),
    (ch04.check_masked_attention, masked),
    (ch04.check_attention_share, share),
    (ch04.check_streaming_attention, stream),
]
