"""Rows of sentence pairs for BERT: `[CLS] A [SEP] B [SEP]`, masked anew whenever they are read.

A document is a list of sentences. Its pair is made in every epoch anew: it is divided between two
sentences, and with probability 1/2 the second part gives way to the second part of another
document. So B is never a part of A's document when the label says that it is not, and each true
pair lies in one document. Without next-sentence prediction a document is `[CLS] text [SEP]`.

Several short pairs share a row. They do not see each other: positions restart, the mask is
block-diagonal, and the label of each pair stands at its [CLS] (`next_sentence_label` [B, T]).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from llm_course.batches.batching import Batch, EndlessBatches, keep_apart
from llm_course.batches.rows import check_ids, check_settings, pack_rows, sha256_of
from llm_course.errors import ConfigError, DataError
from llm_course.losses.chunked import IGNORE
from llm_course.losses.masked import CHOSEN, MASKED, REPLACED, check_shares, mask_tokens

IS_NEXT, NOT_NEXT = 0, 1
Documents = Sequence[Sequence[Sequence[int]]]  # documents, their sentences, their ids


@dataclass(frozen=True, kw_only=True)
class Masking:
    """The ids that BERT's input is made of, and how much of it is hidden."""

    cls_id: int
    sep_id: int
    mask_id: int
    pad_id: int
    vocab_size: int
    continues: tuple[bool, ...] | None = None  # per id: it continues a word; None: no whole words
    chosen: float = CHOSEN
    masked: float = MASKED
    replaced: float = REPLACED

    def __post_init__(self) -> None:
        check_shares(self.chosen, self.masked, self.replaced)
        if self.continues is not None and len(self.continues) != self.vocab_size:
            raise ConfigError(
                f"continues must say it of each of {self.vocab_size} ids, got {len(self.continues)}"
            )

    @property
    def special_ids(self) -> tuple[int, ...]:
        return (self.pad_id, self.cls_id, self.sep_id, self.mask_id)

    def apply(self, input_ids: torch.Tensor, generator: torch.Generator) -> tuple[Any, Any]:
        """`mask_tokens` with these settings."""
        table = None if self.continues is None else torch.tensor(self.continues)
        return mask_tokens(
            input_ids,
            mask_id=self.mask_id,
            vocab_size=self.vocab_size,
            special_ids=self.special_ids,
            generator=generator,
            chosen=self.chosen,
            masked=self.masked,
            replaced=self.replaced,
            continues=None if table is None else table[input_ids],
        )


@dataclass(frozen=True)
class Pair:
    """Two segments of ids without special tokens, and the label; no second one, no label."""

    first: list[int]
    second: list[int] | None
    label: int  # 0: the second follows the first
    sources: tuple[int, int]  # the documents of the two

    def ids(self, masking: Masking) -> list[int]:
        """The ids as the model reads them, before masking."""
        start = [masking.cls_id, *self.first, masking.sep_id]
        return start if self.second is None else [*start, *self.second, masking.sep_id]

    def segments(self) -> list[int]:
        """0 for `[CLS] A [SEP]`, 1 for `B [SEP]`."""
        return [0] * (len(self.first) + 2) + [1] * (
            0 if self.second is None else len(self.second) + 1
        )


class PairMaker:
    """Makes pairs out of documents, with a generator that is passed in."""

    def __init__(self, documents: Documents, context: int, next_sentence: bool, vocab_size: int):
        self.context, self.next_sentence = context, next_sentence
        least = 2 if next_sentence else 1
        kept = [d for d in documents if sum(map(bool, d)) >= least]
        self.skipped = len(documents) - len(kept)  # too short to be divided
        if len(kept) < least:
            raise DataError(
                f"next-sentence prediction needs at least 2 documents of 2 sentences, got "
                f"{len(kept)} among {len(documents)} documents"
                if next_sentence
                else "documents must be at least one with a sentence, got none"
            )
        if context < 5:
            raise ConfigError(f"context must be at least 5 ([CLS] A [SEP] B [SEP]), got {context}")
        self.documents = [[list(s) for s in d if len(s)] for d in kept]
        flat = [i for d in self.documents for s in d for i in s]
        self.flat = check_ids(np.asarray(flat), vocab_size)
        self.lengths = np.asarray([len(s) for d in self.documents for s in d])

    def __len__(self) -> int:
        return len(self.documents)

    def pairs(self, rng: np.random.Generator) -> list[Pair]:
        """One pair of each document."""
        return [self._pair(i, rng) for i in range(len(self.documents))]

    def _pair(self, i: int, rng: np.random.Generator) -> Pair:
        if not self.next_sentence:
            first = [t for sentence in self.documents[i] for t in sentence]
            return Pair(first[: self.context - 2], None, IS_NEXT, (i, i))
        middle = int(rng.integers(1, len(self.documents[i])))
        label = int(rng.integers(2))
        other = i
        if label == NOT_NEXT:  # uniform over the others
            other = int(rng.integers(len(self.documents) - 1))
            other += other >= i
        begin = middle if other == i else int(rng.integers(1, len(self.documents[other])))
        first = [t for sentence in self.documents[i][:middle] for t in sentence]
        second = [t for sentence in self.documents[other][begin:] for t in sentence]
        self._shorten(first, second)
        return Pair(first, second, label, (i, other))

    def _shorten(self, first: list[int], second: list[int]) -> None:
        """Cut the longer one until both fit: A at its beginning, B at its end; so they meet."""
        room = self.context - 3
        if len(first) + len(second) <= room:
            return
        keep_second = min(len(second), max(room // 2, room - len(first)))
        del second[keep_second:]
        del first[: max(0, len(first) - (room - keep_second))]


class SentencePairBatches(EndlessBatches):
    """Endless, shuffled, resumable batches of packed pairs for BERT's pretraining.

    Batches have `input_ids`, `token_type_ids`, `position_ids`, `attention_mask` [B, T, T],
    `labels` and, with `next_sentence`, `next_sentence_label` [B, T]. Pairs, their order and their
    masks follow from the seed and the number of the epoch.

    `DataError` for no documents, ids out of range, or fewer rows than a batch.
    """

    def __init__(
        self,
        documents: Documents,
        context: int,
        batch_size: int,
        masking: Masking,
        *,
        seed: int = 0,
        next_sentence: bool = True,
        packed: bool = True,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(context, batch_size, seed, rank, world_size)
        self.masking, self.packed = masking, packed
        self.maker = PairMaker(documents, context, next_sentence, masking.vocab_size)
        self._pairs: list[Pair] = []
        self._order = self._first = np.zeros(0, dtype=np.int64)
        self._prepare()

    @property
    def fill(self) -> float:
        """The share of the present epoch's positions that hold a token and not padding."""
        self._prepare()
        held = sum(len(pair.ids(self.masking)) for pair in self._pairs)
        return held / (self.rows * self.context)

    def _shuffle(self, generator: torch.Generator) -> None:
        number = int(torch.randint(2**62, (1,), generator=generator))
        self._pairs = self.maker.pairs(np.random.default_rng(number))
        order = torch.randperm(len(self._pairs), generator=generator).numpy()
        if self.packed:
            lengths = np.asarray([len(pair.ids(self.masking)) for pair in self._pairs])
            order, first = pack_rows(order, lengths, self.context)
            rows = torch.randperm(len(first) - 1, generator=generator).numpy()
            order = np.concatenate([order[first[r] : first[r + 1]] for r in rows])
            first = np.concatenate([[0], np.cumsum(np.diff(first)[rows])])
        else:
            first = np.arange(len(order) + 1)
        self._order, self._first = order, first

    def _count_rows(self) -> int:
        return len(self._first) - 1

    def _gather(self, first: int, last: int) -> Batch:
        begins = self._first[first : last + 1]
        rows = [[self._pairs[i] for i in self._order[a:b]] for a, b in pairwise(begins)]
        name = f"{self.seed} {self.epoch} {first}"
        return pair_batch(rows, self.context, self.masking, name)

    def _hash(self) -> str:
        layout = f"pairs {self.context} {self.maker.next_sentence} {self.packed} {self.masking}"
        return sha256_of(self.maker.flat, layout, self.maker.lengths)


class SentencePairEvaluation:
    """The pairs of held-out documents with fixed masks, each once; batches end.

    The pairs and the masks follow from the seed, so that two models are judged on the same ones.
    """

    def __init__(
        self,
        documents: Documents,
        context: int,
        batch_size: int,
        masking: Masking,
        *,
        seed: int = 0,
        next_sentence: bool = True,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        check_settings(context, batch_size, rank, world_size)
        self.context, self.batch_size, self.masking, self.seed = context, batch_size, masking, seed
        self.maker = PairMaker(documents, context, next_sentence, masking.vocab_size)
        self.pairs = self.maker.pairs(np.random.default_rng(seed))
        lengths = np.asarray([len(pair.ids(masking)) for pair in self.pairs])
        by_length = np.argsort(-lengths, kind="stable")[rank::world_size]
        self.order: list[int] = by_length.tolist()  # the pair of each row

    def __len__(self) -> int:
        return math.ceil(len(self.order) / self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for begin in range(0, len(self.order), self.batch_size):
            chosen = self.order[begin : begin + self.batch_size]
            rows = [[self.pairs[i]] for i in chosen]
            longest = max(len(row[0].ids(self.masking)) for row in rows)
            yield pair_batch(rows, longest, self.masking, f"evaluation {self.seed} {chosen[0]}")

    def fingerprint(self) -> str:
        """SHA-256 of the documents of all ranks."""
        return sha256_of(self.maker.flat, f"pairs {self.seed}", self.maker.lengths)


def pair_batch(rows: Sequence[Sequence[Pair]], width: int, masking: Masking, name: str) -> Batch:
    """The pairs of each row side by side, padded to `width` and masked; `name` seeds the masks."""
    shape = (len(rows), width)
    input_ids = np.full(shape, masking.pad_id, dtype=np.int64)
    segments, edge = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=bool)
    next_sentence = np.full(shape, IGNORE, dtype=np.int64)
    for r, row in enumerate(rows):
        place = 0
        for pair in row:
            ids = pair.ids(masking)
            end = place + len(ids)
            input_ids[r, place:end], segments[r, place:end] = ids, pair.segments()
            edge[r, place], next_sentence[r, place] = True, pair.label
            place = end
        edge[r, place:width][:1] = True  # padding is a document of its own
    digest = hashlib.sha256(name.encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    masked_ids, labels = masking.apply(torch.from_numpy(input_ids), generator)
    batch = {
        "input_ids": masked_ids,
        "token_type_ids": torch.from_numpy(segments),
        "labels": labels,
        **keep_apart(torch.from_numpy(edge)),
    }
    if any(pair.second is not None for row in rows for pair in row):
        batch["next_sentence_label"] = torch.from_numpy(next_sentence)
    return batch
