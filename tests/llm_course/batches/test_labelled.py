"""Rows with labels: cut, tagged, divided into windows, padded; and what is refused."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from llm_course.batches.labelled import (
    LabelledRows,
    Row,
    Shape,
    Window,
    best_answer,
    question_windows,
)
from llm_course.batches.sampler import Batches, Evaluation
from llm_course.errors import ConfigError, DataError
from llm_course.losses.chunked import IGNORE

CLS, SEP, PAD = 1, 2, 0
SHAPE = Shape(cls_id=CLS, sep_id=SEP, context=10)


def rows(n: int = 20) -> list[Row]:
    return [SHAPE.row([10 + i % 20] * (1 + i % 6), None, i % 3)[0] for i in range(n)]


def test_a_row_is_cls_a_sep_b_sep_with_two_segments() -> None:
    row, cut = SHAPE.row([5, 6], [7], 1)
    assert (row.ids, row.segments, row.label, cut) == (
        [1, 5, 6, 2, 7, 2],
        [0, 0, 0, 0, 1, 1],
        1,
        False,
    )
    assert SHAPE.row([5, 6], None, 0)[0].ids == [1, 5, 6, 2]


@pytest.mark.parametrize(("n_first", "n_second"), [(20, 3), (3, 20), (20, 20), (7, 1), (4, 4)])
def test_a_row_that_is_too_long_loses_the_end_of_its_longer_segment(
    n_first: int, n_second: int
) -> None:
    row, cut = SHAPE.row(list(range(10, 10 + n_first)), list(range(50, 50 + n_second)), 0)
    assert cut
    assert len(row.ids) == 10
    first, second = row.segments.count(0) - 2, row.segments.count(1) - 1
    assert row.ids[1 : 1 + first] == list(range(10, 10 + first))
    assert row.ids[first + 2 : -1] == list(range(50, 50 + second))
    assert abs(first - second) <= 1 or min(first, second) == min(n_first, n_second)


def test_the_tag_of_a_word_stands_at_its_first_token_only() -> None:
    row, left_out = SHAPE.tagged([[5], [6, 7, 8], [9]], [2, 0, 1])
    assert left_out == 0
    assert row.ids == [1, 5, 6, 7, 8, 9, 2]
    assert row.label == [IGNORE, 2, 0, IGNORE, IGNORE, 1, IGNORE]
    short, left_out = SHAPE.tagged([[5, 5, 5]] * 4, [0] * 4)
    assert (len(short.ids), left_out) == (8, 2)  # whole words only


TEXT = "ab cd ef gh ij kl mn op qr st"
OFFSETS = [(3 * i, 3 * i + 2) for i in range(10)]
CONTEXT = list(range(20, 30))


def windows(answer: tuple[int, int] | None, stride: int = 2) -> list[Window]:
    return question_windows(SHAPE, 7, [10, 11], CONTEXT, OFFSETS, answer, stride)


def test_a_long_context_becomes_windows_that_overlap_by_the_stride() -> None:
    found = windows(None)
    parts = [[i for i in w.row.ids if i >= 20] for w in found]
    assert parts == [[20, 21, 22, 23, 24], [23, 24, 25, 26, 27], [26, 27, 28, 29]]
    assert all(w.row.ids[:4] == [CLS, 10, 11, SEP] for w in found)
    assert all(w.row.label == (0, 0) for w in found)
    for w in found:
        for token, place in zip(w.row.ids, w.offsets):
            assert place == (OFFSETS[token - 20] if token >= 20 else None)


@pytest.mark.parametrize("first", range(10))
@pytest.mark.parametrize("length", [1, 2])
def test_a_window_is_labelled_where_it_holds_the_whole_answer(first: int, length: int) -> None:
    last = min(first + length - 1, 9)
    labelled = 0
    for w in windows((OFFSETS[first][0], OFFSETS[last][1])):
        holds = {20 + first, 20 + last} <= set(w.row.ids)
        assert (w.row.label != (0, 0)) == holds
        if holds:
            assert isinstance(w.row.label, tuple)
            assert [w.row.ids[i] for i in w.row.label] == [20 + first, 20 + last]
            labelled += 1
    assert labelled >= 1  # the stride is 2: no answer of 2 tokens is lost
    if length == 2 and first == 4:  # without an overlap it falls between two windows
        assert not any(w.row.label != (0, 0) for w in windows((12, 17), stride=0))


def test_a_stride_that_does_not_advance_is_refused() -> None:
    with pytest.raises(ConfigError, match="stride must be from 0 to 4"):
        windows(None, stride=5)


def scores(n: int, high: int) -> list[float]:
    return [5.0 if i == high else 0.0 for i in range(n)]


def test_the_best_answer_is_a_stretch_of_the_text_over_all_windows() -> None:
    found = windows(None)
    blank = [(w, [0.0] * len(w.row.ids), [0.0] * len(w.row.ids)) for w in found]
    second = found[1]
    blank[1] = (second, scores(len(second.row.ids), 5), scores(len(second.row.ids), 6))
    text, margin = best_answer(blank, TEXT, longest=5)
    assert text == TEXT[OFFSETS[24 - 20][0] : OFFSETS[25 - 20][1]]
    assert margin == 10.0
    # The end before the beginning, and an answer that is too long, are no answers.
    n = len(second.row.ids)
    blank[1] = (second, scores(n, 6), scores(n, 5))
    assert best_answer(blank, TEXT, longest=5)[1] == 5.0
    blank[1] = (second, scores(n, 4), scores(n, 8))
    assert best_answer(blank, TEXT, longest=4)[1] == 5.0
    assert best_answer(blank, TEXT, longest=5)[1] == 10.0
    # A question and [CLS] are not answers, however high their score.
    blank[1] = (second, scores(n, 0), scores(n, 0))
    assert best_answer(blank, TEXT, longest=5)[0] in TEXT


def test_batches_are_padded_and_masked() -> None:
    for batch in islice(Batches(LabelledRows(rows(), 10, pad_id=PAD), 4), 6):
        assert batch["attention_mask"].equal(batch["input_ids"] != PAD)
        assert batch["labels"].shape == (4,)


@pytest.mark.parametrize("kind", ["class", "classes of tokens", "ends of an answer"])
def test_a_batch_has_the_segments_and_the_labels_of_its_rows(kind: str) -> None:
    texts = [[10 + i] * (2 + i % 4) for i in range(8)]
    data = []
    for i, text in enumerate(texts):
        segments = [0] + [1] * (len(text) - 1)
        labels = {
            "class": i,
            "classes of tokens": [IGNORE, *range(len(text) - 1)],
            "ends of an answer": (0, len(text) - 1),
        }
        data.append(Row(text, segments, labels[kind]))
    found = LabelledRows(data, 10, pad_id=PAD)
    evaluation = Evaluation(found, 3)
    order = iter(evaluation.order)
    for batch in evaluation:
        for r, ids in enumerate(batch["input_ids"].tolist()):
            row = data[next(order)]
            n = len(row.ids)
            assert ids == row.ids + [PAD] * (len(ids) - n)
            assert batch["token_type_ids"][r, :n].tolist() == row.segments
            if kind == "class":
                assert batch["labels"][r] == row.label
            elif kind == "classes of tokens":
                assert batch["labels"][r].tolist() == row.label + [IGNORE] * (len(ids) - n)
            else:
                ends = batch["start_positions"][r].item(), batch["end_positions"][r].item()
                assert ends == row.label


def test_a_pass_has_each_row_once_with_its_own_label() -> None:
    data = [SHAPE.row([10 + i], None, i)[0] for i in range(12)]
    seen = []
    for batch in islice(Batches(LabelledRows(data, 10, pad_id=PAD), 4), 3):
        assert_close(batch["labels"], batch["input_ids"][:, 1] - 10)
        seen += batch["labels"].tolist()
    assert sorted(seen) == list(range(12))


def test_evaluation_has_each_row_once_and_says_which() -> None:
    data = rows(11)
    found = Evaluation(LabelledRows(data, 10, pad_id=PAD), 4)
    assert len(found) == 3
    labels = torch.cat([batch["labels"] for batch in found]).tolist()
    assert labels == [data[i].label for i in found.order]
    assert sorted(found.order) == list(range(11))


def test_the_fingerprint_tells_other_rows_labels_and_held_out_examples_apart() -> None:
    data = rows()
    one = LabelledRows(data, 10, pad_id=PAD).fingerprint()
    assert one == LabelledRows(rows(), 10, pad_id=PAD).fingerprint()
    first = data[0]
    for changed in (
        Row([*first.ids[:-1], 9], first.segments, first.label),
        Row(first.ids, [1] * len(first.ids), first.label),
        Row(first.ids, first.segments, 2),
    ):
        assert LabelledRows([changed, *data[1:]], 10, pad_id=PAD).fingerprint() != one
    assert LabelledRows(data, 10, pad_id=PAD, held_out="others").fingerprint() != one


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: LabelledRows([], 10, pad_id=0), DataError, "at least one row, got none"),
        (
            lambda: LabelledRows(rows(), 4, pad_id=0),
            DataError,
            "has 8 tokens, more than context = 4",
        ),
        (
            lambda: LabelledRows(rows(), 10, pad_id=0, vocab_size=15),
            DataError,
            "from 0 to 14",
        ),
        (
            lambda: LabelledRows([Row([1, 5, 2], [0, 0, 0], [IGNORE])], 10, pad_id=0),
            DataError,
            "row 0 must have a segment and a label",
        ),
        (lambda: SHAPE.tagged([[5]], [0, 1]), DataError, "each word must have a tag"),
        (lambda: Shape(1, 2, 3).row([5], [6], 0), ConfigError, "context must be at least 4, got 3"),
    ],
)
def test_bad_rows_are_refused(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_no_answer_is_the_window_that_speaks_least_for_it() -> None:
    """The score of "no answer" is the lowest sum at [CLS] over the windows, wherever it stands."""
    found = windows(None)
    for none in ([1.0, 4.0, 3.0], [4.0, 1.0, 3.0], [3.0, 4.0, 1.0]):
        scored = []
        for window, height in zip(found, none, strict=True):
            n = len(window.row.ids)
            scored.append((window, [height, *[0.0] * (n - 1)], [2 * height, *[0.0] * (n - 1)]))
        window, start, end = scored[0]
        start[5], end[6] = 7.0, 8.0
        text, margin = best_answer(scored, TEXT, longest=5)
        assert text == TEXT[OFFSETS[1][0] : OFFSETS[2][1]]
        assert margin == 7.0 + 8.0 - 3 * 1.0  # not the first, the last, the mean or that window's


def test_in_a_wide_window_the_highest_scores_are_tried_and_of_equal_answers_the_first_wins() -> (
    None
):
    text = " ".join(f"w{i:02}" for i in range(60))
    offsets = [(4 * i, 4 * i + 3) for i in range(60)]
    shape = Shape(cls_id=CLS, sep_id=SEP, context=80)
    (window,) = question_windows(shape, 0, [10, 11], list(range(20, 80)), offsets, None, 8)
    rising = [i / 100 for i in range(len(window.row.ids))]
    rising[0] = 0.0
    last = max(i for i, place in enumerate(window.offsets) if place is not None)
    assert best_answer([(window, rising, rising)], text, longest=5) == ("w59", 2 * rising[last])
    flat = [0.0] * len(window.row.ids)
    assert best_answer([(window, flat, flat)], text, longest=5) == ("w00", 0.0)
