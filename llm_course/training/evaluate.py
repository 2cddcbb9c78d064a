"""Evaluation as a mean over counted labels, and the units that losses are compared in."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from llm_course.errors import DataError
from llm_course.training.devices import Precision, choose_precision
from llm_course.training.parallel import all_sum, rank, world_size

Batch = Mapping[str, Any]
Terms = Mapping[str, tuple[Tensor, Tensor | int]]
LossFunction = Callable[[Any, Any], Terms]


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


def stack_terms(terms: Terms) -> tuple[tuple[str, ...], Tensor, Tensor]:
    """The names, sums [n] and counts [n] of what a loss function returns."""
    if not terms:
        raise ValueError("loss_fn must return at least one loss, got an empty dict")
    for name, (total, _) in terms.items():
        if total.ndim != 0:
            raise ValueError(f"loss {name!r} must be a sum without axes, got {tuple(total.shape)}")
    sums = torch.stack([total for total, _ in terms.values()])
    counts = torch.stack([torch.as_tensor(n, device=sums.device) for _, n in terms.values()])
    return tuple(terms), sums, counts


def wide(tensor: Tensor) -> Tensor:
    """In float64, where the device has it: counts above 2^24 stay exact."""
    return tensor.detach().to(torch.float32 if tensor.device.type == "mps" else torch.float64)


def tokens_in(batch: Batch) -> int:
    """Input tokens of a batch without padding; an encoder-decoder's targets count too."""
    total = 0
    ids, mask = batch.get("input_ids"), batch.get("attention_mask")
    if isinstance(mask, Tensor):
        if mask.ndim == 3:  # of packed rows: every token attends to itself
            mask = mask.diagonal(dim1=-2, dim2=-1)
        total += int((mask != 0).sum())
    elif isinstance(ids, Tensor):
        total += ids.numel()
    if "decoder_input_ids" in batch and isinstance(batch.get("labels"), Tensor):
        total += int((batch["labels"] != -100).sum())
    return total


def to_device(batch: Batch, device: torch.device) -> dict[str, Any]:
    return {
        key: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for key, value in batch.items()
    }


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

    Several processes share the batches, and each gets the sums over all.
    """
    if device is None:
        device = next(model.parameters()).device
    device = torch.device(device)
    if isinstance(precision, str):
        precision = choose_precision(device, precision)
    names: tuple[str, ...] = ()
    totals: Tensor | None = None
    with evaluating(model):
        for batch, counts_here in _shared(batches):
            with precision.autocast():
                names, sums, counts = stack_terms(loss_fn(model, to_device(batch, device)))
            both = torch.stack([wide(sums), wide(counts)]) * counts_here
            totals = both if totals is None else totals + both
    if totals is None:
        raise DataError("there is nothing to evaluate: the batches are empty")
    total, count = all_sum(totals).tolist()
    return {name: (total[i], int(count[i])) for i, name in enumerate(names)}


def _shared(batches: Iterable[Batch]) -> Iterator[tuple[Batch, int]]:
    """This process's batches. Where the last round is short, some batch is computed but not
    counted: all processes must compute equally often, or sharded models wait for ever."""
    group: list[Batch] = []
    for batch in batches:
        group.append(batch)
        if len(group) == world_size():
            yield group[rank()], 1
            group = []
    if group:
        yield (group[rank()], 1) if rank() < len(group) else (group[0], 0)


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
