"""BERT's fine-tuned forms equal those of transformers, take pretrained weights and can freeze."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from parity import (
    assert_relative,
    differs,
    perturbed,
    random_attention_mask,
    random_ids,
    random_width,
    reached,
)
from torch import Tensor
from torch.testing import assert_close
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
)

from llm_course import (
    BERT,
    BERTConfig,
    BERTForQuestionAnswering,
    BERTForSequenceClassification,
    BERTForTokenClassification,
    BERTLabelConfig,
)
from llm_course.errors import ConfigError, WeightsError
from llm_course.models.heads import train_last_blocks

FORMS: dict[str, tuple[Any, Any, Any]] = {
    "sequence": (
        BERTForSequenceClassification,
        BertForSequenceClassification,
        AutoModelForSequenceClassification,
    ),
    "token": (
        BERTForTokenClassification,
        BertForTokenClassification,
        AutoModelForTokenClassification,
    ),
    "question": (
        BERTForQuestionAnswering,
        BertForQuestionAnswering,
        AutoModelForQuestionAnswering,
    ),
}
SIZES = {"vocab_size": 37, "n_layers": 2, "d_model": 24, "n_heads": 3, "d_ff": 40}
TINY = BERTConfig(**SIZES, n_positions=16)
LABELLED = BERTLabelConfig(**SIZES, n_positions=16, labels=("bad", "good", "mixed"))


def outputs(output: Any) -> list[Tensor]:
    """The tensors of our output, or of theirs."""
    if isinstance(output, Tensor):
        return [output]
    names = ("logits",) if hasattr(output, "logits") else ("start_logits", "end_logits")
    return [getattr(output, name) for name in names]


def reference(form: str, draw: random.Random) -> Any:
    n_heads = draw.randint(1, 4)
    config = BertConfig(
        vocab_size=draw.randint(20, 60),
        hidden_size=random_width(n_heads, draw),
        num_hidden_layers=draw.randint(1, 3),
        num_attention_heads=n_heads,
        intermediate_size=draw.randint(5, 40),
        max_position_embeddings=16,
        hidden_act=draw.choice(["gelu", "gelu_new", "relu"]),
        layer_norm_eps=draw.choice([1e-12, 1e-5, 0.1]),
        num_labels=2 if form == "question" else draw.randint(2, 5),
        attn_implementation="eager",
    )
    return perturbed(FORMS[form][1](config), draw.randrange(2**32))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("form", FORMS)
def test_logits_gradients_and_files_are_those_of_transformers(
    form: str, seed: int, tmp_path: Path
) -> None:
    draw = random.Random(f"{form} {seed}")
    theirs = reference(form, draw)
    theirs.save_pretrained(tmp_path / "theirs")
    ours_class, _, auto = FORMS[form]
    ours = ours_class.from_pretrained(tmp_path / "theirs", dropout=0.1)
    shape = (draw.randint(1, 3), draw.randint(2, 12))
    inputs: dict[str, Tensor] = {
        "input_ids": random_ids(shape, theirs.config.vocab_size, seed),
        "token_type_ids": random_ids(shape, 2, seed + 1),
    }
    if draw.random() < 0.7:
        kind = draw.choice(["left", "right", "holes"])
        inputs["attention_mask"] = random_attention_mask(kind, shape, draw)
    found, wanted = outputs(ours(**inputs)), outputs(theirs(**inputs))
    for a, b in zip(found, wanted, strict=True):
        assert_relative(a, b)
    other = outputs(ours(**dict(inputs, token_type_ids=1 - inputs["token_type_ids"])))
    assert differs(other[0], wanted[0])  # other segments, another output
    ours.double(), theirs.double()
    for model in (ours, theirs):
        torch.stack([t.sin().sum() for t in outputs(model(**inputs))]).sum().backward()
    assert_relative(
        ours.token_embedding.weight.grad, theirs.bert.embeddings.word_embeddings.weight.grad, 1e-6
    )
    head = theirs.qa_outputs if form == "question" else theirs.classifier
    assert_relative(ours.head.weight.grad, head.weight.grad, 1e-6)
    ours.float().save_pretrained(tmp_path / "ours")
    opened = auto.from_pretrained(tmp_path / "ours").eval()
    for a, b in zip(outputs(opened(**inputs)), wanted, strict=True):
        assert_relative(a, b)


def test_names_of_labels_travel_in_the_file(tmp_path: Path) -> None:
    BERTForTokenClassification(LABELLED).save_pretrained(tmp_path)
    assert BERTForTokenClassification.from_pretrained(tmp_path).config.labels == LABELLED.labels
    theirs = AutoModelForTokenClassification.from_pretrained(tmp_path)
    assert theirs.config.id2label == {0: "bad", 1: "good", 2: "mixed"}
    assert theirs.config.label2id["mixed"] == 2


@pytest.mark.covers("B5")
@pytest.mark.parametrize("form", FORMS)
def test_a_pretrained_bert_becomes_each_form_with_a_new_head(form: str, tmp_path: Path) -> None:
    pretrained = perturbed(BERT(TINY))
    pretrained.save_pretrained(tmp_path)
    ours_class = FORMS[form][0]
    with pytest.raises(WeightsError, match='heads="new"'):
        ours_class.from_pretrained(tmp_path)
    model = ours_class.from_pretrained(tmp_path, heads="new")
    ids = random_ids((2, 7), TINY.vocab_size, 0)
    assert torch.equal(model.hidden(ids), pretrained.hidden(ids))
    if form == "sequence":
        assert torch.equal(model.pooler.w.weight, pretrained.pooler.w.weight)
    fresh = ours_class(model.config).eval()
    assert differs(fresh.hidden(ids), pretrained.hidden(ids))


def test_a_head_for_other_labels_does_not_fit(tmp_path: Path) -> None:
    BERTForSequenceClassification(LABELLED).save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    raw["id2label"] = {"0": "no", "1": "yes"}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(WeightsError, match="classifier"):
        BERTForSequenceClassification.from_pretrained(tmp_path)
    raw["id2label"] = {"0": "no", "2": "yes"}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ConfigError, match="id2label must name the classes 0, 1"):
        BERTForSequenceClassification.from_pretrained(tmp_path)


def trained_names(model: torch.nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.covers("B5")
def test_a_frozen_bert_trains_its_head_only() -> None:
    model = BERTForSequenceClassification(LABELLED)
    train_last_blocks(model, 0)
    assert trained_names(model) == {"head.weight", "head.bias"}
    before = {name: p.clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    model(random_ids((2, 7), 37, 0)).square().sum().backward()
    optimizer.step()
    moved = {n for n, p in model.named_parameters() if reached((p - before[n]).abs().max())}
    assert moved == {"head.weight", "head.bias"}


def test_the_last_blocks_train_with_the_head_and_the_pooler() -> None:
    model = BERTForSequenceClassification(LABELLED)
    train_last_blocks(model, 1)
    names = trained_names(model)
    assert {name.split(".")[0] for name in names} == {"encoder", "pooler", "head"}
    assert all(name.startswith("encoder.1.") for name in names if name.startswith("encoder"))
    train_last_blocks(model, 2)
    assert trained_names(model) == {name for name, _ in model.named_parameters()}
    with pytest.raises(ConfigError, match="n_blocks must be from 0 to 2, got 3"):
        train_last_blocks(model, 3)


@pytest.mark.parametrize(
    ("labels", "message"), [((), "at least 2"), (("a",), "at least 2"), (("a", "a"), "differ")]
)
def test_labels_must_be_several_and_different(labels: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BERTLabelConfig(labels=labels)


def test_the_answer_scores_are_the_two_columns_of_the_head() -> None:
    model = perturbed(BERTForQuestionAnswering(TINY))
    ids = random_ids((2, 7), 37, 0)
    start, end = model(ids)
    both = model.head(model.hidden(ids))
    assert_close(torch.stack([start, end], -1), both)
    assert differs(start, end)
