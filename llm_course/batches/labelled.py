"""Fine-tuning BERT: rows with labels, their batches, and the losses of the three tasks.

A row is what the model reads, `[CLS] A [SEP]` or `[CLS] A [SEP] B [SEP]`, and its label: a class,
a class for each token (-100: not counted), or the first and the last token of an answer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from llm_course.batches.batching import Batch, EndlessBatches
from llm_course.batches.rows import check_settings, flatten_rows, sha256_of
from llm_course.errors import ConfigError, DataError
from llm_course.losses.chunked import IGNORE
from llm_course.losses.masked import INPUTS

POOL = 50  # batches whose rows are sorted by length together


@dataclass(frozen=True)
class Row:
    """Ids, the segment of each, and the label; -1 where a row is only to be predicted."""

    ids: list[int]
    segments: list[int]
    label: int | list[int] | tuple[int, int]


def classification_loss_fn(
    model: Any, batch: Mapping[str, Tensor]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Cross-entropy of classes in nats, for whole rows ([B]) or for each token ([B, T]).

    Labels of -100 do not count.
    """
    logits = model(**{name: batch[name] for name in INPUTS if name in batch})
    return {"class": _cross_entropy(logits, batch["labels"])}


def answer_loss_fn(model: Any, batch: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """The mean of the cross-entropies of the first and the last token of the answer, in nats.

    Devlin et al. 2019, §4.2: a softmax over the tokens of the row, padding excluded.
    """
    start, end = model(**{name: batch[name] for name in INPUTS if name in batch})
    outside = ~batch["attention_mask"].bool()
    total = start.new_zeros(())
    for scores, name in ((start, "start_positions"), (end, "end_positions")):
        loss, count = _cross_entropy(scores.masked_fill(outside, -torch.inf), batch[name])
        total = total + loss / 2
    return {"answer": (total, count)}


def _cross_entropy(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    if logits.shape[:-1] != labels.shape:
        raise ValueError(
            f"labels must be {list(logits.shape[:-1])} for logits {list(logits.shape)}, "
            f"got {list(labels.shape)}"
        )
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    total = F.cross_entropy(
        logits.flatten(0, -2), labels.flatten(), ignore_index=IGNORE, reduction="sum"
    )
    return total, (labels != IGNORE).sum()


class LabelledRows:
    """Checked rows of one task, and how some of them become a batch, padded on the right."""

    def __init__(self, rows: Sequence[Row], context: int, pad_id: int, vocab_size: int | None):
        self.ids = flatten_rows([row.ids for row in rows], vocab_size, "row")
        longest = int(self.ids.lengths.max())
        if longest > context:
            raise DataError(
                f"row {int(self.ids.lengths.argmax())} has {longest} tokens, more than "
                f"context = {context}: cut it, or divide it into windows"
            )
        for number, row in enumerate(rows):
            per_token = isinstance(row.label, list) and len(row.label) != len(row.ids)
            if len(row.segments) != len(row.ids) or per_token:
                raise DataError(f"row {number} must have a segment and a label for each token")
        self.rows, self.pad_id = rows, pad_id

    def __len__(self) -> int:
        return len(self.rows)

    def gather(self, chosen: np.ndarray) -> Batch:
        """The batch of some rows."""
        rows = [self.rows[i] for i in chosen.tolist()]
        width = max(len(row.ids) for row in rows)

        def padded(values: Sequence[Sequence[int]], fill: int) -> Tensor:
            table = [[*value, *[fill] * (width - len(value))] for value in values]
            return torch.tensor(table, dtype=torch.long)

        batch = {
            "input_ids": padded([row.ids for row in rows], self.pad_id),
            "token_type_ids": padded([row.segments for row in rows], 0),
            "attention_mask": padded([[1] * len(row.ids) for row in rows], 0).bool(),
        }
        labels: list[Any] = [row.label for row in rows]
        if isinstance(labels[0], tuple):
            batch["start_positions"] = torch.tensor([label[0] for label in labels])
            batch["end_positions"] = torch.tensor([label[1] for label in labels])
        elif isinstance(labels[0], list):
            batch["labels"] = padded(labels, IGNORE)
        else:
            batch["labels"] = torch.tensor(labels)
        return batch

    def fingerprint(self, layout: str) -> str:
        """SHA-256 of all ids, segments and labels."""
        labels = [str(row.label) + str(row.segments) for row in self.rows]
        return sha256_of(self.ids.flat, layout + "\n".join(labels), self.ids.lengths)


class LabelledBatches(EndlessBatches):
    """Endless shuffled batches with their state; rows of about one length share a batch.

    `held_out` names what the run is judged by: one that is resumed must have the same.

    `DataError`: no rows, a row longer than `context`, ids out of range, fewer rows than a batch.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        context: int,
        batch_size: int,
        *,
        pad_id: int,
        seed: int = 0,
        vocab_size: int | None = None,
        held_out: str = "",
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(context, batch_size, seed, rank, world_size)
        self.held_out = held_out
        self.data = LabelledRows(rows, context, pad_id, vocab_size)
        self._order = np.zeros(0, dtype=np.int64)
        self._prepare()

    def _shuffle(self, generator: torch.Generator) -> None:
        needed = self.batch_size * self.world_size
        order = torch.randperm(len(self.data), generator=generator).numpy()
        order = order[: len(order) - len(order) % needed]
        for begin in range(0, len(order), POOL * needed):
            pool = order[begin : begin + POOL * needed]
            pool[:] = pool[np.argsort(self.data.ids.lengths[pool], kind="stable")]
        batches = order.reshape(-1, needed)
        self._order = batches[torch.randperm(len(batches), generator=generator).numpy()].ravel()

    def _count_rows(self) -> int:
        return len(self._order)

    def _gather(self, first: int, last: int) -> Batch:
        return self.data.gather(self._order[first:last])

    def _hash(self) -> str:
        return self.data.fingerprint(f"labelled {self.context} {self.held_out}".rstrip())


class LabelledEvaluation:
    """All rows once, longest first; `.order` gives for each row of the batches its number."""

    def __init__(
        self,
        rows: Sequence[Row],
        context: int,
        batch_size: int,
        *,
        pad_id: int,
        vocab_size: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        check_settings(context, batch_size, rank, world_size)
        self.batch_size = batch_size
        self.data = LabelledRows(rows, context, pad_id, vocab_size)
        self._rows = np.argsort(-self.data.ids.lengths, kind="stable")[rank::world_size]
        self.order: list[int] = self._rows.tolist()

    def __len__(self) -> int:
        return math.ceil(len(self._rows) / self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for begin in range(0, len(self._rows), self.batch_size):
            yield self.data.gather(self._rows[begin : begin + self.batch_size])

    def fingerprint(self) -> str:
        """SHA-256 of the rows of all ranks."""
        return self.data.fingerprint("labelled evaluation")


# From words and texts to rows


@dataclass(frozen=True)
class Shape:
    """The ids around a text, and how long a row may be."""

    cls_id: int
    sep_id: int
    context: int

    def row(self, first: list[int], second: list[int] | None, label: Any) -> tuple[Row, bool]:
        """A row of one or two segments, and whether it had to be cut: the longer one at its end."""
        extra = 2 if second is None else 3
        if self.context <= extra:
            raise ConfigError(f"context must be at least {extra + 1}, got {self.context}")
        kept, other = first, second or []
        while len(kept) + len(other) > self.context - extra:
            over = len(kept) + len(other) - (self.context - extra)
            longer = max(len(kept), len(other))
            difference = longer - min(len(kept), len(other)) or 1
            if len(kept) == longer:
                kept = kept[: longer - min(over, difference)]
            else:
                other = other[: longer - min(over, difference)]
        cut = len(kept) < len(first) or (second is not None and len(other) < len(second))
        ids = [self.cls_id, *kept, self.sep_id]
        segments = [0] * len(ids)
        if second is not None:
            ids += [*other, self.sep_id]
            segments += [1] * (len(other) + 1)
        return Row(ids, segments, label), cut

    def tagged(self, words: Sequence[Sequence[int]], classes: Sequence[int]) -> tuple[Row, int]:
        """A row of words with a class each, and how many words did not fit.

        The label stands at the first token of a word: the others have -100, so that a long word
        does not count more than a short one (Devlin et al. 2019, §5.3).
        """
        if len(words) != len(classes):
            raise DataError(f"each word must have a tag, got {len(words)} and {len(classes)}")
        ids, labels, left_out = [self.cls_id], [IGNORE], 0
        for number, (word, chosen) in enumerate(zip(words, classes)):
            if len(ids) + len(word) > self.context - 1:
                left_out = len(words) - number
                break
            ids += word
            labels += [chosen, *[IGNORE] * (len(word) - 1)][: len(word)]
        ids.append(self.sep_id)
        labels.append(IGNORE)
        return Row(ids, [0] * len(ids), labels), left_out


@dataclass(frozen=True)
class Window:
    """A row with a question and a part of its context, and where each token lies in that text."""

    row: Row
    example: int
    offsets: list[tuple[int, int] | None]  # None: not a token of the context


def question_windows(
    shape: Shape,
    example: int,
    question: list[int],
    context: list[int],
    offsets: Sequence[tuple[int, int]],
    answer: tuple[int, int] | None,
    stride: int,
) -> list[Window]:
    """A long context in windows that overlap by `stride` tokens, each with the whole question.

    The label is the first and the last token of the answer text[a:b], or [CLS] twice where the
    window does not hold all of it. A question longer than half of the row is cut.

    Raises:
        ConfigError: a stride that leaves no way forward.
    """
    question = question[: shape.context // 2]
    room = shape.context - len(question) - 3
    if not 0 <= stride < room:
        raise ConfigError(
            f"stride must be from 0 to {room - 1} for this question and context = "
            f"{shape.context}, got {stride}"
        )
    windows = []
    begin = 0
    while True:
        part = context[begin : begin + room]
        row, _ = shape.row(question, part, (0, 0))
        shift = len(question) + 2 - begin  # where token `begin` of the context stands
        inside = range(begin, begin + len(part))
        if answer is not None and (place := _place_of(answer, offsets, inside)):
            row = Row(row.ids, row.segments, (place[0] + shift, place[1] + shift))
        places: list[tuple[int, int] | None] = [None] * len(row.ids)
        for i in inside:
            places[i + shift] = offsets[i]
        windows.append(Window(row, example, places))
        if begin + room >= len(context):
            return windows
        begin += room - stride


def _place_of(
    answer: tuple[int, int], offsets: Sequence[tuple[int, int]], tokens: range
) -> tuple[int, int] | None:
    """The first and the last of these tokens that hold the answer, if they hold all of it."""
    held = [i for i in tokens if offsets[i][0] < answer[1] and offsets[i][1] > answer[0]]
    if held and offsets[held[0]][0] <= answer[0] and offsets[held[-1]][1] >= answer[1]:
        return held[0], held[-1]
    return None


class Found(NamedTuple):
    """An answer as text[start:end], and its score minus that of "no answer"."""

    start: int
    end: int
    score: float


def best_answer(
    windows: Sequence[tuple[Window, Sequence[float], Sequence[float]]],
    text: str,
    longest: int,
    candidates: int = 20,
) -> tuple[str, float]:
    """The text of `best_place`, and its score."""
    found = best_place(windows, longest, candidates)
    return text[found.start : found.end], found.score


def best_place(
    windows: Sequence[tuple[Window, Sequence[float], Sequence[float]]],
    longest: int,
    candidates: int = 20,
) -> Found:
    """The stretch of the text whose first and last token have the largest sum of scores.

    Over all windows of one example; not longer than `longest` tokens. The score of "no answer" is
    the sum of the scores at [CLS], the lowest over the windows. -inf where there is no token.
    """
    best, none = Found(0, 0, -math.inf), math.inf
    for window, start, end in windows:
        none = min(none, start[0] + end[0])
        allowed = [i for i, place in enumerate(window.offsets) if place is not None]
        firsts = sorted(allowed, key=lambda i: -start[i])[:candidates]
        lasts = sorted(allowed, key=lambda i: -end[i])[:candidates]
        for first in firsts:
            for last in lasts:
                score = start[first] + end[last]
                if first <= last < first + longest and score > best.score:
                    a, b = window.offsets[first], window.offsets[last]
                    assert a is not None
                    assert b is not None
                    best = Found(a[0], b[1], score)
    return best._replace(score=best.score - none)
