"""Pretraining runs: judged by stories that training never sees, each counted once and whole."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from itertools import islice, pairwise
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch
from parity import perturbed
from torch import Tensor

from llm_course.configs import BERTConfig, BERTDataConfig, DataConfig, GPTConfig, TrainConfig
from llm_course.data.corpora import split_documents
from llm_course.models.gpt import GPT
from llm_course.presets import find_preset
from llm_course.recipes.pretrain_bert import prepare_bert
from llm_course.recipes.pretrain_gpt import prepare_gpt
from llm_course.recipes.run import Run
from llm_course.tokenizers.library import Tokenizer
from llm_lab import starts
from llm_town import Document, generate_documents

SIZES: dict[str, Any] = {"n_layers": 1, "d_model": 16, "n_heads": 2, "n_positions": 160}
TOWN = DataConfig(documents=150, vocab_size=500, context=160, batch_size=4)
TRAIN = TrainConfig(max_steps=2, warmup_steps=1, device="cpu", precision="fp32")
Stories = set[tuple[int, ...]]


def gpt_run(data: DataConfig) -> Run:
    return prepare_gpt(GPTConfig(**SIZES), data, TRAIN)


def bert_run(data: DataConfig) -> Any:
    read = BERTDataConfig(**(vars(data) | {"tokenizer": "wordpiece", "next_sentence": False}))
    return prepare_bert(BERTConfig(**SIZES, d_ff=32), read, TRAIN)


def uniform(run: Run) -> Run:
    """The run with a model that gives each token the probability 1 / V, so that nats are counts."""
    with torch.no_grad():
        for parameter in run.model.parameters():
            parameter.zero_()
    return run


def pieces(batches: Iterable[dict[str, Tensor]], tokenizer: Tokenizer) -> Stories:
    """The documents in the rows of some batches: ids that were there, without special tokens."""
    found, special = set(), set(tokenizer.special_ids)
    for batch in batches:
        ids = torch.where(batch["labels"] < 0, batch["input_ids"], batch["labels"])
        places = batch.get("position_ids", torch.arange(ids.shape[1]).expand(ids.shape))
        for row, place in zip(ids.tolist(), places):
            begins = [*(place == 0).nonzero().flatten().tolist(), len(row)]
            found |= {tuple(i for i in row[a:b] if i not in special) for a, b in pairwise(begins)}
    return found - {()}


def told(tokenizer: Tokenizer, split: str, n: int = 500, seed: int = 0) -> Stories:
    texts = [story.text for story in generate_documents(n, seed, split)]
    return {tuple(ids) for ids in tokenizer.encode_batch(texts)}


@pytest.mark.parametrize("prepare", [gpt_run, bert_run])
def test_town_is_trained_on_and_judged_by_stories_of_different_splits(prepare: Any) -> None:
    """The loss, the floor ratio and every comparison on Town hang on it."""
    data = prepare(TOWN).data
    judged = pieces(data.validation, data.tokenizer)
    trained = pieces(islice(data.train, data.train.batches_per_epoch), data.tokenizer)
    held_out = told(data.tokenizer, "validation")
    assert len(judged) > 400
    assert judged <= {story[:158] for story in held_out}  # BERT's rows are cut at 160 tokens
    assert not trained & (held_out | told(data.tokenizer, "validation", TOWN.documents))
    # The control: what is compared are whole stories, and those of training are found as well.
    assert len(trained & told(data.tokenizer, "train", TOWN.documents)) > TOWN.documents / 3


def counted(run: Run, stories: list[Document], context: int) -> dict[str, float]:
    """What the summary of a uniform model must say if it is judged by these stories."""
    tokens = run.data.tokenizer
    rows = tokens.encode_documents([story.text for story in stories])
    kept = [(row, story) for row, story in zip(rows, stories) if len(row) <= context]
    nats = math.log(len(tokens)) * sum(len(row) - 1 for row, _ in kept)
    return {
        "val_loss": math.log(len(tokens)),
        "val_nats_per_char": nats / sum(len(story.text) for _, story in kept),
        "floor_ratio": nats / -sum(story.log_prob for _, story in kept),
    }


def test_the_scores_of_town_are_over_the_validation_stories_that_fit_into_a_row() -> None:
    data = dataclasses.replace(TOWN, context=100)
    run = uniform(gpt_run(data))
    summary = run.summary(1.0, 1.0)
    expected = counted(run, list(generate_documents(500, 0, "validation")), 100)
    assert {name: summary[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    # The controls: stories of training, and those that were left out, give other numbers.
    others = counted(run, list(generate_documents(500, 0, "train")), 100)
    everything = counted(run, list(generate_documents(500, 0, "validation")), 10**9)
    for wrong in (others, everything):
        assert abs(wrong["floor_ratio"] / expected["floor_ratio"] - 1) > 1e-3
        assert abs(wrong["val_nats_per_char"] / expected["val_nats_per_char"] - 1) > 1e-3


def table(folder: Path, n: int = 120) -> DataConfig:
    """A csv of short documents; word k stands in document k alone."""
    rows = "".join(f"one more day and then word{k}\n" for k in range(n))
    (folder / "rows.csv").write_text(f"text\n{rows}")
    return DataConfig(
        data="files", data_files=(str(folder / "rows.csv"),), tokenizer="word", vocab_size=999,
        context=16, batch_size=4,
    )  # fmt: skip


def test_the_vocabulary_knows_nothing_of_what_is_held_out(tmp_path: Path) -> None:
    data = table(tmp_path)
    tokens = gpt_run(data).data.tokenizer
    texts = [f"one more day and then word{k}" for k in range(120)]
    _, held_out = split_documents(texts, data.validation, data.seed)
    assert 3 < len(held_out) < 40
    for text in texts:
        known = tokens.unk_id not in tokens.encode(text)
        assert known == (text not in held_out)

    (tmp_path / "play.txt").write_text("to be or not to be\n" * 90 + "a rose by any name\n" * 9)
    play = dataclasses.replace(data, data_files=(str(tmp_path / "play.txt"),))
    tokens = gpt_run(play).data.tokenizer
    assert tokens.unk_id not in tokens.encode("to be or not to be")
    assert tokens.unk_id in tokens.encode("a rose by any name")


def test_of_a_document_that_is_cut_only_what_is_read_counts_as_characters(tmp_path: Path) -> None:
    run = uniform(gpt_run(dataclasses.replace(table(tmp_path), context=5)))
    tokens = run.data.tokenizer
    texts = [f"one more day and then word{k}" for k in range(120)]
    rows = tokens.encode_documents(split_documents(texts, 0.1, 0)[1])
    assert min(map(len, rows)) > 5
    characters = sum(len(tokens.decode(row[:5])) for row in rows)
    nats = 4 * len(rows) * math.log(len(tokens))
    assert run.summary(1.0, 1.0)["val_nats_per_char"] == pytest.approx(nats / characters, rel=1e-5)


def test_the_scores_of_bert_are_those_of_its_two_tasks_without_dropout(tmp_path: Path) -> None:
    stories = "\n\n".join(story.text for story in generate_documents(90, 0, "train"))
    (tmp_path / "mine.txt").write_text(stories)
    data = BERTDataConfig(
        data="files", data_files=(str(tmp_path / "mine.txt"),), validation=0.5,
        vocab_size=300, context=64, batch_size=4,
    )  # fmt: skip
    run = prepare_bert(BERTConfig(**SIZES, d_ff=32, dropout=0.5), data, TRAIN)
    perturbed(run.model).train()
    with torch.no_grad():  # so that some of what it says is right
        run.model.get_parameter("mlm_head.decoder.bias")[run.data.tokenizer.token_id(".")] = 6.0
    summary = run.summary(1.0, 1.0)
    assert run.model.training  # given back as it was
    run.model.eval()
    losses: dict[str, list[float]] = {"mlm": [], "nsp": []}
    right: dict[str, list[float]] = {"mlm": [], "nsp": []}
    for batch in run.data.validation:
        batch = dict(batch)
        wanted = {"mlm": batch.pop("labels"), "nsp": batch.pop("next_sentence_label")[:, 0]}
        with torch.no_grad():
            said = run.model(**batch)
        for name, logits in (("mlm", said.mlm_logits), ("nsp", said.nsp_logits)):
            counted = wanted[name] >= 0
            p = logits[counted].log_softmax(-1)
            labels = wanted[name][counted]
            losses[name] += (-p.gather(-1, labels[:, None])[:, 0]).tolist()
            right[name] += (p.argmax(-1) == labels).float().tolist()
    assert 25 < len(losses["nsp"]) < 65
    assert summary["val_loss"] == pytest.approx(mean(losses["mlm"]), rel=1e-4)
    assert summary["test"]["nsp_loss"] == pytest.approx(mean(losses["nsp"]), rel=1e-4)
    for name in ("mlm", "nsp"):
        one = 1 / len(right[name])  # a near tie may fall otherwise
        assert summary["test"][f"{name}_accuracy"] == pytest.approx(
            mean(right[name]), abs=1.5 * one
        )
        assert 4 * one < mean(right[name]) < 1 - 4 * one
    assert abs(mean(losses["mlm"]) - mean(losses["nsp"])) > 0.1


def test_a_run_begins_with_the_weights_that_its_seed_and_its_data_ask_for(tmp_path: Path) -> None:
    """On Town, whose stories repeat their names, with heads that copy; elsewhere as the papers."""
    train_config = dataclasses.replace(TRAIN, seed=3)

    def begins(data: DataConfig, *, copying: bool) -> bool:
        run = prepare_gpt(GPTConfig(**SIZES), data, train_config)
        torch.manual_seed(3)
        fresh = GPT(run.model.config)
        if copying:
            starts.copying(fresh)
        return all(torch.equal(a, b) for a, b in zip(run.model.parameters(), fresh.parameters()))

    for data, copies in ((TOWN, True), (table(tmp_path), False)):
        assert begins(data, copying=copies)
        assert not begins(data, copying=not copies)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"max_steps": 20}, {"max_steps": 20, "warmup_steps": 20}),
        ({"max_steps": 20, "warmup_steps": 3}, {"max_steps": 20, "warmup_steps": 3}),
        ({"max_steps": 9000}, {"max_steps": 9000, "warmup_steps": 100}),
        ({"lr": 1e-5}, {"lr": 1e-5, "min_lr": 1e-5}),
        ({"lr": 0.1}, {"lr": 0.1, "min_lr": 1e-4}),
        ({"context": 64}, {"context": 64, "n_positions": 64}),
        ({"d_model": 96}, {"d_model": 96, "d_ff": 384}),
        ({"d_model": 96, "d_ff": 100}, {"d_model": 96, "d_ff": 100}),
        ({"dataset": "a/b"}, {"data": "hub", "dataset": "a/b"}),
        ({"data_files": ("a.txt",)}, {"data": "files", "data_files": ("a.txt",)}),
    ],
)
def test_an_option_takes_along_what_hangs_on_it_and_nothing_else(
    options: dict[str, Any], expected: dict[str, Any]
) -> None:
    def flat(options: dict[str, Any]) -> dict[str, Any]:
        chosen = find_preset("gpt", "t4").with_options(options)
        return {
            (type(part).__name__, name): value
            for part in (chosen.model, chosen.data, chosen.train)
            for name, value in vars(part).items()
        }

    before, after = flat({}), flat(options)
    assert {n: v for (_, n), v in after.items() if n in expected} == expected
    assert {name for kind, name in after if after[kind, name] != before[kind, name]} <= {*expected}
