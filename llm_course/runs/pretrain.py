"""`llm-course pretrain gpt`: data, tokenizer, model, training, evaluation, a run directory."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from llm_course.configs import DataConfig, GPTConfig, TrainConfig
from llm_course.errors import ConfigError
from llm_course.models.gpt import GPT
from llm_course.objectives.causal import causal_loss_fn
from llm_course.presets import gpt_preset
from llm_course.runs.data import PreparedData, prepare
from llm_course.tokenizers.library import Tokenizer
from llm_course.training.loop import Step, train
from llm_course.training.metrics import loss_sums
from llm_course.training.run_directory import write_summary


@dataclasses.dataclass(frozen=True, kw_only=True)
class GPTRun:
    """Everything that a pretraining run is made of."""

    model: GPT
    data: PreparedData
    train_config: TrainConfig
    out: Path | None

    def steps(self, *, resume: bool = False) -> Iterator[Step]:
        """Train; yields after every update."""
        return train(
            self.model,
            self.data.train,
            causal_loss_fn,
            self.train_config,
            out=self.out,
            resume=resume,
            validation=self.data.validation,
            tokenizer=self.data.tokenizer,
        )

    def summary(self, seconds: float, tokens_per_second: float) -> dict[str, Any]:
        """The keys of summary.json, measured on the validation data."""
        nats, count = loss_sums(self.model, self.data.validation, causal_loss_fn)["lm"]
        floor = sum(-document.log_prob for document in self.data.town)
        return {
            "val_loss": nats / count,
            "val_nats_per_char": nats / self.data.characters,
            "floor_ratio": nats / floor if floor else None,
            "test": {},
            "seconds": seconds,
            "tokens_per_second": tokens_per_second,
            "parameters": sum(p.numel() for p in self.model.parameters()),
        }


def prepare_gpt(
    model: GPTConfig,
    data: DataConfig,
    train_config: TrainConfig,
    *,
    out: Path | None = None,
    tokenizer: Tokenizer | None = None,
) -> GPTRun:
    """Data, tokenizer and a fresh model whose vocabulary is the tokenizer's.

    Raises `ConfigError` when a row is longer than the model's table of positions.
    """
    if data.context > model.n_positions:
        raise ConfigError(
            f"context must be at most n_positions = {model.n_positions}, got {data.context}"
        )
    prepared = prepare(data, tokenizer)
    tokens = prepared.tokenizer
    config = dataclasses.replace(
        model, vocab_size=len(tokens), bos_token_id=tokens.bos_id, eos_token_id=tokens.eos_id
    )
    torch.manual_seed(train_config.seed)
    return GPTRun(model=GPT(config), data=prepared, train_config=train_config, out=out)


def settings(preset: str, options: dict[str, Any]) -> tuple[GPTConfig, DataConfig, TrainConfig]:
    """The preset's settings with the options that were given (those that are not None)."""
    given = {name: value for name, value in options.items() if value is not None}
    chosen = gpt_preset(preset)
    files, dataset = tuple(given.pop("data_files", ())), given.get("dataset")
    if files and dataset:
        raise ConfigError(f"give data files or a dataset, not both: {files[0]!r} and {dataset!r}")
    if files or dataset:
        given |= {"data": "files" if files else "hub", "data_files": files}
    parts: list[Any] = [chosen.model, chosen.data, chosen.train]
    used: set[str] = set()
    for index, part in enumerate(parts):
        names = {field.name for field in dataclasses.fields(part)} & given.keys()
        used |= names
        changes = {name: given[name] for name in names}
        if isinstance(part, GPTConfig):
            if "d_model" in changes and "d_ff" not in changes:
                changes["d_ff"] = None
            if "context" in given:
                changes["n_positions"] = given["context"]
        if isinstance(part, TrainConfig) and "max_steps" in changes:
            changes.setdefault("warmup_steps", min(part.warmup_steps, changes["max_steps"]))
        if isinstance(part, TrainConfig) and "lr" in changes:
            changes.setdefault("min_lr", min(part.min_lr, changes["lr"]))
        parts[index] = dataclasses.replace(part, **changes)
    if given.keys() - used:
        raise ConfigError(f"unknown options: {', '.join(sorted(given.keys() - used))}")
    return parts[0], parts[1], parts[2]


def pretrain_gpt_command(*, preset: str, out: str, resume: bool, **options: Any) -> None:
    """What the command line does: prepare, train with a progress bar, evaluate, summarise."""
    from tqdm import tqdm

    model_config, data_config, train_config = settings(preset, options)
    directory = Path(out)
    if not resume and (directory / "checkpoints").is_dir():
        raise ConfigError(
            f"{directory} holds an earlier run: go on with --resume, or choose another --out"
        )
    print(f"data: {_describe(data_config)}", file=sys.stderr)
    run = prepare_gpt(model_config, data_config, train_config, out=directory)
    parameters = sum(p.numel() for p in run.model.parameters())
    print(
        f"model: GPT, {parameters:,} parameters, {run.model.config.n_layers} blocks of width "
        f"{run.model.config.d_model}, vocabulary {run.model.config.vocab_size}",
        file=sys.stderr,
    )
    last: Step | None = None
    with tqdm(total=train_config.max_steps, unit="step") as bar:
        for step in run.steps(resume=resume):
            last = step
            bar.update(step.step - bar.n)
            bar.set_postfix_str(f"loss {step.loss:.3f}, {step.tokens_per_second:,.0f} tokens/s")
    seconds = last.seconds if last else math.nan
    summary = run.summary(seconds, last.tokens / seconds if last else math.nan)
    write_summary(directory, **summary)
    print(json.dumps(summary, indent=2))


def _describe(config: DataConfig) -> str:
    if config.data == "town":
        return f"{config.documents:,} stories of Town"
    return config.dataset or ", ".join(config.data_files)
