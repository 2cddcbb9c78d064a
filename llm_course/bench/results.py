"""Read what a recorded run has measured: the numbers that the book quotes."""

from __future__ import annotations

import json
import re
import urllib.request
from pathlib import Path
from typing import Any

from llm_course.errors import DataError

RESULTS = Path(__file__).parents[2] / "results"  # of a clone
# Where a notebook in Colab finds them: there the package is installed without its repository.
ADDRESS = "https://raw.githubusercontent.com/llm-course/llm_course/v0.1.0/results"


def load_result(name: str, directory: Path = RESULTS) -> dict[str, Any]:
    """The stored result of a recorded run, from the clone or, where there is none, from its host.

    Raises `DataError` for a name that is no name of a run, and when the result is nowhere.
    """
    if not re.fullmatch(r"[a-z0-9_]+", name):
        raise DataError(f"name must be letters, digits and _, got {name!r}")
    path = directory / f"{name}.json"
    try:
        if directory.is_dir():
            text = path.read_text(encoding="utf-8")
        else:
            with urllib.request.urlopen(f"{ADDRESS}/{name}.json", timeout=30) as answer:
                text = answer.read().decode("utf-8")
    except OSError as error:
        raise DataError(
            f"no stored result {name!r}: {error}; make it by `llm-course record --name {name}`"
        ) from error
    result: dict[str, Any] = json.loads(text)
    return result
