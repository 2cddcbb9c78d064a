"""Heads worth seeing, found by a measure: how much of its attention a head gives to a relation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from llm_course.shapes import Bool, Float


def relation_mass(
    weights: Sequence[Float[Tensor, "B H T S"]],
    relation: Bool[Tensor, "T S"] | Bool[Tensor, "B T S"],
) -> Float[Tensor, "L H"]:
    """The mean attention mass of each head on the keys that a relation names.

    A query counts if the relation names at least one key for it, in any row of the batch. A head
    that always looks where the relation says reaches 1; one that spreads evenly over n keys, of
    which k are named, reaches k / n.

    Args:
        weights: what `attention_maps` returned, L layers.
        relation: True where this query should look at this key; with B rows, one for each
            sentence of the batch.

    Raises:
        ValueError: another shape or type than the weights ask for, or no True at all.
    """
    if not weights:
        raise ValueError("weights must hold at least 1 layer, got 0")
    first = weights[0].shape
    for layer, maps in enumerate(weights):
        if maps.ndim != 4 or maps.shape != first:
            raise ValueError(
                f"weights must be [B, H, T, S] with one shape for all layers, got {list(first)} "
                f"in layer 0 and {list(maps.shape)} in layer {layer}"
            )
    n_rows, _, n_queries, n_keys = first
    if relation.dtype != torch.bool:
        raise ValueError(f"relation must be of type torch.bool, got {relation.dtype}")
    if relation.shape not in ((n_queries, n_keys), (n_rows, n_queries, n_keys)):
        raise ValueError(
            f"relation must be [T, S] = {[n_queries, n_keys]} or [B, T, S] = "
            f"{[n_rows, n_queries, n_keys]}, got {list(relation.shape)}"
        )
    wanted = relation.expand(n_rows, n_queries, n_keys).to(weights[0].device)
    counted = wanted.any(-1)  # [B, T]
    if not counted.any():
        raise ValueError("relation must be True at least once, got False everywhere")
    # A sum over the named keys only: what a mask forbids may be nan in a row of padding.
    masses = [maps.masked_fill(~wanted[:, None], 0.0).sum(-1) for maps in weights]
    return torch.stack([mass.movedim(1, 2)[counted].mean(0) for mass in masses])


def best_head(scores: Float[Tensor, "L H"]) -> tuple[int, int]:
    """(layer, head) of the largest score, counted from 0; of equal ones the first.

    Raises:
        ValueError: scores that are not [L, H], empty, or not finite.
    """
    if scores.ndim != 2 or scores.numel() == 0:
        raise ValueError(f"scores must be [L, H] with at least 1 head, got {list(scores.shape)}")
    if not scores.isfinite().all():
        raise ValueError("scores must be finite, got nan or inf")
    layer, head = divmod(int(scores.argmax()), scores.shape[1])
    return layer, head
