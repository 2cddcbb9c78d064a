"""Packing against padding: the layouts that are timed hold the same kind of work."""

from __future__ import annotations

import random

import torch
from torch.testing import assert_close

from experiments.speed_runs import layouts_of, narrowed, seconds_in_turns
from llm_course.configs import BERTConfig
from llm_course.losses.masked import Masking, bert_loss_fn
from llm_course.models.bert import BERT

MASKING = Masking(cls_id=1, sep_id=2, mask_id=3, pad_id=0, vocab_size=50)


def documents(number: int) -> list[list[list[int]]]:
    draw = random.Random(0)
    return [
        [[draw.randrange(5, 50) for _ in range(draw.randrange(2, 8))] for _ in range(4)]
        for _ in range(number)
    ]


def model() -> BERT:
    torch.manual_seed(0)
    config = {"d_model": 16, "n_heads": 2, "d_ff": 16, "n_positions": 64, "dropout": 0.0}
    return BERT(BERTConfig(vocab_size=50, n_layers=1, **config))


def test_columns_of_padding_change_no_loss() -> None:
    batch = layouts_of(documents(40), 64, 4, MASKING, 1)["padded to context"][0]
    short = narrowed(batch, MASKING.pad_id)
    assert short["input_ids"].shape[1] < 50 < batch["input_ids"].shape[1]
    bert = model().double()
    wide, cut = bert_loss_fn(bert, batch), bert_loss_fn(bert, short)
    for name in ("mlm", "nsp"):
        assert_close(wide[name], cut[name])
    cut = bert_loss_fn(
        bert, {name: value[:, :20] for name, value in short.items() if name != "attention_mask"}
    )
    assert abs(cut["mlm"][0] - wide["mlm"][0]) > 1e-3  # the control: what is cut here is text


def test_the_layouts_have_about_as_many_pairs_and_packing_is_full() -> None:
    layouts = layouts_of(documents(200), 64, 4, MASKING, 3)
    pairs = {
        name: sum(int((batch["next_sentence_label"] >= 0).sum()) for batch in batches)
        for name, batches in layouts.items()
    }
    assert pairs["padded to longest"] == pairs["padded to context"]
    assert abs(pairs["packed"] - pairs["padded to context"]) <= 3
    positions = {name: sum(b["input_ids"].numel() for b in bs) for name, bs in layouts.items()}
    assert positions["packed"] < positions["padded to longest"] < positions["padded to context"]
    seconds = seconds_in_turns(model(), {name: bs[:1] for name, bs in layouts.items()}, 2)
    assert {len(times) for times in seconds.values()} == {2}
