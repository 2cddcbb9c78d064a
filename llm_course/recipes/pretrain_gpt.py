"""`llm-course pretrain`: data, tokenizer, model, training, evaluation, a run directory.

GPT stands here, BERT in `pretrain_bert.py`; the command is the same for both.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from llm_course.configs import DataConfig, GPTConfig, TrainConfig
from llm_course.errors import ConfigError
from llm_course.losses.causal import causal_loss_fn
from llm_course.models.gpt import GPT
from llm_course.presets import Preset, find_preset
from llm_course.recipes.texts import PreparedData, prepare
from llm_course.tokenizers.library import Tokenizer
from llm_course.training import parallel
from llm_course.training.checkpoint import list_checkpoints
from llm_course.training.devices import choose_device, choose_precision
from llm_course.training.evaluate import loss_sums
from llm_course.training.loop import Step, train
from llm_course.training.run_directory import check_out, write_summary


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
        model = whole_model(self.model, self.train_config, self.out)
        nats, count = loss_sums(model, self.data.validation, causal_loss_fn)["lm"]
        floor = sum(-document.log_prob for document in self.data.town)
        return {
            "val_loss": nats / count,
            "val_nats_per_char": nats / self.data.characters,
            "floor_ratio": nats / floor if floor else None,
            "test": {},
            "seconds": seconds,
            "tokens_per_second": tokens_per_second,
            "parameters": sum(p.numel() for p in model.parameters()),
        }


def whole_model(model: Any, train_config: TrainConfig, out: Path | None) -> Any:
    """The trained model; where it is sharded, each process reads what was written of it."""
    if train_config.parallel != "fsdp" or parallel.world_size() == 1:
        return model
    if out is None:
        raise ConfigError("parallel = 'fsdp' needs a directory to be evaluated: pass out")
    parallel.barrier()  # the first process has written it
    return type(model).from_pretrained(out / "model").to(next(model.parameters()).device)


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
    network = GPT(config)
    if data.data == "town":  # whose names repeat; elsewhere the paper's start is better
        from llm_lab.starts import copying  # of the course, not of the paper: see .importlinter

        copying(network)
    return GPTRun(model=network, data=prepared, train_config=train_config, out=out)


def pretrain_gpt_command(*, preset: str, out: str, resume: bool, options: dict[str, Any]) -> None:
    """`llm-course pretrain gpt`: the preset's settings, with the options that were given."""
    chosen = find_preset("gpt", preset).with_options(options)
    directory = pretrain_command("GPT", chosen, prepare_gpt, out=out, resume=resume)
    if directory is not None:
        print(
            f"next: llm-course generate --model {directory / 'model'} --temperature 0.7",
            file=sys.stderr,
        )


def pretrain_command(
    family: str,
    chosen: Preset[Any, DataConfig],
    prepare_run: Callable[..., Any],
    *,
    out: str,
    resume: bool,
) -> Path | None:
    """Prepare, train with a progress bar, evaluate, summarise; the directory, or None.

    None on all processes but the first: only that one speaks and writes.
    """
    directory = Path(out)
    device = parallel.join(choose_device(chosen.train.device))
    choose_precision(device, chosen.train.precision)
    first = parallel.rank() == 0
    say = partial(print, file=sys.stderr) if first else _nothing
    if first:  # before the data, which take a while
        check_out(directory, resume, chosen.train.tensorboard)
    say(f"data: {_describe(chosen.data)}")
    run = prepare_run(chosen.model, chosen.data, chosen.train, out=directory)
    size, parameters = run.model.config, sum(p.numel() for p in run.model.parameters())
    say(
        f"model: {family}, {parameters:,} parameters, {size.n_layers} blocks of width "
        f"{size.d_model}, vocabulary {size.vocab_size}"
    )
    try:
        show_steps(run, resume=resume, say=say)
    except (KeyboardInterrupt, SystemExit):
        saved = list_checkpoints(directory / "checkpoints")
        if saved:
            say(f"saved {saved[0]}: the same command with --resume goes on from there")
        raise
    last = last_line(directory) if first else {}
    seconds, tokens = last.get("seconds", math.nan), last.get("tokens", math.nan)
    summary = run.summary(seconds, tokens / seconds)
    if not first:
        return None
    print(write_summary(directory, **summary).read_text(encoding="utf-8"), end="")
    return directory


def show_steps(run: Any, *, resume: bool, say: Callable[[str], None]) -> int:
    """Train with a progress bar; evaluations and an early stop get a line of their own.

    Returns the last step; 0 where nothing was left to train.
    """
    from tqdm import tqdm

    total, last = run.train_config.max_steps, 0
    # Else without `disable`: then the variable TQDM_DISABLE decides.
    quiet = {"disable": True} if parallel.rank() else {}
    with tqdm(total=total, unit="step", **quiet) as bar:
        for step in run.steps(resume=resume):
            if not last:  # a resumed run begins in the middle, and that took no time
                bar.n = bar.initial = step.step - 1
            last = step.step
            bar.update(last - bar.n)
            bar.set_postfix_str(f"loss {step.loss:.3f}, {step.tokens_per_second:,.0f} tokens/s")
            if step.validation:
                bar.clear()
                say(f"step {last}: loss {step.loss:.3f}, validation {step.validation['loss']:.3f}")
    if not last:
        say("nothing is left to train: this run had its last update before")
    elif last < total:
        say(f"stopped early after step {last}: the model has the weights of its best evaluation")
    return last


def _nothing(message: str) -> None:
    """What the other processes say."""


def last_line(directory: Path) -> dict[str, Any]:
    """Of the log, which also has the updates before an interruption."""
    log = directory / "metrics.jsonl"
    lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    last: dict[str, Any] = json.loads(lines[-1]) if lines else {}
    return last


def _describe(config: DataConfig) -> str:
    if config.data == "town":
        return f"{config.documents:,} stories of Town"
    return config.dataset or ", ".join(config.data_files)
