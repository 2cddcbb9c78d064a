"""Rows of different lengths as one flat array of ids: laying out, checking, hashing, padding."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llm_course.errors import DataError

_AT_ONCE = 1 << 22  # ids checked and hashed at a time: a memory-mapped text stays on the disk


@dataclass(frozen=True)
class Ragged:
    """Rows of different lengths, one after the other in `flat`."""

    flat: np.ndarray
    begins: np.ndarray  # of each row in `flat`
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.lengths)

    def take(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The ids of some rows in this order (int64), and where each of them begins."""
        lengths = self.lengths[chosen]
        begins = np.cumsum(lengths) - lengths
        index = np.repeat(self.begins[chosen] - begins, lengths) + np.arange(lengths.sum())
        return self.flat[index].astype(np.int64), begins

    def padded(self, chosen: np.ndarray, fill: int) -> tuple[Tensor, Tensor]:
        """Some rows padded on the right to the longest, and where they hold their own ids."""
        lengths = self.lengths[chosen]
        inside = np.arange(lengths.max()) < lengths[:, None]
        ids = np.full(inside.shape, fill, dtype=np.int64)
        ids[inside], _ = self.take(chosen)
        return torch.from_numpy(ids), torch.from_numpy(inside)

    def sha256(self, layout: str) -> str:
        """Of the ids, of which row they are in, and of what is done with them."""
        return sha256_of(layout, self.flat, self.lengths)


def flatten(
    rows: Sequence[Sequence[int]], name: str, *, least: int = 1, vocab_size: int | None = None
) -> Ragged:
    """Check rows of at least `least` ids and lay them out; errors give its `name` and number."""
    if len(rows) == 0:
        raise DataError(f"there must be at least one {name}, got none")
    lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
    if (short := np.flatnonzero(lengths < least)).size:
        first = short[0]
        raise DataError(f"{name} {first} must have at least {least} tokens, got {lengths[first]}")
    flat = check_ids(np.concatenate([np.asarray(row) for row in rows]), vocab_size)
    if flat.max() < 2**31:
        flat = flat.astype(np.int32)
    return Ragged(flat, np.cumsum(lengths) - lengths, lengths)


def check_ids(
    ids: Tensor | np.ndarray | Sequence[int], vocab_size: int | None = None
) -> np.ndarray:
    """One-dimensional whole numbers from 0 to vocab_size - 1, as an array; nothing is copied."""
    array = ids.numpy() if isinstance(ids, Tensor) else np.asanyarray(ids)
    if array.ndim != 1:
        raise DataError(f"ids must have one dimension, got shape {list(array.shape)}")
    if array.size == 0:
        raise DataError("ids must be at least one, got none")
    if array.dtype.kind not in "iu":
        raise TypeError(f"ids must be whole numbers, got {array.dtype}")
    highest = np.inf if vocab_size is None else vocab_size - 1
    for begin in range(0, len(array), _AT_ONCE):
        part = array[begin : begin + _AT_ONCE]
        if part.min() < 0 or part.max() > highest:
            place = int(np.flatnonzero((part < 0) | (part > highest))[0])
            raise DataError(
                f"ids must be from 0 to {'...' if vocab_size is None else highest} "
                f"(vocab_size {vocab_size}), got {part[place]} at position {begin + place}"
            )
    return array


def sha256_of(layout: str, *arrays: np.ndarray) -> str:
    """A hash of arrays that does not depend on their integer type, and of their layout."""
    digest = hashlib.sha256(layout.encode())
    for array in arrays:
        for begin in range(0, len(array), _AT_ONCE):
            digest.update(array[begin : begin + _AT_ONCE].astype("<i8").tobytes())
    return digest.hexdigest()
