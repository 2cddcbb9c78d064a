"""A linear probe: what can be read off a frozen BERT by a linear map, its states computed once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from llm_course.batches.labelled import LabelledRows, Row
from llm_course.batches.sampler import Evaluation
from llm_course.losses.chunked import IGNORE
from llm_course.losses.classes import answer_loss_fn
from llm_course.losses.masked import INPUTS
from llm_course.recipes.finetune import FineTuneRun
from llm_course.recipes.predictor import Predictor
from llm_course.recipes.run import EVALUATION_ROWS
from llm_course.training.evaluate import evaluating

ANSWER_STEPS = 300


def hidden_states(predictor: Predictor, rows: Sequence[Row]) -> list[Tensor]:
    """The last hidden states of each row, [T, D] without padding."""
    made = LabelledRows(rows, predictor.settings.context, pad_id=predictor.pad_id)
    batches = Evaluation(made, EVALUATION_ROWS)
    found: list[Any] = [None] * len(rows)
    order = iter(batches.order)
    with evaluating(predictor.model):
        for batch in batches:
            hidden = predictor.model.hidden(**{n: batch[n] for n in INPUTS if n in batch})
            for states in hidden:
                number = next(order)
                found[number] = states[: len(rows[number].ids)].clone()
    return found


def probe(run: FineTuneRun, training: Sequence[Any]) -> Callable[[Sequence[Any]], list[Any]]:
    """Train a linear map on frozen states; the function gives bare predictions.

    A class from the mean of the states of a text, a tag from the state of a word's first token:
    scikit-learn's logistic regression. Answers: the head of the run is trained, 300 updates.
    """
    if run.predictor.settings.task == "qa":
        _train_answers(run, training)
        return lambda examples: [found.text for found in run.predict(examples)]
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    tagging = run.predictor.settings.task == "tag"
    given = _features(run.predictor, training)
    if tagging:  # words that did not fit into a row have no state
        labels = [tag for e, states in zip(training, given) for tag in e.tags[: len(states)]]
    else:
        labels = [e.label for e in training]
    fitted = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=300))
    fitted.fit(torch.cat(given).numpy(), labels)

    def predict(examples: Sequence[Any]) -> list[Any]:
        states = _features(run.predictor, examples)
        found = iter([str(label) for label in fitted.predict(torch.cat(states).numpy())])
        if not tagging:
            return list(found)
        rows = [[next(found) for _ in each] for each in states]
        return [tuple(row + ["O"] * (len(e.words) - len(row))) for e, row in zip(examples, rows)]

    return predict


def _features(predictor: Predictor, examples: Sequence[Any]) -> list[Tensor]:
    """[1, D] for a text or a pair, [words, D] for tagged words."""
    rows = predictor.encode(examples, labelled=False).rows
    states = hidden_states(predictor, rows)
    if predictor.settings.task != "tag":
        return [each.mean(dim=0, keepdim=True) for each in states]
    found = []
    for row, each in zip(rows, states):
        assert isinstance(row.label, list)
        found.append(each[[i for i, label in enumerate(row.label) if label != IGNORE]])
    return found


class _Stored(torch.nn.Module):
    """The head of the run, on states that were computed before."""

    def __init__(self, head: torch.nn.Module, states: Tensor) -> None:
        super().__init__()
        self.head, self.states = head, states

    def forward(self, **_: Tensor) -> tuple[Tensor, Tensor]:
        start, end = self.head(self.states).unbind(-1)
        return start, end


def _train_answers(run: FineTuneRun, training: Sequence[Any]) -> None:
    """AdamW on the head alone, over states that are computed once."""
    encoded = run.predictor.encode(training, labelled=True)
    states = hidden_states(run.predictor, encoded.rows)
    generator = torch.Generator().manual_seed(run.train_config.seed)
    optimizer = torch.optim.AdamW(run.model.head.parameters(), lr=3e-3)
    for _ in range(ANSWER_STEPS):
        chosen = torch.randint(len(states), (min(16, len(states)),), generator=generator).tolist()
        padded = torch.nn.utils.rnn.pad_sequence([states[i] for i in chosen], batch_first=True)
        lengths = torch.tensor([len(states[i]) for i in chosen])
        labels = torch.tensor([encoded.rows[i].label for i in chosen])
        batch = {
            "input_ids": padded.new_zeros(padded.shape[:2]).long(),
            "attention_mask": torch.arange(padded.shape[1]) < lengths[:, None],
            "start_positions": labels[:, 0],
            "end_positions": labels[:, 1],
        }
        total, count = answer_loss_fn(_Stored(run.model.head, padded), batch)["answer"]
        optimizer.zero_grad()
        (total / count).backward()
        optimizer.step()
