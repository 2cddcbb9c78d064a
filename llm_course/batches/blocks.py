"""One continuous text, such as a play: random blocks to train on, windows to be judged by.

`ids` may be a tensor, an array or a memory-mapped array, which stays on the disk.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from llm_course.batches.ragged import check_ids, sha256_of
from llm_course.batches.sampler import Batch, Keys, Rows, at_least
from llm_course.errors import DataError
from llm_course.losses.chunked import IGNORE


class Blocks(Rows):
    """Blocks of `context` tokens.

    A pass cuts the text into blocks that do not overlap, from a random beginning, and shuffles
    them; so every token is seen once a pass, at ever new positions. A text of fewer blocks than a
    batch is read at random places. `DataError`: shorter than a block (needed and given), ids below
    0.
    """

    def __init__(self, ids: Tensor | np.ndarray | Sequence[int], context: int) -> None:
        at_least(2, context=context)
        self.ids, self.context = check_ids(ids), context
        if len(self.ids) < context:
            raise DataError(
                f"a block needs context = {context} tokens, the text has {len(self.ids)}"
            )

    def one_pass(self, generator: torch.Generator, least: int) -> Keys:
        """Where the blocks begin."""
        spare = len(self.ids) - self.context
        begin = int(torch.randint(min(self.context, spare + 1), (), generator=generator))
        blocks = (len(self.ids) - begin) // self.context
        if blocks < least:
            return torch.randint(spare + 1, (least,), generator=generator).numpy()
        return begin + self.context * torch.randperm(blocks, generator=generator).numpy()

    def gather(self, keys: Keys) -> Batch:
        index = keys[:, None] + np.arange(self.context)
        input_ids = torch.from_numpy(self.ids[index].astype(np.int64))
        return {"input_ids": input_ids, "labels": input_ids.clone()}

    def fingerprint(self) -> str:
        return sha256_of(f"blocks {self.context}", self.ids)


class Windows(Rows):
    """Windows such that every token after the first is predicted once.

    A window has `context` tokens and so context - 1 predictions: each begins with the last token of
    the one before it, which is given there and has no label. The last window is moved back to be
    full. The sum of the losses over all of them is exactly the nats of the text, given its first
    token.
    """

    def __init__(self, ids: Tensor | np.ndarray | Sequence[int], context: int) -> None:
        at_least(2, context=context)
        self.ids = check_ids(ids)
        if len(self.ids) < 2:
            raise DataError("a text must have at least 2 tokens to predict one, got 1")
        self.context = min(context, len(self.ids))
        windows = math.ceil((len(self.ids) - 1) / (self.context - 1))
        begins = np.arange(windows) * (self.context - 1)
        self._counted_from = begins + 1  # labels before this place are those of the window before
        self._begins = np.minimum(begins, len(self.ids) - self.context)

    def __len__(self) -> int:
        return len(self._begins)

    def gather(self, keys: Keys) -> Batch:
        index = self._begins[keys, None] + np.arange(self.context)
        input_ids = self.ids[index].astype(np.int64)
        labels = np.where(index >= self._counted_from[keys, None], input_ids, IGNORE)
        return {"input_ids": torch.from_numpy(input_ids), "labels": torch.from_numpy(labels)}
