"""Batches that end, for validation: every label is counted exactly once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from llm_course.batches.rows import (
    LongDocuments,
    check_ids,
    check_settings,
    flatten_documents,
    sha256_of,
)
from llm_course.errors import ConfigError, DataError
from llm_course.losses.chunked import IGNORE

Batch = dict[str, Tensor]


class PaddedBatches:
    """Whole documents, each in a row of its own from position 0, padded on the right.

    Sorted by length, longest first, so little is padded and a lack of memory shows at once.
    `.order` gives for each row, over all batches, the index of its document. BOS and padding have
    label -100. A causal model needs no mask for padding on the right; `attention_mask=True` adds
    one for the others. Documents longer than `context` are handled as in `DocumentBatches`.
    """

    def __init__(
        self,
        documents: Sequence[Sequence[int]],
        batch_size: int,
        pad_id: int | None = None,
        *,
        context: int | None = None,
        attention_mask: bool = False,
        long_documents: LongDocuments = "error",
        vocab_size: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        longest = max(2, *map(len, documents), 2) if context is None else context
        check_settings(longest, batch_size, rank, world_size)
        self.batch_size, self.attention_mask = batch_size, attention_mask
        self.pad_id = 0 if pad_id is None else pad_id  # never a label, so any id will do
        self.documents, self.long = flatten_documents(
            documents, longest, long_documents, vocab_size
        )
        numbers = np.arange(len(documents))
        if long_documents == "drop":
            numbers = numbers[[len(document) <= longest for document in documents]]
        by_length = np.argsort(-self.documents.lengths, kind="stable")[rank::world_size]
        self._rows = by_length
        self.order: list[int] = numbers[by_length].tolist()

    @property
    def tokens(self) -> int:
        """Tokens of this rank's documents, BOS and EOS included."""
        return int(self.documents.lengths[self._rows].sum())

    def __len__(self) -> int:
        return math.ceil(len(self._rows) / self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for begin in range(0, len(self._rows), self.batch_size):
            chosen = self._rows[begin : begin + self.batch_size]
            lengths = self.documents.lengths[chosen]
            tokens, _ = self.documents.take(chosen)
            inside = np.arange(lengths.max()) < lengths[:, None]
            input_ids = np.full(inside.shape, self.pad_id, dtype=np.int64)
            input_ids[inside] = tokens
            labels = np.where(inside, input_ids, IGNORE)
            labels[:, 0] = IGNORE
            batch = {"input_ids": torch.from_numpy(input_ids), "labels": torch.from_numpy(labels)}
            if self.attention_mask:
                batch["attention_mask"] = torch.from_numpy(inside)
            yield batch

    def fingerprint(self) -> str:
        """SHA-256 of the documents of all ranks."""
        return sha256_of(self.documents.flat, "padded", self.documents.lengths)


class BlockEvaluation:
    """A continuous text in windows such that every token after the first is predicted once.

    A window has `context` tokens and so context - 1 predictions: each begins with the last token of
    the one before it, which is given there and has no label. With `overlap` that many further
    tokens are given too, so that no prediction but the first ones has less than this context: more
    exact, slower. The last window is moved back to be full. The sum of the losses over all batches
    is exactly the nats of the text, given its first token.
    """

    def __init__(
        self,
        ids: Tensor | np.ndarray | Sequence[int],
        context: int,
        batch_size: int,
        overlap: int = 0,
        *,
        vocab_size: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        check_settings(context, batch_size, rank, world_size)
        if not 0 <= overlap <= context - 2:
            raise ConfigError(
                f"overlap must be from 0 to context - 2 = {context - 2}, got {overlap}"
            )
        self.ids = check_ids(ids, vocab_size)
        if len(self.ids) < 2:
            raise DataError("a text must have at least 2 tokens to predict one, got 1")
        self.batch_size, self.overlap = batch_size, overlap
        self.context = min(context, len(self.ids))
        stride = self.context - 1 - min(overlap, self.context - 2)
        windows = 1 + math.ceil((len(self.ids) - self.context) / stride)
        begins = np.arange(windows) * stride
        # Labels before this place are counted in the window before.
        counted_from = np.append(1, begins[:-1] + self.context)
        begins = np.minimum(begins, len(self.ids) - self.context)
        self._begins, self._counted_from = begins[rank::world_size], counted_from[rank::world_size]

    @property
    def tokens(self) -> int:
        """Tokens of the text; all but the first are predicted."""
        return len(self.ids)

    def __len__(self) -> int:
        return math.ceil(len(self._begins) / self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for first in range(0, len(self._begins), self.batch_size):
            chosen = slice(first, first + self.batch_size)
            index = self._begins[chosen, None] + np.arange(self.context)
            input_ids = self.ids[index].astype(np.int64)
            labels = np.where(index >= self._counted_from[chosen, None], input_ids, IGNORE)
            yield {"input_ids": torch.from_numpy(input_ids), "labels": torch.from_numpy(labels)}

    def fingerprint(self) -> str:
        """SHA-256 of the text and of the windows."""
        return sha256_of(self.ids, f"windows {self.context} {self.overlap}")
