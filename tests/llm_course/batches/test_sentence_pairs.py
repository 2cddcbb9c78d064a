"""Sentence pairs: true ones from one document, false ones from two; packed rows keep them apart."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from parity import perturbed
from torch import Tensor
from torch.testing import assert_close

from llm_course.batches.sentence_pairs import (
    IS_NEXT,
    NOT_NEXT,
    Masking,
    Pair,
    PairMaker,
    SentencePairBatches,
    SentencePairEvaluation,
    pair_batch,
)
from llm_course.configs import BERTConfig
from llm_course.errors import CheckpointError, ConfigError, DataError
from llm_course.losses.chunked import IGNORE
from llm_course.losses.masked import bert_loss_fn
from llm_course.models.bert import BERT

PAD, CLS, SEP, MASK, VOCAB = 0, 1, 2, 3, 500
MASKING = Masking(cls_id=CLS, sep_id=SEP, mask_id=MASK, pad_id=PAD, vocab_size=VOCAB)
NOTHING = Masking(cls_id=CLS, sep_id=SEP, mask_id=MASK, pad_id=PAD, vocab_size=VOCAB, chosen=0.0)


def documents(n: int = 40, sentences: int = 4) -> list[list[list[int]]]:
    """Document i is made of the id 10 + i alone; sentence j has j + 2 tokens."""
    return [[[10 + i] * (j + 2) for j in range(sentences)] for i in range(n)]


def batches(**settings: Any) -> SentencePairBatches:
    arguments = {"context": 48, "batch_size": 4, "masking": MASKING} | settings
    return SentencePairBatches(documents(), **arguments)


def pairs_of(maker: PairMaker, seed: int = 0) -> list[Pair]:
    import numpy as np

    return maker.pairs(np.random.default_rng(seed))


@pytest.mark.covers("D2")
def test_true_pairs_lie_in_one_document_and_false_ones_never_do() -> None:
    maker = PairMaker(documents(), 48, True, VOCAB)
    labels = []
    for pair in (p for seed in range(50) for p in pairs_of(maker, seed)):
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
    seen = set()
    for pair in (p for seed in range(20) for p in pairs_of(PairMaker(long, 48, True, VOCAB), seed)):
        if pair.label == IS_NEXT:
            assert pair.second is not None
            assert pair.first + pair.second == [t for s in long[pair.sources[0]] for t in s]
            assert pair.first[-1] != pair.second[0]  # never inside a sentence
            seen.add(len(pair.first))
    assert seen == {2, 5, 9}  # every place between two sentences


def test_pairs_that_are_too_long_are_cut_where_they_do_not_meet() -> None:
    long = [[list(range(10, 40)), list(range(40, 70))], [list(range(70, 100)), [101] * 3]]
    for seed in range(10):
        for pair in pairs_of(PairMaker(long, 20, True, VOCAB), seed):
            assert pair.second is not None
            assert len(pair.ids(MASKING)) <= 20
            assert pair.first[-1] in (39, 99)  # the end of A and the beginning of B are kept
            assert pair.second[0] in (40, 101)


def test_a_batch_has_the_layout_of_bert() -> None:
    row = [Pair([10, 11], [12], IS_NEXT, (0, 0)), Pair([13], [14, 15], NOT_NEXT, (1, 2))]
    batch = pair_batch([row], 14, NOTHING, "any")
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
    pairs = pairs_of(PairMaker(documents(6), 48, True, VOCAB))
    packed = pair_batch([pairs[:2], pairs[2:4], pairs[4:]], 48, MASKING, "a")

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


def test_masks_are_drawn_anew_in_every_epoch() -> None:
    endless = batches(batch_size=2)
    iterator, per_epoch = iter(endless), endless.batches_per_epoch
    first = [next(iterator)["labels"] for _ in range(per_epoch)]
    later = [next(iterator)["labels"] for _ in range(endless.batches_per_epoch)]
    assert not any(torch.equal(a, b) for a in first for b in later)


def test_resuming_gives_the_next_batch_bit_for_bit() -> None:
    one = batches()
    iterator = iter(one)
    for _ in range(7):
        next(iterator)
    state = json.loads(json.dumps(one.state_dict()))
    expected = next(iterator)
    other = batches()
    other.load_state_dict(state)
    found = next(iter(other))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not torch.equal(next(iter(batches()))["labels"], expected["labels"])


def test_the_state_of_other_masks_is_refused() -> None:
    state = batches().state_dict()
    with pytest.raises(CheckpointError, match="fingerprint"):
        batches(masking=NOTHING).load_state_dict(state)


def test_ranks_share_a_batch_without_a_common_row() -> None:
    whole = next(iter(batches(batch_size=4, masking=NOTHING)))["input_ids"]
    parts = [
        next(iter(batches(batch_size=2, masking=NOTHING, rank=r, world_size=2)))["input_ids"]
        for r in range(2)
    ]
    assert_close(torch.cat(parts), whole)
    assert not torch.equal(parts[0], parts[1])


def test_evaluation_has_each_pair_once_and_the_same_masks_every_time() -> None:
    held_out = SentencePairEvaluation(documents(10), 48, 4, MASKING)
    assert len(held_out) == 3
    first, second = list(held_out), list(held_out)
    assert sorted(held_out.order) == list(range(10))
    assert sum(int((b["next_sentence_label"] != IGNORE).sum()) for b in first) == 10
    for a, b in zip(first, second):
        assert all(torch.equal(a[name], b[name]) for name in a)
    other = SentencePairEvaluation(documents(10), 48, 4, MASKING, seed=1)
    assert not torch.equal(next(iter(other))["labels"], first[0]["labels"])


def test_without_next_sentences_a_row_is_one_segment() -> None:
    batch = next(iter(batches(next_sentence=False)))
    assert "next_sentence_label" not in batch
    assert (batch["token_type_ids"] == 0).all()


def test_packing_leaves_little_padding() -> None:
    assert batches(packed=True).fill > 0.8 > batches(packed=False).fill


def test_whole_words_follow_the_table_of_ids() -> None:
    continues = tuple(i % 2 == 1 and i > MASK for i in range(VOCAB))
    words = [[[10, 11, 13, 12, 15] * 3, [20, 21, 22] * 3]] * 6
    masking = Masking(
        cls_id=CLS, sep_id=SEP, mask_id=MASK, pad_id=PAD, vocab_size=VOCAB,
        continues=continues, masked=1.0, replaced=0.0, chosen=0.4,
    )  # fmt: skip
    chosen = False
    for batch in SentencePairEvaluation(words, 48, 3, masking):
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
        (documents(3), {"batch_size": 9}, DataError, "lower batch_size or add text"),
    ],
)
def test_bad_documents_are_refused(
    texts: Any, settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments = {"context": 48, "batch_size": 1, "masking": MASKING} | settings
    with pytest.raises(error, match=message):
        SentencePairBatches(texts, **arguments)


def test_documents_of_one_sentence_are_left_out_and_counted() -> None:
    maker = PairMaker([*documents(3), [[9, 9]]], 48, True, VOCAB)
    assert (len(maker), maker.skipped) == (3, 1)


def test_a_document_is_masked_anew_in_every_epoch() -> None:
    """One document, one row, one batch an epoch: only its masks may differ."""

    def endless() -> SentencePairBatches:
        return SentencePairBatches([[list(range(10, 56))]], 48, 1, MASKING, next_sentence=False)

    epochs = [batch for _, batch in zip(range(40), endless())]
    texts = [torch.where(b["labels"] == IGNORE, b["input_ids"], b["labels"]) for b in epochs]
    assert all(torch.equal(text[:, 1:-1], torch.arange(10, 56)[None]) for text in texts)
    chosen = torch.cat([batch["labels"] != IGNORE for batch in epochs])
    assert len({tuple(row) for row in chosen.tolist()}) == 40
    assert chosen[:, 1:-1].any(0).float().mean() > 0.95  # with one masking it would be 0.15
    again = next(iter(endless()))
    assert torch.equal(again["labels"], epochs[0]["labels"])  # the same seed, the same masks


def test_a_document_is_divided_and_paired_anew_in_every_epoch() -> None:
    endless = batches(masking=NOTHING, packed=False, batch_size=40, context=80)
    places, labels = set(), set()
    for _, batch in zip(range(12), endless):
        first = batch["input_ids"][:, 1] == 10  # the pair that begins with document 0
        (row,) = first.nonzero().flatten().tolist()
        places.add(int((batch["token_type_ids"][row] == 0).sum()))
        labels.add(int(batch["next_sentence_label"][row, 0]))
    assert labels == {IS_NEXT, NOT_NEXT}
    assert len(places) > 1
