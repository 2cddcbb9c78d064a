"""Attention is the paper's formula in every form; masks, caches and checks keep their promises."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from parity import differs, rng
from torch import Tensor, nn
from torch.testing import assert_close

from llm_course.models.cache import KVCache
from llm_course.models.layers import (
    FeedForward,
    MultiHeadAttention,
    attention,
    attention_weights,
    causal_mask,
    check_ids,
    check_length,
    combine_masks,
    fused_attention,
    padding_mask,
)

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=rng(seed), dtype=torch.float64)


def attention_by_hand(
    q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """Equation (1) in loops over numbers, for one head: [T, K], [S, K], [S, Kv]."""
    scale = 1 / math.sqrt(q.shape[1]) if scale is None else scale
    rows = []
    for t in range(q.shape[0]):
        keys = [s for s in range(k.shape[0]) if allowed is None or allowed[t, s]]
        scores = [scale * sum(float(a) * float(b) for a, b in zip(q[t], k[s])) for s in keys]
        exps = [math.exp(score) for score in scores]
        row = torch.zeros(v.shape[1], dtype=torch.float64)
        for s, e in zip(keys, exps):
            row += e / sum(exps) * v[s]
        rows.append(row)
    return torch.stack(rows)


@pytest.mark.covers("F1")
@pytest.mark.parametrize("form", [attention, fused_attention])
def test_attention_is_equation_1_of_vaswani(form: Callable[..., Tensor]) -> None:
    q, k, v = draw(2, 3, 4, 8), draw(2, 3, 5, 8, seed=1), draw(2, 3, 5, 6, seed=2)
    for b in range(2):
        for h in range(3):
            expected = attention_by_hand(q[b, h], k[b, h], v[b, h])
            assert_close(form(q, k, v)[b, h], expected, **EXACT)
            unscaled = form(q, k, v, scale=1.0)[b, h]
            assert_close(unscaled, attention_by_hand(q[b, h], k[b, h], v[b, h], scale=1.0), **EXACT)
            with pytest.raises(AssertionError):  # without 1/sqrt(d_k) it is another function
                assert_close(unscaled, expected, rtol=1e-2, atol=1e-2)


def test_rows_of_attention_weights_sum_to_one() -> None:
    weights = attention_weights(draw(2, 3, 4, 8), draw(2, 3, 5, 8, seed=1))
    assert_close(weights.sum(-1), torch.ones(2, 3, 4, dtype=torch.float64), **EXACT)
    assert (weights > 0).all()


@pytest.mark.parametrize("form", [attention, fused_attention])
def test_a_bool_mask_leaves_keys_out_and_a_float_mask_is_added(form: Callable[..., Tensor]) -> None:
    q, k, v = draw(4, 8), draw(5, 8, seed=1), draw(5, 8, seed=2)
    mask = torch.rand(4, 5, generator=rng(3)) < 0.6
    mask[:, 2] = True
    result = form(q[None, None], k[None, None], v[None, None], mask)[0, 0]
    assert_close(result, attention_by_hand(q, k, v, mask), **EXACT)
    added = torch.zeros(4, 5, dtype=torch.float64).masked_fill(~mask, -torch.inf)
    assert_close(form(q[None, None], k[None, None], v[None, None], added)[0, 0], result, **EXACT)
    assert differs(form(q[None, None], k[None, None], v[None, None], ~mask)[0, 0], result)
    # A finite float mask only shifts scores: adding ln 2 to a key doubles its weight.
    bias = torch.zeros(4, 5, dtype=torch.float64)
    bias[:, 1] = math.log(2)
    double = form(
        q[None, None], torch.cat([k, k[1:2]])[None, None], torch.cat([v, v[1:2]])[None, None]
    )
    assert_close(form(q[None, None], k[None, None], v[None, None], bias), double, **EXACT)


@pytest.mark.parametrize("form", [attention, fused_attention])
@pytest.mark.parametrize("kind", ["bool", "float"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_fully_masked_row_is_zero_and_harms_no_gradient(
    form: Callable[..., Tensor], kind: str, dtype: torch.dtype
) -> None:
    mask = torch.rand(2, 1, 4, 5, generator=rng(3)) < 0.6
    mask[..., 0] = True
    masked = mask.clone()
    masked[0, 0, 2] = False

    def run(allowed: Tensor) -> tuple[Tensor, list[Tensor]]:
        if kind == "float":
            allowed = torch.zeros(allowed.shape, dtype=dtype).masked_fill(~allowed, -torch.inf)
        inputs = [draw(2, 3, n, 8, seed=n).to(dtype).requires_grad_() for n in (4, 5)]
        result = form(inputs[0], inputs[1], inputs[1].detach().clone(), allowed)
        result.square().sum().backward()
        return result, [tensor.grad for tensor in inputs if tensor.grad is not None]

    result, gradients = run(masked)
    assert result[0, :, 2].eq(0).all()
    assert len(gradients) == 2
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert gradients[0][0, :, 2].eq(0).all()
    others = torch.ones(2, 4, dtype=torch.bool)
    others[0, 2] = False
    assert torch.equal(result.mT.transpose(1, 3)[others], run(mask)[0].mT.transpose(1, 3)[others])


def test_causal_queries_are_the_last_of_the_keys() -> None:
    assert causal_mask(2, 4).tolist() == [[True, True, True, False], [True] * 4]
    q, k, v = draw(1, 2, 6, 8), draw(1, 2, 6, 8, seed=1), draw(1, 2, 6, 8, seed=2)
    full = fused_attention(q, k, v, causal=True)
    assert_close(full, attention(q, k, v, causal_mask(6, 6)), **EXACT)
    for n_new in (1, 2, 5):
        assert_close(
            fused_attention(q[:, :, -n_new:], k, v, causal=True), full[:, :, -n_new:], **EXACT
        )
    mask = torch.rand(1, 1, 6, 6, generator=rng(3)) < 0.5
    both = fused_attention(q, k, v, mask, causal=True)
    assert_close(both, attention(q, k, v, mask & causal_mask(6, 6)), **EXACT)


@pytest.mark.covers("F2", "F3")
@pytest.mark.parametrize(
    ("n_heads", "d_head", "bias"), [(3, None, True), (2, 5, False), (1, 4, True)]
)
def test_heads_are_attention_with_their_own_matrices_joined_by_w_o(
    n_heads: int, d_head: int | None, bias: bool
) -> None:
    d_model = 12
    layer = MultiHeadAttention(d_model, n_heads, d_head=d_head, bias=bias).double()
    x = draw(1, 5, d_model)
    d_k = d_head or d_model // n_heads

    def head_matrix(linear: torch.nn.Linear, i: int) -> tuple[Tensor, Tensor | float]:
        """W_i in R^{d_model x d_k} of equation head_i = Attention(Q W_i^Q, ...), and its bias."""
        rows = slice(i * d_k, (i + 1) * d_k)
        w_i = linear.weight.detach()[rows].T
        assert w_i.shape == (d_model, d_k)
        return w_i, 0.0 if linear.bias is None else linear.bias.detach()[rows]

    heads = []
    for i in range(n_heads):
        (w_q, b_q), (w_k, b_k), (w_v, b_v) = (
            head_matrix(linear, i) for linear in (layer.w_q, layer.w_k, layer.w_v)
        )
        heads.append(attention_by_hand(x[0] @ w_q + b_q, x[0] @ w_k + b_k, x[0] @ w_v + b_v))
    w_o = layer.w_o.weight.detach().T
    assert w_o.shape == (n_heads * d_k, d_model)
    expected = torch.cat(heads, dim=-1) @ w_o + (layer.w_o.bias.detach() if bias else 0.0)
    assert_close(layer(x)[0].detach(), expected, **EXACT)
    if n_heads > 1:
        # The order of the heads matters.
        assert differs(torch.cat(heads[::-1], dim=-1) @ w_o, expected)


@pytest.mark.covers("F8")
def test_cross_attention_takes_queries_here_and_keys_and_values_there() -> None:
    layer = MultiHeadAttention(8, 2).double()
    x, source = draw(2, 3, 8), draw(2, 5, 8, seed=1)
    result = layer(x, source)
    q = layer.w_q(x).unflatten(-1, (2, 4))
    k, v = layer.w_k(source).unflatten(-1, (2, 4)), layer.w_v(source).unflatten(-1, (2, 4))
    heads = [
        [attention_by_hand(*(m[b, :, h].detach() for m in (q, k, v))) for h in range(2)]
        for b in range(2)
    ]
    joined = torch.stack([torch.cat(row, dim=-1) for row in heads])
    assert_close(result, layer.w_o(joined), **EXACT)
    # The source's keys and values serve every later step.
    precomputed = layer.keys_values(source)
    assert torch.equal(layer(x, keys_values=precomputed), result)
    assert_close(layer(x[:, 1:2], keys_values=precomputed), result[:, 1:2], **EXACT)


def test_the_weights_that_are_shown_are_those_that_are_used() -> None:
    layer = MultiHeadAttention(8, 2, scale=0.7).double().eval()
    x = draw(2, 5, 8)
    mask = torch.rand(2, 1, 5, 5, generator=rng(1)) < 0.7
    weights = layer.weights(x, mask=mask, causal=True)
    assert weights.triu(1).eq(0).all()
    _, v = layer.keys_values(x)
    assert_close(
        layer.w_o((weights @ v).transpose(1, 2).flatten(2)),
        layer(x, mask=mask, causal=True),
        **EXACT,
    )


def test_attention_dropout_acts_in_training_only() -> None:
    layer = MultiHeadAttention(8, 2, dropout=0.5)
    x = draw(1, 6, 8).float()
    torch.manual_seed(0)
    assert differs(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


@pytest.mark.covers("F7")
def test_feed_forward_is_equation_2_at_each_position_alone() -> None:
    layer = FeedForward(4, 6, "relu").double()
    x = draw(1, 5, 4)
    w_1, w_2 = layer.w_1.weight.detach(), layer.w_2.weight.detach()
    b_1, b_2 = layer.w_1.bias.detach(), layer.w_2.bias.detach()
    for t in range(5):
        inner = [max(0.0, float(x[0, t] @ w_1[f]) + float(b_1[f])) for f in range(6)]
        expected = [
            sum(inner[f] * float(w_2[d, f]) for f in range(6)) + float(b_2[d]) for d in range(4)
        ]
        assert_close(layer(x)[0, t].tolist(), expected, **EXACT)
    order = torch.tensor([3, 1, 4, 0, 2])
    assert_close(layer(x[:, order]), layer(x)[:, order], **EXACT)


@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_tanh"])
def test_activations_are_their_definitions(activation: str) -> None:
    x = torch.linspace(-4, 4, 33, dtype=torch.float64)
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    expected = {
        "relu": x.clamp_min(0),
        "gelu": x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
        "gelu_tanh": 0.5 * x * (1 + torch.tanh(inner)),
    }
    assert_close(FeedForward(4, 4, activation).activation(x), expected[activation], **EXACT)


def test_gradients_are_right_by_finite_differences() -> None:
    q, k, v = (draw(1, 2, 3, 4, seed=s).requires_grad_() for s in range(3))
    bias = draw(1, 2, 3, 3, seed=3).requires_grad_()
    mask = torch.tensor([[True, False, False], [False, False, False], [True, True, True]])
    for form in (attention, fused_attention):
        assert torch.autograd.gradcheck(lambda q, k, v: form(q, k, v, mask), (q, k, v))  # noqa: B023
        assert torch.autograd.gradcheck(form, (q, k, v, bias))
    layer = FeedForward(4, 5, "gelu").double()
    assert torch.autograd.gradcheck(layer, (draw(2, 4).requires_grad_(),))


class Block(nn.Module):
    """What a cache asks of a block."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = MultiHeadAttention(8, 2).double()


BLOCKS = nn.ModuleList([Block(), Block()])


def written(cache: KVCache, k: Tensor, v: Tensor) -> list[tuple[Tensor, Tensor]]:
    """What each block sees while it adds `k` and `v`."""
    seen = [layer.write(k, v) for layer in cache.layers()]
    cache.length += k.shape[2]
    return seen


def test_a_cache_returns_what_was_written_in_order_to_each_block() -> None:
    cache = KVCache(BLOCKS, 3, 6)
    keys, values = draw(2, 3, 2, 6, 4), draw(2, 3, 2, 6, 4, seed=1)
    start = 0
    for n_new in (3, 1, 2):
        end = start + n_new
        for i, layer in enumerate(cache.layers()):
            seen = layer.write(keys[i, :, :, start:end], values[i, :, :, start:end])
            assert torch.equal(seen[0], keys[i, :, :, :end])
            assert torch.equal(seen[1], values[i, :, :, :end])
        cache.length = start = end


def test_a_full_cache_refuses_more_and_names_both_numbers() -> None:
    cache = KVCache(BLOCKS, 3, 6)
    written(cache, draw(3, 2, 5, 4), draw(3, 2, 5, 4))
    cache.check(2, torch.zeros(3, 1).long())
    with pytest.raises(ValueError, match="holds 6 positions: 5 are taken, and 2 more do not fit"):
        cache.check(2, torch.zeros(3, 2).long())
    with pytest.raises(ValueError, match="at least 1, got 0 and 6"):
        KVCache(BLOCKS, 0, 6)


@pytest.mark.parametrize("rows", [[2, 0, 0], [1, 1, 0, 2, 2], [1]])
def test_a_reordered_cache_continues_the_chosen_rows(rows: list[int]) -> None:
    cache = KVCache(BLOCKS, 3, 6)
    k, v = draw(3, 2, 4, 4), draw(3, 2, 4, 4, seed=1)
    written(cache, k, v)
    cache.reorder(torch.tensor(rows))
    more = draw(len(rows), 2, 1, 4, seed=2)
    for keys, values in written(cache, more, more):
        assert torch.equal(keys, torch.cat([k[rows], more], dim=2))
        assert torch.equal(values, torch.cat([v[rows], more], dim=2))


def test_rows_that_begin_alike_are_moved_from_where_they_differ() -> None:
    cache, rows = KVCache(BLOCKS, 3, 6), torch.tensor([2, 0, 0])
    prompt, later = draw(1, 2, 2, 4).expand(3, -1, -1, -1), draw(3, 2, 3, 4, seed=1)
    written(cache, prompt, prompt)
    written(cache, later, later)
    buffer = cache.keys.data_ptr()
    cache.reorder(rows, start=2)
    assert cache.keys.data_ptr() == buffer
    more = draw(3, 2, 1, 4, seed=2)
    for keys, _ in written(cache, more, more):
        assert torch.equal(keys, torch.cat([prompt, later[rows], more], dim=2))


def test_padding_masks_take_both_shapes_and_both_dtypes() -> None:
    two = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert padding_mask(two, 2, 3, 3).shape == (2, 1, 1, 3)
    three = two[:, None].expand(2, 2, 3)
    assert torch.equal(padding_mask(three.bool(), 2, 2, 3)[:, 0], three.bool())
    assert padding_mask(two, 2, 3, 3).dtype == torch.bool


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (torch.ones(2, 3), TypeError, "int or bool, 1 = attend, got torch.float32"),
        (torch.ones(2, 4).int(), ValueError, r"\(2, 3\) or \(2, 5, 3\), got \(2, 4\)"),
        (torch.ones(2, 3, 3).int(), ValueError, r"got \(2, 3, 3\)"),
        (torch.ones(3).int(), ValueError, r"got \(3,\)"),
        (torch.full((2, 3), 2), ValueError, "only 0 and 1, got 2"),
        (torch.tensor([[0, 1, -1]] * 2), ValueError, "only 0 and 1, got -1"),
    ],
)
def test_a_wrong_attention_mask_is_refused(
    mask: Tensor, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        padding_mask(mask, 2, 5, 3)


def test_combined_masks_let_through_what_both_let_through() -> None:
    first, second = torch.tensor([True, True, False]), torch.tensor([True, False, False])
    bias = torch.tensor([1.0, 2.0, 3.0])
    assert combine_masks(first, None) is first
    assert combine_masks(first, second).tolist() == [True, False, False]
    for masks in ((bias, first), (first, bias)):
        assert combine_masks(*masks).tolist() == [1.0, 2.0, -math.inf]
    assert combine_masks(bias, bias).tolist() == [2.0, 4.0, 6.0]


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        ([[1, 2], [3, 10]], ValueError, "from 0 to 9, got 10 at row 1, position 1"),
        ([[1, -1], [3, 10]], ValueError, "from 0 to 9, got -1 at row 0, position 1"),
        ([[1.0]], TypeError, "whole numbers .* got torch.float32"),
        ([[True]], TypeError, "got torch.bool"),
        ([1, 2], ValueError, r"\[batch, positions\] .* got \(2,\)"),
        ([[]], TypeError, "got torch.float32"),
    ],
)
def test_wrong_ids_are_refused_with_value_place_and_range(
    ids: list[list[float]], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        check_ids(torch.tensor(ids), 10)


def test_empty_ids_other_shapes_and_too_many_positions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"at least one position, got \(2, 0\)"):
        check_ids(torch.zeros(2, 0, dtype=torch.int64), 10)
    with pytest.raises(
        ValueError, match=r"position_ids must have the shape \(2, 3\), got \(2, 4\)"
    ):
        check_ids(torch.zeros(2, 4, dtype=torch.int64), 10, "position_ids", torch.Size((2, 3)))
    check_ids(torch.zeros(1, 3, dtype=torch.int64), 10, "position_ids", torch.Size((2, 3)))
    with pytest.raises(ValueError, match="at most 8 positions fit the model, got 9"):
        check_length(9, 8)
    with pytest.raises(ValueError, match="multiple of n_heads = 3, got 8"):
        MultiHeadAttention(8, 3)
