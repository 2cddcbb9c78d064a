"""What every check of an exercise owes: solutions pass; blanks and wrong answers are diagnosed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from check_answers import CHAPTERS, Answer, Check, checks_of, tables

from llm_lab.checks import grading
from llm_lab.checks.grading import CheckFailed

CHECKS = [
    pytest.param(check, id=f"{chapter}-{check.__name__}")
    for chapter in CHAPTERS
    for check in checks_of(chapter)
]
RIGHT = [
    pytest.param(check, answer, id=f"{chapter}-{check.__name__}-{answer.__name__}")
    for chapter in CHAPTERS
    for check, answer in tables(chapter)[0]
]
WRONG = [
    pytest.param(check, answer, diagnosis, id=f"{chapter}-{check.__name__}-{diagnosis}")
    for chapter in CHAPTERS
    for check, answer, diagnosis in tables(chapter)[1]
]


def test_every_check_is_tried_with_right_and_with_wrong_answers() -> None:
    files = Path(grading.__file__).parent.glob("ch*.py")
    assert {path.stem for path in files} == set(CHAPTERS)
    for chapter in CHAPTERS:
        right, wrong = tables(chapter)
        offered = set(checks_of(chapter))
        assert offered == {check for check, _ in right} == {check for check, *_ in wrong}, chapter


@pytest.mark.parametrize(("check", "answer"), RIGHT)
def test_the_solution_passes(check: Check, answer: Answer, capsys: Any) -> None:
    check(answer)
    assert capsys.readouterr().out.startswith("✓ ")


@pytest.mark.parametrize("check", CHECKS)
def test_a_blank_answer_fails(check: Check) -> None:
    def blank(*_: Any) -> Any:
        raise NotImplementedError("write your answer here")

    with pytest.raises(NotImplementedError, match="write your answer"):
        check(blank)


@pytest.mark.parametrize("given", [None, ...], ids=["None", "Ellipsis"])
@pytest.mark.parametrize("check", CHECKS)
def test_an_answer_that_returns_nothing_is_diagnosed(check: Check, given: Any) -> None:
    with pytest.raises(CheckFailed):
        check(lambda *_: given)


@pytest.mark.parametrize(("check", "answer", "diagnosis"), WRONG)
def test_a_wrong_answer_is_diagnosed(check: Check, answer: Answer, diagnosis: str) -> None:
    with pytest.raises(CheckFailed, match=diagnosis):
        check(answer)
