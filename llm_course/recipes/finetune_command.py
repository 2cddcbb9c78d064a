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

from llm_course.configs import FineTuneConfig, TrainConfig
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


def finetune_command(
    *,
    task: str,
    checkpoint: str,
    out: str,
    resume: bool,
    options: dict[str, Any],
    **data: Any,
) -> None:
    """What the command line does: read, train with a progress bar, score, write the summary.

    `data` says where the examples are from (see `read_splits`), `options` are the settings that
    were given.
    """
    say = partial(print, file=sys.stderr)
    directory = Path(out)
    _check_options(checkpoint, options)
    check_out(directory, resume, options.get("tensorboard", False))
    config, settings = _chosen(checkpoint, options)
    columns = Columns(**{name: data.pop(f"{name}_column") for name in ("text", "pair", "label")})
    splits, said = read_splits(task, columns=columns, seed=config.seed, **data)
    say(f"data: {said}")
    run = prepare_finetune(
        task, splits, checkpoint=checkpoint, train_config=config, out=directory, **settings
    )
    _describe(run, say)
    _train_and_score(run, directory, resume, say)


def _chosen(checkpoint: str, options: dict[str, Any]) -> tuple[TrainConfig, dict[str, Any]]:
    """The preset's training and settings with the options that were given."""
    preset = preset_for(checkpoint)
    names = {each.name for each in dataclasses.fields(FineTuneConfig)}
    settings = {name: value for name, value in options.items() if name in names}
    training = {name: value for name, value in options.items() if name not in names}
    if settings.get("train_blocks") == 0:
        training.setdefault("lr", settings.get("frozen_lr", preset.data.frozen_lr))
    if steps := options.get("max_steps"):
        training["warmup_steps"] = settings.pop("warmup_steps", steps // 10)
    else:
        settings.setdefault("epochs", preset.data.epochs)
    return dataclasses.replace(preset.train, **training), settings


def _check_options(checkpoint: str, options: dict[str, Any]) -> None:
    """What can be refused before any work."""
    if "epochs" in options and "max_steps" in options:
        epochs, max_steps = options["epochs"], options["max_steps"]
        raise ConfigError(f"give epochs or max_steps, not both: {epochs} and {max_steps}")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("finetune runs in one process: start it without torchrun")
    device = choose_device(options.get("device", "auto"))
    choose_precision(device, options.get("precision", "auto"))
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
