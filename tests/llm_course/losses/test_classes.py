"""The losses of fine-tuning: of classes, and of the ends of an answer."""

from __future__ import annotations

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
from llm_course.losses.chunked import IGNORE
from llm_course.losses.classes import answer_loss_fn, classification_loss_fn

SIZES = {"vocab_size": 40, "n_layers": 1, "d_model": 12, "n_heads": 2, "d_ff": 20}


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
