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
from llm_course.configs import TrainConfig
from llm_course.data.examples import HeldOut, Splits, check_splits, held_out_hash
from llm_course.errors import ConfigError, DataError
from llm_course.losses.chunked import IGNORE
from llm_course.losses.classes import answer_loss_fn, classification_loss_fn
from llm_course.models.files import find_directory, read_json
from llm_course.models.heads import new_head, train_last_blocks
from llm_course.presets import FineTunePreset, finetune_preset
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
    epochs: int | None = None,
    warmup_steps: int | None = None,
    context: int | None = None,
    batch_size: int | None = None,
    train_blocks: int | None = None,
    from_scratch: bool = False,
    keep_best: bool = False,
    dropout: float | None = None,
    stride: int | None = None,
    longest_answer: int = 30,
    out: str | Path | None = None,
) -> FineTuneRun:
    """Read the checkpoint, give it the head of the task, and make rows of the examples.

    Args:
        task: classify (a text), pair (two texts), tag (words) or qa (answers in a text).
        splits: `corpus.labelled.town_splits`, or what `read_examples` read.
        checkpoint: a directory with a BERT and its tokenizer, or a hub id.
        train_config: None: the preset that suits the size of the model.
        epochs: sets the number of updates, of which `warmup_steps` (None: a tenth) warm up; None:
            those of train_config, or of the preset.
        context: tokens in a row; the end of a longer text is cut (see `.encoded`), for qa it goes
            to further windows, which overlap by `stride` tokens (None: a quarter of the row).
        train_blocks: None: everything is trained; 0: only the new head, BERT is frozen (B5);
            k: also the last k blocks.
        from_scratch: the same model with fresh weights, to see what pretraining is worth.
        keep_best: evaluate after each epoch, and end with the weights of the lowest loss.
        dropout: None: that of the preset, for published models that of the checkpoint.

    One seed, `train_config.seed`, decides the new weights, the order of the batches and dropout.
    Raises `ConfigError`, `DataError` (see `check_splits`), `WeightsError`.
    """
    labels = check_splits(task, splits)
    if dropout is not None and not 0 <= dropout <= 1:
        raise ConfigError(f"dropout must be at least 0.0 and at most 1.0, got {dropout}")
    directory = find_directory(checkpoint)
    preset = preset_for(directory)
    seed = 0 if train_config is None else train_config.seed
    dropout = preset.dropout if dropout is None else dropout
    model = _model(task, directory, labels, dropout, from_scratch=from_scratch, seed=seed)
    train_last_blocks(model, len(model.blocks()) if train_blocks is None else train_blocks)
    if context is None:
        context = min(preset.context, model.config.n_positions)
    settings = TaskSettings(
        task=task,
        context=context,
        stride=_stride(task, context, stride),
        longest_answer=longest_answer,
    )
    predictor = Predictor(model, _tokenizer(directory, model.config), settings)
    encoded = {
        "train": predictor.encode(splits.train, labelled=True),
        "dev": predictor.encode(splits.dev, labelled=True),
    }
    rows = preset.batch_size if batch_size is None else batch_size
    batches = _batches(predictor, encoded["train"], rows, seed, held_out=held_out_hash(splits))
    per_epoch = batches.batches_per_epoch
    config = train_config or _train_config(preset, train_blocks)
    if epochs is not None or train_config is None:
        config = _for_epochs(config, preset, epochs, warmup_steps, per_epoch)
    if keep_best:
        config = _keeping_best(config, per_epoch)
    test = splits.test if isinstance(splits.test, HeldOut) else HeldOut(splits.test)
    return FineTuneRun(
        predictor=predictor,
        batches=batches,
        dev=splits.dev,
        dev_batches=Evaluation(
            LabelledRows(_with_a_label(encoded["dev"]), context, pad_id=predictor.pad_id),
            EVALUATION_ROWS,
        ),
        test=test,
        train_config=config,
        out=None if out is None else Path(out),
        encoded=encoded,
    )


def preset_for(checkpoint: str | Path) -> FineTunePreset:
    """The preset that suits the size of a checkpoint, from its config.json."""
    directory = find_directory(checkpoint)
    kind = model_type(directory)
    if kind != "bert":
        raise ConfigError(f"this needs a BERT (model_type 'bert'), {directory} holds {kind!r}")
    config = FORMS["qa"].config_from_file(_raw(directory, None))
    layer = 4 * config.d_model**2 + 2 * config.d_model * config.d_ff
    size = config.vocab_size * config.d_model + config.n_layers * layer
    return finetune_preset("small" if size <= SMALL else "published")


def _raw(directory: Path, dropout: float | None) -> dict[str, Any]:
    """config.json without the names of an earlier task's classes."""
    raw = {k: v for k, v in read_json(directory / "config.json").items() if k != "id2label"}
    if dropout is not None:
        raw |= {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    return raw


def _model(
    task: str,
    directory: Path,
    labels: tuple[str, ...],
    dropout: float | None,
    *,
    from_scratch: bool,
    seed: int,
) -> Any:
    form = FORMS[task]
    torch.manual_seed(seed)
    if from_scratch:
        model = form(form.config_from_file(_raw(directory, dropout)))
    else:
        model = form.from_pretrained(directory, heads="new", dtype=torch.float32, dropout=dropout)
    new_head(model, labels)
    return model


def _tokenizer(directory: Path, config: Any) -> Tokenizer:
    tokenizer = Tokenizer.load(directory)
    tokenizer.check_fits(config, padded=True)
    return tokenizer


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
    predictor: Predictor, encoded: Encoded, batch_size: int, seed: int, *, held_out: str
) -> Batches:
    rows = LabelledRows(
        _with_a_label(encoded),
        predictor.settings.context,
        pad_id=predictor.pad_id,
        vocab_size=predictor.model.config.vocab_size,
        held_out=held_out,
    )
    return Batches(rows, min(batch_size, len(rows)), seed=seed)  # few examples are one batch


def _train_config(preset: FineTunePreset, train_blocks: int | None) -> TrainConfig:
    lr = preset.frozen_lr if train_blocks == 0 else preset.train.lr
    return dataclasses.replace(preset.train, lr=lr)


def _for_epochs(
    config: TrainConfig,
    preset: FineTunePreset,
    epochs: int | None,
    warmup_steps: int | None,
    per_epoch: int,
) -> TrainConfig:
    """The settings with the number of updates that the epochs make."""
    steps = (preset.epochs if epochs is None else epochs) * per_epoch
    if steps < 1:
        raise ConfigError(f"epochs must be at least 1, got {epochs}")
    warmup = int(preset.warmup * steps) if warmup_steps is None else warmup_steps
    return dataclasses.replace(config, max_steps=steps, warmup_steps=warmup)


def _keeping_best(config: TrainConfig, per_epoch: int) -> TrainConfig:
    """An evaluation after each epoch, and so much patience that training never ends early."""
    every = config.eval_every or min(per_epoch, config.max_steps)
    patience = config.patience or config.max_steps // every + 1
    return dataclasses.replace(config, eval_every=every, patience=patience)
