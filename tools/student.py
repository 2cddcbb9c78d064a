"""The student edition: the notebooks without solutions and outputs, in plain Markdown.

    make student        writes student/NN_topic.ipynb for every notebook, of the commit checked out

Between `{solution-start}` and `{solution-end}` the text goes, and a code cell stays only if it has
`### BEGIN SOLUTION` and `### END SOLUTION`: what stands between these becomes one line that raises.
"""

from __future__ import annotations

import argparse
import copy
import re
from pathlib import Path
from typing import Any

import nbformat
from colab import BADGE_IMAGE, BRANCH, add_edition, at_commit, page_commit
from plain_markdown import plain_markdown

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
BLANK = 'raise NotImplementedError("write your answer here")'
START_BLOCK = re.compile(r"^`{3,}\{solution-start\}", re.M)
END_BLOCK = re.compile(r"^`{3,}\{solution-end\}", re.M)
Cell = Any  # nbformat.NotebookNode, whose attributes no type checker knows


class SolutionError(ValueError):
    """The solution markers of a notebook do not pair up."""


def strip_region(source: str) -> str:
    """Replace each solution region by one raising line with the indentation of its marker."""
    done: list[str] = []
    inside = False
    for line in source.split("\n"):
        mark = line.strip()
        if mark in (BEGIN, END):
            if inside == (mark == BEGIN):
                raise SolutionError(f"{mark!r} has no partner")
            inside = mark == BEGIN
            if inside:
                done.append(line[: len(line) - len(line.lstrip())] + BLANK)
        elif not inside:
            done.append(line)
    if inside:
        raise SolutionError(f"{BEGIN!r} has no partner")
    return "\n".join(done)


def has_region(source: str) -> bool:
    return BEGIN in source or END in source


def _student_markdown(source: str) -> str:
    lines = [line for line in source.split("\n") if BADGE_IMAGE not in line]
    return re.sub(r"\n{3,}", "\n\n", plain_markdown("\n".join(lines)))


def solution_cells(notebook: Cell) -> list[tuple[Cell, bool]]:
    """Every cell, with whether it belongs to a solution block (its two fences included)."""
    cells = []
    inside = False
    for number, cell in enumerate(notebook.cells):
        markdown = cell.cell_type == "markdown"
        starts = markdown and START_BLOCK.search(cell.source) is not None
        ends = markdown and END_BLOCK.search(cell.source) is not None
        if (starts and inside) or (ends and not (inside or starts)):
            raise SolutionError(f"cell {number}: a solution block inside a block, or without start")
        cells.append((cell, inside or starts))
        inside = (inside or starts) and not ends
    if inside:
        raise SolutionError("the last {solution-start} has no {solution-end}")
    return cells


def student_edition(notebook: Cell) -> Cell:
    """A copy without solutions, outputs and MyST; cell ids stay, so that work can be compared."""
    edition = copy.deepcopy(notebook)
    cells = []
    for cell, in_block in solution_cells(edition):
        if cell.cell_type != "code":
            if not in_block and (text := _student_markdown(cell.source)):
                cell.source = text
                cells.append(cell)
            continue
        if in_block and not has_region(cell.source):
            continue
        cell.source = strip_region(cell.source)
        cell.outputs, cell.execution_count = [], None
        cells.append(cell)
    edition.cells = cells
    return edition


def solution_lines(notebook: Cell) -> set[str]:
    """The lines that only the solutions hold: none of them may be left in the student edition."""
    hidden: set[str] = set()
    shown: set[str] = set()
    for cell, in_block in solution_cells(notebook):
        if cell.cell_type == "code" and has_region(cell.source):
            kept = strip_region(cell.source).split("\n")
            shown.update(line.strip() for line in kept)
            hidden.update(line.strip() for line in cell.source.split("\n"))
        else:
            (hidden if in_block else shown).update(s.strip() for s in cell.source.split("\n"))
    return {line for line in hidden - shown if line}


def write_all(target: Path, source: Path = ROOT / "notebooks", commit: str = BRANCH) -> list[Path]:
    """Write the student edition of every notebook, remove stale files, and return the paths."""
    target.mkdir(parents=True, exist_ok=True)
    written = []
    for path in sorted(source.glob("*.ipynb")):
        try:
            edition = student_edition(nbformat.read(path, as_version=4))
        except ValueError as error:
            raise SolutionError(f"{path.name}: {error}") from error
        text = at_commit(nbformat.writes(edition) + "\n", commit)
        written.append(target / path.name)
        if not written[-1].is_file() or written[-1].read_text(encoding="utf-8") != text:
            written[-1].write_text(text, encoding="utf-8")
    for stale in set(target.glob("*.ipynb")) - set(written):
        stale.unlink()
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description="write the notebooks without solutions")
    parser.add_argument("--out", type=Path, default=ROOT / "student", help="target folder")
    parser.add_argument("--dirty", action="store_true", help="although files are not committed")
    parser.add_argument("--branch", type=Path, help="the checked-out branch to add this edition to")
    arguments = parser.parse_args()
    commit = page_commit(arguments.dirty)
    for path in write_all(arguments.out, commit=commit):
        print(path)
    if arguments.branch:
        add_edition(arguments.branch, arguments.out, commit)


if __name__ == "__main__":
    main()
