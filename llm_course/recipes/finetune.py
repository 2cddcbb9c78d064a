"""Fine-tune a BERT: a checkpoint and labelled examples become a model, its scores, its predictions.

Devlin et al. 2019, §4, and the article's steps B4 to B6: the data of the task, the loaded weights
with all, some or no blocks trained, and a test set that is opened once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from llm_course.batches.labelled import LabelledRows
from llm_course.batches.sampler import Batches, Evaluation
from llm_course.configs import FineTuneConfig, TrainConfig
from llm_course.data.examples import HeldOut, Splits, check_splits, held_out_hash
from llm_course.errors import ConfigError, DataError
from llm_course.losses.chunked import IGNORE
from llm_course.losses.classes import answer_loss_fn, classification_loss_fn
from llm_course.models.files import find_directory, read_json
from llm_course.models.heads import new_head, train_last_blocks
from llm_course.presets import Preset, find_preset
from llm_course.recipes.predictor import (
    EVALUATION_ROWS,
    FORMS,
    Encoded,
    Predictor,
    TaskSettings,
    room_for_text,
)
from llm_course.recipes.sample import model_type
from llm_course.tokenizers.library import Tokenizer
from llm_course.training.evaluate import loss_sums
from llm_course.training.loop import Step, train

SMALL = 20_000_000  # parameters; a larger checkpoint is fine-tuned as published ones are


@dataclasses.dataclass(kw_only=True)
class FineTuneRun:
    """Everything that a fine-tuning run is made of."""

    predictor: Predictor
    batches: Batches
    dev: Sequence[Any]
    dev_batches: Evaluation
    test: HeldOut
    train_config: TrainConfig
    out: Path | None
    encoded: dict[str, Encoded]  # of "train" and "dev": how many were cut, how many windows
    last_dev_scores: dict[str, float] | None = None

    @property
    def model(self) -> Any:
        return self.predictor.model

    @property
    def loss_fn(self) -> Any:
        """The loss of the task: of classes, or of the ends of an answer."""
        return answer_loss_fn if self.predictor.settings.task == "qa" else classification_loss_fn

    def steps(self, *, resume: bool = False) -> Iterator[Step]:
        """Train; yields after every update, with the development loss where one is due."""
        return train(
            self.model,
            self.batches,
            self.loss_fn,
            self.train_config,
            out=self.out,
            resume=resume,
            validation=self.dev_batches,
            tokenizer=self.predictor,
        )

    def predict(self, examples: Sequence[Any]) -> list[Any]:
        """A prediction for each example, in their order."""
        return self.predictor.predict(examples)

    def dev_scores(self) -> dict[str, float]:
        """The scores on the development set, as often as you like: it is there to choose by."""
        self.last_dev_scores = self.predictor.score(self.dev, self.predict(self.dev))
        return dict(self.last_dev_scores)

    def test_scores(self) -> dict[str, float]:
        """The scores on the test set, once, after `dev_scores`; else `HeldOutError` (B6)."""
        return self.test_results()[0]

    def test_results(self) -> tuple[dict[str, float], list[Any], list[Any]]:
        """The one look at the test set: its scores, its examples, and their predictions."""
        if not len(self.test):
            raise DataError("there is no test set: these splits have none")
        examples = self.test.open(self.last_dev_scores)
        predictions = self.predict(examples)
        return self.predictor.score(examples, predictions), examples, predictions

    def summary(self, seconds: float, tokens_per_second: float) -> dict[str, Any]:
        """The keys of summary.json; `val_loss` is that of a label of the development set."""
        (nats, count), *_ = loss_sums(self.model, self.dev_batches, self.loss_fn).values()
        dev: dict[str, Any] = {**self.dev_scores(), "examples": len(self.dev)}
        test: dict[str, Any] = {}
        if len(self.test):
            scores, examples, _ = self.test_results()
            cut = self.predictor.encode(examples, labelled=False).cut
            test = {**scores, "examples": len(examples), "cut": cut}
        return {
            "val_loss": nats / count,
            "val_nats_per_char": None,
            "floor_ratio": None,
            "test": {**test, "dev": dev},
            "seconds": seconds,
            "tokens_per_second": tokens_per_second,
            "parameters": sum(p.numel() for p in self.model.parameters()),
        }


def prepare_finetune(
    task: str,
    splits: Splits,
    *,
    checkpoint: str | Path,
    train_config: TrainConfig | None = None,
    out: str | Path | None = None,
    **settings: Any,
) -> FineTuneRun:
    """Read the checkpoint, give it the head of the task, and make rows of the examples.

    Args:
        task: classify (a text), pair (two texts), tag (words) or qa (answers in a text).
        splits: `data.examples.town_splits`, or what `read_examples` read.
        checkpoint: a directory with a BERT and its tokenizer, or a hub id.
        train_config: None: the preset that suits the size of the model, and its epochs.
        settings: fields of `FineTuneConfig`: how many epochs, what is trained, how rows are made.

    One seed, `train_config.seed`, decides the new weights, the order of the batches and dropout.
    Raises `ConfigError`, `DataError` (see `check_splits`), `WeightsError`.
    """
    labels = check_splits(task, splits)
    directory = find_directory(checkpoint)
    preset = preset_for(directory)
    chosen = dataclasses.replace(preset.data, **settings)
    config = train_config or _train_config(preset, chosen)
    predictor = _predictor(task, directory, labels, chosen, config.seed)
    encoded = {
        "train": predictor.encode(splits.train, labelled=True),
        "dev": predictor.encode(splits.dev, labelled=True),
    }
    batches = _batches(predictor, encoded["train"], chosen.batch_size, config.seed, splits)
    if train_config is None or "epochs" in settings:
        config = _for_epochs(config, chosen, batches.batches_per_epoch)
    if chosen.keep_best:
        config = _keeping_best(config, batches.batches_per_epoch)
    return FineTuneRun(
        predictor=predictor,
        batches=batches,
        dev=splits.dev,
        dev_batches=_dev_batches(predictor, encoded["dev"]),
        test=splits.test if isinstance(splits.test, HeldOut) else HeldOut(splits.test),
        train_config=config,
        out=None if out is None else Path(out),
        encoded=encoded,
    )


def preset_for(checkpoint: str | Path) -> Preset[None, FineTuneConfig]:
    """The preset that suits the size and the positions of a checkpoint, from its config.json."""
    directory = find_directory(checkpoint)
    kind = model_type(directory)
    if kind != "bert":
        raise ConfigError(f"this needs a BERT (model_type 'bert'), {directory} holds {kind!r}")
    config = FORMS["qa"].config_from_file(_raw(directory, None))
    layer = 4 * config.d_model**2 + 2 * config.d_model * config.d_ff
    size = config.vocab_size * config.d_model + config.n_layers * layer
    preset = find_preset("finetune", "small" if size <= SMALL else "published")
    context = min(preset.data.context, config.n_positions)
    return dataclasses.replace(preset, data=dataclasses.replace(preset.data, context=context))


def _raw(directory: Path, dropout: float | None) -> dict[str, Any]:
    """config.json without the names of an earlier task's classes."""
    raw = {k: v for k, v in read_json(directory / "config.json").items() if k != "id2label"}
    if dropout is not None:
        raw |= {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    return raw


def _predictor(
    task: str, directory: Path, labels: tuple[str, ...], chosen: FineTuneConfig, seed: int
) -> Predictor:
    """The checkpoint with a new head, and with as many blocks to train as were chosen."""
    form = FORMS[task]
    torch.manual_seed(seed)
    if chosen.from_scratch:
        model = form(form.config_from_file(_raw(directory, chosen.dropout)))
    else:
        model = form.from_pretrained(
            directory, heads="new", dtype=torch.float32, dropout=chosen.dropout
        )
    new_head(model, labels)
    blocks = len(model.blocks()) if chosen.train_blocks is None else chosen.train_blocks
    train_last_blocks(model, blocks)
    settings = TaskSettings(
        task=task,
        context=chosen.context,
        stride=_stride(task, chosen.context, chosen.stride),
        longest_answer=chosen.longest_answer,
    )
    tokenizer = Tokenizer.load(directory)
    tokenizer.check_fits(model.config, padded=True)
    return Predictor(model, tokenizer, settings)


def _with_a_label(encoded: Encoded) -> list[Any]:
    """The rows that teach something: of a sentence whose first word is too long nothing is left."""
    rows = [
        row
        for row in encoded.rows
        if not isinstance(row.label, list) or any(label != IGNORE for label in row.label)
    ]
    if not rows:
        raise DataError("no example has a word that fits into a row: raise context")
    return rows


def _stride(task: str, context: int, stride: int | None) -> int:
    """The tokens that two windows share; `ConfigError` where there are no windows."""
    if task == "qa":
        return min(context // 4, max(0, room_for_text(context) - 1)) if stride is None else stride
    if stride is not None:
        raise ConfigError(f"stride is for the task 'qa', got stride = {stride} for {task!r}")
    return 0


def _batches(
    predictor: Predictor, encoded: Encoded, batch_size: int, seed: int, splits: Splits
) -> Batches:
    rows = LabelledRows(
        _with_a_label(encoded),
        predictor.settings.context,
        pad_id=predictor.pad_id,
        vocab_size=predictor.model.config.vocab_size,
        held_out=held_out_hash(splits),
    )
    return Batches(rows, min(batch_size, len(rows)), seed=seed)  # few examples are one batch


def _dev_batches(predictor: Predictor, encoded: Encoded) -> Evaluation:
    rows = LabelledRows(_with_a_label(encoded), predictor.settings.context, pad_id=predictor.pad_id)
    return Evaluation(rows, EVALUATION_ROWS)


def _train_config(preset: Preset[None, FineTuneConfig], chosen: FineTuneConfig) -> TrainConfig:
    lr = chosen.frozen_lr if chosen.train_blocks == 0 else preset.train.lr
    return dataclasses.replace(preset.train, lr=lr)


def _for_epochs(config: TrainConfig, chosen: FineTuneConfig, per_epoch: int) -> TrainConfig:
    """The settings with the number of updates that the epochs make; a tenth of them warms up."""
    steps = chosen.epochs * per_epoch
    warmup = steps // 10 if chosen.warmup_steps is None else chosen.warmup_steps
    return dataclasses.replace(config, max_steps=steps, warmup_steps=warmup)


def _keeping_best(config: TrainConfig, per_epoch: int) -> TrainConfig:
    """An evaluation after each epoch, and so much patience that training never ends early."""
    every = config.eval_every or min(per_epoch, config.max_steps)
    patience = config.patience or config.max_steps // every + 1
    return dataclasses.replace(config, eval_every=every, patience=patience)
