"""Language modelling from left to right: the loss (F12) and the probability of a text (F13)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm_course.losses.chunked import CHUNK_ROWS, IGNORE, chunked_cross_entropy
from llm_course.shapes import Float, Int

INPUTS = ("input_ids", "attention_mask", "position_ids")

# Below this the plain loss is as fast. On one core `chunked_cross_entropy` takes 1 / 1.2 to 1 / 1.4
# of its time in float32 at 4,096 to 8,192 tokens, 1 / 1.1 to 1 / 1.9 in bfloat16, and 1 at 1,024.
CHUNKED_VOCABULARY = 2048


def causal_lm_loss(
    logits: Float[Tensor, "B T V"], labels: Int[Tensor, "B T"]
) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
    r"""Next-token loss $-\sum_i \log p(w_i \mid w_{<i})$ in nats (F12), and how many tokens count.

    Position i of `logits` predicts position i + 1 of `labels`; labels of -100 do not count.
    Radford et al. 2018, eq. (1). The caller divides: the mean is taken over all micro-batches and
    ranks. When nothing counts, both are 0. The sum is in float32, or float64 for such logits.
    `ValueError` when the shapes do not agree.
    """
    check_shapes(logits, labels)
    return cross_entropy_sum(logits[:, :-1], labels[:, 1:])


def cross_entropy_sum(
    logits: Tensor, labels: Tensor, *, name: str = "labels", smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    r"""The sum of $-\log \mathrm{softmax}(z)_y$ in nats, and how many labels count.

    Labels of -100 do not. The caller divides; when nothing counts, both are 0.
    The sum is in float32, or float64 for such logits. `ValueError` when the shapes do not agree.
    """
    if logits.shape[:-1] != labels.shape:
        raise ValueError(
            f"{name} must be {list(logits.shape[:-1])} for logits {list(logits.shape)}, "
            f"got {list(labels.shape)}"
        )
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()  # a sum of thousands of terms needs more than 8 or 11 bits
    total = F.cross_entropy(
        logits.reshape(-1, logits.shape[-1]),
        labels.reshape(-1),
        ignore_index=IGNORE,
        reduction="sum",
        label_smoothing=smoothing,
    )
    return total, (labels != IGNORE).sum()


def causal_loss_fn(model: Any, batch: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """`causal_lm_loss` of a model on a batch, as `train` and `evaluate` want it.

    The batch has `input_ids` and unshifted `labels`, and may have `attention_mask` and
    `position_ids`. With a large vocabulary the logits are never all in memory: the head and the
    loss go over the last hidden states in chunks (`chunked_cross_entropy`), with equal results.
    """
    inputs = {name: batch[name] for name in INPUTS if name in batch}
    labels = batch["labels"]
    head = getattr(model, "lm_head", None)
    if labels.shape != batch["input_ids"].shape:
        raise ValueError(
            f"labels must have the shape of input_ids {list(batch['input_ids'].shape)}, "
            f"got {list(labels.shape)}"
        )
    if head is None or not _worth_chunks(head, labels):
        return {"lm": causal_lm_loss(model(**inputs), labels)}
    hidden = model.hidden(**inputs)
    # Shifting the labels, not the states, saves a copy of the states.
    following = F.pad(labels[:, 1:], (0, 1), value=IGNORE)
    total = chunked_cross_entropy(
        hidden.flatten(0, 1), head.weight, following.flatten(), bias=head.bias
    )
    return {"lm": (total, (following != IGNORE).sum())}


def sequence_log_probability(
    logits: Float[Tensor, "B T V"], ids: Int[Tensor, "B T"]
) -> Float[Tensor, " B"]:
    r"""Each row's log-probability $\log p(w) = \sum_{i \ge 1} \log p(w_i \mid w_{<i})$ (F13).

    In nats. The first id, BOS, is given and has no factor; every later one counts, EOS too.
    Padding after a row's end is written as -100 and does not count. `logits` are those of the row,
    unshifted; `ValueError` when the shapes do not agree.
    """
    check_shapes(logits, ids)
    following = ids[:, 1:]
    counted = following != IGNORE
    wide = logits[:, :-1] if logits.dtype == torch.float64 else logits[:, :-1].float()
    chosen = wide.gather(-1, following.clamp(min=0)[..., None])[..., 0]
    return (chosen - wide.logsumexp(-1)).masked_fill(~counted, 0.0).sum(-1)


def _worth_chunks(head: nn.Module, labels: Tensor) -> bool:
    # An adapted or quantized head computes more than weight and bias say.
    if type(head) is not nn.Linear or head.out_features < CHUNKED_VOCABULARY:
        return False
    device = labels.device.type
    half = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16
    return labels.numel() > CHUNK_ROWS and not half


def check_shapes(logits: Tensor, labels: Tensor) -> None:
    """`ValueError` unless there are logits [B, T, V] for labels [B, T]."""
    if logits.ndim != 3 or logits.shape[:2] != labels.shape:
        raise ValueError(
            f"logits must be [B, T, V] for labels [B, T], got logits {list(logits.shape)} "
            f"and labels {list(labels.shape)}"
        )
