"""Checks of chapter 05: splitting into heads, shapes, a silenced head, and heads that look back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from llm_lab.checks.grading import CheckFailed, draw, expect_close, expect_equal, passed


def _called(answer: Callable[..., Any], *given: Any, name: str, hint: str) -> Any:
    """The answer, or a `CheckFailed` with the hint where PyTorch refuses the shapes."""
    try:
        return answer(*given)
    except NotImplementedError:  # a blank; it is a RuntimeError too
        raise
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise CheckFailed(f"{name}: the shapes do not fit ({reason}). Hint: {hint}") from error


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
            if not isinstance(got[key], tuple | list):
                raise CheckFailed(
                    f"{key} of {name} should be a shape of two numbers, got {got[key]!r}"
                )
            hints: dict[Any, str] = {
                (n_heads, d_head, d_model): "the heads are no axis of the matrix: n_heads * d_head",
                (n_heads, d_model, d_head): "the heads are no axis of the matrix: n_heads * d_head",
                shape[::-1]: "nn.Linear stores its matrix transposed, outputs first",
                (d_model, d_model): "n_heads * d_head need not be d_model",
                (d_head, d_model): "this is one head: the layer holds all heads in one matrix",
                (d_model, d_head): "this is one head: the layer holds all heads in one matrix",
            }
            expect_equal(tuple(got[key]), shape, name=f"{key} of {name}", hints=hints)
    passed("the four shapes follow from three numbers")


def _split_heads_mistakes(x: Tensor, n_heads: int) -> dict[Any, str]:
    n_rows, length, width = x.shape
    shape = (n_rows, n_heads, length, width // n_heads)
    right = x.unflatten(-1, (n_heads, -1)).transpose(1, 2)
    every_third = x.unflatten(-1, (-1, n_heads)).permute(0, 3, 1, 2)
    return {
        x.reshape(shape): (
            "the shape is right and the numbers are in the wrong places: a view to "
            "[B, H, T, K] mixes positions. First split the last axis, then exchange two axes"
        ),
        every_third: "head i has every H-th number: it should have K neighbours",
        right.transpose(1, 2): "the heads must come before the positions: [B, H, T, K]",
        right.mT: "the last two axes are swapped: [B, H, T, K]",
        right.flip(1): "the heads are in the opposite order",
        right.transpose(0, 1): "the batch comes first: [B, H, T, K]",
        x.permute(0, 2, 1).reshape(shape): (
            "split the last axis first, and exchange axes after that: a reshape of exchanged "
            "axes mixes positions"
        ),
        every_third.permute(0, 3, 2, 1): (
            "the last axis is split into K parts of n_heads numbers: it has n_heads parts of K"
        ),
    }


def check_split_heads(answer: Callable[[Tensor, int], Tensor]) -> None:
    """[B, T, H * K] to [B, H, T, K] without mixing positions or heads."""
    for shape, n_heads in (((2, 5, 12), 3), ((1, 7, 10), 5)):
        x = draw(*shape)
        name = f"split_heads(x, {n_heads}) for x of shape {list(shape)}"
        hint = "take B, T and H * K from x.shape, and K is H * K // n_heads"
        expect_close(
            _called(answer, x.clone(), n_heads, name=name, hint=hint),
            x.unflatten(-1, (n_heads, -1)).transpose(1, 2),
            name=name,
            tolerance=1e-12,
            hints=_split_heads_mistakes(x, n_heads),
        )
    passed("each head has its own numbers of every position")


def _sum(parts: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(parts)).sum(dim=0)


def _without_head_mistakes(heads: Tensor, w_o: Tensor, silent: int) -> dict[Any, str]:
    n_heads, length, width = heads.shape
    joined = heads.transpose(0, 1).flatten(1)
    parts = [heads[i] @ w_o[width * i : width * (i + 1)] for i in range(n_heads)]
    kept = [part for i, part in enumerate(parts) if i != silent]
    right = _sum(kept)
    mean, zero = heads.clone(), heads.clone()
    mean[silent] = heads[silent].mean(dim=0)
    zero[silent] = 0
    beside = torch.cat([heads[i] for i in range(n_heads) if i != silent], dim=-1)
    return {
        joined @ w_o: "this is the whole layer: no head is silent",
        parts[silent]: "this is the silent head alone: leave it out, and keep the others",
        right * n_heads / len(kept): "the others must not be made larger to fill the gap",
        right / len(kept): "the contributions are added, not averaged",
        mean.transpose(0, 1).flatten(1) @ w_o: "the head is at its mean: set it to zero",
        heads.flip(0).transpose(0, 1).flatten(1) @ w_o: "the heads are in the wrong order",
        zero.reshape(length, -1) @ w_o: (
            "a reshape of [H, T, K] mixes heads and positions: bring the positions to the "
            "front first"
        ),
        _sum(zero[i] @ w_o[i::n_heads] for i in range(n_heads)): (
            "head i meets K neighbouring rows of W^O, from i * K on, not every H-th row"
        ),
        parts[silent] + right - parts[silent - 1]: "the head before it is left out: count from 0",
        torch.cat(kept, dim=-1): "the contributions are added, not put side by side",
        beside @ w_o[: width * len(kept)]: "leave out the rows of W^O of the silent head",
    }


def check_without_head(answer: Callable[[Tensor, Tensor, int], Tensor]) -> None:
    """The output of a layer with one head left out of the sum."""
    for n_heads, length, width in ((3, 5, 4), (4, 6, 2)):
        heads, w_o = draw(n_heads, length, width), draw(n_heads * width, 6, seed=1)
        for silent in (1, 0, n_heads - 1):
            given = heads.clone()
            shape = [n_heads, length, width]
            name = f"without_head(heads, w_o, {silent}) for heads of shape {shape}"
            hint = (
                "take H and K from heads.shape, bring the positions to the front before you join "
                "the heads, and note that here w_o is W^O itself, [H * K, D], not transposed as "
                "in nn.Linear"
            )
            got = _called(answer, given, w_o.clone(), silent, name=name, hint=hint)
            if not torch.equal(given, heads):
                raise CheckFailed("without_head changed its argument heads: work on a copy")
            blocks = w_o.unflatten(0, (n_heads, width))
            expect_close(
                got,
                _sum(heads[i] @ blocks[i] for i in range(n_heads) if i != silent),
                name=name,
                tolerance=1e-5,  # an answer may add up in 32-bit numbers
                hints=_without_head_mistakes(heads, w_o, silent),
            )
    passed("a layer is a sum over its heads, and one term can be left out")


def _looks_back_mistakes(weights: Tensor, steps: int) -> dict[Any, str]:
    bands = weights.diagonal(offset=-steps, dim1=-2, dim2=-1)
    above = weights.mT.diagonal(offset=-steps, dim1=-2, dim2=-1)
    length = weights.shape[-1]
    return {
        bands.sum(dim=2).mean(dim=0) / length: (
            f"the sum is divided by all {length} queries: the first {steps} have no such key"
        ),
        bands.sum(dim=(0, 2)): "this is a sum: take the mean over rows and queries",
        bands.sum(dim=2).mean(dim=0): "this is a sum over queries: take the mean",
        bands.mean(dim=2)[0]: "only the first row of the batch is counted",
        bands.mean(): "the heads are mixed: the answer has one number for each",
        above.mean(dim=(0, 2)): "these are keys after the query: is an axis swapped?",
        weights.diagonal(dim1=-2, dim2=-1).mean(dim=(0, 2)): "this is the weight on itself",
        bands.mean(dim=2): "the batch is still there: take the mean over its rows too",
        weights.diagonal(offset=-1, dim1=-2, dim2=-1).mean(dim=(0, 2)): (
            "this is the weight on the position before, whatever `steps` is"
        ),
        weights.diagonal(offset=-steps).mean(dim=(0, 2)): (
            "without dim1 and dim2, torch.diagonal takes the axes B and H"
        ),
        weights[:, :, steps:, :-steps].mean(dim=(0, 2, 3)): (
            "this is the mean of a whole block: take one diagonal of it"
        ),
        bands.amax(dim=(0, 2)): "this is the largest weight: take the mean",
    }


def check_looks_back(answer: Callable[[Tensor, int], Tensor]) -> None:
    """The mean weight of each head on the position a few steps before."""
    for n_rows, n_heads, length, steps in ((2, 3, 7, 1), (2, 3, 7, 2), (3, 2, 6, 3)):
        scores = draw(n_rows, n_heads, length, length)
        future = torch.ones(length, length).triu(1).bool()
        weights = scores.masked_fill(future, -torch.inf).softmax(dim=-1)
        name = f"looks_back(weights, {steps}) for weights of shape {list(scores.shape)}"
        hint = "take all sizes from weights.shape, and name the axes: dim1=-2, dim2=-1"
        expect_close(
            _called(answer, weights.clone(), steps, name=name, hint=hint),
            weights.diagonal(offset=-steps, dim1=-2, dim2=-1).mean(dim=(0, 2)),
            name=name,
            tolerance=1e-5,  # an answer may add up in 32-bit numbers
            hints=_looks_back_mistakes(weights, steps),
        )
    passed("heads that look back are found by a number")
