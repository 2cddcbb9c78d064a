"""Rows of sentence pairs for BERT: `[CLS] A [SEP] B [SEP]`, masked anew in every pass.

A document is a list of sentences. Its pair is made in every pass anew: it is divided between two
sentences, and with probability 1/2 the second part gives way to the second part of another
document. So B is never a part of A's document when the label says that it is not, and each true
pair lies in one document. Without next-sentence prediction a document is `[CLS] text [SEP]`.

Several short pairs share a row. They do not see each other: positions restart, the mask is
block-diagonal, and the label of each pair stands at its [CLS] (`next_sentence_label` [B, T]).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from llm_course.batches.documents import keep_apart
from llm_course.batches.ragged import flatten
from llm_course.batches.sampler import Batch, Keys, Rows, generator_of
from llm_course.errors import ConfigError, DataError
from llm_course.losses.chunked import IGNORE
from llm_course.losses.masked import Masking

IS_NEXT, NOT_NEXT = 0, 1
Documents = Sequence[Sequence[Sequence[int]]]  # documents, their sentences, their ids


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


class SentencePairs(Rows):
    """Packed pairs for pretraining, in rows of `context` tokens; `packed=False`: a pair a row.

    Batches have `input_ids`, `token_type_ids`, `position_ids`, `attention_mask` [B, T, T],
    `labels` and, with `next_sentence`, `next_sentence_label` [B, T]. `.skipped` counts documents
    that are too short to be divided.

    `DataError` for too few documents, ids out of range.
    """

    def __init__(
        self,
        documents: Documents,
        context: int,
        masking: Masking,
        *,
        next_sentence: bool = True,
        packed: bool = True,
    ) -> None:
        self.context, self.masking = context, masking
        self.next_sentence, self.packed = next_sentence, packed
        least = 2 if next_sentence else 1
        kept = [d for d in documents if sum(map(bool, d)) >= least]
        self.skipped = len(documents) - len(kept)
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
        sentences = [s for d in self.documents for s in d]
        self._flat = flatten(sentences, "sentence", vocab_size=masking.vocab_size)

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
        # The longer one is cut until both fit: A at its beginning, B at its end; so they meet.
        room = self.context - 3
        n_second = min(len(second), max(room // 2, room - len(first)))
        n_first = min(len(first), room - n_second)
        return Pair(first[len(first) - n_first :], second[:n_second], label, (i, other))

    def one_pass(self, generator: torch.Generator, least: int) -> Keys:
        """A row is the number that its masks hang on, which names the pass, and its pairs."""
        number = int(torch.randint(2**62, (1,), generator=generator))
        pairs = self.pairs(np.random.default_rng(number))
        order = torch.randperm(len(pairs), generator=generator).numpy()
        if not self.packed:
            return [(number, [pairs[i]]) for i in order]
        lengths = np.asarray([len(pair.ids(self.masking)) for pair in pairs])
        rows = pack_rows(order, lengths, self.context)
        shuffled = torch.randperm(len(rows), generator=generator).tolist()
        return [(number, [pairs[i] for i in rows[r]]) for r in shuffled]

    def gather(self, keys: Keys) -> Batch:
        # The document of the first pair tells rows of one pass apart.
        names = [f"{number} {pairs[0].sources[0]}" for number, pairs in keys]
        return pair_batch([pairs for _, pairs in keys], self.context, self.masking, names)

    def fingerprint(self) -> str:
        layout = f"pairs {self.context} {self.next_sentence} {self.packed} {self.masking}"
        return self._flat.sha256(layout)


class FixedPairs(Rows):
    """Held-out pairs with fixed masks, a row each: two models are judged on the same ones."""

    def __init__(self, rows: SentencePairs, seed: int = 0) -> None:
        self.masking, self.seed = rows.masking, seed
        self.pairs = rows.pairs(np.random.default_rng(seed))
        self.lengths = (np.asarray([len(pair.ids(rows.masking)) for pair in self.pairs]),)

    def gather(self, keys: Keys) -> Batch:
        names = [f"evaluation {self.seed} {i}" for i in keys]
        width = int(self.lengths[0][keys].max())
        return pair_batch([[self.pairs[i]] for i in keys], width, self.masking, names)


def pair_batch(
    rows: Sequence[Sequence[Pair]], width: int, masking: Masking, names: Sequence[str] = ()
) -> Batch:
    """The pairs of each row side by side, padded to `width`.

    The masks of a row follow from its name; without names nothing is hidden.
    """
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
    ids_read = torch.from_numpy(input_ids)
    labels = torch.full_like(ids_read, IGNORE)
    if names:
        ids_read, labels = masking.apply(ids_read, [generator_of(name) for name in names])
    batch = {
        "input_ids": ids_read,
        "token_type_ids": torch.from_numpy(segments),
        "labels": labels,
        **keep_apart(torch.from_numpy(edge)),
    }
    if any(pair.second is not None for row in rows for pair in row):
        batch["next_sentence_label"] = torch.from_numpy(next_sentence)
    return batch


def pack_rows(order: np.ndarray, lengths: np.ndarray, context: int) -> list[list[int]]:
    """Best-fit packing, longest first: the documents of each row.

    Each document goes to the row with the least room that is enough. `rooms` has bit r set when
    some row has r tokens of room, so finding that row takes one step whatever the number of rows.
    """
    rows: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(context + 1)]
    rooms = 0
    for document in order[np.argsort(-lengths[order], kind="stable")].tolist():
        length = int(lengths[document])
        if fitting := rooms >> length:
            room = length + (fitting & -fitting).bit_length() - 1
            row = with_room[room].pop()
            rooms ^= 0 if with_room[room] else 1 << room
        else:
            room, row = context, len(rows)
            rows.append([])
        rows[row].append(document)
        with_room[room - length].append(row)
        rooms |= 1 << (room - length)
    return rows
