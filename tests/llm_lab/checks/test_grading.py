"""The comparisons behind the exercise checks diagnose, and a notebook shows what they say."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell

from llm_lab.checks.grading import (
    CheckFailed,
    draw,
    expect_close,
    expect_equal,
    expect_mask,
    expect_parts,
    expect_shape,
    expect_verdict,
    passed,
)

RIGHT = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 7.0]])


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        (1.0, 1),
        (torch.tensor(1.0), 1.0),
        ([1.0, 2.0], torch.tensor([1.0, 2.0])),
        ((torch.tensor(1.0), torch.tensor(2.0)), [1.0, 2.0]),
        (RIGHT.clone().requires_grad_(), RIGHT),
        (RIGHT + 5e-7, RIGHT),
        (1e6 + 0.5, 1e6),
        (math.inf, math.inf),
        (torch.tensor([math.nan, 1.0]), [math.nan, 1.0]),
        (True, 1),
    ],
)
def test_equal_values_pass(actual: Any, expected: Any) -> None:
    expect_close(actual, expected)


@pytest.mark.parametrize(
    ("actual", "expected", "diagnosis"),
    [
        (None, 1.0, "without `return`"),
        (..., 1.0, "still `...`"),
        ("one", 1.0, "got str: 'one'"),
        ([[1.0], [1.0, 2.0]], 1.0, "got list"),
        (RIGHT.mT, RIGHT, "last two axes swapped"),
        (RIGHT[:, None], RIGHT, "axis of size 1"),
        (RIGHT, 1.0, "a sum or a mean missing"),
        (RIGHT[:1, :2], RIGHT, r"should have the shape \(2, 3\), got \(1, 2\)"),
        (math.nan, 1.0, "holds nan"),
        (torch.tensor([1.0, math.inf]), [1.0, 2.0], "holds inf"),
        (-RIGHT, RIGHT, "sign turned around"),
        (RIGHT / math.log(2), RIGHT, "in bits"),
        (RIGHT * math.log(2), RIGHT, "another base"),
        (RIGHT * 6, RIGHT, "6 times the right value: is a sum"),
        (RIGHT / 4, RIGHT, "0.25 times"),
        (RIGHT + 2, RIGHT, "off by the same 2"),
        (RIGHT + torch.eye(2, 3), RIGHT, r"wrong in 2 of 6 numbers: at \[0, 0\] it should be 1"),
        (1.23, 1.0, "your answer should be 1, got 1.23"),
        (5.0, math.inf, "should be inf, got 5"),
        ([1.0, 2.0], [1.0, -math.inf], "should be -inf, got 2"),
    ],
)
def test_wrong_values_are_diagnosed(actual: Any, expected: Any, diagnosis: str) -> None:
    with pytest.raises(CheckFailed, match=diagnosis):
        expect_close(actual, expected)


def test_a_known_mistake_is_named_only_when_the_answer_is_wrong() -> None:
    hints = {2.0: "twice too large", 1.0: "equal to the right value here", math.nan: "nan"}
    expect_close(1.0, 1.0, name="f(0)", hints=hints)
    with pytest.raises(CheckFailed, match=r"f\(0\) should be 1, got 2. Hint: twice too large"):
        expect_close(2.0, 1.0, name="f(0)", hints=hints)
    with pytest.raises(CheckFailed) as caught:
        expect_close(1.5, 1.0, hints=hints)
    assert "Hint" not in str(caught.value)
    expect_close(1.01, 1.0, tolerance=0.1)
    with pytest.raises(CheckFailed):
        expect_close(1.01, 1.0, tolerance=0.001)


def test_exact_comparison_names_the_first_difference() -> None:
    expect_equal(torch.tensor([1, 2]), [1, 2])
    expect_equal(("a", ["b"]), ["a", ["b"]])
    with pytest.raises(CheckFailed, match="first difference is at index 1"):
        expect_equal([1, 3], [1, 2], name="ids")
    with pytest.raises(CheckFailed, match="has 1 elements, not 2"):
        expect_equal([1], [1, 2])
    with pytest.raises(CheckFailed, match="without `return`"):
        expect_equal(None, [1, 2])
    with pytest.raises(CheckFailed, match="Hint: EOS is missing"):
        expect_equal((1,), [1, 2], hints={(1,): "EOS is missing"})
    with pytest.raises(CheckFailed, match="should be 'a', got 'b'"):
        expect_equal("b", "a")


def test_shapes_are_compared() -> None:
    expect_shape(RIGHT, (2, 3))
    with pytest.raises(CheckFailed, match=r"the shape \(3, 2\), got \(2, 3\)"):
        expect_shape(RIGHT, (3, 2), name="scores")
    with pytest.raises(CheckFailed, match="should be a tensor, got list"):
        expect_shape([1], (1,))


def test_masks_parts_and_verdicts_are_of_the_right_kind() -> None:
    expect_mask(torch.ones(2, 3).bool(), (2, 3), name="mask")
    with pytest.raises(CheckFailed, match=r"mask must be bool, True = attend, got torch\.int64"):
        expect_mask(torch.ones(2, 3).long(), (2, 3), name="mask")
    expect_parts((1, None), 2, "two things")
    for given in (None, 1.0, (1,), RIGHT):
        with pytest.raises(CheckFailed, match="two things, got"):
            expect_parts(given, 2, "two things")
    advice = {True: "look closer", False: "it is honest"}
    expect_verdict(True, True, name="f", case="a leak", advice=advice)
    with pytest.raises(CheckFailed, match=r"a leak: expected True, got False\. look closer"):
        expect_verdict(False, True, name="f", case="a leak", advice=advice)
    with pytest.raises(CheckFailed, match="f must return True or False, got a Tensor of torch"):
        expect_verdict(torch.tensor(True), True, name="f", case="a leak", advice=advice)


def test_drawn_numbers_depend_on_the_seed_alone() -> None:
    assert torch.equal(draw(2, 3, seed=1), draw(2, 3, seed=1))
    assert not torch.equal(draw(2, 3, seed=1), draw(2, 3, seed=2))


def test_a_notebook_shows_the_message_without_a_traceback(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shell = InteractiveShell()
    shell.run_cell("from llm_lab.checks.grading import CheckFailed, passed")
    shell.run_cell("def check():\n    raise CheckFailed('the sign is turned around')\ncheck()")
    shell.run_cell("passed('right')")
    assert capsys.readouterr().out == "✗ the sign is turned around\n✓ right\n"
    passed("also outside a notebook")
    assert capsys.readouterr().out == "✓ also outside a notebook\n"
