"""`llm-course predict`: what a fine-tuned BERT says of texts, of a file or of the command line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from llm_course.atomic import write_file
from llm_course.data.example_files import Columns, read_examples
from llm_course.errors import ConfigError
from llm_course.recipes.predictor import Predictor
from llm_course.recipes.run import printable, say
from llm_course.training.devices import choose_device


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
    there = {name: value for name, value in given.items() if value is not None}
    if there and data_files:
        raise ConfigError(f"give data files or one text, not both: {data_files[0]!r}")
    target = None if out is None else Path(out)
    if target is not None:
        _check_target(target, overwrite, data_files, Path(model))
    chosen = choose_device(device)
    predictor = Predictor.load(model)
    predictor.model.to(chosen)
    task = predictor.settings.task
    if data_files:
        columns = Columns(text=text_column, pair=pair_column)
        examples = read_examples(task, tuple(data_files), columns, labelled=False)
    else:
        _check_asked(task, predictor.task.asks, there)
        examples = [predictor.task.example(**there)]
    encoded = predictor.encode(examples, labelled=False)
    if encoded.cut:
        say(f"too long for {predictor.settings.context} tokens: {encoded.report()}")
    rows = map(predictor.task.as_row, examples, predictor.predict(examples))
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if target is None:
        print(printable(lines), end="")
    else:
        write_file(target, lines.encode())
        n = len(examples)
        say(f"wrote {n:,} prediction{'s' * (n != 1)} to {target}")


def _check_asked(task: str, wanted: Sequence[str], there: dict[str, str]) -> None:
    """Say which options a task needs."""
    if sorted(there) != sorted(wanted):
        needed = " and ".join(f"--{name}" for name in wanted)
        got = ", ".join(f"--{name}" for name in there) or "none of them"
        raise ConfigError(f"the task {task!r} needs {needed} (or --data-files), got {got}")
    for name, value in there.items():
        if not value.strip():
            raise ConfigError(f"--{name} must hold text, got {value!r}")


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
