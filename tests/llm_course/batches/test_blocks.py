"""One continuous text: blocks that cover it, windows that predict every token once."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from row_kinds import with_workers

from llm_course.batches.blocks import Blocks, Windows
from llm_course.batches.sampler import Batches, Evaluation
from llm_course.errors import ConfigError, DataError

IGNORE = -100


def test_blocks_of_a_pass_do_not_overlap_and_cover_the_text() -> None:
    batches = Batches(Blocks(torch.arange(1000), context=16), 1, seed=2)
    stream = iter(batches)
    begins = set()
    for _ in range(3):
        rows = torch.cat([b["input_ids"] for b in islice(stream, batches.batches_per_epoch)])
        assert torch.equal(rows, rows[:, :1] + torch.arange(16))
        assert rows.unique().numel() == rows.numel() >= 1000 - 2 * 16
        begins.add(int(rows.min()))
        batches.epoch += 1
        batches.offset = 0
        stream = iter(batches)
    assert len(begins) > 1  # at ever new positions


def test_a_text_shorter_than_a_batch_is_read_at_random_places() -> None:
    batch = next(iter(Batches(Blocks(torch.arange(20), context=16), 8)))
    assert batch["input_ids"].shape == (8, 16)
    exact = next(iter(Batches(Blocks(torch.arange(16), 16), 2)))
    assert torch.equal(exact["labels"], torch.arange(16).expand(2, 16))


def test_a_memory_mapped_text_gives_the_same_batches_and_stays_on_the_disk(tmp_path: Path) -> None:
    ids = np.arange(5000, dtype=np.uint16) % 300
    ids.tofile(tmp_path / "ids.bin")
    mapped = np.memmap(tmp_path / "ids.bin", dtype=np.uint16, mode="r")
    ours, expected = Blocks(mapped, 32), Blocks(torch.from_numpy(ids).long(), 32)
    assert isinstance(ours.ids, np.memmap)
    assert ours.fingerprint() == expected.fingerprint() != Blocks(mapped, 16).fingerprint()
    for workers in (0, 2):
        pairs = zip(islice(with_workers(Batches(ours, 4), workers), 50), Batches(expected, 4))
        assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in pairs)


@given(n=st.integers(2, 90), context=st.integers(2, 24), batch_size=st.integers(1, 5))
@settings(max_examples=100, deadline=None)
def test_windows_predict_every_token_but_the_first_exactly_once(
    n: int, context: int, batch_size: int
) -> None:
    counted: list[int] = []
    batches = Evaluation(Windows(torch.arange(n), context), batch_size)
    listed = list(batches)  # the label tells which token is predicted
    assert len(listed) == len(batches)
    for batch in listed:
        inputs, labels = batch["input_ids"], batch["labels"]
        assert torch.equal(inputs, inputs[:, :1] + torch.arange(inputs.shape[1]))
        shifted = labels[:, 1:]
        rows, places = (shifted != IGNORE).nonzero(as_tuple=True)
        found = shifted[rows, places]
        assert torch.equal(found, inputs[rows, places + 1])
        counted += found.tolist()
    assert sorted(counted) == list(range(1, n))


REFUSED: list[Any] = [
    (ConfigError, "context must be at least 2, got 1", lambda: Blocks([1, 2, 3], 1)),
    (ConfigError, "context must be at least 2, got 1", lambda: Windows([1, 2, 3], 1)),
    (DataError, "needs context = 8 tokens, the text has 3", lambda: Blocks([1, 2, 3], 8)),
    (DataError, "ids must be at least one, got none",
     lambda: Blocks(torch.zeros(0, dtype=torch.int64), 8)),
    (DataError, r"ids must have one dimension, got shape \[1, 3\]",
     lambda: Blocks(torch.tensor([[1, 2, 3]]), 2)),
    (TypeError, "ids must be whole numbers, got float32", lambda: Blocks(torch.ones(9), 2)),
    (DataError, "got -1 at position 1", lambda: Windows([1, -1, 5, 1], 2)),
    (DataError, "at least 2 tokens to predict one", lambda: Windows([1], 2)),
]  # fmt: skip


@pytest.mark.parametrize(("error", "message", "make"), REFUSED)
def test_bad_input_is_refused_with_its_value_and_the_range(error, message, make) -> None:
    # The shape checks of the tests come first where a type is wrong; a run without them sees ours.
    with pytest.raises((error, TypeError)) as caught:
        make()
    if caught.type.__name__ != "TypeCheckError":
        assert caught.type is error
        assert caught.match(message)
