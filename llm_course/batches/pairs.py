"""Pairs, an input and its answer, for encoder-decoders: Transformer and T5.

A batch has `input_ids` and its `attention_mask`, `labels` that are not shifted, and
`decoder_input_ids`, which are the labels shifted right. Padding stands on the right.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from llm_course.batches.ragged import flatten
from llm_course.batches.sampler import Batch, Keys, Rows
from llm_course.errors import ConfigError, DataError
from llm_course.losses.chunked import IGNORE
from llm_course.shapes import Int

LongPairs = Literal["error", "drop"]  # a pair cut short would teach to stop too early


class Pairs(Rows):
    """Inputs and answers; `.keep` says which of the given pairs these are, `.long` counts others.

    Args:
        sources, targets: rows of ids, one target for each source. Targets end with the end token,
            as the model is to learn it; a start token is not part of them.
        start_id: what the decoder reads first: T5's is its pad token, the Transformer's BOS.
        context: the most tokens that an input or an answer may have; None: no limit.
        long_pairs: what happens to longer ones: "error" or "drop".

    Raises:
        DataError: no pairs, an empty side, a pair too long, an id below 0.
    """

    def __init__(
        self,
        sources: Sequence[Sequence[int]],
        targets: Sequence[Sequence[int]],
        *,
        pad_id: int,
        start_id: int,
        context: int | None = None,
        long_pairs: LongPairs = "error",
    ) -> None:
        if long_pairs not in get_args(LongPairs):
            raise ConfigError(f"long_pairs must be one of error, drop, got {long_pairs!r}")
        if len(sources) != len(targets):
            raise DataError(
                f"each source must have one target, got {len(sources)} sources "
                f"and {len(targets)} targets"
            )
        longest = np.array([max(len(s), len(t)) for s, t in zip(sources, targets)], dtype=int)
        fits = longest <= (np.inf if context is None else context)
        self.long = int((~fits).sum())
        if self.long and (long_pairs == "error" or not fits.any()):
            number = int(fits.argmin())
            raise DataError(
                f"{self.long} of {len(fits)} pairs are longer than context = {context} tokens, the "
                f"first is pair {number} with {len(sources[number])} and {len(targets[number])}: "
                f"raise context{'' if long_pairs == 'drop' else ', or let them be dropped'}"
            )
        self.keep = np.flatnonzero(fits)
        self.sources = flatten([sources[i] for i in self.keep.tolist()], "source")
        self.targets = flatten([targets[i] for i in self.keep.tolist()], "target")
        self.lengths = (self.sources.lengths, self.targets.lengths)
        self.pad_id, self.start_id = pad_id, start_id

    def gather(self, keys: Keys) -> Batch:
        input_ids, inside = self.sources.padded(keys, self.pad_id)
        labels, _ = self.targets.padded(keys, IGNORE)
        return {
            "input_ids": input_ids,
            "attention_mask": inside,
            "decoder_input_ids": shift_right(labels, self.start_id, self.pad_id),
            "labels": labels,
        }

    def fingerprint(self) -> str:
        layout = f"pairs {self.pad_id} {self.start_id}"
        return self.sources.sha256(layout) + self.targets.sha256(layout)


def shift_right(labels: Int[Tensor, "B T"], start_id: int, pad_id: int) -> Int[Tensor, "B T"]:
    """The decoder's input for its labels: `start_id`, then all labels but the last (F14).

    -100 becomes `pad_id`. T5 starts with its pad token, the Transformer with BOS.
    """
    shifted = torch.empty_like(labels)
    shifted[:, 0] = start_id
    shifted[:, 1:] = labels[:, :-1]
    return shifted.masked_fill(shifted == IGNORE, pad_id)
