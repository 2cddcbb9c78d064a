"""An answer to an input, token by token: the loss of every encoder-decoder (F14)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from llm_course.errors import ConfigError
from llm_course.losses.causal import check_shapes, cross_entropy_sum
from llm_course.shapes import Float, Int

INPUTS = ("input_ids", "decoder_input_ids", "attention_mask")


def seq2seq_loss(
    logits: Float[Tensor, "B T V"], labels: Int[Tensor, "B T"], *, smoothing: float = 0.0
) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
    r"""The loss $-\sum_i \log p(y_i \mid y_{<i}, x)$ in nats (F14), and how many tokens count.

    Position i of `logits` predicts position i of `labels`: nothing is shifted here, because the
    decoder has read the labels shifted (`shift_right`). Labels of -100 do not count.

    `smoothing` is the ε of Vaswani et al. 2017, §5.4: the target is $1 - ε$ on the right token plus
    $ε / V$ on each of the V tokens, the right one too, so that a certain model is not the best one.
    The lowest loss is then the entropy of that target and not 0. The caller divides: the mean is
    taken over all micro-batches and ranks. When nothing counts, both are 0. The sum is in float32,
    or float64 for such logits. `ValueError` when the shapes do not agree or `smoothing` is not at
    least 0 and below 1.
    """
    check_shapes(logits, labels)
    if not 0.0 <= smoothing < 1.0:
        raise ConfigError(f"smoothing must be at least 0 and below 1, got {smoothing}")
    return cross_entropy_sum(logits, labels, smoothing=smoothing)


def seq2seq_loss_fn(
    model: Any, batch: Mapping[str, Tensor], *, smoothing: float = 0.0
) -> dict[str, tuple[Tensor, Tensor]]:
    """`seq2seq_loss` of a model on a batch, as `train` and `evaluate` want it.

    The batch has `input_ids`, `decoder_input_ids` and `labels`, and may have `attention_mask`.
    `functools.partial(seq2seq_loss_fn, smoothing=0.1)` trains with label smoothing; evaluate
    without it, or the number is no longer that of the text.
    """
    labels = batch["labels"]
    if labels.shape != batch["decoder_input_ids"].shape:
        raise ValueError(
            "labels must have the shape of decoder_input_ids "
            f"{list(batch['decoder_input_ids'].shape)}, got {list(labels.shape)}"
        )
    inputs = {name: batch[name] for name in INPUTS if name in batch}
    return {"lm": seq2seq_loss(model(**inputs), labels, smoothing=smoothing)}
