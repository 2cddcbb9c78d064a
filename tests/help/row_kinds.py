"""Every kind of rows, made of data that need no random numbers, for the tests of batches."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llm_course.batches.blocks import Blocks
from llm_course.batches.documents import PackedDocuments
from llm_course.batches.labelled import LabelledRows, Row
from llm_course.batches.pairs import Pairs
from llm_course.batches.sampler import Rows
from llm_course.batches.sentence_pairs import SentencePairs
from llm_course.losses.masked import Masking

VOCAB = 200
MASKING = Masking(cls_id=1, sep_id=2, mask_id=3, pad_id=0, vocab_size=VOCAB)
SILENT = Masking(cls_id=1, sep_id=2, mask_id=3, pad_id=0, vocab_size=VOCAB, chosen=0.0)


def ids(number: int, length: int) -> list[int]:
    return [10 + (number * 7 + place * 13) % (VOCAB - 10) for place in range(length)]


def texts(n: int, longest: int, factor: int) -> list[list[int]]:
    """Rows of 2 to `longest` ids."""
    return [ids(i, 2 + i * factor % (longest - 1)) for i in range(n)]


def documents() -> list[list[int]]:
    return [[1, *text, 2] for text in texts(300, 38, 17)]


def stories(n: int = 90) -> list[list[list[int]]]:
    """Documents of 2 to 6 sentences of 2 to 8 ids."""
    return [[ids(i + j, 2 + (i + 3 * j) % 7) for j in range(2 + i % 5)] for i in range(n)]


def labelled() -> list[Row]:
    return [Row(text, [0] * len(text), i % 3) for i, text in enumerate(texts(203, 28, 11))]


KINDS: dict[str, Callable[[], Rows]] = {
    "documents": lambda: PackedDocuments(documents(), 48),
    "documents that see each other": lambda: PackedDocuments(documents(), 48, separate=False),
    "blocks": lambda: Blocks(np.asarray(ids(0, 3001)), 16),
    "few blocks": lambda: Blocks(np.asarray(ids(0, 90)), 16),
    "pairs": lambda: Pairs(texts(207, 30, 11), texts(207, 28, 19), pad_id=0, start_id=1),
    "labelled rows": lambda: LabelledRows(labelled(), 40, pad_id=0),
    "sentence pairs": lambda: SentencePairs(stories(), 80, SILENT),
    "sentence pairs, one a row": lambda: SentencePairs(stories(), 80, SILENT, packed=False),
    "sentences without pairs": lambda: SentencePairs(stories(), 80, SILENT, next_sentence=False),
}


def with_workers(batches: Any, workers: int | None) -> Any:
    """The same batches, gathered by so many processes."""
    batches.workers = workers
    return batches


def digest(batches: Iterable[dict[str, Tensor]], n: int = 80) -> str:
    """SHA-256 of all that the first batches hold."""
    found = hashlib.sha256()
    for batch in islice(batches, n):
        for name in sorted(batch):
            found.update(f"{name} {batch[name].dtype} {list(batch[name].shape)}".encode())
            found.update(batch[name].contiguous().numpy().tobytes())
    return found.hexdigest()


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
