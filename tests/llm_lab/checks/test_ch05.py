"""Right and wrong answers to the exercises of chapter 05, and the forms of several heads.

The forms are computed in float64, with controls that must fail.
"""

from __future__ import annotations

import pytest
import torch
from check_answers import Right, Wrong
from parity import reached, rng
from torch import Tensor
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from llm_course.models.layers import MultiHeadAttention, attention
from llm_lab.checks import ch05

EXACT = {"rtol": 1e-10, "atol": 1e-10}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=rng(seed), dtype=torch.float64)


def shapes(d_model: int, n_heads: int, d_head: int) -> dict[str, tuple[int, int]]:
    inner = (n_heads * d_head, d_model)
    return {"w_q": inner, "w_k": inner, "w_v": inner, "w_o": inner[::-1]}


def transposed_shapes(d_model: int, n_heads: int, d_head: int) -> dict[str, tuple[int, int]]:
    return {name: shape[::-1] for name, shape in shapes(d_model, n_heads, d_head).items()}


def square_shapes(d_model: int, n_heads: int, d_head: int) -> dict[str, tuple[int, int]]:
    return dict.fromkeys(("w_q", "w_k", "w_v", "w_o"), (d_model, d_model))


def shapes_of_one_head(d_model: int, n_heads: int, d_head: int) -> dict[str, tuple[int, int]]:
    return shapes(d_model, 1, d_head)


def split(x: Tensor, n_heads: int) -> Tensor:
    return x.unflatten(-1, (n_heads, -1)).transpose(1, 2)


def split_by_view(x: Tensor, n_heads: int) -> Tensor:
    return x.view(len(x), n_heads, x.shape[1], -1)


def without(heads: Tensor, w_o: Tensor, silent: int | None) -> Tensor:
    blocks = w_o.unflatten(0, (len(heads), -1))
    return sum(heads[i] @ blocks[i] for i in range(len(heads)) if i != silent)


def alone(heads: Tensor, w_o: Tensor, silent: int) -> Tensor:
    return without(heads, w_o, None) - without(heads, w_o, silent)


def at_its_mean(heads: Tensor, w_o: Tensor, silent: int) -> Tensor:
    heads = heads.clone()
    heads[silent] = heads[silent].mean(dim=0)
    return without(heads, w_o, None)


def band(weights: Tensor, steps: int) -> Tensor:
    return weights.diagonal(offset=-steps, dim1=-2, dim2=-1)


def back(weights: Tensor, steps: int) -> Tensor:
    return band(weights, steps).mean(dim=(0, 2))


def silenced_in_place(heads: Tensor, w_o: Tensor, silent: int) -> Tensor:
    heads[silent] = 0
    return without(heads, w_o, silent)


def mixed_by_reshape(heads: Tensor, w_o: Tensor, silent: int) -> Tensor:
    zero = heads.clone()
    zero[silent] = 0
    return zero.reshape(heads.shape[1], -1) @ w_o


def from_zeros(heads: Tensor, w_o: Tensor, silent: int) -> Tensor:
    """Right: adds up in float32, as `torch.zeros(T, D)` makes it."""
    output = torch.zeros(heads.shape[1], w_o.shape[1])
    for i, rows in enumerate(w_o.unflatten(0, (len(heads), -1))):
        if i != silent:
            output += heads[i] @ rows
    return output


def back_from_zeros(weights: Tensor, steps: int) -> Tensor:
    """Right, in float32."""
    total = torch.zeros(weights.shape[1])
    for t in range(steps, weights.shape[-1]):
        total += weights[:, :, t, t - steps].mean(dim=0)
    return total / (weights.shape[-1] - steps)


def without_by_fixed_sizes(heads: Tensor, w_o: Tensor, silent: int) -> Tensor:
    return sum(heads[i] @ w_o[4 * i : 4 * (i + 1)] for i in range(3) if i != silent)


def joined_too_early(heads: Tensor, w_o: Tensor, silent: int) -> Tensor:
    zero = heads.clone()
    zero[silent] = 0
    return zero.flatten(1) @ w_o


def rows_as_in_linear(heads: Tensor, w_o: Tensor, silent: int) -> Tensor:
    k = heads.shape[-1]
    parts = [heads[i] @ w_o[:, i * k : (i + 1) * k].mT for i in range(len(heads)) if i != silent]
    return sum(parts)


def side_by_side(heads: Tensor, w_o: Tensor, silent: int) -> Tensor:
    rows = w_o.unflatten(0, (len(heads), -1))
    return torch.cat([heads[i] @ rows[i] for i in range(len(heads)) if i != silent], dim=-1)


WRONG: Wrong = [
    (ch05.check_head_shapes, transposed_shapes, "outputs first"),
    (ch05.check_head_shapes, square_shapes, "need not be d_model"),
    (ch05.check_head_shapes, shapes_of_one_head, "this is one head"),
    (ch05.check_head_shapes, lambda *a: {"w_q": (1, 1)}, "dictionary with"),
    (ch05.check_split_heads, split_by_view, "mixes positions"),
    (
        ch05.check_split_heads,
        lambda x, h: x.unflatten(-1, (-1, h)).permute(0, 3, 1, 2),
        "every H-th",
    ),
    (ch05.check_split_heads, lambda x, h: split(x, h).transpose(1, 2), "before the positions"),
    (ch05.check_split_heads, lambda x, h: split(x, h).mT, "last two axes"),
    (ch05.check_split_heads, lambda x, h: split(x, h).flip(1), "opposite order"),
    (ch05.check_head_shapes, lambda d, h, k: dict.fromkeys(shapes(d, h, k), d), "two numbers"),
    (ch05.check_split_heads, lambda x, h: split(x, h).transpose(0, 1), "batch comes first"),
    (
        ch05.check_split_heads,
        lambda x, h: x.permute(0, 2, 1).reshape(len(x), h, x.shape[1], -1),
        "split the last axis first",
    ),
    (
        ch05.check_head_shapes,
        lambda d, h, k: dict.fromkeys(shapes(d, h, k), (h, d, k)),
        "the heads are no axis",
    ),
    (
        ch05.check_split_heads,
        lambda x, h: x.reshape(2, 5, 3, 4).permute(0, 2, 1, 3),
        "from x.shape",
    ),
    (ch05.check_without_head, silenced_in_place, "work on a copy"),
    (ch05.check_without_head, without_by_fixed_sizes, "from heads.shape"),
    (ch05.check_without_head, joined_too_early, "positions to the front"),
    (ch05.check_without_head, rows_as_in_linear, "not transposed"),
    (ch05.check_without_head, lambda h, w, s: without(h, w, s) + 1e-4, "is wrong in"),
    (ch05.check_looks_back, lambda w, n: back(w, n) + 1e-4, "is wrong in"),
    (ch05.check_looks_back, lambda w, n: band(w, n).sum((0, 2)) / 2 / (7 - n), "is wrong in"),
    (ch05.check_without_head, mixed_by_reshape, "mixes heads and positions"),
    (ch05.check_without_head, side_by_side, "not put side by side"),
    (ch05.check_looks_back, lambda w, n: back(w, 1), "whatever `steps` is"),
    (ch05.check_looks_back, lambda w, n: w.diagonal(offset=-n).mean(dim=(0, 2)), "without dim1"),
    (ch05.check_without_head, lambda h, w, s: without(h, w, None), "no head is silent"),
    (ch05.check_without_head, alone, "silent head alone"),
    (ch05.check_without_head, lambda h, w, s: without(h, w, s) * 1.5, "made larger"),
    (ch05.check_without_head, lambda h, w, s: without(h, w, s) / 2, "not averaged"),
    (ch05.check_without_head, at_its_mean, "set it to zero"),
    (ch05.check_looks_back, lambda w, n: band(w, n).sum(2).mean(0) / 7, "divided by all 7"),
    (ch05.check_looks_back, lambda w, n: band(w, n).sum(dim=(0, 2)), "over rows and queries"),
    (ch05.check_looks_back, lambda w, n: band(w, n).mean(2)[0], "first row"),
    (ch05.check_looks_back, lambda w, n: band(w, n).mean(), "heads are mixed"),
    (ch05.check_looks_back, lambda w, n: back(w.mT, n), "axis swapped"),
    (ch05.check_looks_back, lambda w, n: back(w, 0), "on itself"),
    (ch05.check_looks_back, lambda w, n: band(w, n).mean(2), "batch is still there"),
]

RIGHT: Right = [
    (ch05.check_head_shapes, shapes),
    (ch05.check_split_heads, split),
    (ch05.check_without_head, without),
    (ch05.check_without_head, from_zeros),
    (ch05.check_looks_back, back),
    (ch05.check_looks_back, back_from_zeros),
]


def cut(layer: MultiHeadAttention, i: int) -> slice:
    return slice(i * layer.d_head, (i + 1) * layer.d_head)


def one_head(layer: MultiHeadAttention, x: Tensor, rows: slice) -> Tensor:
    return attention(*(x @ w.weight[rows].T for w in (layer.w_q, layer.w_k, layer.w_v)))


@pytest.mark.covers("F2", "F3", "X3")
@pytest.mark.parametrize(("n_heads", "d_head"), [(3, 4), (2, None), (1, 5)])
def test_a_layer_is_a_sum_with_one_term_for_each_head(n_heads: int, d_head: int | None) -> None:
    torch.manual_seed(0)
    layer = MultiHeadAttention(8, n_heads, d_head=d_head, bias=False).double()
    x = draw(5, 8)
    terms = []
    for i in range(n_heads):
        columns = cut(layer, i)
        terms.append(one_head(layer, x, columns) @ layer.w_o.weight[:, columns].T)
    assert_close(sum(terms), layer(x[None])[0], **EXACT)
    if n_heads > 1:
        with pytest.raises(AssertionError):  # a head is missing
            assert_close(sum(terms[1:]), layer(x[None])[0], rtol=1e-2, atol=1e-2)
        every_other = [one_head(layer, x, slice(i, None, n_heads)) for i in range(n_heads)]
        with pytest.raises(AssertionError):  # rows i, i + h, ... are of different heads
            assert_close(
                torch.cat(every_other, dim=-1) @ layer.w_o.weight.T,
                layer(x[None])[0],
                rtol=1e-2,
                atol=1e-2,
            )


class SplitByView(MultiHeadAttention):
    def _split(self, x: Tensor) -> Tensor:
        return split_by_view(x, self.n_heads)


@pytest.mark.covers("F2")
def test_a_view_in_place_of_the_transpose_lets_a_causal_layer_see_the_future() -> None:
    def moved(layer: MultiHeadAttention) -> list[bool]:
        x = draw(1, 6, 8)
        changed = x.clone()
        changed[:, 3] += 1
        gap = layer(changed, causal=True) - layer(x, causal=True)
        return reached(gap.abs().amax((0, 2))).tolist()

    honest = [False] * 3 + [True] * 3
    torch.manual_seed(0)
    assert moved(MultiHeadAttention(8, 2).double()) == honest
    assert all(moved(SplitByView(8, 2).double()))
    assert moved(SplitByView(8, 1).double()) == honest  # so one head is no test


@pytest.mark.covers("X3")
@pytest.mark.parametrize("n_heads", [1, 2, 4, 8])
def test_at_fixed_total_width_heads_change_neither_parameters_nor_work(n_heads: int) -> None:
    d_model, length = 16, 12

    def work(layer: MultiHeadAttention) -> int:
        x = torch.zeros(1, length, d_model)
        with FlopCounterMode(display=False) as counter:
            q, (k, v) = layer._split(layer.w_q(x)), layer.keys_values(x)
            layer.w_o(attention(q, k, v).transpose(1, 2).flatten(2))
        return counter.get_total_flops() // 2

    layer = MultiHeadAttention(d_model, n_heads, bias=False)
    assert sum(p.numel() for p in layer.parameters()) == 4 * d_model**2
    expected = 4 * length * d_model**2 + 2 * length**2 * d_model
    assert work(layer) == expected
    wide = MultiHeadAttention(d_model, n_heads, d_head=d_model, bias=False)
    assert work(wide) == n_heads * expected  # heads that keep their width do cost more


@pytest.mark.covers("F3")
@pytest.mark.parametrize("d_head", [1, 3, 8])
def test_the_scores_of_a_head_have_at_most_rank_d_head(d_head: int) -> None:
    torch.manual_seed(0)
    layer = MultiHeadAttention(16, 1, d_head=d_head, bias=False).double()
    x = draw(12, 16)
    scores = layer.w_q(x) @ layer.w_k(x).T
    assert torch.linalg.matrix_rank(scores) == d_head
    assert torch.linalg.matrix_rank(draw(12, 12)) == 12  # not every matrix
    if d_head == 1:
        assert len(scores.argmax(dim=1).unique()) <= 2
