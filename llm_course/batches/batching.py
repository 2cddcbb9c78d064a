"""Training batches: endless, shuffled, and resumable to the exact batch.

Rows are gathered when a batch is asked for, from one flat array of ids, so an epoch costs its
shuffling and packing and no copy of the data. The order of an epoch follows from the seed and the
number of the epoch alone: the state is two numbers. `batches.load_state_dict` refuses the state of
other data or another setting, because then the run would not be the same.

Batches of validation, which end, are in `evaluation.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llm_course.batches.evaluation import BlockEvaluation, PaddedBatches
from llm_course.batches.rows import (
    LongDocuments,
    check_ids,
    check_settings,
    fill_rows,
    flatten_documents,
    pack_rows,
    sha256_of,
)
from llm_course.errors import CheckpointError, ConfigError, DataError
from llm_course.losses.chunked import IGNORE
from llm_course.shapes import Int

__all__ = [
    "BlockBatches",
    "BlockEvaluation",
    "DocumentBatches",
    "EndlessBatches",
    "PaddedBatches",
    "shift_right",
]

Batch = dict[str, Tensor]


class EndlessBatches:
    """Epochs of batches, one after the other; a subclass shuffles an epoch and gathers a batch."""

    def __init__(self, context: int, batch_size: int, seed: int, rank: int, world_size: int):
        check_settings(context, batch_size, rank, world_size)
        if seed < 0:
            raise ConfigError(f"seed must be at least 0, got {seed}")
        self.context, self.batch_size, self.seed = context, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.epoch = 0
        self.offset = 0  # batches of this epoch that were given out, the same on every rank
        self._fingerprint = ""
        self._prepared = -1

    @property
    def rows(self) -> int:
        """Rows of the present epoch."""
        self._prepare()
        return self._count_rows()

    @property
    def batches_per_epoch(self) -> int:
        """Full batches a rank gets from the present epoch; the rows that remain are left out."""
        return self.rows // (self.batch_size * self.world_size)

    def __iter__(self) -> Iterator[Batch]:
        while True:
            if self.offset >= self.batches_per_epoch:
                self.epoch, self.offset = self.epoch + 1, 0
                self._prepare()
            first = (self.offset * self.world_size + self.rank) * self.batch_size
            batch = self._gather(first, first + self.batch_size)
            self.offset += 1  # before the yield: a state saved now goes on with the next batch
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch is: plain numbers and texts, ready for JSON."""
        return {"epoch": self.epoch, "offset": self.offset} | self._settings()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken; `CheckpointError` names the settings that differ."""
        for name, here in self._settings().items():
            if state.get(name) != here:
                raise CheckpointError(
                    f"the batches had {name} = {state.get(name)!r} when this state was saved, "
                    f"now it is {here!r}"
                )
        self.epoch, self.offset = int(state["epoch"]), int(state["offset"])

    def fingerprint(self) -> str:
        """SHA-256 of the ids and of how they are laid out in rows."""
        self._fingerprint = self._fingerprint or self._hash()
        return self._fingerprint

    def _settings(self) -> dict[str, Any]:
        return {
            "fingerprint": self.fingerprint(),
            "seed": self.seed,
            "global_batch": self.batch_size * self.world_size,
        }

    def _prepare(self) -> None:
        if self._prepared == self.epoch:
            return
        digest = hashlib.sha256(f"{self.seed} {self.epoch}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        self._shuffle(generator)
        self._prepared = self.epoch
        needed = self.batch_size * self.world_size
        if (have := self._count_rows()) < needed:
            raise DataError(
                f"a batch needs batch_size * world_size = {needed} rows of {self.context} tokens, "
                f"the data make {have}: lower batch_size or add text"
            )

    def _shuffle(self, generator: torch.Generator) -> None:
        raise NotImplementedError

    def _count_rows(self) -> int:
        raise NotImplementedError

    def _gather(self, first: int, last: int) -> Batch:
        raise NotImplementedError

    def _hash(self) -> str:
        raise NotImplementedError


class DocumentBatches(EndlessBatches):
    """Rows of whole documents, each from BOS to EOS, for a model that is judged on documents.

    Every row begins with the beginning of a document, so the model learns from position 0, where it
    will be judged. Documents follow one another in a row; what happens at its end is the choice:

    - `whole_documents=False` (default): the last document is cut, and the next row begins with
      another one. No position is wasted; ends of documents are seen a little less often.
    - `whole_documents=True`: documents are packed so that they fit (best fit, longest first), and
      the rest of the row is padding without labels.

    BOS has label -100: nothing predicts it. With `separate=True` (default) a document does not see
    the others in its row: `position_ids` restart, and an `attention_mask` [B, T, T] keeps documents
    apart, so the loss is exactly that of documents in rows of their own. `separate=False` lets a
    token look at the documents before its own, for the fast causal kernel: a model that is judged
    on single documents then learns much more slowly, by 0.4 nats a token after 250 steps on Town.

    `long_documents` says what happens to those longer than `context`: "error", "cut" at `context`
    or "drop"; `.long` counts them. `vocab_size`, when given, is checked against every id.
    `DataError` for no documents, documents that do not begin alike, ids out of range.
    """

    def __init__(
        self,
        documents: Sequence[Sequence[int]],
        context: int,
        batch_size: int,
        seed: int = 0,
        pad_id: int | None = None,
        *,
        separate: bool = True,
        whole_documents: bool = False,
        long_documents: LongDocuments = "error",
        vocab_size: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(context, batch_size, seed, rank, world_size)
        self.pad_id = 0 if pad_id is None else pad_id  # never a label, so any id will do
        self.separate, self.whole_documents = separate, whole_documents
        self.documents, self.long = flatten_documents(
            documents, context, long_documents, vocab_size
        )
        self._order = self._first = np.zeros(0, dtype=np.int64)
        self._prepare()

    @property
    def tokens(self) -> int:
        """Tokens of all documents together, BOS and EOS included."""
        return len(self.documents.flat)

    @property
    def fill(self) -> float:
        """The share of the present epoch's positions that hold a token and not padding."""
        self._prepare()
        held = np.add.reduceat(self.documents.lengths[self._order], self._first[:-1])
        return float(np.minimum(held, self.context).sum() / (self.rows * self.context))

    def _shuffle(self, generator: torch.Generator) -> None:
        order = torch.randperm(len(self.documents), generator=generator).numpy()
        if self.whole_documents:
            order, first = pack_rows(order, self.documents.lengths, self.context)
            shuffled = torch.randperm(len(first) - 1, generator=generator).numpy()
            order = np.concatenate([order[first[r] : first[r + 1]] for r in shuffled])
            first = np.concatenate([[0], np.cumsum(np.diff(first)[shuffled])])
        else:
            first = fill_rows(self.documents.lengths[order], self.context)
        self._order, self._first = order, first

    def _count_rows(self) -> int:
        return len(self._first) - 1

    def _gather(self, first: int, last: int) -> Batch:
        """Rows first to last - 1: the documents of these rows lie side by side in the order."""
        begin = self._first[first : last + 1]
        chosen = self._order[begin[0] : begin[-1]]
        tokens, starts = self.documents.take(chosen)
        ends = np.append(starts, len(tokens))
        row_begin, row_end = ends[begin[:-1] - begin[0]], ends[begin[1:] - begin[0]]
        index = row_begin[:, None] + np.arange(self.context)
        inside = index < row_end[:, None]
        index = np.minimum(index, len(tokens) - 1)
        is_start = np.zeros(len(tokens), dtype=bool)
        is_start[starts] = True
        input_ids = np.where(inside, tokens[index], self.pad_id)
        labels = np.where(inside & ~is_start[index], input_ids, IGNORE)
        batch = {"input_ids": torch.from_numpy(input_ids), "labels": torch.from_numpy(labels)}
        if self.separate:
            # Padding forms a document of its own, so that no row of the mask is empty.
            edge = is_start[index] & inside
            edge[:, 1:] |= inside[:, :-1] & ~inside[:, 1:]
            batch |= keep_apart(torch.from_numpy(edge))
        return batch

    def _hash(self) -> str:
        layout = f"documents {self.context} {self.whole_documents} {self.separate}"
        return sha256_of(self.documents.flat, layout, self.documents.lengths)


class BlockBatches(EndlessBatches):
    """Blocks of one continuous text, such as a play: `context` tokens each.

    An epoch cuts the text into blocks that do not overlap, from a random beginning, and shuffles
    them; so every token is seen once an epoch, at ever new positions. A text of fewer blocks than a
    batch is read at random places. `ids` may be a tensor, an array or a memory-mapped array, which
    stays on the disk. `DataError`: shorter than a block (needed and given), ids out of range.
    """

    def __init__(
        self,
        ids: Tensor | np.ndarray | Sequence[int],
        context: int,
        batch_size: int,
        seed: int = 0,
        *,
        vocab_size: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(context, batch_size, seed, rank, world_size)
        self.ids = check_ids(ids, vocab_size)
        if len(self.ids) < context:
            raise DataError(
                f"a block needs context = {context} tokens, the text has {len(self.ids)}"
            )
        self._starts = np.zeros(0, dtype=np.int64)
        self._prepare()

    @property
    def tokens(self) -> int:
        """Tokens of the text."""
        return len(self.ids)

    def _shuffle(self, generator: torch.Generator) -> None:
        spare = len(self.ids) - self.context
        needed = self.batch_size * self.world_size
        begin = int(torch.randint(min(self.context, spare + 1), (), generator=generator))
        blocks = (len(self.ids) - begin) // self.context
        if blocks >= needed:
            starts = begin + self.context * torch.randperm(blocks, generator=generator)
        else:
            starts = torch.randint(spare + 1, (needed,), generator=generator)
        self._starts = starts.numpy()

    def _count_rows(self) -> int:
        return len(self._starts)

    def _gather(self, first: int, last: int) -> Batch:
        index = self._starts[first:last, None] + np.arange(self.context)
        input_ids = torch.from_numpy(self.ids[index].astype(np.int64))
        return {"input_ids": input_ids, "labels": input_ids.clone()}

    def _hash(self) -> str:
        return sha256_of(self.ids, f"blocks {self.context}")


def shift_right(labels: Int[Tensor, "B T"], start_id: int, pad_id: int) -> Int[Tensor, "B T"]:
    """The decoder's input for its labels: `start_id`, then all labels but the last (F14).

    -100 becomes `pad_id`. T5 starts with its pad token, the Transformer with BOS.
    """
    shifted = torch.empty_like(labels)
    shifted[:, 0] = start_id
    shifted[:, 1:] = labels[:, :-1]
    return shifted.masked_fill(shifted == IGNORE, pad_id)


def keep_apart(edge: Tensor) -> Batch:
    """Positions that restart at every edge, and who may look at whom: only within a document."""
    place = torch.arange(edge.shape[1]).expand(edge.shape)
    document = edge.cumsum(1)
    begin = torch.where(edge, place, 0).cummax(1).values
    return {
        "position_ids": place - begin,
        "attention_mask": document[:, :, None] == document[:, None, :],
    }
