"""`llm-course finetune bert`: examples of Town or of files, a run directory, the scores."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

from llm_course.configs import TrainConfig
from llm_course.data.example_files import Columns, read_examples
from llm_course.data.examples import Splits, labels_of, split_off, town_splits
from llm_course.errors import ConfigError
from llm_course.models.files import read_json
from llm_course.recipes.finetune import FineTuneRun, prepare_finetune, preset_for
from llm_course.recipes.pretrain_gpt import last_line, show_steps
from llm_course.recipes.sample import printable
from llm_course.training.checkpoint import list_checkpoints
from llm_course.training.devices import choose_device, choose_precision
from llm_course.training.run_directory import check_out, write_summary

CHECKPOINT = "runs/bert/model"  # the default of the command line

# Options of the command line that are fields of TrainConfig.
TRAINING = (
    *("accumulation", "lr", "schedule", "weight_decay", "clip_norm", "precision", "device"),
    *("eval_every", "save_every", "seed"),
)


def read_splits(
    task: str,
    *,
    data_files: tuple[str, ...],
    dev_files: tuple[str, ...],
    test_files: tuple[str, ...],
    columns: Columns,
    examples: int,
    dev_share: float,
    seed: int,
) -> tuple[Splits, str]:
    """The examples of files, or of Town where none is named; and a sentence on where they are from.

    Without development files a part of the training examples is split off.
    """
    if not 0 < dev_share < 1:
        raise ConfigError(f"dev_share must be between 0 and 1, got {dev_share}")
    if examples < 1:
        raise ConfigError(f"examples must be at least 1, got {examples}")
    if not data_files:
        if dev_files or test_files or columns != Columns():
            raise ConfigError(
                "dev_files, test_files and columns go with data_files, which names none"
            )
        splits = town_splits(task, examples, max(100, examples // 4), seed)
        return splits, f"Town, {_sizes(splits)}"
    _check_different(data_files, dev_files, test_files)
    read = partial(read_examples, task, columns=columns)
    training, said = read(data_files), ""
    if dev_files:
        dev = read(dev_files)
    else:
        labels_of(task, training)  # what is wrong with the file is not the fault of the split
        training, dev = split_off(training, dev_share, seed)
        said = f" (development: {dev_share:.0%} split off from the training files)"
    splits = Splits(training, dev, read(test_files) if test_files else [])
    return splits, f"{', '.join(data_files)}: {_sizes(splits)}{said}"


def _sizes(splits: Splits) -> str:
    sizes = f"{len(splits.train):,} to train, {len(splits.dev):,} to develop"
    return f"{sizes}, {len(splits.test):,} to test" if len(splits.test) else f"{sizes}, no test set"


def _check_different(*groups: tuple[str, ...]) -> None:
    """Refuse a file that is named twice: what is tested would be in the training data."""
    seen: set[Path] = set()
    for name in (name for group in groups for name in group):
        path = Path(name).resolve()
        if path in seen:
            raise ConfigError(
                f"data_files, dev_files and test_files must differ, got {name!r} twice"
            )
        seen.add(path)


def training_of(checkpoint: str, options: dict[str, Any], *, frozen: bool) -> TrainConfig:
    """The preset's settings with the options that were given; epochs may set the updates anew."""
    preset = preset_for(checkpoint)
    given = {k: v for k, v in options.items() if k in TRAINING and v is not None}
    if frozen:
        given.setdefault("lr", preset.frozen_lr)
    steps, warmup = options["max_steps"], options["warmup_steps"]
    if steps is not None:
        warmup = int(preset.warmup * steps) if warmup is None else warmup
        given |= {"max_steps": steps, "warmup_steps": warmup}
    return dataclasses.replace(preset.train, **given)


def finetune_command(*, task: str, checkpoint: str, out: str, resume: bool, **options: Any) -> None:
    """What the command line does: read, train with a progress bar, score, write the summary."""
    say = partial(print, file=sys.stderr)
    directory = Path(out)
    _check_options(checkpoint, options)
    check_out(directory, resume)
    config = training_of(checkpoint, options, frozen=options["train_blocks"] == 0)
    if options["max_steps"] is None and options["epochs"] is None:
        options["epochs"] = preset_for(checkpoint).epochs
    splits, said = read_splits(
        task,
        **{name: tuple(options.pop(name)) for name in ("data_files", "dev_files", "test_files")},
        columns=Columns(**{n: options.pop(f"{n}_column") for n in ("text", "pair", "label")}),
        examples=options.pop("examples"),
        dev_share=options.pop("dev_share"),
        seed=options["seed"],
    )
    say(f"data: {said}")
    rest = {k: v for k, v in options.items() if k not in (*TRAINING, "max_steps")}
    run = prepare_finetune(
        task, splits, checkpoint=checkpoint, train_config=config, out=directory, **rest
    )
    _describe(run, say)
    _train_and_score(run, directory, resume, say)


def _check_options(checkpoint: str, options: dict[str, Any]) -> None:
    """What can be refused before any work."""
    epochs, max_steps = options["epochs"], options["max_steps"]
    if epochs is not None and max_steps is not None:
        raise ConfigError(f"give epochs or max_steps, not both: {epochs} and {max_steps}")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("finetune runs in one process: start it without torchrun")
    choose_precision(choose_device(options["device"] or "auto"), options["precision"] or "auto")
    if checkpoint == CHECKPOINT and not Path(checkpoint).is_dir():
        raise ConfigError(
            f"there is no {checkpoint}: name a BERT with --checkpoint, or make this one with "
            "`llm-course pretrain bert`"
        )


def _describe(run: FineTuneRun, say: Any) -> None:
    """What is trained on what, and what did not fit."""
    for name, encoded in run.encoded.items():
        say(f"{name}: {encoded.report()}")
    predictor, model = run.predictor, run.model
    if predictor.labels:
        shown = ", ".join(predictor.labels[:12]) + (", ..." if len(predictor.labels) > 12 else "")
        say(f"labels: {printable(shown)}")
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    trained = sum(n for n, learns in sizes if learns)
    say(
        f"model: {sum(n for n, _ in sizes):,} parameters, of which {trained:,} are trained, "
        f"{run.train_config.max_steps:,} updates of {run.batches.batch_size} rows of at most "
        f"{predictor.settings.context} tokens"
    )


def _train_and_score(run: FineTuneRun, directory: Path, resume: bool, say: Any) -> None:
    try:
        last_step = show_steps(run, resume=resume, say=say)
    except (KeyboardInterrupt, SystemExit):
        saved = list_checkpoints(directory / "checkpoints")
        if saved:
            say(f"saved {saved[0]}: the same command with --resume goes on from there")
        raise
    path = directory / "summary.json"
    if last_step or not path.is_file():  # else the test set was opened before
        last = last_line(directory)
        seconds, tokens = last.get("seconds", math.nan), last.get("tokens", math.nan)
        write_summary(directory, **run.summary(seconds, tokens / seconds))
    print(json.dumps(read_json(path), indent=2))
    say(f"next: llm-course predict --model {directory / 'model'} {_example(run)}")


def _example(run: FineTuneRun) -> str:
    """The options of a first prediction."""
    return {
        "classify": '--text "..."',
        "pair": '--text "..." --pair "..."',
        "tag": '--text "..."',
        "qa": '--question "..." --context "..."',
    }[run.predictor.settings.task]
