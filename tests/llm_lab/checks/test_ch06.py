"""Right and wrong answers to the exercises of chapter 06, for `test_contract`."""

from __future__ import annotations

from typing import Any

import torch
from check_answers import Right, Wrong
from torch import Tensor

from llm_course.models.transformer import sinusoids
from llm_lab.checks import ch06

WISE, EVEN, NEITHER = "position-wise", "equivariant", "order matters"


def table(n: int, d: int, *, first: int = 0, step: float = 2.0, order: str = "pairs") -> Tensor:
    positions = torch.arange(first, first + n, dtype=torch.float64)
    pairs = torch.arange(d // 2, dtype=torch.float64)
    angles = positions[:, None] * 10_000 ** (-step * pairs / d)
    sine, cosine = angles.sin(), angles.cos()
    if order == "halves":
        return torch.cat([sine, cosine], dim=1)
    both = [cosine, sine] if order == "swapped" else [sine, cosine]
    return torch.stack(both, dim=-1).flatten(1)


def moved(rows: Tensor, k: int, *, sign: int = 1) -> Tensor:
    d = rows.shape[-1]
    angles = sign * k * 10_000 ** (-torch.arange(0, d, 2, dtype=rows.dtype) / d)
    sine, cosine = rows[:, 0::2], rows[:, 1::2]
    new = [
        angles.cos() * sine + angles.sin() * cosine,
        angles.cos() * cosine - angles.sin() * sine,
    ]
    return torch.stack(new, dim=-1).flatten(1)


def from_new_sines(rows: Tensor, k: int) -> Tensor:
    """The second line reads what the first has overwritten."""
    d = rows.shape[-1]
    angles = k * 10_000 ** (-torch.arange(0, d, 2, dtype=rows.dtype) / d)
    new = rows.clone()
    new[:, 0::2] = angles.cos() * new[:, 0::2] + angles.sin() * new[:, 1::2]
    new[:, 1::2] = angles.cos() * new[:, 1::2] - angles.sin() * new[:, 0::2]
    return new


def no_tolerance(layer: Any, d: int, length: int) -> str:
    x = torch.randn(1, length, d, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    same = torch.equal(layer(x[:, order]) * (1 + 1e-15), layer(x)[:, order])
    return kind(layer, d, length, permute=False) if same else NEITHER


def norm(
    x: Tensor,
    gain: Tensor,
    bias: Tensor,
    eps: float,
    *,
    dim: Any = -1,
    correction: int = 0,
    outside: bool = False,
    mean: bool = True,
) -> Tensor:
    variance = x.var(dim, keepdim=True, correction=correction)
    if not mean:
        return gain * x / (x.square().mean(dim, keepdim=True) + eps).sqrt() + bias
    root = variance.sqrt() + eps if outside else (variance + eps).sqrt()
    return gain * (x - x.mean(dim, keepdim=True)) / root + bias


def pre(x: Tensor, attn: Any, a: Any, ff: Any, b: Any) -> Tensor:
    x = x + attn(a(x))
    return x + ff(b(x))


def post(x: Tensor, attn: Any, a: Any, ff: Any, b: Any) -> Tensor:
    x = a(x + attn(x))
    return b(x + ff(x))


def parallel(x: Tensor, attn: Any, a: Any, ff: Any, b: Any) -> Tensor:
    return x + attn(a(x)) + ff(b(x))


def stream_normed(x: Tensor, attn: Any, a: Any, ff: Any, b: Any) -> Tensor:
    x = a(x)
    x = x + attn(x)
    x = b(x)
    return x + ff(x)


def kind(layer: Any, d: int, length: int, orders: Any = None, permute: bool = True) -> str:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, length, d, generator=generator, dtype=torch.float64)
    y = layer(x)
    if orders is None:
        orders = [torch.arange(length).roll(turn).tolist() for turn in range(1, length)]
        orders += [torch.randperm(length, generator=generator).tolist() for _ in range(5)]
    for order in orders if permute else []:
        if (layer(x[:, order]) - y[:, order]).abs().max() > 1e-9:
            return NEITHER
    for j in range(length):
        other = x.clone()
        other[:, j] += 1.0
        change = (layer(other) - y).abs().amax(dim=(0, 2))
        change[j] = 0.0
        if change.max() > 1e-9:
            return EVEN
    return WISE


def wise_first(layer: Any, d: int, length: int) -> str:
    """Forgets that a position-wise layer does the same at every position."""
    return WISE if kind(layer, d, length, permute=False) == WISE else kind(layer, d, length)


def rolled(length: int) -> list[list[int]]:
    return [torch.arange(length).roll(turn).tolist() for turn in range(length)]


WRONG: Wrong = [
    (ch06.check_position_table, lambda n, d: table(n, d, order="halves"), "alternate"),
    (ch06.check_position_table, lambda n, d: table(n, d, order="swapped"), "exchanged"),
    (ch06.check_position_table, lambda n, d: table(n, d, first=1), "positions begin at 1"),
    (ch06.check_position_table, lambda n, d: table(n, d, step=1.0), "must be 2i / D"),
    (ch06.check_position_table, lambda n, d: table(n, d, step=-2.0), "frequencies grow"),
    (ch06.check_position_table, lambda n, d: table(n, d).float(), "in 32 bits"),
    (ch06.check_position_table, lambda n, d: table(d, n + n % 2), "should have the shape"),
    (ch06.check_moved_on, lambda rows, k: rows, "k is not used"),
    (ch06.check_moved_on, lambda rows, k: moved(rows, k, sign=-1), "the wrong way"),
    (ch06.check_moved_on, lambda rows, k: moved(rows, 1), "moves by 1"),
    (ch06.check_moved_on, lambda rows, k: rows + sinusoids(99, 12)[k], "not additive"),
    (ch06.check_moved_on, lambda rows, k: sinusoids(99, 12)[k : k + 6], "input rows are not used"),
    (ch06.check_moved_on, lambda rows, k: rows.copy_(moved(rows, k)), "changes its input"),
    (ch06.check_moved_on, from_new_sines, "both from the old rows"),
    (ch06.check_layer_norm, lambda *a: norm(*a, correction=1), "divided by D - 1"),
    (ch06.check_layer_norm, lambda *a: norm(*a, outside=True), "epsilon outside the root"),
    (ch06.check_layer_norm, lambda *a: norm(*a, outside=True, correction=1), "begin with the var"),
    (ch06.check_layer_norm, lambda *a: norm(*a, mean=False), "RMSNorm"),
    (ch06.check_layer_norm, lambda *a: norm(*a, dim=1), "over positions"),
    (ch06.check_layer_norm, lambda *a: norm(*a, dim=(0, 1, 2)), "one mean for the whole"),
    (ch06.check_layer_norm, lambda x, g, b, e: norm(x, g, b, 0.0), "eps is not used"),
    (ch06.check_layer_norm, lambda x, g, b, e: norm(x, g, 0 * b, e), "bias is not added"),
    (ch06.check_layer_norm, lambda x, g, b, e: norm(x, 1 + 0 * g, 0 * b, e), "gain and bias"),
    (ch06.check_layer_norm, lambda x, g, b, e: norm(x, g, g * b, e), "after the gain"),
    (ch06.check_pre_norm_block, post, "this is post-norm"),
    (ch06.check_pre_norm_block, parallel, "reads the old x"),
    (ch06.check_pre_norm_block, stream_normed, "stream itself must not be normed"),
    (ch06.check_pre_norm_block, lambda x, s, a, f, b: pre(x, s, b, f, a), "exchanged"),
    (ch06.check_pre_norm_block, lambda x, s, a, f, b: f(b(s(a(x)))), "sums are missing"),
    (ch06.check_pre_norm_block, lambda x, s, a, f, b: x + s(a(x)), "half is missing"),
    (
        ch06.check_pre_norm_block,
        lambda x, s, a, f, b: x + f(b(x + s(a(x)))),
        "what attention added is lost",
    ),
    (ch06.check_kind_of_layer, lambda *a: kind(*a, permute=False), "causal attention"),
    (ch06.check_kind_of_layer, wise_first, "a table of positions"),
    (ch06.check_kind_of_layer, lambda *a: kind(*a, orders=rolled(a[2])), "the position before"),
    (ch06.check_kind_of_layer, lambda *a: kind(*a, orders=[[0, 2, 1, 4, 3, 5]]), "the first pos"),
    (ch06.check_kind_of_layer, lambda *a: kind(*a, orders=[[1, 0, 2, 3, 4, 5]]), "the last pos"),
    (ch06.check_kind_of_layer, no_tolerance, "1e-9, not equality"),
    (ch06.check_kind_of_layer, lambda *a: WISE, "attention: expected 'equivariant'"),
    (ch06.check_kind_of_layer, lambda *a: EVEN, "a feed-forward layer: expected"),
    (ch06.check_kind_of_layer, lambda *a: None, "must return"),
]

RIGHT: Right = [
    (ch06.check_position_table, table),
    (ch06.check_moved_on, moved),
    (ch06.check_layer_norm, norm),
    (ch06.check_pre_norm_block, pre),
    (ch06.check_kind_of_layer, kind),
]
