"""The student edition holds no solution, reads without MyST, and the instructor's keeps all."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import nbformat
import pytest
from book_tools import EXECUTED, colab, plain_markdown, student
from nbformat import v4

START = "```{solution-start} ex-1\n:class: dropdown\n```\nThe secret is the **exponential**."
ANSWER = """\
def f(x: float) -> float:
    \"\"\"The answer.\"\"\"
    y = x
    ### BEGIN SOLUTION
    secret = math.exp(y)
    return secret
    ### END SOLUTION"""
STRIPPED = """\
def f(x: float) -> float:
    \"\"\"The answer.\"\"\"
    y = x
    raise NotImplementedError("write your answer here")"""


def sample() -> Any:
    cells = [
        v4.new_markdown_cell(f"# 12 Title\n\n{colab.badge('12_title')}\n\n**You will** see."),
        v4.new_markdown_cell("```{exercise} Try\n:label: ex-1\n*5 minutes, easy.* Do it.\n```"),
        v4.new_markdown_cell(START),
        v4.new_code_cell(ANSWER, execution_count=1),
        v4.new_code_cell("print('a plot that gives it away')", execution_count=2),
        v4.new_markdown_cell("More secrets.\n\n```{solution-end}\n```"),
        v4.new_code_cell(
            "check_f(f)", outputs=[v4.new_output("stream", text="✓\n")], execution_count=3
        ),
    ]
    return v4.new_notebook(cells=cells)


def test_solutions_and_outputs_go_and_the_rest_stays() -> None:
    instructor = sample()
    before = copy.deepcopy(instructor)
    edition = student.student_edition(instructor)
    assert instructor == before  # the instructor's notebook is not touched
    assert [cell.source for cell in edition.cells] == [
        "# 12 Title\n\n**You will** see.",
        "### Exercise: Try\n\n*5 minutes, easy.* Do it.",
        STRIPPED,
        "check_f(f)",
    ]
    code = [cell for cell in edition.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    text = nbformat.writes(edition)
    hidden = student.solution_lines(instructor)
    assert {"secret = math.exp(y)", "return secret", "More secrets."} <= hidden
    assert not any(line in text for line in hidden)
    assert all(line in nbformat.writes(before) for line in ("return secret", "More secrets."))


@pytest.mark.parametrize("path", EXECUTED, ids=lambda path: path.stem)
def test_no_line_of_a_solution_is_left(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    edition = student.student_edition(notebook)
    nbformat.validate(edition)
    hidden = student.solution_lines(notebook)
    assert hidden, "a chapter has exercises with solutions"
    left = {line.strip() for cell in edition.cells for line in cell.source.split("\n")}
    assert not hidden & left
    assert sum(student.BLANK in cell.source for cell in edition.cells) >= 3
    for cell in edition.cells:
        if cell.cell_type == "code":
            compile(cell.source, path.name, "exec")  # every blank is valid Python
        else:
            assert "{solution" not in cell.source
            assert "{exercise" not in cell.source
            assert "```{" not in cell.source


@pytest.mark.parametrize(
    "source",
    [
        "### BEGIN SOLUTION\nx = 1",
        "x = 1\n### END SOLUTION",
        "### BEGIN SOLUTION\n### BEGIN SOLUTION\n### END SOLUTION",
    ],
)
def test_a_region_without_partner_is_refused(source: str) -> None:
    with pytest.raises(student.SolutionError, match="no partner"):
        student.strip_region(source)


def test_blocks_must_pair() -> None:
    notebook = sample()
    without_end = v4.new_notebook(cells=notebook.cells[:5])
    with pytest.raises(student.SolutionError, match=r"has no .solution-end"):
        student.student_edition(without_end)
    without_start = v4.new_notebook(cells=notebook.cells[5:])
    with pytest.raises(student.SolutionError, match="without start"):
        student.student_edition(without_start)
    twice = v4.new_notebook(cells=[v4.new_markdown_cell(START), *notebook.cells[2:]])
    with pytest.raises(student.SolutionError, match="inside a block"):
        student.student_edition(twice)


def test_writing_again_changes_nothing_and_stale_files_go(tmp_path: Path) -> None:
    source, target = tmp_path / "notebooks", tmp_path / "student"
    source.mkdir()
    nbformat.write(sample(), source / "12_title.ipynb")
    target.mkdir()
    (target / "11_gone.ipynb").write_text("{}")
    (path,) = student.write_all(target, source)
    before = path.stat().st_mtime_ns, path.read_bytes()
    assert [p.name for p in target.iterdir()] == ["12_title.ipynb"]
    student.write_all(target, source)
    assert (path.stat().st_mtime_ns, path.read_bytes()) == before


@pytest.mark.parametrize(
    ("myst", "plain"),
    [
        ("Text with $x$ and `code`.", "Text with $x$ and `code`."),
        ("{math}`x_i` by {cite:p}`radford2018`", "$x_i$ by [radford2018]"),
        ("$$x$$ (eq-x)\n\nSee {eq}`eq-x`.", "$$x\\tag{eq-x}$$\n\nSee (eq-x)."),
        ("{doc}`the setup <../book/setup>` and {term}`token`", "the setup and token"),
        (":::{admonition} What you should see\n:class: see\n1.0\n:::", None),
        ("```{admonition} What you should see\n:class: see\n1.0\n```", None),
        ("```{note}\nMind.\n```", "> **Note**\n>\n> Mind."),
        (":::{dropdown} Hint\nUse exp.\n:::", None),
        ("```python\nx = {1: 2}\n```", "```python\nx = {1: 2}\n```"),
        ("% covered\n(a-target)=\n## Title", "## Title"),
        ("````{exercise} A\n:label: b\n```{tip}\nTwo\n```\n````", None),
    ],
)
def test_myst_becomes_plain_markdown(myst: str, plain: str | None) -> None:
    expected = {
        "What you": "> **What you should see**\n>\n> 1.0",
        "Hint": "<details>\n<summary>Hint</summary>\n\nUse exp.\n\n</details>",
        "exercise": "### Exercise: A\n\n> **Tip**\n>\n> Two",
    }
    wanted = plain or next(text for key, text in expected.items() if key in myst)
    assert plain_markdown.plain_markdown(myst) == wanted


def test_an_open_directive_is_refused() -> None:
    with pytest.raises(ValueError, match="not closed"):
        plain_markdown.plain_markdown("```{note}\nMind.")
