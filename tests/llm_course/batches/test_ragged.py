"""Rows laid out flat: taken and padded as they were, and refused by their place."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llm_course.batches.ragged import check_ids, flatten
from llm_course.errors import DataError

ROWS = st.lists(st.lists(st.integers(0, 2**40), min_size=1, max_size=9), min_size=1, max_size=20)


@given(rows=ROWS, data=st.data())
def test_rows_are_taken_and_padded_as_they_were_given(rows: Any, data: Any) -> None:
    ragged = flatten(rows, "row")
    chosen = np.asarray(data.draw(st.lists(st.sampled_from(range(len(rows))), min_size=1)))
    ids, begins = ragged.take(chosen)
    assert [part.tolist() for part in np.split(ids, begins[1:])] == [rows[i] for i in chosen]
    padded, inside = ragged.padded(chosen, -100)
    assert padded.dtype == torch.int64
    assert [row[keep].tolist() for row, keep in zip(padded, inside)] == [rows[i] for i in chosen]
    assert (padded[~inside] == -100).all()
    assert padded.shape[1] == max(len(rows[i]) for i in chosen)


def test_the_hash_depends_on_ids_places_and_layout_and_not_on_the_integer_type() -> None:
    one = flatten([[5, 6], [7]], "row").sha256("a")
    assert one == flatten([[5, 6], [7]], "other").sha256("a")
    for other in (
        flatten([[5, 6], [8]], "row").sha256("a"),
        flatten([[5], [6, 7]], "row").sha256("a"),
        flatten([[5, 6], [7]], "row").sha256("b"),
    ):
        assert other != one
    small, large = flatten([[5, 6], [2**40]], "row"), flatten([[5, 6], [7]], "row")
    assert small.flat.dtype == np.int64
    assert large.flat.dtype == np.int32


@pytest.mark.parametrize(
    ("error", "message", "make"),
    [
        (DataError, "there must be at least one row, got none", lambda: flatten([], "row")),
        (DataError, "row 1 must have at least 1 tokens, got 0", lambda: flatten([[1], []], "row")),
        (DataError, r"from 0 to 4 \(vocab_size 5\), got 5 at position 2",
         lambda: flatten([[1, 2], [5, 1]], "row", vocab_size=5)),
        (DataError, r"from 0 to \.\.\. \(vocab_size None\), got -1 at position 1",
         lambda: check_ids([1, -1])),
    ],
)  # fmt: skip
def test_what_is_no_row_is_refused_by_its_place(error: Any, message: str, make: Any) -> None:
    with pytest.raises(error, match=message):
        make()
