"""The losses of fine-tuning: classes of rows or of tokens, and the ends of an answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from llm_course.losses.causal import cross_entropy_sum
from llm_course.losses.masked import INPUTS


def classification_loss_fn(
    model: Any, batch: Mapping[str, Tensor]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Cross-entropy of classes in nats, for whole rows ([B]) or for each token ([B, T]).

    Labels of -100 do not count.
    """
    logits = model(**{name: batch[name] for name in INPUTS if name in batch})
    return {"class": cross_entropy_sum(logits, batch["labels"])}


def answer_loss_fn(model: Any, batch: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """The mean of the cross-entropies of the first and the last token of the answer, in nats.

    Devlin et al. 2019, §4.2: a softmax over the tokens of the row, padding excluded.
    """
    start, end = model(**{name: batch[name] for name in INPUTS if name in batch})
    outside = ~batch["attention_mask"].bool()
    total = start.new_zeros(())
    for scores, name in ((start, "start_positions"), (end, "end_positions")):
        masked = scores.masked_fill(outside, -torch.inf)
        loss, count = cross_entropy_sum(masked, batch[name], name=name)
        total = total + loss / 2
    return {"answer": (total, count)}
