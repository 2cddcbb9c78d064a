"""Batches of pairs, an input and its answer, for encoder-decoders: Transformer and T5.

A batch has `input_ids` and its `attention_mask`, `labels` that are not shifted, and
`decoder_input_ids`, which are the labels shifted right. Pairs of about one length share a batch,
so that little of it is padding; padding stands on the right.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from llm_course.batches.batching import EndlessBatches, shift_right
from llm_course.batches.rows import Ragged, check_settings, flatten_rows, sha256_of
from llm_course.errors import ConfigError, DataError
from llm_course.losses.chunked import IGNORE

Batch = dict[str, Tensor]
Rows = Sequence[Sequence[int]]
LongPairs = Literal["error", "drop"]  # a pair cut short would teach to stop too early

POOL = 50  # batches whose pairs are sorted by length together, unless `pool` says another number


class Pairs:
    """Checked inputs and answers, laid out flat; `keep` says which of the given pairs these are."""

    def __init__(
        self,
        sources: Rows,
        targets: Rows,
        context: int | None,
        long_pairs: LongPairs,
        vocab_size: int | None,
    ) -> None:
        if long_pairs not in get_args(LongPairs):
            choices = ", ".join(get_args(LongPairs))
            raise ConfigError(f"long_pairs must be one of {choices}, got {long_pairs!r}")
        if len(sources) != len(targets):
            raise DataError(
                f"each source must have one target, got {len(sources)} sources "
                f"and {len(targets)} targets"
            )
        longest = [max(len(s), len(t)) for s, t in zip(sources, targets)]
        limit = max(longest, default=0) if context is None else context
        fits = [length <= limit for length in longest]
        self.long = len(fits) - sum(fits)
        if self.long and (long_pairs == "error" or self.long == len(fits)):
            number = fits.index(False)
            raise DataError(
                f"{self.long} of {len(fits)} pairs are longer than context = {limit} tokens, the "
                f"first is pair {number} with {len(sources[number])} and {len(targets[number])}: "
                f"raise context{'' if long_pairs == 'drop' else ', or let them be dropped'}"
            )
        self.keep = np.flatnonzero(fits)
        if self.long:
            kept = self.keep.tolist()
            sources, targets = [sources[i] for i in kept], [targets[i] for i in kept]
        self.sources = flatten_rows(sources, vocab_size, "source")
        self.targets = flatten_rows(targets, vocab_size, "target")
        self.context = limit

    def __len__(self) -> int:
        return len(self.sources)

    @property
    def tokens(self) -> int:
        """Tokens of all inputs and answers together, as they were given."""
        return len(self.sources.flat) + len(self.targets.flat)

    def gather(self, chosen: np.ndarray, pad_id: int, start_id: int) -> Batch:
        """The batch of some pairs."""
        input_ids, inside = _padded(self.sources, chosen, pad_id)
        labels, _ = _padded(self.targets, chosen, IGNORE)
        return {
            "input_ids": input_ids,
            "attention_mask": inside,
            "decoder_input_ids": shift_right(labels, start_id, pad_id),
            "labels": labels,
        }

    def fingerprint(self, layout: str) -> str:
        """SHA-256 of all ids, in their order and their places, and of a layout."""
        both = [np.concatenate(p) for p in zip(_arrays(self.sources), _arrays(self.targets))]
        return sha256_of(both[0], layout, both[1])


class PairBatches(EndlessBatches):
    """Endless shuffled batches of pairs with their state, like those of `batching.py`.

    An epoch is shuffled, parted into pools of some batches, and each pool sorted by length; then
    the batches of the epoch are shuffled. A pair occurs at most once an epoch. Large pools leave
    little padding, but the pairs of a batch are then alike, and its gradient a poorer sample.

    Args:
        sources, targets: rows of ids, one target for each source. Targets end with the end token,
            as the model is to learn it; a start token is not part of them.
        start_id: what the decoder reads first: T5's is its pad token, the Transformer's BOS.
        context: the most tokens that an input or an answer may have; None: no limit.
        long_pairs: what happens to longer ones: "error" or "drop"; `.long` counts them.
        pool: how many batches are sorted by length together; 1 does not sort over batches.
        vocab_size: checked against every id.

    Raises:
        DataError: no pairs, an empty side, a pair too long, an id out of range.
        ConfigError: sizes, seed or rank out of range.
    """

    def __init__(
        self,
        sources: Rows,
        targets: Rows,
        batch_size: int,
        seed: int = 0,
        *,
        pad_id: int,
        start_id: int,
        context: int | None = None,
        long_pairs: LongPairs = "error",
        pool: int = POOL,
        vocab_size: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if pool < 1:
            raise ConfigError(f"pool must be at least 1, got {pool}")
        self.pool = pool
        self.pairs = Pairs(sources, targets, context, long_pairs, vocab_size)
        super().__init__(max(2, self.pairs.context), batch_size, seed, rank, world_size)
        self.pad_id, self.start_id, self.long = pad_id, start_id, self.pairs.long
        self._order = np.zeros(0, dtype=np.int64)
        self._prepare()

    @property
    def tokens(self) -> int:
        """Tokens of all inputs and answers together."""
        return self.pairs.tokens

    @property
    def fill(self) -> float:
        """The share of the present epoch's places, of inputs and answers, that is no padding."""
        self._prepare()
        held = places = 0
        for side in (self.pairs.sources, self.pairs.targets):
            lengths = side.lengths[self._order].reshape(-1, self.batch_size)
            held += int(lengths.sum())
            places += int(lengths.max(axis=1).sum()) * self.batch_size
        return held / places

    def _shuffle(self, generator: torch.Generator) -> None:
        needed = self.batch_size * self.world_size
        order = torch.randperm(len(self.pairs), generator=generator).numpy()
        order = order[: len(order) - len(order) % needed]
        sources, targets = self.pairs.sources.lengths, self.pairs.targets.lengths
        for begin in range(0, len(order), self.pool * needed):
            pool = order[begin : begin + self.pool * needed]
            pool[:] = pool[np.lexsort((sources[pool], targets[pool]))]
        batches = order.reshape(-1, needed)
        self._order = batches[torch.randperm(len(batches), generator=generator).numpy()].ravel()

    def _count_rows(self) -> int:
        return len(self._order)

    def _gather(self, first: int, last: int) -> Batch:
        return self.pairs.gather(self._order[first:last], self.pad_id, self.start_id)

    def _hash(self) -> str:
        pool = "" if self.pool == POOL else f" pool {self.pool}"
        return self.pairs.fingerprint(f"pairs {self.pad_id} {self.start_id}{pool}")


class PairEvaluation:
    """All pairs once, longest answers first; `.order` gives for each row the number of its pair.

    Arguments and errors as in `PairBatches`. Pairs dropped for their length are in no batch.
    """

    def __init__(
        self,
        sources: Rows,
        targets: Rows,
        batch_size: int,
        *,
        pad_id: int,
        start_id: int,
        context: int | None = None,
        long_pairs: LongPairs = "error",
        vocab_size: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.pairs = Pairs(sources, targets, context, long_pairs, vocab_size)
        check_settings(max(2, self.pairs.context), batch_size, rank, world_size)
        self.batch_size, self.pad_id, self.start_id = batch_size, pad_id, start_id
        self.long = self.pairs.long
        lengths = self.pairs.sources.lengths, self.pairs.targets.lengths
        self._rows = np.lexsort((-lengths[0], -lengths[1]))[rank::world_size]
        self.order: list[int] = self.pairs.keep[self._rows].tolist()

    @property
    def tokens(self) -> int:
        """Tokens of this rank's answers: each is predicted once."""
        return int(self.pairs.targets.lengths[self._rows].sum())

    def __len__(self) -> int:
        return math.ceil(len(self._rows) / self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for begin in range(0, len(self._rows), self.batch_size):
            chosen = self._rows[begin : begin + self.batch_size]
            yield self.pairs.gather(chosen, self.pad_id, self.start_id)

    def fingerprint(self) -> str:
        """SHA-256 of the pairs of all ranks."""
        return self.pairs.fingerprint(f"pair evaluation {self.pad_id} {self.start_id}")


def _arrays(side: Ragged) -> tuple[np.ndarray, np.ndarray]:
    return side.flat, side.lengths


def _padded(side: Ragged, chosen: np.ndarray, fill: int) -> tuple[Tensor, Tensor]:
    """Rows padded on the right to the longest, and where they hold their own ids."""
    lengths = side.lengths[chosen]
    tokens, _ = side.take(chosen)
    inside = np.arange(lengths.max()) < lengths[:, None]
    ids = np.full(inside.shape, fill, dtype=np.int64)
    ids[inside] = tokens
    return torch.from_numpy(ids), torch.from_numpy(inside)
