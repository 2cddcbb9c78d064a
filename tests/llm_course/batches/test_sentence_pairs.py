"""Sentence pairs: true ones from one document, false ones from two; packed rows keep them apart."""

from __future__ import annotations

import itertools
import math
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from parity import perturbed
from row_kinds import with_workers
from torch import Tensor
from torch.testing import assert_close

from llm_course.batches.sampler import Batches, Evaluation
from llm_course.batches.sentence_pairs import (
    IS_NEXT,
    NOT_NEXT,
    FixedPairs,
    Pair,
    SentencePairs,
    pack_rows,
    pair_batch,
)
from llm_course.configs import BERTConfig
from llm_course.errors import ConfigError, DataError
from llm_course.losses.chunked import IGNORE
from llm_course.losses.masked import Masking, bert_loss_fn
from llm_course.models.bert import BERT

PAD, CLS, SEP, MASK, VOCAB = 0, 1, 2, 3, 500
MASKING = Masking(cls_id=CLS, sep_id=SEP, mask_id=MASK, pad_id=PAD, vocab_size=VOCAB)
NOTHING = Masking(cls_id=CLS, sep_id=SEP, mask_id=MASK, pad_id=PAD, vocab_size=VOCAB, chosen=0.0)


def documents(n: int = 40, sentences: int = 4) -> list[list[list[int]]]:
    """Document i is made of the id 10 + i alone; sentence j has j + 2 tokens."""
    return [[[10 + i] * (j + 2) for j in range(sentences)] for i in range(n)]


def batches(batch_size: int = 4, seed: int = 0, **options: Any) -> Batches:
    arguments = {"context": 48, "masking": MASKING} | options
    return Batches(SentencePairs(documents(), **arguments), batch_size, seed=seed)


def one_pass(batches: Batches) -> list[dict[str, Tensor]]:
    return list(islice(batches, batches.batches_per_epoch))


def pairs_of(rows: SentencePairs, seed: int = 0) -> list[Pair]:
    return rows.pairs(np.random.default_rng(seed))


@pytest.mark.covers("D2")
def test_true_pairs_lie_in_one_document_and_false_ones_never_do() -> None:
    rows = SentencePairs(documents(), 48, MASKING)
    labels = []
    for pair in (p for seed in range(50) for p in pairs_of(rows, seed)):
        assert pair.second is not None
        one, other = set(pair.first), set(pair.second)
        assert len(one) == len(other) == 1
        assert (one == other) == (pair.label == IS_NEXT) == (pair.sources[0] == pair.sources[1])
        labels.append(pair.label)
    n = len(labels)
    assert abs(sum(labels) - n / 2) < 4 * math.sqrt(n) / 2  # a fair coin
    assert set(labels) == {IS_NEXT, NOT_NEXT}


def test_a_true_pair_is_the_whole_document_divided_between_two_sentences() -> None:
    long = [[[100 + 10 * i + j] * (j + 2) for j in range(4)] for i in range(10)]
    rows, seen = SentencePairs(long, 48, MASKING), set()
    for pair in (p for seed in range(20) for p in pairs_of(rows, seed)):
        if pair.label == IS_NEXT:
            assert pair.second is not None
            assert pair.first + pair.second == [t for s in long[pair.sources[0]] for t in s]
            assert pair.first[-1] != pair.second[0]  # never inside a sentence
            seen.add(len(pair.first))
    assert seen == {2, 5, 9}  # every place between two sentences


def test_pairs_that_are_too_long_are_cut_where_they_do_not_meet() -> None:
    long = [[list(range(10, 40)), list(range(40, 70))], [list(range(70, 100)), [101] * 3]]
    for seed in range(10):
        for pair in pairs_of(SentencePairs(long, 20, MASKING), seed):
            assert pair.second is not None
            assert len(pair.ids(MASKING)) <= 20
            assert pair.first[-1] in (39, 99)  # the end of A and the beginning of B are kept
            assert pair.second[0] in (40, 101)


def test_a_batch_has_the_layout_of_bert() -> None:
    row = [Pair([10, 11], [12], IS_NEXT, (0, 0)), Pair([13], [14, 15], NOT_NEXT, (1, 2))]
    batch = pair_batch([row], 14, MASKING)
    assert batch["input_ids"].tolist() == [[1, 10, 11, 2, 12, 2, 1, 13, 2, 14, 15, 2, 0, 0]]
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1, 0, 0, 0, 1, 1, 1, 0, 0]]
    assert batch["position_ids"].tolist() == [[*range(6), *range(6), 0, 1]]
    i = IGNORE
    assert batch["next_sentence_label"].tolist() == [[0, i, i, i, i, i, 1, *[i] * 7]]
    block = torch.block_diag(torch.ones(6, 6), torch.ones(6, 6), torch.ones(2, 2)).bool()
    assert_close(batch["attention_mask"][0], block)
    assert (batch["labels"] == IGNORE).all()


def test_packed_pairs_give_the_losses_of_pairs_in_rows_of_their_own() -> None:
    model = perturbed(
        BERT(
            BERTConfig(
                vocab_size=VOCAB,
                n_layers=2,
                d_model=16,
                n_heads=2,
                d_ff=24,
                n_positions=64,
                dropout=0.0,
            )
        ).double()
    )
    pairs = pairs_of(SentencePairs(documents(6), 48, MASKING))
    packed = pair_batch([pairs[:2], pairs[2:4], pairs[4:]], 48, MASKING, ["a", "b", "c"])

    def rows(pack: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        """Each pair of a packed batch, cut out."""
        found = []
        for r in range(len(pack["input_ids"])):
            starts = (pack["position_ids"][r] == 0).nonzero()[:, 0].tolist()
            for a, b in zip(starts, [*starts[1:], 48]):
                if pack["input_ids"][r, a] == CLS:
                    names = ("input_ids", "token_type_ids", "labels", "next_sentence_label")
                    found.append({name: pack[name][r : r + 1, a:b] for name in names})
        return found

    together = bert_loss_fn(model, packed)
    alone = [bert_loss_fn(model, row) for row in rows(packed)]
    assert len(alone) == 6
    for name in ("mlm", "nsp"):
        assert_close(together[name][0], torch.stack([one[name][0] for one in alone]).sum())
        assert together[name][1] == sum(int(one[name][1]) for one in alone)
    blind = dict(packed, attention_mask=torch.ones(3, 48, dtype=torch.bool))
    assert (bert_loss_fn(model, blind)["mlm"][0] - together["mlm"][0]).abs() > 1e-3


Masks = dict[tuple[int, ...], tuple[list[int], list[int]]]


def masks_of(stream: list[dict[str, Tensor]]) -> Masks:
    """What each row reads and what it is asked, by its tokens; padding left out."""
    found = {}
    for batch in stream:
        for read, labels in zip(batch["input_ids"], batch["labels"]):
            original = torch.where(labels != IGNORE, labels, read)
            n = int((original != PAD).sum())
            found[tuple(original[:n].tolist())] = read[:n].tolist(), labels[:n].tolist()
    return found


def test_masks_hang_on_the_seed_the_pass_and_the_row_and_on_nothing_else() -> None:
    """Not on the size of the batch, the place in it, the process or the worker."""
    reference = batches(batch_size=1)
    expected = masks_of(one_pass(reference))
    assert len(expected) == reference.n_rows
    for batch_size in (2, 3, 5):
        found = masks_of(one_pass(batches(batch_size=batch_size)))
        assert len(found) > 0.7 * len(expected)
        assert all(expected[row] == masks for row, masks in found.items())
    for rank in range(2):
        share = batches(batch_size=2).share(rank, 2, torch.device("cpu"))
        found = masks_of(list(islice(share, reference.n_rows // 4)))
        assert all(expected[row] == masks for row, masks in found.items())
    beside = with_workers(batches(batch_size=2), 2)
    assert masks_of(one_pass(beside)) == masks_of(one_pass(batches(batch_size=2)))


def test_masks_are_drawn_anew_in_every_pass_and_for_every_seed() -> None:
    # Rows that are the same in each pass: a document each, long enough that no masks are alike.
    long = [[[10 + i] * 40] for i in range(30)]
    rows = SentencePairs(long, 48, MASKING, next_sentence=False, packed=False)
    endless = Batches(rows, 1)
    first, second = masks_of(one_pass(endless)), masks_of(one_pass(endless))
    assert (endless.epoch, endless.offset) == (1, 30)
    seeded = masks_of(one_pass(Batches(rows, 1, seed=1)))
    assert first.keys() == second.keys() == seeded.keys()
    assert len(first) == 30
    assert all(first[row] != second[row] for row in first)
    assert all(first[row] != seeded[row] for row in first)
    assert first == masks_of(one_pass(Batches(rows, 1)))  # the control


def test_the_fingerprint_tells_other_documents_masks_and_rows_apart() -> None:
    one = batches().fingerprint()
    assert one == batches().fingerprint()
    for other in (
        batches(masking=NOTHING),
        batches(context=40),
        batches(packed=False),
        batches(next_sentence=False),
        Batches(SentencePairs(documents(41), 48, MASKING), 4),
    ):
        assert other.fingerprint() != one


def held_out(batch_size: int, seed: int = 0) -> Evaluation:
    return Evaluation(FixedPairs(SentencePairs(documents(10), 48, MASKING), seed), batch_size)


def test_evaluation_has_each_pair_once_and_the_same_masks_every_time() -> None:
    evaluation = held_out(4)
    assert len(evaluation) == 3
    first, second = list(evaluation), list(evaluation)
    assert sorted(evaluation.order) == list(range(10))
    assert sum(int((b["next_sentence_label"] != IGNORE).sum()) for b in first) == 10
    for a, b in zip(first, second):
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert masks_of(first) == masks_of(list(held_out(1)))  # whatever stands beside a pair
    other = held_out(4, seed=1)
    assert not torch.equal(next(iter(other))["labels"], first[0]["labels"])


def test_without_next_sentences_a_row_is_one_segment() -> None:
    batch = next(iter(batches(next_sentence=False)))
    assert "next_sentence_label" not in batch
    assert (batch["token_type_ids"] == 0).all()


def test_packing_leaves_little_padding() -> None:
    def fill(**options: Any) -> float:
        held = torch.cat([batch["input_ids"] != PAD for batch in one_pass(batches(1, **options))])
        return held.float().mean().item()

    assert fill(packed=True) > 0.8 > fill(packed=False)


@given(lengths=st.lists(st.integers(2, 24), min_size=1, max_size=80), context=st.integers(24, 40))
@settings(max_examples=60, deadline=None)
def test_packing_keeps_every_document_and_fits_every_row(lengths: list[int], context: int) -> None:
    array = np.asarray(lengths)
    rows = pack_rows(np.arange(len(array)), array, context)
    assert sorted(itertools.chain.from_iterable(rows)) == list(range(len(array)))
    held = [array[row].sum() for row in rows]
    assert max(held) <= context
    # Best fit never opens a row while another has room: two rows are never both half empty.
    assert sum(2 * n <= context for n in held) <= 1


def test_whole_words_follow_the_table_of_ids() -> None:
    continues = tuple(i % 2 == 1 and i > MASK for i in range(VOCAB))
    words = [[[10, 11, 13, 12, 15] * 3, [20, 21, 22] * 3]] * 6
    masking = Masking(
        cls_id=CLS, sep_id=SEP, mask_id=MASK, pad_id=PAD, vocab_size=VOCAB,
        continues=continues, masked=1.0, replaced=0.0, chosen=0.4,
    )  # fmt: skip
    chosen = False
    for batch in Evaluation(FixedPairs(SentencePairs(words, 48, masking)), 3):
        labels = batch["labels"]
        original = torch.where(labels != IGNORE, labels, batch["input_ids"])
        inside = torch.tensor(continues)[original][:, 1:]
        same = (labels[:, 1:] != IGNORE) == (labels[:, :-1] != IGNORE)
        assert same[inside].all()
        chosen |= bool((labels != IGNORE).any())
    assert chosen


@pytest.mark.parametrize(
    ("texts", "settings", "error", "message"),
    [
        ([], {}, DataError, "at least 2 documents of 2 sentences, got 0 among 0"),
        ([[[9], [8]], [[7]]], {}, DataError, "got 1 among 2 documents"),
        (documents(3), {"context": 4}, ConfigError, "context must be at least 5"),
        ([[[9], [VOCAB]], [[7], [6]]], {}, DataError, f"got {VOCAB}"),
    ],
)
def test_bad_documents_are_refused(
    texts: Any, settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments = {"context": 48, "masking": MASKING} | settings
    with pytest.raises(error, match=message):
        SentencePairs(texts, **arguments)


def test_documents_of_one_sentence_are_left_out_and_counted() -> None:
    rows = SentencePairs([*documents(3), [[9, 9]]], 48, MASKING)
    assert (len(pairs_of(rows)), rows.skipped) == (3, 1)


def test_a_document_is_masked_anew_in_every_pass() -> None:
    """One document, one row, one batch a pass: only its masks may differ."""

    def endless() -> Batches:
        rows = SentencePairs([[list(range(10, 56))]], 48, MASKING, next_sentence=False)
        return Batches(rows, 1)

    epochs = [batch for _, batch in zip(range(40), endless())]
    texts = [torch.where(b["labels"] == IGNORE, b["input_ids"], b["labels"]) for b in epochs]
    assert all(torch.equal(text[:, 1:-1], torch.arange(10, 56)[None]) for text in texts)
    chosen = torch.cat([batch["labels"] != IGNORE for batch in epochs])
    assert len({tuple(row) for row in chosen.tolist()}) == 40
    assert chosen[:, 1:-1].any(0).float().mean() > 0.95  # with one masking it would be 0.15
    again = next(iter(endless()))
    assert torch.equal(again["labels"], epochs[0]["labels"])  # the same seed, the same masks
