"""The formulas of chapter 06 against plain loops in float64, each with a control that must fail."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from parity import differs, perturbed, reached, rng
from torch import Tensor, nn
from torch.testing import assert_close

from llm_course.configs import BERTConfig, GPTConfig
from llm_course.models.bert import BERT, BERTBlock
from llm_course.models.gpt import GPT, GPTBlock
from llm_course.models.layers import ACTIVATION_FUNCTIONS, FeedForward, MultiHeadAttention
from llm_course.models.t5 import RMSNorm
from llm_course.models.transformer import sinusoids

EXACT = {"rtol": 1e-10, "atol": 1e-10}
ORDER = [3, 0, 5, 1, 4, 2]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=rng(seed), dtype=torch.float64)


def in_rows(function: Callable[[list[float]], list[float]], x: Tensor) -> Tensor:
    """A function of one position's numbers, at every position of [B, T, D]."""
    return torch.tensor(
        [[function(row.tolist()) for row in rows] for rows in x], dtype=torch.float64
    )


def layer_norm_by_hand(
    norm: nn.LayerNorm, *, minus: int = 0, outside: bool = False
) -> Callable[[list[float]], list[float]]:
    gain, bias = norm.weight.tolist(), norm.bias.tolist()

    def of_row(x: list[float]) -> list[float]:
        mean = sum(x) / len(x)
        variance = sum((v - mean) ** 2 for v in x) / (len(x) - minus)
        root = variance**0.5 + norm.eps if outside else (variance + norm.eps) ** 0.5
        return [g * (v - mean) / root + b for v, g, b in zip(x, gain, bias)]

    return of_row


@pytest.mark.covers("X4")
def test_layer_norm_divides_by_d_and_has_epsilon_inside_the_root() -> None:
    norm = perturbed(nn.LayerNorm(6, eps=0.01).double())
    x = 0.1 * draw(2, 3, 6)  # small, so that the place of epsilon shows
    assert_close(in_rows(layer_norm_by_hand(norm), x), norm(x).detach(), **EXACT)
    for mistake in ({"minus": 1}, {"outside": True}):
        wrong = in_rows(layer_norm_by_hand(norm, **mistake), x)
        with pytest.raises(AssertionError):
            assert_close(wrong, norm(x).detach(), rtol=1e-2, atol=1e-2)


@pytest.mark.covers("X4")
def test_dividing_by_d_minus_1_is_a_smaller_gain() -> None:
    """So it escapes notice in training, and shows when weights of others are loaded."""
    norm = nn.LayerNorm(6, eps=1e-20).double()
    wrong = in_rows(layer_norm_by_hand(norm, minus=1), x := draw(2, 3, 6))
    assert_close(wrong, norm(x).detach() * math.sqrt(5 / 6), **EXACT)


def test_rms_norm_is_layer_norm_where_the_mean_is_zero_and_only_there() -> None:
    rms, norm = RMSNorm(6, eps=0.01).double(), nn.LayerNorm(6, eps=0.01).double()

    def by_hand(x: list[float]) -> list[float]:
        root = math.sqrt(sum(v * v for v in x) / len(x) + 0.01)
        return [v / root for v in x]

    x = draw(2, 3, 6) + 1
    assert_close(in_rows(by_hand, x), rms(x).detach(), **EXACT)
    centred = x - x.mean(-1, keepdim=True)
    assert_close(rms(centred), norm(x), **EXACT)
    with pytest.raises(AssertionError):
        assert_close(rms(x), norm(x), rtol=1e-2, atol=1e-2)


def normal_cdf(z: float, steps: int = 20_000) -> float:
    """The area under the bell curve from -10 to z, by Simpson's rule: no erf."""
    width = (z + 10) / steps

    def bell(t: float) -> float:
        return math.exp(-t * t / 2) / math.sqrt(2 * math.pi)

    inner = sum((4 if i % 2 else 2) * bell(-10 + i * width) for i in range(1, steps))
    return (bell(-10) + inner + bell(z)) * width / 3


def test_gelu_weighs_a_number_by_the_probability_of_a_smaller_one() -> None:
    z = torch.linspace(-4, 4, 9, dtype=torch.float64)
    expected = torch.tensor([v * normal_cdf(v) for v in z.tolist()], dtype=torch.float64)
    assert_close(ACTIVATION_FUNCTIONS["gelu"](z), expected, **EXACT)
    for other in ("relu", "gelu_tanh"):
        with pytest.raises(AssertionError):
            assert_close(ACTIVATION_FUNCTIONS[other](z), expected, rtol=0, atol=1e-4)


def test_the_tanh_form_of_gelu_is_its_formula_and_another_function() -> None:
    z = torch.linspace(-6, 6, 2001, dtype=torch.float64)
    by_hand = [
        v / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))) for v in z.tolist()
    ]
    tanh_form = ACTIVATION_FUNCTIONS["gelu_tanh"](z)
    assert_close(tanh_form, torch.tensor(by_hand, dtype=torch.float64), **EXACT)
    gap = (ACTIVATION_FUNCTIONS["gelu"](z) - tanh_form).abs().max()
    assert 4e-4 < gap < 5e-4


@pytest.mark.covers("X2")
def test_the_dot_product_of_two_position_rows_depends_on_their_distance_alone() -> None:
    d_model, table = 24, sinusoids(40, 24)
    products = table @ table.T
    for p in range(40):
        for q in range(40):
            expected = sum(
                math.cos((p - q) / 10_000 ** (2 * i / d_model)) for i in range(d_model // 2)
            )
            assert products[p, q].item() == pytest.approx(expected, abs=1e-10)
    sines = table[:, 0::2]
    with pytest.raises(AssertionError):  # with sines alone it depends on the place too
        assert_close((sines @ sines.T)[0, 5], (sines @ sines.T)[10, 15], rtol=1e-2, atol=1e-2)


@pytest.mark.covers("X2", "F7")
def test_attention_is_equivariant_and_the_feed_forward_layer_position_wise() -> None:
    attn, ff = perturbed(MultiHeadAttention(8, 2).double()), perturbed(FeedForward(8, 16).double())
    x = draw(2, 6, 8)
    other = x.clone()
    other[:, 2] += 1
    for layer in (attn, ff):
        assert_close(layer(x[:, ORDER]), layer(x)[:, ORDER], **EXACT)
    moved = [reached((layer(other) - layer(x)).abs().amax((0, 2))) for layer in (attn, ff)]
    assert moved[0].all()
    assert moved[1].tolist() == [False, False, True, False, False, False]
    # A causal mask is an order.
    assert differs(attn(x[:, ORDER], causal=True), attn(x, causal=True)[:, ORDER])


@pytest.mark.covers("X2")
def test_bert_without_positions_reads_a_bag_of_words() -> None:
    sizes = {"vocab_size": 20, "n_layers": 2, "d_model": 16, "n_heads": 2, "d_ff": 32}
    model = perturbed(BERT(BERTConfig(**sizes, n_positions=6, dropout=0.0)).double())
    ids = torch.tensor([[4, 7, 1, 9, 7, 3]])
    assert differs(model.hidden(ids[:, ORDER]), model.hidden(ids)[:, ORDER])
    with torch.no_grad():
        model.position_embedding.weight.zero_()
    assert_close(model.hidden(ids[:, ORDER]), model.hidden(ids)[:, ORDER], **EXACT)


@pytest.mark.covers("X2")
def test_a_causal_mask_tells_the_order_from_the_second_block_on() -> None:
    for n_layers in (1, 2):
        config = GPTConfig(
            vocab_size=20, n_layers=n_layers, d_model=16, n_heads=2, n_positions=8, dropout=0.0
        )
        gpt = perturbed(GPT(config).double())
        with torch.no_grad():
            gpt.position_embedding.weight.zero_()
        last = [gpt(torch.tensor([ids]))[0, -1] for ids in ([3, 7, 11, 5], [7, 3, 11, 5])]
        if n_layers == 1:
            assert_close(last[0], last[1], **EXACT)
        else:
            assert (last[0] - last[1]).abs().max() > 1e-3


@pytest.mark.covers("X4")
def test_post_norm_and_pre_norm_are_their_formulas_with_the_same_parts() -> None:
    sizes = {"d_model": 8, "n_heads": 2, "d_ff": 16, "dropout": 0.0, "norm_eps": 1e-3}
    post = perturbed(BERTBlock(BERTConfig(**sizes)).double())
    pre = GPTBlock(GPTConfig(**sizes, activation="gelu")).double().eval()
    pre.load_state_dict(post.state_dict())
    x = draw(2, 4, 8)
    normed = [layer_norm_by_hand(norm) for norm in (post.attn_norm, post.ff_norm)]
    with torch.no_grad():
        middle = in_rows(normed[0], x + post.attn(x))
        expected_post = in_rows(normed[1], middle + post.ff(middle))
        middle = x + pre.attn(in_rows(normed[0], x), causal=True)
        expected_pre = middle + pre.ff(in_rows(normed[1], middle))
        assert_close(post(x, None), expected_post, **EXACT)
        assert_close(pre(x), expected_pre, **EXACT)
        everything = torch.ones(4, 4, dtype=torch.bool)
        with pytest.raises(AssertionError):
            assert_close(pre(x, everything), expected_post, rtol=1e-2, atol=1e-2)


@pytest.mark.covers("X4")
def test_a_residual_sum_adds_the_identity_to_the_derivative() -> None:
    ff, point = perturbed(FeedForward(6, 12, "gelu").double()), draw(6)
    of_layer = torch.autograd.functional.jacobian(ff, point)
    of_sum = torch.autograd.functional.jacobian(lambda x: x + ff(x), point)
    assert_close(of_sum, of_layer + torch.eye(6, dtype=torch.float64), **EXACT)
    with pytest.raises(AssertionError):
        assert_close(of_sum, of_layer, rtol=1e-2, atol=1e-2)
