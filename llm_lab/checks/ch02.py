"""Checks of chapter 02: masks of the families, and how many words are predicted."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from llm_lab.checks.grading import (
    CheckFailed,
    expect_close,
    expect_equal,
    expect_mask,
    expect_parts,
    passed,
)

BOTH = "padding closes columns only, here it closes rows too"


def _prefix(length: int, n: int) -> Tensor:
    mask = torch.ones(n, n, dtype=torch.bool).tril()
    mask[:, :length] = True
    return mask


def _expect_mask(got: Any, wanted: Tensor, name: str, hints: dict[str, Tensor]) -> None:
    """Equal field by field, or a diagnosis: the mask that a mistake makes, or the first field."""
    expect_mask(got, tuple(wanted.shape), name=name)
    if torch.equal(got, wanted):
        return
    for diagnosis, mistake in (hints | {"true must mean: may look": ~wanted}).items():
        if torch.equal(got, mistake):
            raise CheckFailed(f"{name} is wrong. Hint: {diagnosis}")
    row, query, key = (got != wanted).nonzero()[0].tolist()
    should = "may" if wanted[row, query, key] else "must not"
    raise CheckFailed(f"{name}: in row {row}, query {query} {should} look at key {key}")


def check_prefix_mask(answer: Callable[[Tensor, int], Tensor]) -> None:
    """Causal, and open for the first P keys of each row."""
    n, lengths = 6, torch.tensor([3, 0, 6, 2])
    right = torch.stack([_prefix(int(p), n) for p in lengths])
    causal = torch.ones(n, n, dtype=torch.bool).tril().expand(len(lengths), n, n)
    longer = torch.stack([_prefix(int(p) + 1, n) for p in lengths])
    keys = (torch.arange(n) < lengths[:, None, None]).expand(len(lengths), n, n)
    past = causal.tril(-1) | keys
    _expect_mask(
        answer(lengths, n),
        right,
        "prefix_mask",
        {
            "queries must be rows and keys columns: this mask is transposed": right.mT,
            "this is the causal mask: the keys of the prefix are open for every query": causal,
            "the prefix is one too long: its positions are 0 to P - 1, so use j < P": longer,
            "this is the prefix alone: after it, a query also sees the past (use or)": keys,
            "the prefix is a set of keys: this opens the rows of its queries": causal | keys.mT,
            "a query may look at itself: j <= i": past,
            "both conditions at once (and) close too much: one of them is enough (or)": (
                causal & keys
            ),
        },
    )
    passed("the prefix is open, the rest is causal")


def check_three_masks(answer: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]) -> None:
    """Padding closes columns; only the decoder's own mask is causal."""
    source = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]).bool()
    target = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]).bool()
    n, m = source.shape[1], target.shape[1]
    causal = torch.ones(m, m, dtype=torch.bool).tril()
    encoder = source[:, None].expand(-1, n, n)
    cross = source[:, None].expand(-1, m, n)
    decoder = causal & target[:, None]
    got = answer(source, target)
    expect_parts(got, 3, "three_masks must return three masks: encoder, decoder, cross-attention")
    _check_own_masks(got, encoder, decoder, causal, target)
    _check_cross_mask(got[2], cross, target)
    passed("padding closes columns, and only the decoder is causal")


def _check_own_masks(
    got: Any, encoder: Tensor, decoder: Tensor, causal: Tensor, target: Tensor
) -> None:
    n, m = encoder.shape[-1], decoder.shape[-1]
    rows = "padding closes columns (keys), here it closes rows (queries)"
    _expect_mask(
        got[0],
        encoder,
        "the encoder's mask",
        {
            rows: encoder.mT,
            BOTH: encoder & encoder.mT,
            "padding is not closed": torch.ones_like(encoder),
            "an encoder sees both sides: no causal mask here": (
                encoder & torch.ones(n, n, dtype=torch.bool).tril()
            ),
        },
    )
    _expect_mask(
        got[1],
        decoder,
        "the decoder's mask",
        {
            rows: causal & target[..., None],
            BOTH: decoder & target[..., None],
            "the future is open: the causal mask is missing": target[:, None].expand(-1, m, m),
            "padding is not closed": causal.expand(len(target), m, m),
            "a query may look at itself: the diagonal is open": decoder & causal.tril(-1),
            "this sees the future and not the past: is the triangle turned around?": (
                causal.mT & target[:, None]
            ),
        },
    )


def _check_cross_mask(got: Any, cross: Tensor, target: Tensor) -> None:
    m, n = cross.shape[1:]
    _expect_mask(
        got,
        cross,
        "the cross-attention mask",
        {
            "its keys come from the source: the padding of the target closes no column": (
                target[..., None].expand(-1, m, n)
            ),
            BOTH: cross & target[..., None],
            "the whole source is known before the first target word: it is not causal": (
                cross & torch.ones(m, n, dtype=torch.bool).tril()
            ),
            "padding is not closed": torch.ones_like(cross),
        },
    )


def check_family(answer: Callable[[Tensor], str]) -> None:
    """Names the family from what moved, and is not deceived by one field."""
    n = 7
    full, causal = _prefix(n, n), _prefix(1, n)
    leak, gap, window = causal.clone(), full.clone(), causal.clone()
    leak[3, 4] = True
    gap[5, 1] = False
    window &= torch.ones(n, n, dtype=torch.bool).triu(-2)
    cases = [
        (full, "encoder", "everything depends on everything"),
        (causal, "decoder", "each output depends on itself and the past"),
        (_prefix(3, n), "prefix", "the first 3 positions are open for all"),
        (_prefix(n - 1, n), "prefix", f"the first {n - 1} of {n} positions are open for all"),
        (leak, "none", "output 3 depends on token 4, all else is causal"),
        (gap, "none", "only output 5 does not depend on token 1"),
        (window, "none", "each output sees only itself and two positions before"),
        (causal.mT, "none", "each output depends on itself and the future: rows are outputs"),
        (torch.eye(n, dtype=torch.bool), "none", "each output depends on its own token only"),
    ]
    for moved, wanted, what in cases:
        expect_equal(answer(moved.clone()), wanted, name=f"family where {what}")
    passed("you can tell the families apart by what moves")


def check_epochs_for_equal_signals(answer: Callable[[float], float]) -> None:
    """1 / rate."""
    for rate in (0.15, 0.4):
        expect_close(
            answer(rate),
            1 / rate,
            name=f"epochs_for_equal_signals({rate})",
            hints={
                rate: "this is the number of predictions for a word: how many passes make it 1?",
                1 / (1 - rate): "the words that are hidden count, not those that are seen",
                1 - rate: "the words that are hidden count; and how many passes are needed?",
                math.ceil(1 / rate): "do not round: return the number as it is",
                1.0: "in one pass only the hidden words are predicted",
            },
        )
    passed("one pass from left to right has as many predictions as several with hidden words")
