"""Fine-tune a BERT: a checkpoint and labelled examples become a model, its scores, its predictions.

Devlin et al. 2019, §4, and the article's steps B4 to B6: the data of the task, the loaded weights
with all, some or no blocks trained, and a test set that is opened once. `llm-course finetune bert`.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from llm_course.batches.labelled import LabelledRows
from llm_course.batches.sampler import Batches, Evaluation, at_least
from llm_course.configs import FineTuneConfig, TrainConfig
from llm_course.data.example_files import Columns, read_examples
from llm_course.data.examples import (
    HeldOut,
    Splits,
    check_splits,
    held_out_hash,
    labels_of,
    split_off,
    town_splits,
)
from llm_course.errors import ConfigError, DataError
from llm_course.losses.chunked import IGNORE
from llm_course.models.bert import BERT
from llm_course.models.files import find_directory, read_json
from llm_course.models.heads import new_head, train_last_blocks
from llm_course.presets import Preset, find_preset
from llm_course.recipes.predictor import Predictor, TaskSettings
from llm_course.recipes.run import (
    EVALUATION_ROWS,
    Data,
    Run,
    carry_out,
    check_holds,
    printable,
    say,
)
from llm_course.recipes.tasks import TASKS, Encoded
from llm_course.recipes.texts import check_different
from llm_course.tokenizers.library import Tokenizer
from llm_course.training.devices import choose_device, choose_precision
from llm_course.training.run_directory import check_out

SMALL = 20_000_000  # parameters; a larger checkpoint is fine-tuned as published ones are
CHECKPOINT = "runs/bert/model"  # the default of the command line


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelledData(Data):
    """What fine-tuning needs from its data."""

    tokenizer: Predictor  # it is saved beside the model, with its tokenizer
    dev: Sequence[Any]
    test: HeldOut
    encoded: dict[str, Encoded]  # of "train" and "dev": how many were cut, how many windows


@dataclasses.dataclass(kw_only=True)
class FineTuneRun(Run):
    """A run whose test set is opened once, after the development set (B6)."""

    data: LabelledData
    last_dev_scores: dict[str, float] | None = None

    looks_once = True

    @property
    def predictor(self) -> Predictor:
        return self.data.tokenizer

    def predict(self, examples: Sequence[Any]) -> list[Any]:
        """A prediction for each example, in their order."""
        return self.predictor.predict(examples)

    def dev_scores(self) -> dict[str, float]:
        """The scores on the development set, as often as you like: it is there to choose by."""
        dev = self.data.dev
        self.last_dev_scores = self.predictor.score(dev, self.predict(dev))
        return dict(self.last_dev_scores)

    def test_scores(self, **options: Any) -> dict[str, Any]:
        """The scores on the test set, once, after `dev_scores`; else `HeldOutError`."""
        return self.test_results()[0]

    def test_results(self) -> tuple[dict[str, float], list[Any], list[Any]]:
        """The one look at the test set: its scores, its examples, and their predictions."""
        if not len(self.data.test):
            raise DataError("there is no test set: these splits have none")
        examples = self.data.test.open(self.last_dev_scores)
        predictions = self.predict(examples)
        return self.predictor.score(examples, predictions), examples, predictions

    def summary_scores(self, model: Any) -> dict[str, Any]:
        """Those of the test set, where there is one, and of the development set as "dev"."""
        dev = {**self.dev_scores(), "examples": len(self.data.dev)}
        if not len(self.data.test):
            return {"dev": dev}
        scores, examples, _ = self.test_results()
        cut = self.predictor.encode(examples, labelled=False).cut
        return {**scores, "examples": len(examples), "cut": cut, "dev": dev}


def prepare_finetune(
    task: str,
    splits: Splits,
    *,
    checkpoint: str | Path,
    train_config: TrainConfig | None = None,
    out: str | Path | None = None,
    **options: Any,
) -> FineTuneRun:
    """Read the checkpoint, give it the head of the task, and make rows of the examples.

    `checkpoint` is a directory with a BERT and its tokenizer, or a hub id. `options` are fields of
    `FineTuneConfig` (how many epochs, what is trained, how rows are made), and of `TrainConfig`
    where no `train_config` is given; what is left out suits the size of the checkpoint. The seed
    decides the new weights, the order of the batches and dropout.

    Raises `ConfigError`, `DataError` (see `check_splits`), `WeightsError`.
    """
    labels = check_splits(task, splits)
    if "epochs" in options and "max_steps" in options:
        epochs, max_steps = options["epochs"], options["max_steps"]
        raise ConfigError(f"give epochs or max_steps, not both: {epochs} and {max_steps}")
    directory = find_directory(checkpoint)
    preset = preset_for(directory)
    own = {each.name for each in dataclasses.fields(FineTuneConfig)} & options.keys()
    chosen = dataclasses.replace(preset.data, **{name: options.pop(name) for name in own})
    if train_config is not None and options:
        raise ConfigError(f"a train_config is given, and then no {', '.join(options)}")
    if chosen.train_blocks == 0:  # a frozen BERT bears a higher rate
        options.setdefault("lr", chosen.frozen_lr)
    config = train_config or dataclasses.replace(preset.train, warmup_steps=0, **options)
    predictor = _predictor(task, directory, labels, chosen, config.seed)
    data = _data(predictor, splits, chosen.batch_size, config.seed)
    per_epoch = data.train.batches_per_epoch
    if train_config is None or "epochs" in own:
        steps = options.get("max_steps", chosen.epochs * per_epoch)
        warmup = steps // 10 if chosen.warmup_steps is None else chosen.warmup_steps
        config = dataclasses.replace(config, max_steps=steps, warmup_steps=warmup)
    if chosen.keep_best:
        config = _keeping_best(config, per_epoch)
    return FineTuneRun(
        model=predictor.model,
        data=data,
        loss_fn=predictor.task.loss_fn,
        train_config=config,
        out=None if out is None else Path(out),
        settings={"start": "scratch" if chosen.from_scratch else "checkpoint"},
    )


def _keeping_best(config: TrainConfig, per_epoch: int) -> TrainConfig:
    """An evaluation after each epoch, and so much patience that training never ends early."""
    every = config.eval_every or min(per_epoch, config.max_steps)
    patience = config.patience or config.max_steps // every + 1
    return dataclasses.replace(config, eval_every=every, patience=patience)


def preset_for(directory: Path) -> Preset:
    """The preset that suits the size and the positions of a checkpoint, from its config.json."""
    check_holds(directory, BERT)
    config = BERT.config_from_file(read_json(directory / "config.json"))
    layer = 4 * config.d_model**2 + 2 * config.d_model * config.d_ff
    size = config.vocab_size * config.d_model + config.n_layers * layer
    preset = find_preset("finetune", "small" if size <= SMALL else "published")
    context = min(preset.data.context, config.n_positions)
    return dataclasses.replace(preset, data=dataclasses.replace(preset.data, context=context))


def _predictor(
    task: str, directory: Path, labels: tuple[str, ...], chosen: FineTuneConfig, seed: int
) -> Predictor:
    """The checkpoint with a new head, and with as many blocks to train as were chosen."""
    form, dropout = TASKS[task].form, chosen.dropout
    torch.manual_seed(seed)
    model = form.from_pretrained(directory, heads="new", dtype=torch.float32, dropout=dropout)
    if chosen.from_scratch:
        torch.manual_seed(seed)
        model = form(model.config)
    new_head(model, labels)
    blocks = len(model.blocks()) if chosen.train_blocks is None else chosen.train_blocks
    train_last_blocks(model, blocks)
    rows = {name: getattr(chosen, name) for name in ("context", "stride", "longest_answer")}
    settings = TaskSettings.from_dict({"task": task, **rows})
    return Predictor(model, Tokenizer.load(directory), settings)


def _data(predictor: Predictor, splits: Splits, batch_size: int, seed: int) -> LabelledData:
    """Batches of the rows that teach something: of a sentence no word of which fits none does."""
    parts = {"train": splits.train, "dev": splits.dev}
    encoded = {name: predictor.encode(part, labelled=True) for name, part in parts.items()}
    rows = {name: list(filter(_teaches, each.rows)) for name, each in encoded.items()}
    if not all(rows.values()):
        raise DataError("no example has a word that fits into a row: raise context")
    context, pad_id = predictor.settings.context, predictor.pad_id
    train = LabelledRows(
        rows["train"],
        context,
        pad_id=pad_id,
        vocab_size=predictor.model.config.vocab_size,
        held_out=held_out_hash(splits),
    )
    dev = LabelledRows(rows["dev"], context, pad_id=pad_id)
    return LabelledData(
        tokenizer=predictor,
        train=Batches(train, min(batch_size, len(train)), seed=seed),  # few examples: one batch
        validation=Evaluation(dev, EVALUATION_ROWS),
        dev=splits.dev,
        test=splits.test if isinstance(splits.test, HeldOut) else HeldOut(splits.test),
        encoded=encoded,
    )


def _teaches(row: Any) -> bool:
    return not isinstance(row.label, list) or any(label != IGNORE for label in row.label)


# The command


def finetune_command(
    *,
    task: str,
    checkpoint: str,
    out: str,
    resume: bool,
    options: dict[str, Any],
    **data: Any,
) -> None:
    """What the command line does: read `data`, train by the `options` that were given, score."""
    directory = Path(out)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("finetune runs in one process: start it without torchrun")
    choose_precision(choose_device(options.get("device", "auto")), options.get("precision", "auto"))
    if checkpoint == CHECKPOINT and not Path(checkpoint).is_dir():
        raise ConfigError(
            f"there is no {checkpoint}: name a BERT with --checkpoint, or make this one with "
            "`llm-course pretrain bert`"
        )
    check_out(directory, resume, options.get("tensorboard", False))
    splits, said = read_splits(task, seed=options.get("seed", 0), **data)
    say(f"data: {said}")
    run = prepare_finetune(task, splits, checkpoint=checkpoint, out=directory, **options)
    _describe(run)
    carry_out(run, directory, resume=resume)
    asked = " ".join(f'--{name} "..."' for name in run.predictor.task.asks)
    say(f"next: llm-course predict --model {directory / 'model'} {asked}")


def read_splits(
    task: str,
    *,
    data_files: tuple[str, ...],
    dev_files: tuple[str, ...],
    test_files: tuple[str, ...],
    examples: int,
    dev_share: float,
    seed: int,
    **columns: str | None,
) -> tuple[Splits, str]:
    """The examples of files, or of Town where none is named; and a sentence on where they are from.

    `columns` are text_column, pair_column and label_column.
    """
    if not 0 < dev_share < 1:
        raise ConfigError(f"dev_share must be between 0 and 1, got {dev_share}")
    at_least(1, examples=examples)
    named = Columns(**{name.removesuffix("_column"): value for name, value in columns.items()})
    if not data_files:
        if dev_files or test_files or named != Columns():
            raise ConfigError("dev_files, test_files and columns go with data_files: none is named")
        splits = town_splits(task, examples, max(100, examples // 4), seed)
        return splits, f"Town, {_sizes(splits)}"
    check_different("data_files, dev_files and test_files", [*data_files, *dev_files, *test_files])
    training, said = read_examples(task, data_files, named), ""
    if dev_files:
        dev = read_examples(task, dev_files, named)
    else:
        labels_of(task, training)  # what is wrong with the file is not the fault of the split
        training, dev = split_off(training, dev_share, seed)
        said = f" (development: {dev_share:.0%} split off from the training files)"
    splits = Splits(training, dev, read_examples(task, test_files, named) if test_files else [])
    return splits, f"{', '.join(data_files)}: {_sizes(splits)}{said}"


def _sizes(splits: Splits) -> str:
    sizes = f"{len(splits.train):,} to train, {len(splits.dev):,} to develop"
    return f"{sizes}, {len(splits.test):,} to test" if len(splits.test) else f"{sizes}, no test set"


def _describe(run: FineTuneRun) -> None:
    """What is trained on what, and what did not fit."""
    for name, encoded in run.data.encoded.items():
        say(f"{name}: {encoded.report()}")
    predictor = run.predictor
    if predictor.labels:
        shown = ", ".join(predictor.labels[:12]) + (", ..." if len(predictor.labels) > 12 else "")
        say(f"labels: {printable(shown)}")
    sizes = [(p.numel(), p.requires_grad) for p in run.model.parameters()]
    trained = sum(n for n, learns in sizes if learns)
    say(
        f"model: {sum(n for n, _ in sizes):,} parameters, of which {trained:,} are trained, "
        f"{run.train_config.max_steps:,} updates of {run.data.train.batch_size} rows of at most "
        f"{predictor.settings.context} tokens"
    )
