"""Checks of chapter 06: position table, rotation, LayerNorm, pre-norm, what a layer sees."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from llm_course.models.layers import FeedForward, MultiHeadAttention
from llm_course.models.transformer import sinusoids
from llm_lab.checks.grading import CheckFailed, draw, expect_close, expect_shape, passed

Layer = Callable[[Tensor], Tensor]


def _table(positions: Tensor, frequencies: Tensor) -> Tensor:
    """A table with other positions or frequencies than the right ones."""
    angles = positions.double()[:, None] * frequencies
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


def check_position_table(answer: Callable[[int, int], Tensor]) -> None:
    """The sinusoids of Vaswani et al. 2017, §3.5."""
    for n, d in ((9, 6), (30, 16)):
        table = answer(n, d)
        expect_shape(table, (n, d), name=f"position_table({n}, {d})")
        right = sinusoids(n, d)
        i = torch.arange(d // 2, dtype=torch.float64)
        positions = torch.arange(n)
        in_order = torch.cat([right[:, 0::2], right[:, 1::2]], dim=1)
        swapped = right.unflatten(1, (-1, 2)).flip(-1).flatten(1)
        expect_close(
            table,
            right,
            name=f"position_table({n}, {d})",
            hints={
                in_order: (
                    "all sines stand before all cosines; in the formula they alternate: "
                    "columns 0::2 and 1::2"
                ),
                swapped: "sine and cosine are exchanged: the even columns are sines",
                _table(positions + 1, 10_000 ** (-2 * i / d)): (
                    "positions begin at 1 here; the first row is that of position 0"
                ),
                _table(positions, 10_000 ** (-i / d)): "the exponent is i / D; it must be 2i / D",
                _table(positions, 10_000 ** (2 * i / d)): (
                    "the frequencies grow: the angle is divided by 10000 ** (2i / D)"
                ),
                right.flip(1): "the columns are in the reverse order",
            },
        )
        if table.dtype != torch.float64:
            raise CheckFailed(
                f"position_table must be float64, got {table.dtype}: in 32 bits the angles of far "
                "positions are rounded"
            )
    passed("the table is the paper's")


def check_moved_on(answer: Callable[[Tensor, int], Tensor]) -> None:
    """Rows of the table, turned by k positions."""
    d = 12
    table = sinusoids(60, d)
    for start, k in ((17, 5), (40, -11), (0, 5), (3, 0)):
        rows = table[start : start + 6].clone()
        kept = rows.clone()
        frequencies = 10_000 ** (-torch.arange(0, d, 2, dtype=torch.float64) / d)
        turn = _table(torch.tensor([k]), frequencies)[0]
        moved = answer(rows, k)
        if not torch.equal(rows, kept):
            raise CheckFailed("moved_on changes its input: write into a new tensor")
        expect_close(
            moved,
            table[start + k : start + k + 6],
            name=f"moved_on(rows {start} to {start + 5}, k={k})",
            hints={
                rows + turn: "the table is not additive: turn each pair by its angle",
                _moved(rows, -k): "this turns the wrong way: look at the signs of the two sines",
                _moved(rows, 1): "this moves by 1, not by k",
                rows: "the rows are returned as they were: k is not used",
                _moved(rows, k, overwrite=True): (
                    "the new cosines are made from the new sines: make both from the old rows"
                ),
                table[abs(k) : abs(k) + 6]: (
                    "these are the rows from k on: the input rows are not used, and they may come "
                    "from anywhere"
                ),
            },
        )
    passed("one rotation for every position")


def _moved(rows: Tensor, k: int, *, overwrite: bool = False) -> Tensor:
    d = rows.shape[-1]
    angles = k * 10_000 ** (-torch.arange(0, d, 2, dtype=rows.dtype) / d)
    sine, cosine = rows[..., 0::2], rows[..., 1::2]
    new_sine = angles.cos() * sine + angles.sin() * cosine
    sine = new_sine if overwrite else sine
    new_cosine = angles.cos() * cosine - angles.sin() * sine
    return torch.stack([new_sine, new_cosine], dim=-1).flatten(-2)


def _numerator_and_variance(
    x: Tensor, *dims: int, correction: int = 0, centred: bool = True
) -> tuple[Tensor, Tensor]:
    """The two parts of a norm over the axes `dims`, before the root."""
    middle = x - x.mean(dims, keepdim=True) if centred else x
    total = middle.square().sum(dims, keepdim=True)
    return middle, total / (x.numel() // total.numel() - correction)


def _norm_mistakes(x: Tensor, gain: Tensor, bias: Tensor, eps: float) -> dict[Tensor, str]:
    """What each usual mistake makes of `x`, and its diagnosis."""

    def finish(parts: tuple[Tensor, Tensor]) -> Tensor:
        return gain * parts[0] / (parts[1] + eps).sqrt() + bias

    middle, variance = _numerator_and_variance(x, -1)
    normed = middle / (variance + eps).sqrt()
    return {
        finish(_numerator_and_variance(x, -1, correction=1)): (
            "the variance is divided by D - 1, as torch.var does by default: "
            "divide by D (correction=0)"
        ),
        gain * middle / (variance.sqrt() + eps) + bias: "is your epsilon outside the root?",
        gain * middle / (_numerator_and_variance(x, -1, correction=1)[1].sqrt() + eps) + bias: (
            "torch.std divides by D - 1, and epsilon is inside the root: begin with the variance"
        ),
        gain * middle / variance.sqrt() + bias: "eps is not used: equal numbers give 0 / 0",
        gain * middle / (variance + eps) + bias: "divided by the variance: take its root",
        finish(_numerator_and_variance(x, -1, centred=False)): (
            "the mean is not subtracted: this is RMSNorm with a bias"
        ),
        finish((x, variance)): "the mean must also be subtracted in the numerator",
        finish(_numerator_and_variance(x, 1)): (
            "the mean is taken over positions (axis 1): the norm of a position must not see "
            "the others. Use the last axis"
        ),
        finish(_numerator_and_variance(x, 0, 1, 2)): "one mean for the whole tensor: use dim=-1",
        normed: "gain and bias are not used",
        gain * normed: "the bias is not added",
        gain * (normed + bias): "the bias is added after the gain, not before",
    }


def check_layer_norm(answer: Callable[[Tensor, Tensor, Tensor, float], Tensor]) -> None:
    """LayerNorm of Ba et al. 2016 over the last axis."""
    eps = 0.01  # large, so that its place shows
    x = draw(2, 3, 5) + 1.5
    gain, bias = 1 + 0.3 * draw(5, seed=1), draw(5, seed=2)
    middle, variance = _numerator_and_variance(x, -1)
    expect_close(
        answer(x.clone(), gain, bias, eps),
        gain * middle / (variance + eps).sqrt() + bias,
        name="layer_norm",
        tolerance=1e-9,
        hints=_norm_mistakes(x, gain, bias, eps),
    )
    passed("mean over D, variance over D, epsilon inside the root")


def check_pre_norm_block(answer: Callable[[Tensor, Layer, Layer, Layer, Layer], Tensor]) -> None:
    """x + attn(norm(x)), then x + ff(norm(x))."""
    torch.manual_seed(0)
    d = 8
    attn, ff = MultiHeadAttention(d, 2).double(), FeedForward(d, 16).double()
    a, b = nn.LayerNorm(d).double(), nn.LayerNorm(d).double()
    x = 3 * draw(2, 4, d)
    with torch.no_grad():
        for seed, norm in enumerate((a, b), start=1):  # not 1 and 0: they hide exchanged norms
            norm.weight.copy_(1 + 0.5 * draw(d, seed=seed))
            norm.bias.copy_(draw(d, seed=10 + seed))
        middle = x + attn(a(x))
        right = middle + ff(b(middle))
        post = a(x + attn(x))
        only_attn, h = middle, a(x)
        from_norm = h + attn(h)
        exchanged = x + attn(b(x))
        stream = "the normed x is added, not x: the stream itself must not be normed"
        hints = {
            b(post + ff(post)): "this is post-norm: the norm stands after the sum",
            middle + ff(b(x)): "the feed-forward layer reads the old x, not the sum with attention",
            ff(b(attn(a(x)))): "the residual sums are missing: x + ...",
            from_norm + ff(b(from_norm)): stream,
            b(from_norm) + ff(b(from_norm)): stream,
            middle + ff(middle): "the second norm is missing: ff reads ff_norm(x)",
            only_attn: "the feed-forward half is missing",
            x + ff(b(middle)): "the second sum begins from the old x: what attention added is lost",
            exchanged + ff(a(exchanged)): "attn_norm and ff_norm are exchanged",
            x + a(attn(x)) + ff(b(x + a(attn(x)))): "the norm must stand before attn, not after it",
        }
        got = answer(x.clone(), attn, a, ff, b)
    expect_close(got, right, name="pre_norm_block", tolerance=1e-9, hints=hints)
    passed("the stream is only added to")


class _Mean(nn.Module):
    """Adds the mean over positions: equivariant without being attention."""

    def forward(self, x: Tensor) -> Tensor:
        return x + x.mean(dim=1, keepdim=True)


class _Causal(nn.Module):
    def __init__(self, attn: MultiHeadAttention) -> None:
        super().__init__()
        self.attn = attn

    def forward(self, x: Tensor) -> Tensor:
        return self.attn(x, causal=True)


class _Table(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + sinusoids(x.shape[1], x.shape[2])


class _At(nn.Module):
    """Does something else at one position only."""

    def __init__(self, position: int) -> None:
        super().__init__()
        self.position = position

    def forward(self, x: Tensor) -> Tensor:
        y = x.clone()
        y[:, self.position] *= 2
        return y


class _Neighbour(nn.Module):
    """Each position gets something of the one before it, the first of the last."""

    def forward(self, x: Tensor) -> Tensor:
        return x + x.roll(1, dims=1)


def check_kind_of_layer(answer: Callable[[nn.Module, int, int], str]) -> None:
    """Position-wise, equivariant, or neither, found by experiment."""
    torch.manual_seed(0)
    d, length = 8, 6
    attn = MultiHeadAttention(d, 2).double()
    wise, even, neither = "position-wise", "equivariant", "order matters"
    cases: list[tuple[nn.Module, str, str]] = [
        (FeedForward(d, 16).double(), wise, "a feed-forward layer"),
        (nn.LayerNorm(d).double(), wise, "LayerNorm"),
        (attn, even, "attention"),
        (_Mean(), even, "a layer that adds the mean over all positions"),
        (_Causal(attn), neither, "causal attention"),
        (_Table(), neither, "a layer that adds a table of positions"),
        (_At(0), neither, "a layer that doubles the vector of the first position"),
        (_At(length - 1), neither, "a layer that doubles the vector of the last position"),
        (_Neighbour(), neither, "a layer that adds the vector of the position before"),
    ]
    advice = {
        wise: "Change one input: if only its own output moves, the layer is position-wise.",
        even: "Outputs of this layer depend on other positions, and shuffle with the inputs.",
        neither: (
            "Compare layer(x[:, order]) with layer(x)[:, order], for orders that move every "
            "position, and not only by turning them around in a circle."
        ),
    }
    for layer, expected, what in cases:
        got = answer(layer, d, length)
        if got not in (wise, even, neither):
            raise CheckFailed(
                f"kind_of_layer must return {wise!r}, {even!r} or {neither!r}, got {got!r}"
            )
        if got != expected:
            rounding = " Allow for rounding: 1e-9, not equality." if got == neither else ""
            raise CheckFailed(
                f"{what}: expected {expected!r}, got {got!r}. {advice[expected]}{rounding}"
            )
    passed("you can tell what a layer sees")
