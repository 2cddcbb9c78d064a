"""Batches: what is in a row, what is counted, that resume is exact, and what is refused."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_course.batches.batching import (
    BlockBatches,
    BlockEvaluation,
    DocumentBatches,
    PaddedBatches,
    shift_right,
)
from llm_course.batches.rows import fill_rows, pack_rows
from llm_course.configs import GPTConfig
from llm_course.errors import CheckpointError, ConfigError, DataError
from llm_course.losses.causal import causal_loss_fn
from llm_course.models.gpt import GPT

BOS, EOS, PAD, IGNORE = 1, 2, 0, -100


def some_documents(n: int, seed: int = 0, longest: int = 20) -> list[list[int]]:
    """Documents whose ids tell which document they are from."""
    draw = random.Random(seed)
    return [[BOS] + [10 + i] * draw.randrange(1, longest - 2) + [EOS] for i in range(n)]


def take(batches: DocumentBatches | BlockBatches, n: int) -> list[dict[str, torch.Tensor]]:
    return [batch for batch, _ in zip(batches, range(n))]


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
    batches = DocumentBatches(documents, context=32, batch_size=4, seed=3, pad_id=PAD)
    seen: list[list[int]] = []
    for batch in take(batches, batches.batches_per_epoch):
        for row in batch["input_ids"].tolist():
            assert row[0] == BOS
            *whole, last = documents_in(row)
            assert all(document in documents for document in whole)
            assert any(document[: len(last)] == last for document in documents)
            seen += [*whole, last]
    names = [document[1] for document in seen if len(document) > 1]
    assert len(names) == len(set(names))  # no document twice in an epoch
    assert batches.fill > 0.99


def test_whole_documents_are_never_cut_and_none_is_missing() -> None:
    documents = some_documents(203, seed=1)
    batches = DocumentBatches(
        documents, context=32, batch_size=1, seed=3, pad_id=PAD, whole_documents=True
    )
    seen: list[list[int]] = []
    for batch in take(batches, batches.batches_per_epoch):
        (row,) = batch["input_ids"].tolist()
        seen += documents_in(row)
    assert sorted(seen) == sorted(documents)
    assert 0.9 < batches.fill <= 1.0


def test_beginnings_and_padding_have_no_label_and_all_other_labels_are_the_unshifted_ids() -> None:
    for whole in (False, True):
        batches = DocumentBatches(
            some_documents(100), 32, 8, pad_id=PAD, whole_documents=whole, vocab_size=110
        )
        for batch in take(batches, 2):
            ids, labels = batch["input_ids"], batch["labels"]
            assert ids.dtype == labels.dtype == torch.int64
            free = (ids == BOS) | (ids == PAD)
            assert torch.equal(labels == IGNORE, free)
            assert torch.equal(labels[~free], ids[~free])


def test_separate_documents_restart_their_positions_and_do_not_see_each_other() -> None:
    for whole in (False, True):
        batches = DocumentBatches(
            some_documents(100), 32, 8, pad_id=PAD, separate=True, whole_documents=whole
        )
        (batch,) = take(batches, 1)
        mask = batch["attention_mask"]
        assert mask.any(-1).all()  # no row of the mask is empty, padding included
        for row, ids in enumerate(batch["input_ids"].tolist()):
            place, document = -1, 0
            expected, owner = [], []
            for t, i in enumerate(ids):
                if i == BOS or (i == PAD and ids[t - 1] != PAD):
                    place, document = -1, document + 1
                place += 1
                expected.append(place)
                owner.append(document)
            assert batch["position_ids"][row].tolist() == expected
            same = torch.tensor(owner)[:, None] == torch.tensor(owner)
            assert torch.equal(mask[row], same)
    (plain,) = take(DocumentBatches(some_documents(99), 32, 8, separate=False), 1)
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

    def packed(separate: bool) -> float:
        batches = DocumentBatches(
            documents, 32, 1, separate=separate, whole_documents=True, vocab_size=60
        )
        return loss(take(batches, batches.batches_per_epoch))

    expected = loss(PaddedBatches(documents, 4))
    assert packed(separate=True) == pytest.approx(expected, abs=1e-9)
    assert abs(packed(separate=False) - expected) > 1e-3


@given(lengths=st.lists(st.integers(2, 24), min_size=1, max_size=80), context=st.integers(24, 40))
@settings(max_examples=60, deadline=None)
def test_packing_keeps_every_document_and_fits_every_row(lengths: list[int], context: int) -> None:
    array = np.asarray(lengths)
    order, first = pack_rows(np.arange(len(array)), array, context)
    assert sorted(order.tolist()) == list(range(len(array)))
    rows = [array[order[a:b]].sum() for a, b in itertools.pairwise(first)]
    assert max(rows) <= context
    # Best fit never opens a row while another has room: two rows are never both half empty.
    assert sum(2 * row <= context for row in rows) <= 1
    first = fill_rows(array, context)
    held = [array[a:b].sum() for a, b in itertools.pairwise(first)]
    assert first[0] == 0
    assert first[-1] == len(array)
    assert all(row >= context for row in held[:-1])
    assert all(array[a : b - 1].sum() < context for a, b in itertools.pairwise(first))


def make_batches(kind: str) -> DocumentBatches | BlockBatches:
    if kind == "blocks":
        return BlockBatches(np.arange(500) % 50, context=16, batch_size=4, seed=5)
    return DocumentBatches(some_documents(60), 32, 4, seed=5, whole_documents=kind == "whole")


@pytest.mark.parametrize("kind", ["fill", "whole", "blocks"])
@pytest.mark.parametrize("stop", [0, 1, 5, 11, 30])
def test_resume_gives_the_very_batches_of_an_uninterrupted_run(kind: str, stop: int) -> None:
    expected = take(make_batches(kind), stop + 20)
    first = make_batches(kind)
    for _ in zip(range(stop), first):
        pass
    state = json.loads(json.dumps(first.state_dict()))
    second = make_batches(kind)
    take(second, 3)  # whatever happened before does not matter
    second.load_state_dict(state)
    for ours, wanted in zip(take(second, 20), expected[stop:], strict=True):
        assert all(torch.equal(ours[name], wanted[name]) for name in wanted)


def test_epochs_and_seeds_give_different_orders_and_equal_seeds_equal_ones() -> None:
    def epoch(seed: int, number: int) -> list[int]:
        batches = BlockBatches(np.arange(400), context=8, batch_size=5, seed=seed)
        batches.epoch = number
        rows = take(batches, batches.batches_per_epoch)
        return [i for batch in rows for i in batch["input_ids"][:, 0].tolist()]

    assert epoch(0, 0) == epoch(0, 0)
    assert epoch(0, 0) != epoch(0, 1)
    assert epoch(0, 0) != epoch(1, 0)
    assert epoch(0, 1) != epoch(1, 0)


def test_blocks_of_an_epoch_do_not_overlap_and_cover_the_text() -> None:
    batches = BlockBatches(torch.arange(1000), context=16, batch_size=1, seed=2)
    for _ in range(3):
        rows = torch.cat([b["input_ids"] for b in take(batches, batches.batches_per_epoch)])
        assert torch.equal(rows, rows[:, :1] + torch.arange(16))
        assert rows.unique().numel() == rows.numel() >= 1000 - 2 * 16
        batches.epoch += 1
        batches.offset = 0


def test_a_text_shorter_than_a_batch_is_read_at_random_places() -> None:
    batches = BlockBatches(torch.arange(20), context=16, batch_size=8)
    (batch,) = take(batches, 1)
    assert batch["input_ids"].shape == (8, 16)
    (exact,) = take(BlockBatches(torch.arange(16), 16, 2), 1)
    assert torch.equal(exact["labels"], torch.arange(16).expand(2, 16))


def test_ranks_share_an_epoch_without_overlap() -> None:
    ranks = [
        BlockBatches(torch.arange(999), 8, 5, seed=1, rank=rank, world_size=3) for rank in range(3)
    ]
    alone = BlockBatches(torch.arange(999), 8, 15, seed=1)
    assert all(r.batches_per_epoch == alone.batches_per_epoch for r in ranks)
    for _ in range(30):
        parts = [next(iter(r))["input_ids"] for r in ranks]
        assert torch.equal(torch.cat(parts), next(iter(alone))["input_ids"])


def test_a_memory_mapped_text_gives_the_same_batches_and_stays_on_the_disk(tmp_path: Path) -> None:
    ids = np.arange(5000, dtype=np.uint16) % 300
    ids.tofile(tmp_path / "ids.bin")
    mapped = np.memmap(tmp_path / "ids.bin", dtype=np.uint16, mode="r")
    ours, expected = BlockBatches(mapped, 32, 4), BlockBatches(torch.from_numpy(ids).long(), 32, 4)
    assert isinstance(ours.ids, np.memmap)
    assert ours.fingerprint() == expected.fingerprint()
    for a, b in zip(take(ours, 50), take(expected, 50)):
        assert torch.equal(a["input_ids"], b["input_ids"])


def test_fingerprint_and_state_tell_other_data_and_other_settings_apart() -> None:
    documents = some_documents(60)
    changed = [*documents[:-1], [BOS, 9, EOS]]
    one = DocumentBatches(documents, 32, 4)
    assert one.fingerprint() == DocumentBatches(documents, 32, 4).fingerprint()
    assert one.tokens == sum(map(len, documents))
    for other, name in (
        (DocumentBatches(changed, 32, 4), "fingerprint"),
        (DocumentBatches(documents, 40, 4), "fingerprint"),
        (DocumentBatches(documents, 32, 4, whole_documents=True), "fingerprint"),
        (DocumentBatches(documents, 32, 5), "global_batch"),
        (DocumentBatches(documents, 32, 4, seed=1), "seed"),
    ):
        with pytest.raises(CheckpointError, match=name):
            other.load_state_dict(one.state_dict())
    halves = DocumentBatches(documents, 32, 2, rank=1, world_size=2)
    halves.load_state_dict(one.state_dict())  # the same global batch on two processes


@given(
    n=st.integers(2, 90),
    context=st.integers(2, 24),
    overlap=st.integers(0, 22),
    batch_size=st.integers(1, 5),
    world_size=st.integers(1, 3),
)
@settings(max_examples=150, deadline=None)
def test_block_evaluation_predicts_every_token_but_the_first_exactly_once(
    n: int, context: int, overlap: int, batch_size: int, world_size: int
) -> None:
    overlap = min(overlap, context - 2)
    ids = torch.arange(n)  # the label tells which token is predicted
    counted: list[int] = []
    for rank in range(world_size):
        batches = BlockEvaluation(
            ids, context, batch_size, overlap, rank=rank, world_size=world_size
        )
        listed = list(batches)
        assert len(listed) == len(batches)
        for batch in listed:
            inputs, labels = batch["input_ids"], batch["labels"]
            assert torch.equal(inputs, inputs[:, :1] + torch.arange(inputs.shape[1]))
            shifted = labels[:, 1:]
            rows, places = (shifted != IGNORE).nonzero(as_tuple=True)
            found = shifted[rows, places]
            assert torch.equal(found, inputs[rows, places + 1])
            given_tokens = places + 1
            assert (given_tokens >= torch.minimum(found, torch.tensor(overlap + 1))).all()
            counted += found.tolist()
    assert sorted(counted) == list(range(1, n))


@pytest.mark.parametrize("world_size", [1, 3])
def test_padded_batches_yield_every_document_once_and_count_all_but_its_bos(
    world_size: int,
) -> None:
    documents = some_documents(50, seed=4)
    seen: dict[int, list[int]] = {}
    total = 0
    for rank in range(world_size):
        batches = PaddedBatches(
            documents, 8, pad_id=PAD, attention_mask=True, rank=rank, world_size=world_size
        )
        rows = [
            (row[keep.bool()].tolist(), labels)
            for b in batches
            for row, keep, labels in zip(b["input_ids"], b["attention_mask"], b["labels"])
        ]
        for number, (row, labels) in zip(batches.order, rows, strict=True):
            seen[number] = row
            assert labels[labels != IGNORE].tolist() == row[1:]
        total += batches.tokens
        assert sum(len(row) for row, _ in rows) == batches.tokens
    assert [seen[i] for i in range(50)] == documents
    assert total == sum(map(len, documents))
    lengths = [b["input_ids"].shape[1] for b in PaddedBatches(documents, 8)]
    assert lengths == sorted(lengths, reverse=True)


def test_documents_longer_than_the_context_are_an_error_or_cut_or_dropped_and_counted() -> None:
    documents = [*some_documents(60), [BOS] + [7] * 40 + [EOS]]
    message = r"1 of 61 documents are longer than context = 32 tokens, the longest has 42"
    with pytest.raises(DataError, match=message):
        DocumentBatches(documents, 32, 4)
    cut = DocumentBatches(documents, 32, 4, long_documents="cut")
    dropped = DocumentBatches(documents, 32, 4, long_documents="drop")
    assert (cut.long, dropped.long) == (1, 1)
    assert cut.tokens == dropped.tokens + 32
    kept = PaddedBatches(documents, 8, context=32, long_documents="drop")
    assert kept.long == 1
    assert sorted(kept.order) == list(range(60))
    with pytest.raises(DataError, match="1 of 1 documents are longer"):
        DocumentBatches(documents[-1:], 32, 1, long_documents="drop")


@pytest.mark.covers("F14")
def test_shift_right_starts_with_the_start_token_and_turns_ignored_labels_into_padding() -> None:
    labels = torch.tensor([[5, 6, 2, IGNORE], [7, 2, IGNORE, IGNORE]])
    assert shift_right(labels, start_id=9, pad_id=0).tolist() == [[9, 5, 6, 2], [9, 7, 2, 0]]
    assert labels[0, 3].item() == IGNORE  # the labels stay as they were


DOCUMENTS = some_documents(40)
REFUSED = [
    (ConfigError, "batch_size must be at least 1, got 0", lambda: BlockBatches([1, 2, 3], 2, 0)),
    (ConfigError, "context must be at least 2, got 1", lambda: BlockBatches([1, 2, 3], 1, 1)),
    (ConfigError, "rank must be from 0 to 1, got 2",
     lambda: BlockBatches([1, 2, 3], 2, 1, rank=2, world_size=2)),
    (ConfigError, "world_size must be at least 1, got 0",
     lambda: BlockBatches([1, 2, 3], 2, 1, world_size=0)),
    (ConfigError, "seed must be at least 0, got -1", lambda: BlockBatches([1, 2, 3], 2, 1, -1)),
    (ConfigError, "overlap must be from 0 to context - 2 = 6, got 7",
     lambda: BlockEvaluation(range(30), 8, 1, 7)),
    (ConfigError, "long_documents must be one of error, cut, drop",
     lambda: DocumentBatches(DOCUMENTS, 32, 1, long_documents="keep")),
    (DataError, "needs context = 8 tokens, the text has 3", lambda: BlockBatches([1, 2, 3], 8, 1)),
    (DataError, "ids must be at least one, got none",
     lambda: BlockBatches(torch.zeros(0, dtype=torch.int64), 8, 1)),
    (DataError, r"ids must have one dimension, got shape \[1, 3\]",
     lambda: BlockBatches(torch.tensor([[1, 2, 3]]), 2, 1)),
    (TypeError, "ids must be whole numbers, got float32",
     lambda: BlockBatches(torch.ones(9), 2, 1)),
    (DataError, r"from 0 to 4 \(vocab_size 5\), got 5 at position 2",
     lambda: BlockBatches([1, 2, 5, 1], 2, 1, vocab_size=5)),
    (DataError, "got -1 at position 1", lambda: BlockEvaluation([1, -1, 5, 1], 2, 1)),
    (DataError, "at least 2 tokens to predict one", lambda: BlockEvaluation([1], 2, 1)),
    (DataError, "documents must be at least one, got none", lambda: DocumentBatches([], 8, 1)),
    (DataError, "documents must be at least one, got none", lambda: PaddedBatches([], 8)),
    (DataError, r"document 1 must have at least 2 tokens \(BOS and EOS\), got 0",
     lambda: DocumentBatches([[1, 2], []], 8, 1)),
    (DataError, "document 0 begins with 1, document 1 with 3",
     lambda: DocumentBatches([[1, 2], [3, 2]], 8, 1)),
    (DataError, "got 49 at position", lambda: DocumentBatches(DOCUMENTS, 32, 1, vocab_size=49)),
    (DataError, "got 49 at position", lambda: PaddedBatches(DOCUMENTS, 8, vocab_size=49)),
    (DataError, r"= 64 rows of 32 tokens, the data make \d+: lower batch_size",
     lambda: DocumentBatches(DOCUMENTS, 32, 32, world_size=2)),
    (TypeError, "ids must be whole numbers", lambda: DocumentBatches([[1.5, 2.0]], 8, 1)),
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


def test_the_first_batch_of_an_epoch_comes_from_the_order_of_that_epoch() -> None:
    batches = DocumentBatches(some_documents(64, longest=5), context=4, batch_size=4, seed=3)
    first = [batch for _, batch in zip(range(batches.batches_per_epoch), batches)]
    again = next(iter(batches))
    assert batches.epoch == 1
    assert not torch.equal(again["input_ids"], first[0]["input_ids"])


def test_after_documents_are_dropped_the_order_still_names_those_that_were_given() -> None:
    documents = [[1, *[3 + i] * (2 + i % 5), 2] for i in range(20)]
    for number in (0, 7):
        documents[number] = [1, *[3 + number] * 50, 2]
    found = PaddedBatches(documents, 6, context=20, long_documents="drop")
    seen = [i for batch in found for i in (batch["input_ids"][:, 1] - 3).tolist()]
    assert seen == found.order
    assert sorted(seen) == [i for i in range(20) if i not in (0, 7)]
