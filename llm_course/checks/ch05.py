"""Checks of chapter 05: splitting into heads, shapes, a silenced head, and heads that look back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from llm_course.checks.grading import CheckFailed, expect_close, expect_equal, passed


def _draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def check_head_shapes(answer: Callable[[int, int, int], Mapping[str, tuple[int, int]]]) -> None:
    """The shapes of the four weights as nn.Linear stores them."""
    for d_model, n_heads, d_head in ((12, 3, 4), (8, 3, 5)):
        width = n_heads * d_head
        right = {"w_q": (width, d_model), "w_k": (width, d_model), "w_v": (width, d_model)}
        right["w_o"] = (d_model, width)
        got = answer(d_model, n_heads, d_head)
        name = f"head_shapes({d_model}, {n_heads}, {d_head})"
        if not isinstance(got, Mapping) or set(got) != set(right):
            raise CheckFailed(f"{name} should be a dictionary with w_q, w_k, w_v and w_o: {got!r}")
        for key, shape in right.items():
            hints: dict[Any, str] = {
                shape[::-1]: "nn.Linear stores its matrix transposed, outputs first",
                (d_model, d_model): "n_heads * d_head need not be d_model",
                (d_head, d_model): "this is one head: the layer holds all heads in one matrix",
                (d_model, d_head): "this is one head: the layer holds all heads in one matrix",
            }
            expect_equal(tuple(got[key]), shape, name=f"{key} of {name}", hints=hints)
    passed("the four shapes follow from three numbers")


def check_split_heads(answer: Callable[[Tensor, int], Tensor]) -> None:
    """[B, T, H * K] to [B, H, T, K] without mixing positions or heads."""
    x = _draw(2, 5, 12)
    right = x.unflatten(-1, (3, 4)).transpose(1, 2)
    mixed = x.reshape(2, 3, 5, 4)
    every_third = x.unflatten(-1, (4, 3)).permute(0, 3, 1, 2)
    expect_close(
        answer(x.clone(), 3),
        right,
        name="split_heads",
        tolerance=1e-12,
        hints={
            mixed: (
                "the shape is right and the numbers are in the wrong places: a view to "
                "[B, H, T, K] mixes positions. First split the last axis, then exchange two axes"
            ),
            every_third: "head i has every third number: it should have K neighbours",
            right.transpose(1, 2): "the heads must come before the positions: [B, H, T, K]",
            right.mT: "the last two axes are swapped: [B, H, T, K]",
            right.flip(1): "the heads are in the opposite order",
        },
    )
    passed("each head has its own numbers of every position")


def check_without_head(answer: Callable[[Tensor, Tensor, int], Tensor]) -> None:
    """The output of a layer with one head left out of the sum."""
    heads, w_o = _draw(3, 5, 4), _draw(12, 6, seed=1)
    joined = heads.transpose(0, 1).flatten(1)
    parts = [heads[i] @ w_o[4 * i : 4 * (i + 1)] for i in range(3)]
    for silent in (1, 0, 2):
        kept = [part for i, part in enumerate(parts) if i != silent]
        right = torch.stack(kept).sum(dim=0)
        ones = heads.clone()
        ones[silent] = heads[silent].mean(dim=0)
        expect_close(
            answer(heads.clone(), w_o.clone(), silent),
            right,
            name=f"without_head(heads, w_o, {silent})",
            tolerance=1e-9,
            hints={
                joined @ w_o: "this is the whole layer: no head is silent",
                parts[silent]: "this is the silent head alone: leave it out, and keep the others",
                right * 3 / 2: "the others must not be made larger to fill the gap",
                right / 2: "the contributions are added, not averaged",
                ones.transpose(0, 1).flatten(1) @ w_o: (
                    "the head has its mean at every position: set it to zero"
                ),
                heads.flip(0).transpose(0, 1).flatten(1) @ w_o: (
                    "the heads are in the wrong order, and none is silent"
                ),
            },
        )
    passed("a layer is a sum over its heads, and one term can be left out")


def check_looks_back(answer: Callable[[Tensor, int], Tensor]) -> None:
    """The mean weight of each head on the position a few steps before."""
    scores = _draw(2, 3, 7, 7)
    mask = torch.ones(7, 7).tril().bool()
    weights = scores.masked_fill(~mask, -torch.inf).softmax(dim=-1)
    for steps in (1, 2):
        bands = weights.diagonal(offset=-steps, dim1=-2, dim2=-1)
        right = bands.mean(dim=(0, 2))
        above = weights.mT.diagonal(offset=-steps, dim1=-2, dim2=-1)
        expect_close(
            answer(weights.clone(), steps),
            right,
            name=f"looks_back(weights, {steps})",
            tolerance=1e-9,
            hints={
                bands.sum(dim=2).mean(dim=0) / 7: (
                    f"the sum is divided by all 7 queries: the first {steps} have no such key"
                ),
                bands.sum(dim=(0, 2)): "this is a sum: take the mean over rows and queries",
                bands.sum(dim=2).mean(dim=0): "this is a sum over queries: take the mean",
                bands.mean(dim=2)[0]: "only the first row of the batch is counted",
                bands.mean(): "the heads are mixed: the answer has one number for each",
                above.mean(dim=(0, 2)): "these are keys after the query: is an axis swapped?",
                weights.diagonal(dim1=-2, dim2=-1).mean(dim=(0, 2)): (
                    "this is the weight of each position on itself"
                ),
                bands.mean(dim=2): "the batch is still there: take the mean over its rows too",
            },
        )
    passed("heads that look back are found by a number")
