"""Every exercise of the notebooks has a check, and the check has tests."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from book_tools import ROOT, SOURCES, hygiene


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_every_exercise_has_a_check_and_the_check_has_tests(source: Path) -> None:
    """The tests of a chapter's checks try the solution, a blank and two or more wrong answers."""
    text = source.read_text(encoding="utf-8")
    called = set(hygiene.CHECK_CALL.findall(text))
    labels = re.findall(r"\{exercise\}", text)
    chapter = f"ch{source.stem[:2]}"
    path = ROOT / "llm_lab" / "checks" / f"{chapter}.py"
    module = ast.parse(path.read_text(encoding="utf-8"))
    defined = {node.name for node in module.body if isinstance(node, ast.FunctionDef)}
    assert called <= defined
    assert len(called) >= len(labels)
    path = ROOT / "tests" / "llm_lab" / "checks" / f"test_{chapter}.py"
    tests = path.read_text(encoding="utf-8")
    for name in called:
        uses = len(re.findall(rf"\b{name}\b", tests))
        assert uses >= 3, f"{name}: one right and at least two wrong answers, found {uses} uses"
