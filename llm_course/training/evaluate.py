"""Evaluation as a mean over counted labels, and the units that losses are compared in."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from llm_course.batches.sampler import Evaluation
from llm_course.errors import DataError
from llm_course.training.devices import Precision, choose_precision
from llm_course.training.gradients import Batch, LossFunction, stack_terms, to_device, wide
from llm_course.training.parallel import all_sum, rank, world_size


def perplexity(nats_per_token: float) -> float:
    """exp of the mean loss; infinite where that overflows."""
    return math.exp(nats_per_token) if nats_per_token < 709 else math.inf


def nats_per_char(nats_per_token: float, tokens: int, chars: int) -> float:
    """The loss per character of text: it compares models with different tokenizers."""
    if chars < 1:
        raise DataError(f"chars must be at least 1, got {chars}")
    return nats_per_token * tokens / chars


def bits_per_byte(nats_per_token: float, tokens: int, n_bytes: int) -> float:
    """The loss in bits per UTF-8 byte of text: nats · tokens / (bytes · ln 2)."""
    if n_bytes < 1:
        raise DataError(f"n_bytes must be at least 1, got {n_bytes}")
    return nats_per_token * tokens / (n_bytes * math.log(2))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout and gradients; the model's mode comes back."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def loss_sums(
    model: nn.Module,
    batches: Iterable[Batch],
    loss_fn: LossFunction,
    device: torch.device | str | None = None,
    precision: Precision | str = "fp32",
) -> dict[str, tuple[float, int]]:
    """Each loss summed over all batches in nats, and its number of counted labels.

    Several processes share the batches, and each gets the sums over all. Those of an `Evaluation`
    are gathered by the process that computes them, and not by all.
    """
    if device is None:
        device = next(model.parameters()).device
    device = torch.device(device)
    if isinstance(precision, str):
        precision = choose_precision(device, precision)
    names: tuple[str, ...] = ()
    totals: Tensor | None = None
    with evaluating(model):
        for counted, batch in _shared(batches, device):
            with precision.autocast():
                names, sums, counts = stack_terms(loss_fn(model, to_device(batch, device)))
            both = torch.stack([wide(sums), wide(counts)]) * counted
            totals = both if totals is None else totals + both
    if totals is None:
        raise DataError("there is nothing to evaluate: the batches are empty")
    total, count = all_sum(totals).tolist()
    return {name: (total[i], int(count[i])) for i, name in enumerate(names)}


def _shared(
    batches: Iterable[Batch], device: torch.device
) -> Iterator[tuple[bool, Mapping[str, Any]]]:
    """This process's batches, and whether each counts; see `Evaluation.share`."""
    if isinstance(batches, Evaluation):
        yield from batches.share(rank(), world_size(), device)
        return
    batches = iter(batches)
    while group := list(islice(batches, world_size())):
        counts = rank() < len(group)
        yield counts, group[rank() if counts else 0]


def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    loss_fn: LossFunction,
    device: torch.device | str | None = None,
    precision: Precision | str = "fp32",
) -> dict[str, float]:
    """The mean of each loss over its counted labels, and their sum as "loss" (nats).

    Not the mean of the batches' means: a batch with few labels would weigh as much as a full one.
    """
    means = {}
    for name, (total, count) in loss_sums(model, batches, loss_fn, device, precision).items():
        if count == 0:
            raise DataError(f"the loss {name!r} has no counted label in the evaluation data")
        means[name] = total / count
    return {**means, "loss": sum(means.values())}
