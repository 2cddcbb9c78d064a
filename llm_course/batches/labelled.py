"""Rows with labels, for fine-tuning BERT: whole texts, tagged words, questions about a text.

A row is what the model reads, `[CLS] A [SEP]` or `[CLS] A [SEP] B [SEP]`, and its label: a class,
a class for each token (-100: not counted), or the first and the last token of an answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from llm_course.batches.ragged import flatten
from llm_course.batches.sampler import Batch, Keys, Rows, at_least
from llm_course.errors import ConfigError, DataError
from llm_course.losses.chunked import IGNORE

CANDIDATES = 20  # the likeliest first and last tokens of an answer, of which all pairs are tried


@dataclass(frozen=True)
class Row:
    """Ids, the segment of each, and the label; -1 where a row is only to be predicted."""

    ids: list[int]
    segments: list[int]
    label: int | list[int] | tuple[int, int]


class LabelledRows(Rows):
    """Rows of one task, padded on the right, with their labels.

    `held_out` names what the run is judged by: one that is resumed must have the same.

    `DataError`: no rows, a row longer than `context`, ids out of range.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        context: int,
        *,
        pad_id: int,
        vocab_size: int | None = None,
        held_out: str = "",
    ) -> None:
        at_least(2, context=context)
        self.ids = flatten([row.ids for row in rows], "row", vocab_size=vocab_size)
        self.lengths = (self.ids.lengths,)
        if (longest := int(self.ids.lengths.max())) > context:
            raise DataError(
                f"row {int(self.ids.lengths.argmax())} has {longest} tokens, more than "
                f"context = {context}: cut it, or divide it into windows"
            )
        for number, row in enumerate(rows):
            per_token = isinstance(row.label, list) and len(row.label) != len(row.ids)
            if len(row.segments) != len(row.ids) or per_token:
                raise DataError(f"row {number} must have a segment and a label for each token")
        self.segments = flatten([row.segments for row in rows], "row")
        self.rows, self.pad_id, self.held_out = rows, pad_id, held_out

    def gather(self, keys: Keys) -> Batch:
        input_ids, inside = self.ids.padded(keys, self.pad_id)
        segments, _ = self.segments.padded(keys, 0)
        batch = {"input_ids": input_ids, "token_type_ids": segments, "attention_mask": inside}
        labels: list[Any] = [self.rows[i].label for i in keys]
        if isinstance(labels[0], tuple):
            first, last = torch.tensor(labels).unbind(1)
            return {**batch, "start_positions": first, "end_positions": last}
        if isinstance(labels[0], list):
            width = input_ids.shape[1]
            labels = [[*each, *[IGNORE] * (width - len(each))] for each in labels]
        return {**batch, "labels": torch.tensor(labels)}

    def fingerprint(self) -> str:
        labels = "\n".join(str(row.label) for row in self.rows)
        return self.ids.sha256(self.segments.sha256(f"labelled {self.held_out}\n{labels}"))


# From words and texts to rows


@dataclass(frozen=True)
class Shape:
    """The ids around a text, and how long a row may be."""

    cls_id: int
    sep_id: int
    context: int

    def row(self, first: list[int], second: list[int] | None, label: Any) -> tuple[Row, bool]:
        """A row of one or two segments, and whether it had to be cut: the longer one at its end."""
        room = self.context - (2 if second is None else 3)
        if room < 1:
            raise ConfigError(
                f"context must be at least {self.context + 1 - room}, got {self.context}"
            )
        other = second or []
        n_other = min(len(other), max(room - room // 2, room - len(first)))
        kept, other = first[: room - n_other], other[:n_other]
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
) -> tuple[str, float]:
    """The text of `best_place`, and its score."""
    found = best_place(windows, longest)
    return text[found.start : found.end], found.score


def best_place(
    windows: Sequence[tuple[Window, Sequence[float], Sequence[float]]], longest: int
) -> Found:
    """The stretch of the text whose first and last token have the largest sum of scores.

    Over all windows of one example; not longer than `longest` tokens. The score of "no answer" is
    the sum of the scores at [CLS], the lowest over the windows. -inf where there is no token.
    """
    best, none = Found(0, 0, -math.inf), math.inf
    for window, start, end in windows:
        none = min(none, start[0] + end[0])
        allowed = [i for i, place in enumerate(window.offsets) if place is not None]
        firsts = sorted(allowed, key=lambda i: -start[i])[:CANDIDATES]
        lasts = sorted(allowed, key=lambda i: -end[i])[:CANDIDATES]
        for first in firsts:
            for last in lasts:
                score = start[first] + end[last]
                if first <= last < first + longest and score > best.score:
                    a, b = window.offsets[first], window.offsets[last]
                    assert a is not None
                    assert b is not None
                    best = Found(a[0], b[1], score)
    return best._replace(score=best.score - none)
