"""What every recipe owes: a saved start, settings that a resumed run shares, one summary."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from llm_course.configs import (
    BERTConfig,
    BERTDataConfig,
    DataConfig,
    GPTConfig,
    PairConfig,
    TrainConfig,
    TransformerConfig,
)
from llm_course.errors import CheckpointError, ConfigError
from llm_course.models.bert import BERT
from llm_course.models.gpt import GPT
from llm_course.recipes.pretrain_bert import prepare_bert
from llm_course.recipes.pretrain_gpt import prepare_gpt
from llm_course.recipes.run import Run, begin
from llm_course.recipes.translate import prepare_translation
from llm_lab import starts

SIZES: dict[str, Any] = {"n_layers": 1, "d_model": 16, "n_heads": 2, "d_ff": 32}
TRAIN = TrainConfig(max_steps=4, warmup_steps=1, device="cpu", precision="fp32")
TOWN: dict[str, Any] = {"documents": 120, "vocab_size": 400, "batch_size": 4, "context": 160}


def gpt(start: Any = "auto", out: Path | None = None, **data: Any) -> Run:
    config = GPTConfig(**SIZES, n_positions=160, dropout=0.0)
    return prepare_gpt(config, DataConfig(**(TOWN | data)), TRAIN, start=start, out=out)


def bert(start: Any = "auto", out: Path | None = None, **data: Any) -> Run:
    config = BERTConfig(**SIZES, n_positions=160, dropout=0.0)
    return prepare_bert(config, BERTDataConfig(**(TOWN | data)), TRAIN, start=start, out=out)


def translator(out: Path | None = None, **data: Any) -> Run:
    config = TransformerConfig(**SIZES, n_decoder_layers=1, n_positions=64, dropout=0.0)
    pairs = PairConfig(**({"pairs": 150, "held_out": 5, "batch_size": 8} | data))
    return prepare_translation(config, pairs, TRAIN, out=out)


def text_file(folder: Path) -> dict[str, Any]:
    path = folder / "mine.txt"
    parts = (f"A sentence of {n} words. And another one.\n\n" for n in range(300))
    path.write_text("".join(parts))
    return {"data": "files", "data_files": (str(path),), "context": 32}


def trained(run: Run, *, resume: bool = False) -> Run:
    for _ in run.steps(resume=resume):
        pass
    return run


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


# The start of the weights


@pytest.mark.parametrize(
    ("make", "form", "lab"), [(gpt, GPT, starts.copying), (bert, BERT, starts.neighbours)]
)
def test_the_start_is_the_papers_or_that_of_the_lab(make: Any, form: Any, lab: Any) -> None:
    runs = {start: make(start) for start in ("auto", "lab", "paper")}
    assert {name: run.settings["start"] for name, run in runs.items()} == {
        "auto": "lab",
        "lab": "lab",
        "paper": "paper",
    }
    torch.manual_seed(TRAIN.seed)
    model = form(runs["paper"].model.config)
    assert torch.equal(weights(runs["paper"].model), weights(model))
    lab(model)
    assert torch.equal(weights(runs["lab"].model), weights(model))
    assert torch.equal(weights(runs["auto"].model), weights(model))
    assert (weights(model) - weights(runs["paper"].model)).abs().max() > 1e-3


def test_an_unknown_start_is_refused() -> None:
    with pytest.raises(ConfigError, match="start must be one of auto, paper, lab, got 'copying'"):
        begin(GPT, GPTConfig(**SIZES), 0, "copying", lab="copying", usual="lab")


def test_a_gpt_on_text_of_ones_own_begins_as_the_paper_says(tmp_path: Path) -> None:
    own = {**text_file(tmp_path), "tokenizer": "char"}
    assert gpt(**own).settings["start"] == "paper"
    assert gpt("lab", **own).settings["start"] == "lab"
    own = {**text_file(tmp_path), "vocab_size": 60}
    assert bert(**own).settings["start"] == "lab"  # as it has always been


# What a resumed run must share


@pytest.mark.parametrize(
    ("make", "changed", "message"),
    [
        (gpt, {"start": "paper"}, r"settings\.start was 'lab' and is 'paper'"),
        (bert, {"start": "paper"}, r"settings\.start was 'lab' and is 'paper'"),
        (bert, {"next_sentence": False}, r"settings\.next_sentence was True and is False"),
        (bert, {"whole_words": True}, r"settings\.whole_words was False and is True"),
        (translator, {"smoothing": 0.1}, r"settings\.smoothing was 0\.0 and is 0\.1"),
    ],
)
def test_a_run_is_not_resumed_with_other_settings(
    make: Any, changed: dict[str, Any], message: str, tmp_path: Path
) -> None:
    trained(make(out=tmp_path / "run"))
    with pytest.raises(CheckpointError, match=message):
        trained(make(out=tmp_path / "run", **changed), resume=True)
    trained(make(out=tmp_path / "run"), resume=True)  # the control: the same settings go on


def test_files_may_have_moved_when_a_run_is_resumed(tmp_path: Path) -> None:
    own = {**text_file(tmp_path), "tokenizer": "char"}
    trained(gpt(out=tmp_path / "run", **own))
    moved = shutil.move(own["data_files"][0], tmp_path / "moved.txt")
    trained(gpt(out=tmp_path / "run", **{**own, "data_files": (str(moved),)}), resume=True)


# The summary


def test_a_summary_has_the_same_keys_in_every_recipe_and_names_the_start() -> None:
    found = [run.summary(2.0, 3.0) for run in (gpt(), bert("paper"), translator())]
    assert len({tuple(summary) for summary in found}) == 1
    assert [summary["start"] for summary in found] == ["lab", "paper", "paper"]
    assert [summary["floor_ratio"] is None for summary in found] == [False, True, True]
    assert set(found[1]["test"]) == {"mlm_accuracy", "nsp_accuracy", "nsp_loss"}
    assert all(summary["val_loss"] > 0 for summary in found)
    assert all(json.dumps(summary) for summary in found)


def test_options_of_training_go_to_fine_tuning_or_a_config_does(tmp_path: Path) -> None:
    from llm_course.data.examples import town_splits
    from llm_course.recipes.finetune import prepare_finetune

    run = bert()
    run.model.save_pretrained(tmp_path)
    run.data.tokenizer.save(tmp_path)
    splits = town_splits("classify", 24, 6)
    given: dict[str, Any] = {"checkpoint": tmp_path, "batch_size": 8}
    tuned = prepare_finetune("classify", splits, lr=0.25, seed=3, epochs=2, **given)
    assert (tuned.train_config.lr, tuned.train_config.seed) == (0.25, 3)
    assert (tuned.train_config.max_steps, tuned.train_config.warmup_steps) == (6, 0)
    tuned = prepare_finetune("classify", splits, max_steps=40, warmup_steps=3, **given)
    assert (tuned.train_config.max_steps, tuned.train_config.warmup_steps) == (40, 3)
    with pytest.raises(ConfigError, match="a train_config is given, and then no lr"):
        prepare_finetune("classify", splits, train_config=TRAIN, lr=0.25, **given)
    with pytest.raises(ConfigError, match="give epochs or max_steps, not both: 2 and 3"):
        prepare_finetune("classify", splits, epochs=2, max_steps=3, **given)
    with pytest.raises(TypeError, match="epoch"):
        prepare_finetune("classify", splits, epoch=2, **given)
    same = dataclasses.replace(tuned.train_config, max_steps=5, warmup_steps=1)
    assert prepare_finetune("classify", splits, train_config=same, **given).train_config == same
