"""A fine-tuned BERT: examples in, predictions and scores out.

What a prediction needs beside weights and tokenizer is in `task.json`, so a saved directory
predicts what the run in memory predicted. What differs between tasks is in `tasks.py`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from llm_course.batches.labelled import LabelledRows, Row, Shape
from llm_course.batches.sampler import Evaluation
from llm_course.configs import Settings, check_numbers
from llm_course.data.examples import check_kind, example_place
from llm_course.errors import ConfigError, DataError
from llm_course.losses.masked import INPUTS
from llm_course.models.bert import BERT
from llm_course.models.files import CONFIG_FILE, read_json
from llm_course.recipes.run import EVALUATION_ROWS, check_holds
from llm_course.recipes.tasks import TASKS, Encoded
from llm_course.tokenizers.library import Tokenizer
from llm_course.training.evaluate import evaluating, to_device

TASK_FILE = "task.json"


@dataclass(frozen=True, kw_only=True)
class TaskSettings(Settings):
    """What a row of a task looks like, and how an answer is chosen."""

    task: Literal["classify", "tag", "qa", "pair"]
    context: int  # tokens in a row
    stride: int | None = None  # qa: tokens that two windows share; None: a quarter of the row
    longest_answer: int = 30  # qa: tokens

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "context", least=8)
        check_numbers(self, "stride", least=0)
        check_numbers(self, "longest_answer", least=1)
        if self.task != "qa" and self.stride:
            raise ConfigError(
                f"stride is for the task 'qa', got stride = {self.stride} for {self.task!r}"
            )
        # Half of a row may be its question, and [CLS] and two [SEP] stand in it too.
        most = self.context - self.context // 2 - 4 if self.task == "qa" else 0
        if self.stride is None:
            object.__setattr__(self, "stride", min(self.context // 4, most))
        elif self.stride > most:
            raise ConfigError(
                f"stride must be from 0 to {most} for context = {self.context}, got {self.stride}"
            )


class Predictor:
    """A model, its tokenizer and its task."""

    def __init__(self, model: Any, tokenizer: Tokenizer, settings: TaskSettings) -> None:
        self.model, self.tokenizer, self.settings = model, tokenizer, settings
        self.task = TASKS[settings.task]
        tokenizer.check_fits(model.config, padded=True)
        roles = {name: getattr(tokenizer, f"{name}_id") for name in ("cls", "sep", "pad")}
        if absent := [name for name, i in roles.items() if i is None]:
            raise ConfigError(f"BERT needs [CLS], [SEP] and [PAD]: this tokenizer has no {absent}")
        context, most = settings.context, model.config.n_positions
        if context > most:
            raise ConfigError(f"context must be at most n_positions = {most}, got {context}")
        self.pad_id = roles["pad"]
        self.shape = Shape(roles["cls"], roles["sep"], context)

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes; none for qa."""
        return tuple(getattr(self.model.config, "labels", ()))

    @classmethod
    def load(cls, directory: str | Path) -> Predictor:
        """What a run saved; `DataError` says which file is missing or broken."""
        path = Path(directory)
        check_holds(path, BERT, TASK_FILE, "fine-tuned model")
        try:
            settings = TaskSettings.from_dict(json.loads((path / TASK_FILE).read_text("utf-8")))
        except (ValueError, TypeError, RecursionError) as error:
            raise DataError(f"{path / TASK_FILE}: {error}") from error
        if settings.task != "qa" and "id2label" not in read_json(path / CONFIG_FILE):
            raise DataError(f"{path / CONFIG_FILE}: no id2label, so the classes have no names")
        model = TASKS[settings.task].form.from_pretrained(path, dtype=torch.float32)
        return cls(model, Tokenizer.load(path), settings)

    def save(self, folder: str | Path) -> None:
        """Write tokenizer and task; the model is written by whoever holds its whole weights."""
        self.tokenizer.save(folder)
        text = json.dumps(self.settings.to_dict(), indent=2) + "\n"
        (Path(folder) / TASK_FILE).write_text(text, encoding="utf-8")

    def encode(self, examples: Sequence[Any], *, labelled: bool) -> Encoded:
        """The rows of examples, with their labels or with none."""
        for number, example in enumerate(examples):
            check_kind(self.settings.task, example, example_place("the", number, example))
        return self.task.encode(self, examples, labelled)

    def predict(self, examples: Sequence[Any]) -> list[Any]:
        """A prediction for each example, in their order; labels are not looked at."""
        if not examples:
            return []
        encoded = self.encode(examples, labelled=False)
        return list(self.task.predictions(self, examples, encoded, self._logits(encoded.rows)))

    def score(self, examples: Sequence[Any], predictions: Sequence[Any]) -> dict[str, float]:
        """The scores of the task, each a share from 0 to 1.

        classify and pair: accuracy, macro_f1. tag: precision, recall, f1 of whole entities. qa:
        exact_match and f1 of words, as SQuAD has them.
        """
        return self.task.scores(examples, predictions)

    def _logits(self, rows: list[Row]) -> list[Tensor]:
        """The logits of each row without its padding, on the CPU, in the order of the rows."""
        made = LabelledRows(rows, self.settings.context, pad_id=self.pad_id)
        batches = Evaluation(made, EVALUATION_ROWS)
        device = next(self.model.parameters()).device
        found: list[Any] = [None] * len(rows)
        order = iter(batches.order)
        with evaluating(self.model):
            for batch in batches:
                inputs = {name: batch[name] for name in INPUTS if name in batch}
                logits = self.model(**to_device(inputs, device))
                if isinstance(logits, tuple):  # first and last token of an answer
                    logits = torch.stack(list(logits), -1)
                for each in logits.float().cpu():
                    number = next(order)
                    found[number] = each[: len(rows[number].ids)] if each.ndim == 2 else each
        return found
