"""Heads found by a measure: the mass on a relation, by loops and by known answers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from parity import differs
from torch import Tensor
from torch.testing import assert_close

from llm_lab.pictures.head_measures import best_head, relation_mass


def random_weights(*shape: int, layers: int = 3, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).softmax(-1) for _ in range(layers)]


def by_loops(weights: list[Tensor], relation: Tensor) -> Tensor:
    n_rows, n_heads, n_queries, n_keys = weights[0].shape
    result = torch.zeros(len(weights), n_heads)
    for layer, maps in enumerate(weights):
        for head in range(n_heads):
            masses = []
            for row in range(n_rows):
                named = relation if relation.ndim == 2 else relation[row]
                for query in range(n_queries):
                    keys = [key for key in range(n_keys) if named[query, key]]
                    if keys:
                        masses.append(sum(maps[row, head, query, key].item() for key in keys))
            result[layer, head] = sum(masses) / len(masses)
    return result


@pytest.mark.parametrize("rows", [False, True])
def test_the_mass_equals_that_of_plain_loops(rows: bool) -> None:
    weights = random_weights(2, 4, 5, 7)
    shape = (2, 5, 7) if rows else (5, 7)
    relation = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.2
    assert 0 < relation.any(-1).sum() < relation.any(-1).numel()  # some queries do not count
    found = relation_mass(weights, relation)
    assert found.shape == (3, 4)
    assert_close(found, by_loops(weights, relation))
    fraction = relation.any(-1).float().mean()
    # A mean over all queries is another number.
    assert differs(found * fraction, by_loops(weights, relation))


def test_a_planted_head_is_found_and_reaches_one() -> None:
    weights = random_weights(2, 4, 6, 6)
    previous = torch.diag(torch.ones(5), -1)  # query t looks at key t - 1
    weights[1][:, 2, 1:] = previous[1:]
    scores = relation_mass(weights, previous.bool())
    assert best_head(scores) == (1, 2)
    assert scores[1, 2] == 1.0
    assert scores.flatten().sort().values[-2] < 0.5
    assert best_head(relation_mass(weights, torch.eye(6).bool())) != (1, 2)  # another relation


def test_an_even_head_has_the_share_of_the_named_keys() -> None:
    even = [torch.full((1, 2, 3, 8), 1 / 8)]
    relation = torch.zeros(3, 8, dtype=torch.bool)
    relation[1, :3] = True
    assert_close(relation_mass(even, relation), torch.full((1, 2), 3 / 8))


def test_queries_without_a_key_do_not_count_even_where_they_are_nan() -> None:
    weights = random_weights(1, 2, 3, 3, layers=1)
    relation = torch.tensor([[True, False, False], [False, False, False], [False, True, False]])
    expected = relation_mass(weights, relation)
    weights[0][:, :, 1] = float("nan")
    assert_close(relation_mass(weights, relation), expected)
    weights[0][:, :, 0] = float("nan")
    assert relation_mass(weights, relation).isnan().all()


def test_of_equal_heads_the_first_is_best() -> None:
    assert best_head(torch.tensor([[0.1, 0.7], [0.7, 0.7]])) == (0, 1)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": []}, "at least 1 layer, got 0"),
        ({"weights": [torch.ones(2, 3, 3)]}, r"\[B, H, T, S\].*got \[2, 3, 3\] in layer 0"),
        (
            {"weights": [torch.ones(1, 2, 3, 4), torch.ones(1, 3, 3, 4)]},
            r"one shape for all layers, got \[1, 2, 3, 4\] in layer 0 and \[1, 3, 3, 4\] in",
        ),
        ({"relation": torch.ones(3, 4)}, "torch.bool, got torch.float32"),
        ({"relation": torch.ones(4, 3) > 0}, r"= \[3, 4\] or .* = \[2, 3, 4\], got \[4, 3\]"),
        ({"relation": torch.ones(1, 3, 4) > 0}, r"got \[1, 3, 4\]"),
        ({"relation": torch.zeros(3, 4) > 0}, "True at least once, got False everywhere"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    fitting = {"weights": random_weights(2, 2, 3, 4), "relation": torch.ones(3, 4) > 0}
    relation_mass(**fitting)
    with pytest.raises(ValueError, match=message):
        relation_mass(**(fitting | change))


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (torch.ones(3), r"\[L, H\] with at least 1 head, got \[3\]"),
        (torch.ones(2, 0), r"got \[2, 0\]"),
        (torch.tensor([[0.1, float("nan")]]), "finite, got nan or inf"),
    ],
)
def test_scores_without_a_best_head_are_refused(scores: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        best_head(scores)
