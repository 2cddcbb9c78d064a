r"""The exact gradient of one update over several batches and processes.

The loss of an update is $\sum_k S_k / N_k$: the sum $S_k$ and the count $N_k$ of each term (BERT
has two) run over all micro-batches of all processes. The mean of the batches' means is another
number as soon as their counts differ, which is the classic silent bug of accumulation.

The counts must be known to weigh the terms, but memory must not hold more than one graph:

- one micro-batch: its forward pass gives the counts, before its backward pass;
- one term: each backward pass is divided by a provisional count, and the gradient, being linear, is
  corrected at the end;
- several terms: the counts come first, from `loss_fn.counts(batch) -> dict[name, count]` if the
  function has this attribute, as `bert_loss_fn` has, else from a forward pass without a graph (a
  third of a step).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llm_course.training.devices import Precision
from llm_course.training.parallel import all_sum, gradients_shared

Batch = Mapping[str, Any]
Terms = Mapping[str, tuple[Tensor, Tensor | int]]
LossFunction = Callable[[Any, Any], Terms]


class LossModule(nn.Module):
    """The model and its loss as one module.

    So `torch.compile` also fuses the loss, and DDP and FSDP see a forward pass even where the loss
    function calls `model.hidden` and not the model.
    """

    def __init__(self, model: nn.Module, loss_fn: LossFunction) -> None:
        super().__init__()
        self.model = model
        self.loss_fn = loss_fn

    def forward(self, batch: Batch) -> Terms:
        return self.loss_fn(self.model, batch)


@dataclass(frozen=True)
class Totals:
    """The sums and counts of one update over all micro-batches and processes."""

    names: tuple[str, ...]
    sums: Tensor  # [n]
    counts: Tensor  # [n]
    tokens: Tensor  # [1]; read by all processes
    correction: Tensor | None  # []; the gradient is still to be multiplied by this


def accumulate(
    loss_module: nn.Module,
    batches: Sequence[Batch],
    precision: Precision,
    scaler: torch.amp.GradScaler,
    counts_of: Any = None,
    tokens: int = 0,
    n_processes: int = 1,
) -> Totals:
    """Add the gradient of the update's loss to `.grad`, times the loss scale and 1 / correction.

    `counts_of(batch)` gives the counts without a forward pass, if the loss function can. `tokens`
    are those of these batches; they are summed with everything else.
    """
    parts: list[Tensor] = []
    divisor: Tensor | None = None
    names: tuple[str, ...] = ()
    for i, batch in enumerate(batches):
        last = i == len(batches) - 1
        with gradients_shared(loss_module, now=last) if n_processes > 1 else nullcontext():
            with precision.autocast():
                names_here, sums, counts = stack_terms(loss_module(batch))
            if divisor is None:
                names = names_here
                divisor = _divisor(
                    loss_module, batches, precision, names, counts, counts_of, n_processes
                )
            elif names_here != names:
                raise ValueError(f"loss_fn returned {names}, then {names_here}: names must agree")
            # DDP and FSDP divide by the number of processes, and the divisor already has them all.
            loss = (sums / divisor.to(sums.dtype)).sum() * n_processes
            scaler.scale(loss).backward()
        parts.append(torch.stack([wide(sums), wide(counts)]))
    if divisor is None:
        raise ValueError("an update needs at least one batch")
    # A filled tensor, not one that is copied from the host: nothing waits for the device.
    read = torch.full_like(parts[0][0, :1], tokens)
    n = len(names)
    everything = torch.cat([sum(parts[1:], parts[0]).flatten(), read])
    if n_processes > 1:
        all_sum(everything)
    sums, counts, read = everything.split([n, n, 1])
    correction = (divisor / counts)[0] if len(batches) > 1 and n == 1 else None
    return Totals(names, sums, counts, read, correction)


def _divisor(
    loss_module: nn.Module,
    batches: Sequence[Batch],
    precision: Precision,
    names: tuple[str, ...],
    first: Tensor,
    counts_of: Any,
    n_processes: int,
) -> Tensor:
    """What the sums are divided by before the backward pass, equal on all processes."""
    counts = wide(first)
    if len(batches) > 1 and len(names) == 1:
        counts = counts * len(batches)
    for batch in batches[1:] if len(names) > 1 else ():
        counted = counts_of(batch) if counts_of else _counts(loss_module, batch, precision)
        counts = counts + torch.stack([torch.as_tensor(counted[name]) for name in names]).to(counts)
    if n_processes > 1:
        all_sum(counts)
    # A count of 0 over all is an error, but found later with the losses, without a second wait.
    return counts.clamp(min=1)


def _counts(loss_module: nn.Module, batch: Batch, precision: Precision) -> Mapping[str, Any]:
    """The counts by a forward pass that leaves no trace in the random state."""
    device = next(loss_module.parameters()).device
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda), torch.no_grad(), precision.autocast():
        return {name: count for name, (_, count) in loss_module(batch).items()}


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
