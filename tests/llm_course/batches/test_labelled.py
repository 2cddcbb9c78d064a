"""Rows with labels: cut, tagged, divided into windows; their batches; the three losses."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from parity import perturbed, random_ids
from torch import Tensor
from torch.testing import assert_close
from transformers import BertConfig, BertForQuestionAnswering

from llm_course import (
    BERTConfig,
    BERTForQuestionAnswering,
    BERTForSequenceClassification,
    BERTForTokenClassification,
    BERTLabelConfig,
)
from llm_course.batches.labelled import (
    LabelledBatches,
    LabelledEvaluation,
    Row,
    Shape,
    Window,
    answer_loss_fn,
    best_answer,
    classification_loss_fn,
    question_windows,
)
from llm_course.errors import ConfigError, DataError
from llm_course.losses.chunked import IGNORE

CLS, SEP, PAD = 1, 2, 0
SHAPE = Shape(cls_id=CLS, sep_id=SEP, context=10)
SIZES = {"vocab_size": 40, "n_layers": 1, "d_model": 12, "n_heads": 2, "d_ff": 20}


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


def test_batches_are_padded_and_masked_and_resume_exactly() -> None:
    one = LabelledBatches(rows(), 10, 4, pad_id=PAD)
    iterator = iter(one)
    for _ in range(6):  # into the second epoch
        batch = next(iterator)
        assert batch["attention_mask"].equal(batch["input_ids"] != PAD)
        assert batch["labels"].shape == (4,)
    state = json.loads(json.dumps(one.state_dict()))
    expected = next(iterator)
    other = LabelledBatches(rows(), 10, 4, pad_id=PAD)
    other.load_state_dict(state)
    found = next(iter(other))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_an_epoch_has_each_row_once_with_its_own_label() -> None:
    data = [SHAPE.row([10 + i], None, i)[0] for i in range(12)]
    endless = LabelledBatches(data, 10, 4, pad_id=PAD)
    iterator = iter(endless)
    seen = []
    for _ in range(3):
        batch = next(iterator)
        assert_close(batch["labels"], batch["input_ids"][:, 1] - 10)
        seen += batch["labels"].tolist()
    assert sorted(seen) == list(range(12))


def test_evaluation_has_each_row_once_and_says_which() -> None:
    data = rows(11)
    found = LabelledEvaluation(data, 10, 4, pad_id=PAD)
    assert len(found) == 3
    labels = torch.cat([batch["labels"] for batch in found]).tolist()
    assert labels == [data[i].label for i in found.order]
    assert sorted(found.order) == list(range(11))


def cross_entropy_by_hand(logits: Tensor, labels: Tensor) -> float:
    total = 0.0
    for scores_, label in zip(
        logits.reshape(-1, logits.shape[-1]).tolist(), labels.flatten().tolist()
    ):
        if label != IGNORE:
            total -= scores_[label] - math.log(sum(math.exp(s) for s in scores_))
    return total


@pytest.mark.parametrize("form", [BERTForSequenceClassification, BERTForTokenClassification])
def test_the_loss_of_classes_is_their_cross_entropy_over_counted_labels(form: Any) -> None:
    config = BERTLabelConfig(**SIZES, n_positions=12, labels=("a", "b", "c"))
    model = perturbed(form(config).double())
    ids = random_ids((3, 7), 40, 0)
    labels = torch.tensor([0, 2, 1])
    if form is BERTForTokenClassification:
        labels = torch.randint(3, (3, 7), generator=torch.Generator().manual_seed(0))
        labels[1, 3:] = IGNORE
    total, count = classification_loss_fn(model, {"input_ids": ids, "labels": labels})["class"]
    assert abs(total.item() - cross_entropy_by_hand(model(ids), labels)) < 1e-9
    assert count == (labels != IGNORE).sum()
    with pytest.raises(ValueError, match="labels must be"):
        classification_loss_fn(model, {"input_ids": ids, "labels": labels[:2]})


def test_the_loss_of_answers_is_that_of_transformers() -> None:
    theirs = perturbed(
        BertForQuestionAnswering(
            BertConfig(
                vocab_size=40, hidden_size=12, num_hidden_layers=1, num_attention_heads=2,
                intermediate_size=20, max_position_embeddings=12,
            )
        )
    )  # fmt: skip
    ours = BERTForQuestionAnswering(BERTConfig(**SIZES, n_positions=12)).eval()
    state = ours.layout.from_file(dict(theirs.state_dict()), ours.state_dict())
    ours.load_state_dict(state)
    batch = {
        "input_ids": random_ids((4, 9), 40, 3),
        "attention_mask": torch.ones(4, 9, dtype=torch.bool),
        "start_positions": torch.tensor([0, 3, 5, 8]),
        "end_positions": torch.tensor([0, 4, 5, 8]),
    }
    total, count = answer_loss_fn(ours, batch)["answer"]
    assert_close(total / count, theirs(**batch).loss, rtol=1e-5, atol=1e-6)
    # Padding is no place for an answer: its scores do not count.
    padded = {**batch, "input_ids": torch.cat([batch["input_ids"], torch.zeros(4, 2).long()], 1)}
    padded["attention_mask"] = torch.cat([batch["attention_mask"], torch.zeros(4, 2).bool()], 1)
    assert_close(answer_loss_fn(ours, padded)["answer"][0], total, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: LabelledBatches([], 10, 1, pad_id=0), DataError, "at least one row, got none"),
        (
            lambda: LabelledBatches(rows(), 4, 1, pad_id=0),
            DataError,
            "has 8 tokens, more than context = 4",
        ),
        (lambda: LabelledBatches(rows(3), 10, 4, pad_id=0), DataError, "lower batch_size"),
        (
            lambda: LabelledBatches(rows(), 10, 2, pad_id=0, vocab_size=15),
            DataError,
            "from 0 to 14",
        ),
        (
            lambda: LabelledBatches([Row([1, 5, 2], [0, 0, 0], [IGNORE])], 10, 1, pad_id=0),
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
