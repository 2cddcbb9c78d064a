"""`llm-course predict`: what a fine-tuned BERT says of texts, of a file or of the command line."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llm_course.atomic import write_file
from llm_course.data.example_files import Columns, read_examples
from llm_course.data.examples import QuestionExample, TaggedExample, TextExample
from llm_course.errors import ConfigError
from llm_course.recipes.predictor import (
    AnswerPrediction,
    ClassPrediction,
    Predictor,
    TagPrediction,
)
from llm_course.recipes.sample import printable
from llm_course.training.devices import choose_device

# What of --text, --pair, --question and --context each task takes.
WANTED = {
    "classify": ("text",),
    "pair": ("text", "pair"),
    "tag": ("text",),
    "qa": ("question", "context"),
}


def split_words(text: str) -> tuple[str, ...]:
    """The words and signs of a text, as tagged data have them: "Mara's cat." -> Mara's cat ."""
    return tuple(re.findall(r"\w+(?:['’\-]\w+)*|[^\w\s]", text))


def example_of(task: str, given: dict[str, str | None]) -> Any:
    """The example that the options describe; `ConfigError` says which ones a task needs."""
    wanted = WANTED[task]
    there = [name for name, value in given.items() if value is not None]
    if sorted(there) != sorted(wanted):
        needed = " and ".join(f"--{name}" for name in wanted)
        got = ", ".join(f"--{name}" for name in there) or "none of them"
        raise ConfigError(f"the task {task!r} needs {needed} (or --data-files), got {got}")
    values = {name: str(given[name]) for name in wanted}
    for name, value in values.items():
        if not value.strip():
            raise ConfigError(f"--{name} must hold text, got {value!r}")
    if task == "qa":
        return QuestionExample(values["question"], values["context"])
    if task == "tag":
        return TaggedExample(split_words(values["text"]))
    return TextExample(values["text"], None, values.get("pair"))


def as_row(example: Any, prediction: Any) -> dict[str, Any]:
    """An example and its prediction as plain values for a line of JSON."""
    if isinstance(prediction, ClassPrediction):
        pair = {} if example.pair is None else {"pair": example.pair}
        p = {name: round(value, 6) for name, value in prediction.probabilities.items()}
        return {"text": example.text, **pair, "label": prediction.label, "probabilities": p}
    if isinstance(prediction, TagPrediction):
        found = [
            {"type": kind, "text": " ".join(example.words[a : b + 1]), "first": a, "last": b}
            for kind, a, b in prediction.entities
        ]
        row = {"tokens": example.words, "tags": prediction.tags, "entities": found}
        return row | ({"words_not_seen": prediction.left_out} if prediction.left_out else {})
    assert isinstance(prediction, AnswerPrediction)
    score = round(prediction.score, 4) if math.isfinite(prediction.score) else None
    return {
        "question": example.question,
        "answer": prediction.text,
        "start": prediction.start,
        "end": prediction.end,
        "score": score,
    }


def predict_command(
    *,
    model: str,
    data_files: Sequence[str],
    text_column: str | None,
    pair_column: str | None,
    out: str | None,
    overwrite: bool,
    device: str,
    **given: str | None,
) -> None:
    """What the command line does: a line of JSON for each example, to a file or to the terminal.

    `given` is one example: text, pair, question, context.
    """
    if any(value is not None for value in given.values()) and data_files:
        raise ConfigError(f"give data files or one text, not both: {data_files[0]!r}")
    target = None if out is None else Path(out)
    if target is not None:
        _check_target(target, overwrite, data_files, Path(model))
    chosen = choose_device(device)
    predictor = Predictor.load(model)
    predictor.model.to(chosen)
    if data_files:
        columns = Columns(text=text_column, pair=pair_column)
        examples = read_examples(
            predictor.settings.task, tuple(data_files), columns, labelled=False
        )
    else:
        examples = [example_of(predictor.settings.task, given)]
    encoded = predictor.encode(examples, labelled=False)
    if encoded.cut:
        said = f"too long for {predictor.settings.context} tokens: {encoded.report()}"
        print(said, file=sys.stderr)
    rows = map(as_row, examples, predictor.predict(examples))
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    _write(lines, target)


def _write(lines: str, target: Path | None) -> None:
    if target is None:
        print(printable(lines), end="")
    else:
        write_file(target, lines.encode())
        n = lines.count("\n")
        print(f"wrote {n:,} prediction{'s' * (n != 1)} to {target}", file=sys.stderr)


def _check_target(target: Path, overwrite: bool, data_files: Sequence[str], model: Path) -> None:
    """Refuse, before any work, a file that is there or cannot be."""
    if target.resolve() in {Path(name).resolve() for name in data_files}:
        raise ConfigError(f"out must not be one of the data files, got {str(target)!r}")
    if target.is_dir():
        raise ConfigError(f"out must be a file, {target} is a directory")
    if target.exists() and not target.is_file():  # it would be replaced, not written to
        raise ConfigError(f"out must be an ordinary file, {target} is a device or a pipe")
    if target.exists() and target.resolve().parent == model.resolve():
        raise ConfigError(f"out must not be a file of the model, got {str(target)!r}")
    if target.exists() and not overwrite:
        raise ConfigError(f"{target} is there already: choose another --out, or add --overwrite")
    if not target.parent.is_dir():
        raise ConfigError(f"out must lie in a directory that exists, {target.parent} does not")
