"""A fine-tuned BERT: from labelled examples to rows, and from scores to predictions.

What a prediction needs beside weights and tokenizer is in `task.json`, so a saved directory
predicts what the run in memory predicted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llm_course.batches.labelled import (
    LabelledRows,
    Row,
    Shape,
    Window,
    best_place,
    question_windows,
)
from llm_course.batches.sampler import Evaluation
from llm_course.data.examples import KINDS, check_task, example_place
from llm_course.errors import ConfigError, DataError
from llm_course.losses.chunked import IGNORE
from llm_course.losses.masked import INPUTS
from llm_course.models.files import CONFIG_FILE, read_json
from llm_course.models.heads import (
    BERTForQuestionAnswering,
    BERTForSequenceClassification,
    BERTForTokenClassification,
)
from llm_course.tokenizers.library import Tokenizer
from llm_course.training.evaluate import evaluating, to_device
from llm_course.training.scores import accuracy, answer_scores, entities, entity_scores, macro_f1

TASK_FILE = "task.json"
EVALUATION_ROWS = 32

FORMS: dict[str, Any] = {
    "classify": BERTForSequenceClassification,
    "pair": BERTForSequenceClassification,
    "tag": BERTForTokenClassification,
    "qa": BERTForQuestionAnswering,
}


def room_for_text(context: int) -> int:
    """The tokens of a qa row that are left for its text where the question fills half of it."""
    return context - context // 2 - 3  # [CLS] and two [SEP] stand in it too


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """What a row of a task looks like, and how an answer is chosen."""

    task: str
    context: int  # tokens in a row
    stride: int = 0  # tokens that two windows of a long text share; qa
    longest_answer: int = 30  # tokens; qa

    def __post_init__(self) -> None:
        check_task(self.task)
        for name in ("context", "stride", "longest_answer"):
            if not isinstance(getattr(self, name), int):
                raise ConfigError(f"{name} must be a whole number, got {getattr(self, name)!r}")
        if self.context < 8:
            raise ConfigError(f"context must be at least 8, got {self.context}")
        if self.task == "qa":
            room = room_for_text(self.context)
            if not 0 <= self.stride < room:
                raise ConfigError(
                    f"stride must be from 0 to {room - 1} for context = {self.context}, "
                    f"got {self.stride}"
                )
        if self.longest_answer < 1:
            raise ConfigError(f"longest_answer must be at least 1, got {self.longest_answer}")


@dataclass(frozen=True)
class ClassPrediction:
    """The likeliest class, and the probability of each."""

    label: str
    probabilities: dict[str, float]


@dataclass(frozen=True)
class TagPrediction:
    """A tag for each word and its probability; words that did not fit have O and probability 0."""

    tags: tuple[str, ...]
    probabilities: tuple[float, ...]
    left_out: int  # words at the end that the model did not see

    @property
    def entities(self) -> list[tuple[str, int, int]]:
        """(type, first word, last word) of each entity, in their order."""
        return sorted(entities(self.tags), key=lambda e: e[1])


@dataclass(frozen=True)
class AnswerPrediction:
    """The answer context[start:end], and its score minus that of "no answer"."""

    text: str
    start: int
    end: int
    score: float
    windows: int


Prediction = ClassPrediction | TagPrediction | AnswerPrediction


@dataclass
class Encoded:
    """The rows of some examples, and what of them did not fit."""

    rows: list[Row] = field(default_factory=list)
    windows: list[Window] = field(default_factory=list)  # of qa; beside the rows
    left_out: list[int] = field(default_factory=list)  # of each example: tokens, or words of tag
    unit: str = "tokens"
    unlearnable: int = (
        0  # questions whose answer is in no window, sentences without a tag that fits
    )

    @property
    def cut(self) -> int:
        """How many examples were cut."""
        return sum(n > 0 for n in self.left_out)

    def report(self) -> str:
        """What happened to long examples, in words."""
        n = len(self.left_out)
        said = f"{n:,} example{'s' * (n != 1)}"
        if self.windows:
            said += f" in {len(self.rows):,} windows"
        said += f", {self.cut:,} cut"
        if self.cut:
            said += f" ({sum(self.left_out):,} {self.unit} left out)"
        if self.unlearnable:
            said += f", {self.unlearnable:,} without a label that fits"
        return said


class Predictor:
    """A model, its tokenizer and its task: examples in, predictions and scores out."""

    def __init__(self, model: Any, tokenizer: Tokenizer, settings: TaskSettings) -> None:
        self.model, self.tokenizer, self.settings = model, tokenizer, settings
        roles = {name: getattr(tokenizer, f"{name}_id") for name in ("cls", "sep", "pad")}
        if absent := [name for name, i in roles.items() if i is None]:
            raise ConfigError(
                f"BERT needs a tokenizer with [CLS], [SEP] and [PAD]; this one has no "
                f"{', '.join(absent)}"
            )
        if settings.context > model.config.n_positions:
            raise ConfigError(
                f"context must be at most the model's n_positions = {model.config.n_positions}, "
                f"got {settings.context}"
            )
        self.pad_id = roles["pad"]
        self.shape = Shape(roles["cls"], roles["sep"], settings.context)

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes; none for qa."""
        return tuple(getattr(self.model.config, "labels", ()))

    @classmethod
    def load(cls, directory: str | Path) -> Predictor:
        """What a run saved; `DataError` says which file is missing or broken."""
        path = Path(directory)
        if not (path / TASK_FILE).is_file():
            inside = path / "model"
            hint = f"; did you mean {inside}?" if (inside / TASK_FILE).is_file() else ""
            raise DataError(f"{path} holds no fine-tuned model (no {TASK_FILE}){hint}")
        try:
            raw = json.loads((path / TASK_FILE).read_text(encoding="utf-8"))
            settings = TaskSettings(**raw)
        except (ValueError, TypeError, RecursionError) as error:
            raise DataError(f"{path / TASK_FILE}: {error}") from error
        tokenizer = Tokenizer.load(path)
        if settings.task != "qa" and "id2label" not in read_json(path / CONFIG_FILE):
            raise DataError(f"{path / CONFIG_FILE}: no id2label, so the classes have no names")
        model = FORMS[settings.task].from_pretrained(path, dtype=torch.float32)
        tokenizer.check_fits(model.config, padded=True)
        return cls(model, tokenizer, settings)

    def save(self, folder: str | Path) -> None:
        """Write tokenizer and task; the model is written by whoever holds its whole weights."""
        self.tokenizer.save(folder)
        text = json.dumps(asdict(self.settings), indent=2) + "\n"
        (Path(folder) / TASK_FILE).write_text(text, encoding="utf-8")

    # From examples to rows

    def encode(self, examples: Sequence[Any], *, labelled: bool) -> Encoded:
        """The rows of examples, with their labels or with none."""
        wanted = KINDS[self.settings.task]
        for number, example in enumerate(examples):
            if not isinstance(example, wanted):
                raise DataError(
                    f"{example_place('the', number, example)}: the task {self.settings.task!r} "
                    f"needs a {wanted.__name__}, got {type(example).__name__}"
                )
        made = {"tag": self._tagged, "qa": self._questions}.get(self.settings.task, self._texts)
        return made(examples, labelled)

    def _texts(self, examples: Sequence[Any], labelled: bool) -> Encoded:
        numbers = {name: i for i, name in enumerate(self.labels)}
        firsts = self.tokenizer.encode_batch([e.text for e in examples])
        seconds: list[Any] = [None] * len(examples)
        if self.settings.task == "pair":
            seconds = self.tokenizer.encode_batch([e.pair or "" for e in examples])
        found = Encoded()
        for example, first, second in zip(examples, firsts, seconds):
            label = numbers[example.label] if labelled else -1
            row, _ = self.shape.row(first, second, label)
            n_tokens = len(first) + (2 if second is None else 3 + len(second))
            found.rows.append(row)
            found.left_out.append(n_tokens - len(row.ids))
        return found

    def _tagged(self, examples: Sequence[Any], labelled: bool) -> Encoded:
        numbers = {name: i for i, name in enumerate(self.labels)}
        found = Encoded(unit="words")
        for example, ids in zip(examples, self.tokenizer.encode_words([e.words for e in examples])):
            # Without labels a 0 marks the first token of each word.
            classes = [numbers[tag] for tag in example.tags] if labelled else [0] * len(ids)
            row, left_out = self.shape.tagged(ids, classes)
            found.rows.append(row)
            found.left_out.append(left_out)
            found.unlearnable += left_out == len(ids)
        return found

    def _questions(self, examples: Sequence[Any], labelled: bool) -> Encoded:
        questions = self.tokenizer.encode_batch([e.question for e in examples])
        texts = list(dict.fromkeys(e.context for e in examples))  # often asked several times
        contexts = dict(zip(texts, self.tokenizer.encode_with_offsets(texts)))
        found = Encoded()
        for number, (example, question) in enumerate(zip(examples, questions)):
            ids, offsets = contexts[example.context]
            place = None
            if labelled:
                first = example.answers[0]
                place = (first.start, first.start + len(first.text))
            windows = question_windows(
                self.shape, number, question, ids, offsets, place, self.settings.stride
            )
            found.windows += windows
            found.rows += [window.row for window in windows]
            found.left_out.append(max(0, len(question) - self.settings.context // 2))
            found.unlearnable += labelled and all(w.row.label == (0, 0) for w in windows)
        return found

    # From rows to predictions

    def predict(self, examples: Sequence[Any]) -> list[Any]:
        """A prediction for each example, in their order; labels are not looked at."""
        if not examples:
            return []
        encoded = self.encode(examples, labelled=False)
        scores = self._scores(encoded.rows)
        if self.settings.task == "tag":
            return [
                self._tags(example, row, score, left_out)
                for example, row, score, left_out in zip(
                    examples, encoded.rows, scores, encoded.left_out
                )
            ]
        if self.settings.task == "qa":
            return list(self._answers(examples, encoded.windows, scores))
        return [self._class(score) for score in scores]

    def _scores(self, rows: list[Row]) -> list[Tensor]:
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

    def _class(self, logits: Tensor) -> ClassPrediction:
        p = logits.softmax(-1).tolist()
        return ClassPrediction(self.labels[p.index(max(p))], dict(zip(self.labels, p)))

    def _tags(self, example: Any, row: Row, logits: Tensor, left_out: int) -> TagPrediction:
        assert isinstance(row.label, list)
        first = [i for i, label in enumerate(row.label) if label != IGNORE]
        best = logits[first].softmax(-1).max(-1)
        tags = [self.labels[i] for i in best.indices.tolist()] + ["O"] * left_out
        return TagPrediction(tuple(tags), (*best.values.tolist(), *[0.0] * left_out), left_out)

    def _answers(
        self, examples: Sequence[Any], windows: list[Window], scores: list[Tensor]
    ) -> Iterator[AnswerPrediction]:
        together: list[list[Any]] = [[] for _ in examples]
        for window, score in zip(windows, scores):
            start, end = score.unbind(-1)
            together[window.example].append((window, start.tolist(), end.tolist()))
        for example, found in zip(examples, together):
            best = best_place(found, self.settings.longest_answer)
            text = example.context[best.start : best.end]
            yield AnswerPrediction(text, best.start, best.end, best.score, len(found))

    def score(self, examples: Sequence[Any], predictions: Sequence[Any]) -> dict[str, float]:
        """The scores of the task, each a share from 0 to 1.

        classify and pair: accuracy, macro_f1. tag: precision, recall, f1 of whole entities. qa:
        exact_match and f1 of words, as SQuAD has them.
        """
        if self.settings.task == "tag":
            return entity_scores([p.tags for p in predictions], [e.tags for e in examples])
        if self.settings.task == "qa":
            accepted = [[answer.text for answer in e.answers] for e in examples]
            return answer_scores([p.text for p in predictions], accepted)
        found, true = [p.label for p in predictions], [e.label for e in examples]
        return {"accuracy": accuracy(found, true), "macro_f1": macro_f1(found, true)}
