"""Temperature, top-k and top-p against sets and frequencies computed by hand."""

from __future__ import annotations

import math

import pytest
import torch
from parity import differs
from scipy.stats import chisquare
from torch import Tensor
from torch.testing import assert_close

from llm_course.generation.sampling import candidates, next_token_probabilities, sample

DRAWS = 20_000
STRATEGIES = [
    {"temperature": 1.0},
    {"temperature": 0.7},
    {"temperature": 2.5, "top_k": 3},
    {"temperature": 1.3, "top_p": 0.8},
    {"temperature": 1.0, "top_p": 0.05},
    {"temperature": 0.9, "top_k": 4, "top_p": 0.7},
]


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def by_hand(
    logits: list[float], temperature: float, top_k: int | None = None, top_p: float | None = None
) -> list[float]:
    """The distribution in plain Python: temper, rank, cut, cut again, normalise."""
    odds = {i: math.exp(x / temperature) for i, x in enumerate(logits)}
    ranked = sorted(odds, key=lambda i: -odds[i])[:top_k]
    total = sum(odds[i] for i in ranked)
    kept: list[int] = []
    for i in ranked:
        if top_p is None or sum(odds[j] for j in kept) / total < top_p:
            kept.append(i)
    total = sum(odds[i] for i in kept)
    return [odds[i] / total if i in kept else 0.0 for i in range(len(logits))]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_kept_tokens_and_their_probabilities_are_exact(strategy: dict) -> None:
    logits = torch.randn(200, 6, generator=rng(1), dtype=torch.float64) * 2
    expected = torch.tensor([by_hand(row, **strategy) for row in logits.tolist()])
    found = next_token_probabilities(logits.float(), **strategy)
    assert torch.equal(found > 0, expected > 0)
    assert_close(found, expected.float())
    if len(strategy) > 1:  # the cut matters: without it the probabilities are others
        assert differs((logits / strategy["temperature"]).softmax(-1).float(), found)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_sampled_frequencies_follow_the_distribution(strategy: dict) -> None:
    logits = torch.tensor([[1.0, -0.5, 0.3, 2.0, -1.5, 0.9]])
    drawn = sample(logits.repeat(DRAWS, 1), **strategy, generator=rng(2))
    counts = drawn.bincount(minlength=6).double()
    expected = torch.tensor(by_hand(logits[0].tolist(), **strategy), dtype=torch.float64) * DRAWS
    assert counts[expected == 0].sum() == 0
    kept = expected > 0
    if kept.sum() > 1:
        assert chisquare(counts[kept].numpy(), expected[kept].numpy()).pvalue > 1e-3
        warmer = by_hand(logits[0].tolist(), 1.5 * strategy["temperature"])
        wrong = torch.tensor(warmer, dtype=torch.float64)[kept]
        wrong *= DRAWS / wrong.sum()
        assert chisquare(counts[kept].numpy(), wrong.numpy()).pvalue < 1e-3


def test_rows_of_a_batch_are_drawn_each_from_its_own_distribution() -> None:
    logits = torch.full((3, 4), -torch.inf)
    logits[0, 3] = logits[1, 0] = logits[2, 2] = 0.0
    assert sample(logits, temperature=1.0, generator=rng(0)).tolist() == [3, 0, 2]


@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.999])
@pytest.mark.parametrize("spread", [0.01, 3.0])
def test_short_list_gives_the_same_nucleus_as_a_full_sort(top_p: float, spread: float) -> None:
    logits = torch.randn(3, 1000, generator=rng(3)) * spread  # 0.01: the list is too short
    found = next_token_probabilities(logits, temperature=1.0, top_p=top_p) > 0
    probs = logits.double().softmax(-1)
    ranked = probs.sort(-1, descending=True)
    before = ranked.values.cumsum(-1) - ranked.values
    expected = torch.zeros_like(found).scatter_(-1, ranked.indices, before < top_p)
    assert torch.equal(found, expected)


def test_short_list_is_short_and_the_full_list_is_full() -> None:
    def width(logits: Tensor) -> int:
        return candidates(logits, temperature=1.0, top_k=None, top_p=0.9).logits.shape[1]

    assert width(torch.zeros(1, 1000)) == 1000
    assert width(torch.eye(1, 1000) * 50) < 1000


@pytest.mark.parametrize("temperature", [1e-45, 1e-30, 1e-3])
def test_tiny_temperature_is_the_best_token_and_never_nan(temperature: float) -> None:
    logits = torch.randn(50, 7, generator=rng(4)) * 100
    drawn = sample(logits, temperature=temperature, top_p=0.9, generator=rng(5))
    assert torch.equal(drawn, logits.argmax(-1))


def test_huge_temperature_is_uniform() -> None:
    probs = next_token_probabilities(torch.tensor([[5.0, -3.0, 0.0, 1.0]]), temperature=1e30)
    assert_close(probs, torch.full((1, 4), 0.25))


def test_half_precision_logits_are_sampled_in_float32() -> None:
    logits = torch.randn(1, 300, generator=rng(6)).bfloat16()
    probs = next_token_probabilities(logits, temperature=0.7)
    assert probs.dtype == torch.float32
    assert_close(probs, (logits.float() / 0.7).softmax(-1))


def test_same_seed_same_tokens_and_the_global_generator_is_left_alone() -> None:
    logits = torch.zeros(64, 50)
    state = torch.get_rng_state()
    first, again, other = (
        sample(logits, temperature=1.0, generator=rng(seed)) for seed in (7, 7, 8)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def kept(logits: Tensor, **strategy: object) -> int:
    found = next_token_probabilities(logits, temperature=1.0, **strategy)  # type: ignore[arg-type]
    return int((found > 0).sum())


@pytest.mark.parametrize("width", [5, 1000])  # with and without the short list
@pytest.mark.parametrize("n", [1, 2, 4])
def test_tokens_that_have_exactly_top_p_together_are_the_nucleus(n: int, width: int) -> None:
    logits = -0.3 * torch.arange(width, dtype=torch.float32)[None]
    ranked = candidates(logits, temperature=1.0, top_k=None, top_p=0.9999).logits
    top_p = ranked.exp().double().cumsum(-1)[0, n - 1].item()  # the very sum that is compared
    assert kept(logits, top_p=top_p) == n
    assert kept(logits, top_p=top_p + 1e-4) == n + 1


@pytest.mark.parametrize(("top_p", "n"), [(0.05, 1), (0.3, 2), (0.5, 3), (0.7, 4), (0.9, 5)])
def test_of_equally_likely_tokens_only_as_many_are_kept_as_are_needed(top_p: float, n: int) -> None:
    assert kept(torch.zeros(1, 5), top_p=top_p) == n
    assert kept(torch.zeros(1, 5), top_k=3) == 3
    spread = torch.tensor([[0.0, 0.0, 0.0, 0.0, 0.0, -9.0]])
    assert kept(spread, top_p=top_p) == n


def test_each_row_has_its_own_nucleus_beside_rows_of_any_other() -> None:
    """One row is sure and has it in the short list, the other needs the whole vocabulary."""
    logits = torch.zeros(2, 1000)
    logits[0, 7] = 20.0
    found = next_token_probabilities(logits, temperature=1.0, top_p=0.8995) > 0
    assert found.sum(-1).tolist() == [1, 900]
    assert found[0, 7]
