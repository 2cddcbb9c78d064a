"""Documents side by side in rows, or each by itself: what is in a row, and what is counted."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_course.batches.documents import PackedDocuments, SingleDocuments, fill_rows
from llm_course.batches.sampler import Batches, Evaluation
from llm_course.configs import GPTConfig
from llm_course.errors import ConfigError, DataError
from llm_course.losses.causal import causal_loss_fn
from llm_course.models.gpt import GPT

BOS, EOS, PAD, IGNORE = 1, 2, 0, -100


def some_documents(n: int, seed: int = 0, longest: int = 20) -> list[list[int]]:
    """Documents whose ids tell which document they are from."""
    draw = random.Random(seed)
    return [[BOS] + [10 + i] * draw.randrange(1, longest - 2) + [EOS] for i in range(n)]


def one_pass(
    documents: list[list[int]], context: int, batch_size: int, seed: int = 0, **options: Any
) -> list[dict[str, torch.Tensor]]:
    batches = Batches(PackedDocuments(documents, context, **options), batch_size, seed=seed)
    return list(islice(batches, batches.batches_per_epoch))


def documents_in(row: list[int]) -> list[list[int]]:
    found: list[list[int]] = []
    for i in row:
        if i == BOS:
            found.append([])
        if i != PAD:
            found[-1].append(i)
    return found


@pytest.mark.covers("G1")
def test_every_row_begins_with_a_document_and_only_its_last_one_may_be_cut() -> None:
    documents = some_documents(200)
    seen: list[list[int]] = []
    held: list[bool] = []
    for batch in one_pass(documents, context=32, batch_size=4, seed=3, pad_id=PAD):
        held += (batch["input_ids"] != PAD).flatten().tolist()
        for row in batch["input_ids"].tolist():
            assert row[0] == BOS
            *whole, last = documents_in(row)
            assert all(document in documents for document in whole)
            assert any(document[: len(last)] == last for document in documents)
            seen += [*whole, last]
    names = [document[1] for document in seen if len(document) > 1]
    assert len(names) == len(set(names))  # no document twice in a pass
    assert sum(held) > 0.99 * len(held)  # no position is wasted


def test_beginnings_and_padding_have_no_label_and_all_other_labels_are_the_unshifted_ids() -> None:
    padding = 0
    for batch in one_pass(some_documents(100), 32, 1, pad_id=PAD):
        ids, labels = batch["input_ids"], batch["labels"]
        assert ids.dtype == labels.dtype == torch.int64
        free = (ids == BOS) | (ids == PAD)
        assert torch.equal(labels == IGNORE, free)
        assert torch.equal(labels[~free], ids[~free])
        padding += int((ids == PAD).sum())
    assert padding  # the last row is short


def test_separate_documents_restart_their_positions_and_do_not_see_each_other() -> None:
    ends = 0
    for batch in one_pass(some_documents(100), 32, 1, pad_id=PAD):
        mask, ids = batch["attention_mask"][0], batch["input_ids"][0].tolist()
        assert mask.any(-1).all()  # no row of the mask is empty, padding included
        place, document = -1, 0
        expected, owner = [], []
        for t, i in enumerate(ids):
            if i == BOS or (i == PAD and ids[t - 1] != PAD):
                place, document = -1, document + 1
            place += 1
            expected.append(place)
            owner.append(document)
        assert batch["position_ids"][0].tolist() == expected
        assert torch.equal(mask, torch.tensor(owner)[:, None] == torch.tensor(owner))
        ends += ids[-1] == PAD
    assert ends == 1  # the last row is short
    plain = one_pass(some_documents(99), 32, 8, separate=False)[0]
    assert plain.keys() == {"input_ids", "labels"}


def test_separate_documents_in_a_row_have_exactly_the_loss_of_documents_in_their_own_rows() -> None:
    torch.manual_seed(0)
    documents = some_documents(30, longest=14)
    model = GPT(
        GPTConfig(vocab_size=60, n_layers=2, d_model=16, n_heads=2, n_positions=32, dropout=0.0)
    )
    model = model.double().eval()

    def loss(batches: Iterable[dict[str, torch.Tensor]]) -> float:
        return sum(causal_loss_fn(model, batch)["lm"][0].item() for batch in batches)

    apart, together = (one_pass(documents, 32, 1, separate=separate) for separate in (True, False))
    parts = [part for b in apart for part in documents_in(b["input_ids"][0].tolist())]
    # Of a document that is cut after its BOS nothing is predicted.
    alone = Evaluation(SingleDocuments([part for part in parts if len(part) > 1]), 4)
    assert loss(apart) == pytest.approx(loss(alone), abs=1e-9)
    assert abs(loss(together) - loss(alone)) > 1e-3


@given(lengths=st.lists(st.integers(2, 24), min_size=1, max_size=80), context=st.integers(24, 40))
@settings(max_examples=60, deadline=None)
def test_a_row_is_filled_by_its_last_document_and_by_none_before_it(
    lengths: list[int], context: int
) -> None:
    array = np.asarray(lengths)
    first = fill_rows(array, context)
    held = [array[a:b].sum() for a, b in itertools.pairwise(first)]
    assert first[0] == 0
    assert first[-1] == len(array)
    assert all(row >= context for row in held[:-1])
    assert all(array[a : b - 1].sum() < context for a, b in itertools.pairwise(first))


def test_single_documents_are_there_once_and_all_but_their_bos_counts() -> None:
    documents = some_documents(50, seed=4)
    batches = Evaluation(SingleDocuments(documents, pad_id=PAD), 8)
    rows = [each for b in batches for each in zip(b["input_ids"].tolist(), b["labels"].tolist())]
    for number, (row, labels) in zip(batches.order, rows, strict=True):
        document = documents[number]
        spare = len(row) - len(document)
        assert row == document + [PAD] * spare
        assert labels == [IGNORE, *document[1:]] + [IGNORE] * spare
    assert sorted(batches.order) == list(range(50))
    lengths = [b["input_ids"].shape[1] for b in batches]
    assert lengths == sorted(lengths, reverse=True)


def test_documents_longer_than_the_context_are_counted_in_an_error() -> None:
    documents = [*some_documents(60), [BOS] + [7] * 40 + [EOS]]
    message = r"1 of 61 documents are longer than context = 32 tokens, the longest has 42"
    with pytest.raises(DataError, match=message):
        PackedDocuments(documents, 32)
    assert PackedDocuments(documents, 42).documents.lengths.max() == 42


def test_the_fingerprint_tells_other_documents_and_other_rows_apart() -> None:
    documents = some_documents(60)
    one = PackedDocuments(documents, 32).fingerprint()
    assert one == PackedDocuments(documents, 32).fingerprint()
    moved = [*documents[:-2], documents[-2] + documents[-1][:1], [BOS, *documents[-1][1:]]]
    for other in (
        PackedDocuments([*documents[:-1], [BOS, 9, EOS]], 32),
        PackedDocuments(moved, 32),
        PackedDocuments(documents, 40),
        PackedDocuments(documents, 32, separate=False),
    ):
        assert other.fingerprint() != one


DOCUMENTS = some_documents(40)
REFUSED = [
    (ConfigError, "context must be at least 2, got 1", lambda: PackedDocuments(DOCUMENTS, 1)),
    (DataError, "at least one document, got none", lambda: PackedDocuments([], 8)),
    (DataError, "at least one document, got none", lambda: SingleDocuments([])),
    (DataError, r"document 1 must have at least 2 tokens, got 0",
     lambda: PackedDocuments([[1, 2], []], 8)),
    (DataError, "document 0 begins with 1, document 1 with 3",
     lambda: PackedDocuments([[1, 2], [3, 2]], 8)),
    (DataError, "got -1 at position 1", lambda: SingleDocuments([[1, -1], [1, 2]])),
    (TypeError, "ids must be whole numbers", lambda: PackedDocuments([[1.5, 2.0]], 8)),
    (TypeError, "ids must be whole numbers, got float64",
     lambda: PackedDocuments([[1, 2, 3], [1, 2.7, 3]], 8)),
]  # fmt: skip


@pytest.mark.parametrize(("error", "message", "make"), REFUSED)
def test_bad_input_is_refused_with_its_value_and_the_range(error, message, make) -> None:
    # The shape checks of the tests come first where a type is wrong; a run without them sees ours.
    with pytest.raises((error, TypeError)) as caught:
        make()
    if caught.type.__name__ != "TypeCheckError":
        assert caught.type is error
        assert caught.match(message)


def test_the_checks_above_are_mostly_ours() -> None:
    """A control: at most 3 of the refusals come from the tests' own type checks."""
    names = []
    for _, _, make in REFUSED:
        with pytest.raises((ValueError, TypeError)) as caught:
            make()
        names.append(caught.type.__name__)
    assert names.count("TypeCheckError") <= 3
