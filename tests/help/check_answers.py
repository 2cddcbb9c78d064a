"""The answers with which the checks of the exercises are tried, a table of each kind a chapter."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

Check = Callable[..., None]
Answer = Callable[..., Any]
Right = list[tuple[Check, Answer]]
Wrong = list[tuple[Check, Answer, str]]  # and what the message must say, a regular expression

FOLDER = Path(__file__).resolve().parents[1] / "llm_lab" / "checks"
CHAPTERS = [path.stem.removeprefix("test_") for path in sorted(FOLDER.glob("test_ch*.py"))]


def tables(chapter: str) -> tuple[Right, Wrong]:
    """The right and the wrong answers of a chapter such as "ch07"."""
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    module = import_module(f"test_{chapter}")
    return module.RIGHT, module.WRONG


def checks_of(chapter: str) -> list[Check]:
    """Every check that the chapter offers to its notebook."""
    module = import_module(f"llm_lab.checks.{chapter}")
    return [value for name, value in vars(module).items() if name.startswith("check_")]
