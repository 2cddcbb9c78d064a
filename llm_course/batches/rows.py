"""Many documents as one flat array of ids, and how documents share rows of a fixed length."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, get_args

import numpy as np
from torch import Tensor

from llm_course.errors import ConfigError, DataError

LongDocuments = Literal["error", "cut", "drop"]

_AT_ONCE = 1 << 22  # ids checked and hashed at a time: a memory-mapped text stays on the disk


@dataclass(frozen=True)
class Ragged:
    """Documents of different lengths, one after the other in `flat`."""

    flat: np.ndarray
    begins: np.ndarray  # of each document in `flat`
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.lengths)

    def take(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The tokens of some documents in this order (int64), and where each of them begins."""
        lengths = self.lengths[chosen]
        begins = np.cumsum(lengths) - lengths
        index = np.repeat(self.begins[chosen] - begins, lengths) + np.arange(lengths.sum())
        return self.flat[index].astype(np.int64), begins


def flatten_documents(
    documents: Sequence[Sequence[int]],
    context: int,
    long_documents: LongDocuments,
    vocab_size: int | None,
) -> tuple[Ragged, int]:
    """Check the documents and lay them out flat; also how many are longer than `context`."""
    if long_documents not in get_args(LongDocuments):
        choices = ", ".join(get_args(LongDocuments))
        raise ConfigError(f"long_documents must be one of {choices}, got {long_documents!r}")
    if len(documents) == 0:
        raise DataError("documents must be at least one, got none")
    lengths = np.fromiter(map(len, documents), dtype=np.int64, count=len(documents))
    if (short := np.flatnonzero(lengths < 2)).size:
        raise DataError(
            f"document {short[0]} must have at least 2 tokens (BOS and EOS), "
            f"got {lengths[short[0]]}"
        )
    long = int((lengths > context).sum())
    if long:
        documents = _shortened(documents, context, long_documents, long, int(lengths.max()))
        lengths = np.fromiter(map(len, documents), dtype=np.int64, count=len(documents))
    flat = check_ids(_concatenated(documents, int(lengths.sum())), vocab_size)
    ragged = Ragged(flat, np.cumsum(lengths) - lengths, lengths)
    first = flat[ragged.begins]
    if (odd := np.flatnonzero(first != first[0])).size:
        raise DataError(
            f"every document must begin with BOS: document 0 begins with {first[0]}, "
            f"document {odd[0]} with {first[odd[0]]}"
        )
    return ragged, long


def flatten_rows(rows: Sequence[Sequence[int]], vocab_size: int | None, name: str) -> Ragged:
    """Rows of at least one id each, laid out flat; errors call a row by `name` and its number."""
    if len(rows) == 0:
        raise DataError(f"there must be at least one {name}, got none")
    lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
    if (empty := np.flatnonzero(lengths == 0)).size:
        raise DataError(f"{name} {empty[0]} must have at least 1 token, got none")
    flat = check_ids(_concatenated(rows, int(lengths.sum())), vocab_size)
    return Ragged(flat, np.cumsum(lengths) - lengths, lengths)


def _shortened(
    documents: Sequence[Sequence[int]], context: int, how: str, long: int, longest: int
) -> Sequence[Sequence[int]]:
    if how == "cut":
        return [document[:context] for document in documents]
    if how == "drop" and long < len(documents):
        return [document for document in documents if len(document) <= context]
    advice = "raise context" if how == "drop" else "raise context, or let them be cut or dropped"
    raise DataError(
        f"{long} of {len(documents)} documents are longer than context = {context} tokens, "
        f"the longest has {longest}: {advice}"
    )


def _concatenated(documents: Sequence[Any], total: int) -> np.ndarray:
    if isinstance(documents[0], (Tensor, np.ndarray)):
        return np.concatenate([np.asarray(document) for document in documents])
    if not all(isinstance(i, int) for i in documents[0]):
        raise TypeError(f"ids must be whole numbers, got {documents[0][:3]!r}")
    try:
        return np.fromiter(chain.from_iterable(documents), dtype=np.int32, count=total)
    except OverflowError:
        raise DataError("ids must be below 2^31, got a larger one") from None


def check_ids(ids: Tensor | np.ndarray | Sequence[int], vocab_size: int | None) -> np.ndarray:
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


def check_settings(context: int, batch_size: int, rank: int, world_size: int) -> None:
    """Refuse sizes that make no batch."""
    for name, value, lowest in (
        ("context", context, 2),
        ("batch_size", batch_size, 1),
        ("world_size", world_size, 1),
    ):
        if value < lowest:
            raise ConfigError(f"{name} must be at least {lowest}, got {value}")
    if not 0 <= rank < world_size:
        raise ConfigError(f"rank must be from 0 to {world_size - 1}, got {rank}")


def sha256_of(ids: np.ndarray, layout: str, lengths: np.ndarray | None = None) -> str:
    """A hash of ids that does not depend on their integer type, and of their layout."""
    digest = hashlib.sha256(layout.encode())
    for array in (ids,) if lengths is None else (ids, lengths):
        for begin in range(0, len(array), _AT_ONCE):
            digest.update(array[begin : begin + _AT_ONCE].astype("<i8").tobytes())
    return digest.hexdigest()


def fill_rows(lengths: np.ndarray, context: int) -> np.ndarray:
    """Where each row begins, as an index of documents, when rows are filled one after the other.

    A row ends with the document that reaches `context`, cut there; the last row may stay short.
    """
    ends = np.cumsum(lengths)
    after = (
        np.searchsorted(ends, ends - lengths + context) + 1
    )  # the row after one that begins here
    follows = np.minimum(after, len(lengths)).tolist()
    first = [0]
    while first[-1] < len(follows):
        first.append(follows[first[-1]])
    return np.asarray(first)


def pack_rows(
    order: np.ndarray, lengths: np.ndarray, context: int
) -> tuple[np.ndarray, np.ndarray]:
    """Best-fit packing, longest first: the documents row by row, and where each row begins.

    Each document goes to the row with the least room that is enough. `rooms` has bit r set when
    some row has r tokens of room, so finding that row takes one step whatever the number of rows.
    """
    longest_first = order[np.argsort(-lengths[order], kind="stable")]
    rows: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(context + 1)]
    rooms = 0
    for document, length in zip(longest_first.tolist(), lengths[longest_first].tolist()):
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            row = with_room[room].pop()
            rooms ^= 0 if with_room[room] else 1 << room
            rows[row].append(document)
        else:
            room, row = context, len(rows)
            rows.append([document])
        left = room - length
        with_room[left].append(row)
        rooms |= 1 << left
    sizes = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
    packed = np.fromiter(chain.from_iterable(rows), dtype=np.int64, count=len(order))
    return packed, np.concatenate([[0], np.cumsum(sizes)])
