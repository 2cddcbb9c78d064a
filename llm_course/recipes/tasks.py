"""The tasks of fine-tuning: for each its rows, its loss, its predictions and its scores.

`classify` a class for a text, `pair` a class for two, `tag` a tag for each word, `qa` an answer in
a text. Everything else about them is the same (`finetune.py`, `predictor.py`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from llm_course.batches.labelled import Row, Window, best_place, question_windows
from llm_course.data.examples import QuestionExample, TaggedExample, TextExample
from llm_course.losses.chunked import IGNORE
from llm_course.losses.classes import answer_loss_fn, classification_loss_fn
from llm_course.models.heads import (
    BERTForQuestionAnswering,
    BERTForSequenceClassification,
    BERTForTokenClassification,
)
from llm_course.training.scores import accuracy, answer_scores, entities, entity_scores, macro_f1

Examples = Sequence[Any]


@dataclass
class Encoded:
    """The rows of some examples, and what of them did not fit."""

    rows: list[Row] = field(default_factory=list)
    windows: list[Window] = field(default_factory=list)  # of qa; beside the rows
    left_out: list[int] = field(default_factory=list)  # of each example: tokens, or words of tag
    unit: str = "tokens"
    unlearnable: int = 0  # questions whose answer is in no window, sentences of which no word fits

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


class Classify:
    """A class for a text, or for two."""

    form: Any = BERTForSequenceClassification
    loss_fn = staticmethod(classification_loss_fn)

    def __init__(self, *asks: str) -> None:
        self.asks = asks  # the options of `predict` that describe an example, and its fields

    def encode(self, predictor: Any, examples: Examples, labelled: bool) -> Encoded:
        """The rows of examples, with their labels or with none."""
        numbers = {name: i for i, name in enumerate(predictor.labels)}
        encode, seconds = predictor.tokenizer.encode_batch, [None] * len(examples)
        if "pair" in self.asks:
            seconds = encode([e.pair or "" for e in examples])
        found = Encoded()
        for example, first, second in zip(examples, encode([e.text for e in examples]), seconds):
            label = numbers[example.label] if labelled else -1
            row, _ = predictor.shape.row(first, second, label)
            n_tokens = len(first) + (2 if second is None else 3 + len(second))
            found.rows.append(row)
            found.left_out.append(n_tokens - len(row.ids))
        return found

    def predictions(self, predictor: Any, examples: Examples, encoded: Encoded, logits: Any) -> Any:
        """A prediction for each example, from the logits of its rows."""
        rows = [row.softmax(-1).tolist() for row in logits]
        labels = predictor.labels
        return [ClassPrediction(labels[p.index(max(p))], dict(zip(labels, p))) for p in rows]

    def scores(self, examples: Examples, predictions: Sequence[Any]) -> dict[str, float]:
        """Each a share from 0 to 1."""
        found, true = [p.label for p in predictions], [e.label for e in examples]
        return {"accuracy": accuracy(found, true), "macro_f1": macro_f1(found, true)}

    def example(self, **values: str) -> Any:
        """The example that the options of `predict` describe."""
        return TextExample(**values)

    def as_row(self, example: Any, prediction: Any) -> dict[str, Any]:
        """An example and its prediction as plain values, for a line of JSON."""
        texts = {name: getattr(example, name) for name in self.asks}
        p = {name: round(value, 6) for name, value in prediction.probabilities.items()}
        return {**texts, "label": prediction.label, "probabilities": p}


class Tag:
    """A BIO tag for each word; the methods are those of `Classify`."""

    form: Any = BERTForTokenClassification
    loss_fn = staticmethod(classification_loss_fn)
    asks = ("text",)

    def encode(self, predictor: Any, examples: Examples, labelled: bool) -> Encoded:
        numbers = {name: i for i, name in enumerate(predictor.labels)}
        words = predictor.tokenizer.encode_words([e.words for e in examples])
        found = Encoded(unit="words")
        for example, ids in zip(examples, words):
            # Without labels a 0 marks the first token of each word.
            classes = [numbers[tag] for tag in example.tags] if labelled else [0] * len(ids)
            row, left_out = predictor.shape.tagged(ids, classes)
            found.rows.append(row)
            found.left_out.append(left_out)
            found.unlearnable += left_out == len(ids)
        return found

    def predictions(self, predictor: Any, examples: Examples, encoded: Encoded, logits: Any) -> Any:
        found = []
        for row, scores, left_out in zip(encoded.rows, logits, encoded.left_out):
            assert isinstance(row.label, list)
            first = [i for i, label in enumerate(row.label) if label != IGNORE]
            best = scores[first].softmax(-1).max(-1)
            tags = [predictor.labels[i] for i in best.indices.tolist()] + ["O"] * left_out
            p = (*best.values.tolist(), *[0.0] * left_out)
            found.append(TagPrediction(tuple(tags), p, left_out))
        return found

    def scores(self, examples: Examples, predictions: Sequence[Any]) -> dict[str, float]:
        """Precision, recall and F1 of whole entities."""
        return entity_scores([p.tags for p in predictions], [e.tags for e in examples])

    def example(self, **values: str) -> Any:
        """Words and signs, as tagged data have them: "Mara's cat." becomes "Mara's cat ."."""
        return TaggedExample(tuple(re.findall(r"\w+(?:['’\-]\w+)*|[^\w\s]", values["text"])))

    def as_row(self, example: Any, prediction: Any) -> dict[str, Any]:
        found = [
            {"type": kind, "text": " ".join(example.words[a : b + 1]), "first": a, "last": b}
            for kind, a, b in prediction.entities
        ]
        row = {"tokens": example.words, "tags": prediction.tags, "entities": found}
        return row | ({"words_not_seen": prediction.left_out} if prediction.left_out else {})


class AnswerQuestions:
    """An answer as a stretch of a text, read in windows; the methods are those of `Classify`."""

    form: Any = BERTForQuestionAnswering
    loss_fn = staticmethod(answer_loss_fn)
    asks = ("question", "context")

    def encode(self, predictor: Any, examples: Examples, labelled: bool) -> Encoded:
        """The windows of each question; of its accepted answers the first is learnt."""
        questions = predictor.tokenizer.encode_batch([e.question for e in examples])
        texts = list(dict.fromkeys(e.context for e in examples))  # often asked several times
        contexts = dict(zip(texts, predictor.tokenizer.encode_with_offsets(texts)))
        shape, stride = predictor.shape, predictor.settings.stride
        found = Encoded()
        for number, (example, question) in enumerate(zip(examples, questions)):
            first = example.answers[0] if labelled else None
            place = first and (first.start, first.start + len(first.text))
            ids, offsets = contexts[example.context]
            windows = question_windows(shape, number, question, ids, offsets, place, stride)
            found.windows += windows
            found.rows += [window.row for window in windows]
            found.left_out.append(max(0, len(question) - shape.context // 2))
            found.unlearnable += labelled and all(w.row.label == (0, 0) for w in windows)
        return found

    def predictions(self, predictor: Any, examples: Examples, encoded: Encoded, logits: Any) -> Any:
        together: list[list[Any]] = [[] for _ in examples]
        for window, scores in zip(encoded.windows, logits):
            start, end = scores.unbind(-1)
            together[window.example].append((window, start.tolist(), end.tolist()))
        answers = []
        for example, found in zip(examples, together):
            best = best_place(found, predictor.settings.longest_answer)
            text = example.context[best.start : best.end]
            answers.append(AnswerPrediction(text, best.start, best.end, best.score, len(found)))
        return answers

    def scores(self, examples: Examples, predictions: Sequence[Any]) -> dict[str, float]:
        """Exact match, and F1 of words, as SQuAD has them."""
        accepted = [[answer.text for answer in e.answers] for e in examples]
        return answer_scores([p.text for p in predictions], accepted)

    def example(self, **values: str) -> Any:
        return QuestionExample(values["question"], values["context"])

    def as_row(self, example: Any, prediction: Any) -> dict[str, Any]:
        score = round(prediction.score, 4) if math.isfinite(prediction.score) else None
        found = {"answer": prediction.text, "start": prediction.start, "end": prediction.end}
        return {"question": example.question, **found, "score": score}


TASKS: dict[str, Classify | Tag | AnswerQuestions] = {
    "classify": Classify("text"),
    "tag": Tag(),
    "qa": AnswerQuestions(),
    "pair": Classify("text", "pair"),
}
