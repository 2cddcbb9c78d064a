"""What chapter 04 says of attention: its variance, its gradient, its cost, its reach."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from parity import rng
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from llm_course.models.layers import attention, attention_weights, causal_mask

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=rng(seed), dtype=torch.float64)


def score_variance(d_k: int, numbers: tuple[float, float]) -> float:
    """Of q · k over all pairs of vectors that are made of two numbers."""
    vectors = list(itertools.product(numbers, repeat=d_k))
    products = [sum(a * b for a, b in zip(q, k)) for q in vectors for k in vectors]
    mean = sum(products) / len(products)
    return sum((product - mean) ** 2 for product in products) / len(products)


@pytest.mark.covers("F1")
@pytest.mark.parametrize("d_k", [1, 2, 3, 4])
def test_the_variance_of_a_score_is_d_k_and_after_the_factor_1(d_k: int) -> None:
    assert score_variance(d_k, (-1.0, 1.0)) == pytest.approx(d_k, abs=1e-12)
    # The package divides by the root: its log-weights differ by scaled differences of scores.
    vectors = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=d_k)), dtype=torch.float64)
    weights = attention_weights(vectors, torch.cat([torch.zeros_like(vectors[:1]), vectors]))
    scores = weights[:, 1:].log() - weights[:, :1].log()  # the zero key has the score 0
    assert scores.var(correction=0).item() == pytest.approx(1.0, abs=1e-12)
    with pytest.raises(AssertionError):  # variance 1 but mean 1: it does not hold
        assert score_variance(d_k, (0.0, 2.0)) == pytest.approx(d_k, abs=0.5)


@pytest.mark.covers("F1")
def test_the_gradient_of_the_softmax_is_a_times_identity_minus_a() -> None:
    z = draw(6)
    powers = [math.exp(score) for score in z.tolist()]
    a = [power / sum(powers) for power in powers]
    by_hand = [[a[i] * ((i == j) - a[j]) for j in range(6)] for i in range(6)]
    jacobian = torch.autograd.functional.jacobian(lambda x: x.softmax(0), z)
    assert_close(jacobian.tolist(), by_hand, **EXACT)
    with pytest.raises(AssertionError):  # the diagonal alone is the gradient of a sigmoid
        assert_close(jacobian, torch.diag(jacobian.diagonal()), rtol=1e-2, atol=1e-2)


@pytest.mark.covers("F1")
def test_without_the_factor_a_wide_head_saturates_and_its_gradient_vanishes() -> None:
    q, k = draw(200, 1, 1024), draw(200, 32, 1024, seed=1)

    def measure(scale: float | None) -> tuple[float, float]:
        a = attention_weights(q, k, scale=scale)[:, 0]
        slopes = torch.diag_embed(a) - a[:, :, None] * a[:, None, :]
        return a.amax(1).mean().item(), slopes.flatten(1).norm(dim=1).mean().item()

    largest, gradient = measure(None)
    assert largest < 0.3
    saturated, vanished = measure(1.0)
    assert saturated > 0.9
    assert vanished < gradient / 3


@pytest.mark.parametrize("shape", [(5, 5, 4, 4), (3, 7, 4, 2), (1, 9, 8, 8)])
def test_attention_costs_t_s_times_both_widths(shape: tuple[int, int, int, int]) -> None:
    n_queries, n_keys, d_k, d_v = shape
    with FlopCounterMode(display=False) as counter:
        attention(draw(n_queries, d_k), draw(n_keys, d_k), draw(n_keys, d_v))
    counted = 0
    for _ in range(n_queries * n_keys):
        counted += d_k  # a score
        counted += d_v  # its share of the output
    assert counter.get_total_flops() == 2 * counted == 2 * n_queries * n_keys * (d_k + d_v)
    assert counted != n_queries * n_keys * d_k  # without the values it is another number


@pytest.mark.covers("X1")
def test_attention_reaches_every_distance_alike_and_recurrence_fades() -> None:
    length, width = 40, 24
    torch.manual_seed(0)
    gru = nn.GRU(width, width, batch_first=True).double()
    w = [draw(width, width, seed=seed) / width**0.5 for seed in (1, 2, 3)]

    def influence(layer: object) -> Tensor:
        x = draw(64, length, width, seed=4).requires_grad_()
        (layer(x)[:, -1] @ draw(width, seed=5)).sum().backward()  # type: ignore[operator]
        return x.grad.norm(dim=-1).mean(0).flip(0)  # type: ignore[union-attr]

    attends = influence(lambda x: attention(*(x @ matrix for matrix in w)))
    fades = influence(lambda x: gru(x)[0])
    assert 0.8 < attends[20:].mean() / attends[1:20].mean() < 1.25
    assert fades[30] < 1e-3 * fades[1]
    with pytest.raises(AssertionError):  # so recurrence does not pass the test of attention
        assert fades[20:].mean() / fades[1:20].mean() > 0.8


@pytest.mark.covers("X1")
def test_attention_alone_recalls_any_of_many_facts_exactly() -> None:
    """Orthogonal keys, made long: the value of the asked key comes back from every place."""
    n = 32
    keys, values = torch.eye(n, dtype=torch.float64), draw(n, 5)
    sharp = 60.0 * math.sqrt(n)
    assert_close(attention(sharp * keys, keys, values), values, rtol=1e-9, atol=1e-9)
    order = torch.randperm(n, generator=rng(1))
    shuffled = attention(sharp * keys, keys[order], values[order])
    assert_close(shuffled, values, rtol=1e-9, atol=1e-9)
    with pytest.raises(AssertionError):  # the average, a memory of fixed size, does not
        assert_close(attention(0 * keys, keys, values), values, rtol=1e-1, atol=1e-1)


@pytest.mark.covers("X1")
def test_attention_alone_does_not_know_the_order() -> None:
    x, order = draw(5, 8), torch.tensor([3, 1, 4, 0, 2])
    w = [draw(8, 8, seed=seed) for seed in (1, 2, 3)]

    def layer(x: Tensor, mask: Tensor | None = None) -> Tensor:
        return attention(*(x @ matrix for matrix in w), mask)

    assert_close(layer(x[order]), layer(x)[order], **EXACT)
    mask = causal_mask(5, 5)
    with pytest.raises(AssertionError):  # a causal mask breaks the symmetry
        assert_close(layer(x[order], mask), layer(x, mask)[order], rtol=1e-2, atol=1e-2)


@pytest.mark.covers("F1")
def test_a_mask_after_the_softmax_leaks_and_one_before_it_does_not() -> None:
    q, k, v = draw(6, 8), draw(6, 8, seed=1), draw(6, 8, seed=2)
    mask = causal_mask(6, 6)
    changed = k.clone()
    changed[-1] += 3 * q[0]

    def moved_by(form: object) -> Tensor:
        return (form(changed) - form(k)).abs().amax(1)[:-1]  # type: ignore[operator]

    assert moved_by(lambda keys: attention(q, keys, v, mask)).eq(0).all()
    late = moved_by(lambda keys: attention_weights(q, keys).masked_fill(~mask, 0.0) @ v)
    assert late[0] > 1e-2
