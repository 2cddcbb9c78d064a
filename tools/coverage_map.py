"""Which formulas, steps and claims of the source are covered, and where: `make coverage-map`.

A notebook cell declares its ids by tags (`# %% tags=["covers-F12"]`), a test by the mark
`@pytest.mark.covers("F12")`. Both are read from the files, nothing is executed, and an id that
`book/source_ids.tsv` does not know is an error.
"""

from __future__ import annotations

import argparse
import ast
import csv
import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "book" / "source_map.md"
TAG = "covers-"
GROUPS = {"F": "Formulas", "BGT": "Steps of the procedure", "KXPCDS": "Concepts, claims and parts"}


class CoverageError(ValueError):
    """A declaration names an unknown id, or cannot be read without running the code."""


@dataclass(frozen=True)
class SourceId:
    id: str
    section: str  # of the source article
    title: str


@dataclass(frozen=True)
class CellReference:
    page: str  # path from the project root, without suffix
    chapter: str  # title of the notebook
    heading: str  # the nearest heading above the cell


def read_ids(table: Path = ROOT / "book" / "source_ids.tsv") -> dict[str, SourceId]:
    with table.open(encoding="utf-8", newline="") as file:
        rows = [SourceId(**row) for row in csv.DictReader(file, delimiter="\t")]
    ids = {row.id: row for row in rows}
    if len(ids) != len(rows):
        raise CoverageError(f"{table.name} has an id twice")
    return ids


def _is_covers(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "covers"
        and isinstance(node.func.value, ast.Attribute)
        and node.func.value.attr == "mark"
    )


def _marks(node: ast.AST, where: str) -> list[str]:
    """The ids of every `pytest.mark.covers(...)` below a node."""
    found = []
    for call in (n for n in ast.walk(node) if _is_covers(n)):
        assert isinstance(call, ast.Call)
        for argument in call.args:
            if not (isinstance(argument, ast.Constant) and isinstance(argument.value, str)):
                raise CoverageError(f"{where}: covers() takes ids as plain strings")
            found.append(argument.value)
    return found


def _tests(body: list[ast.stmt], prefix: str, inherited: list[str]) -> Iterator[tuple[str, str]]:
    """(id, name of the test) for the tests of a module or of a class."""
    for node in body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if any(isinstance(t, ast.Name) and t.id == "pytestmark" for t in targets):
            inherited = inherited + _marks(node, prefix)
    for node in body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        name = f"{prefix}::{node.name}"
        own = inherited + [i for d in node.decorator_list for i in _marks(d, name)]
        if isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
            yield from _tests(node.body, name, own)
        elif node.name.startswith("test"):
            for source_id in dict.fromkeys(own):
                yield source_id, name


def covered_by_tests(folder: Path = ROOT / "tests") -> dict[str, list[str]]:
    """Id -> the tests (`room/file.py::test_name`) that declare it."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted(folder.rglob("test_*.py")):
        place = path.relative_to(folder).as_posix()
        module = ast.parse(path.read_text(encoding="utf-8"), place)
        for source_id, name in _tests(module.body, place, []):
            found[source_id].append(name)
    return dict(found)


def covered_by_cells(folder: Path = ROOT / "notebooks") -> dict[str, list[CellReference]]:
    """Id -> the notebook cells that declare it."""
    found: dict[str, list[CellReference]] = defaultdict(list)
    for path in sorted(folder.glob("*.ipynb")):
        chapter = heading = path.stem
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "markdown":
                titles = re.findall(r"^(#{1,3}) +(.+)$", "".join(cell["source"]), flags=re.M)
                if titles:
                    heading = titles[-1][1].strip()
                chapter = next((t for level, t in titles if level == "#"), chapter)
            tags = cell["metadata"].get("tags", [])
            for source_id in (t[len(TAG) :] for t in tags if t.startswith(TAG)):
                reference = CellReference(f"{folder.name}/{path.stem}", chapter.strip(), heading)
                if reference not in found[source_id]:
                    found[source_id].append(reference)
    return dict(found)


def check_known(ids: dict[str, SourceId], *declared: dict[str, list[str]]) -> None:
    unknown = {i: where for found in declared for i, where in found.items() if i not in ids}
    if unknown:
        lines = [f"{i!r} in {', '.join(map(str, where))}" for i, where in sorted(unknown.items())]
        raise CoverageError("ids that book/source_ids.tsv does not know: " + "; ".join(lines))


def _sentence(test: str) -> str:
    """`test_x.py::test_the_shift_is_one` -> "the shift is one": tests are named by their claims."""
    return test.rpartition("::")[2].removeprefix("test_").replace("_", " ")


def _row(row: SourceId, cells: list[CellReference], tests: list[str]) -> str:
    def text(value: str) -> str:
        return re.sub(r"([|_*\[\]<>\\])", r"\\\1", value)

    pages: dict[str, list[str]] = defaultdict(list)
    for cell in cells:
        pages[f"[{text(cell.chapter)}](../{cell.page}.ipynb)"].append(text(cell.heading))
    chapters = "<br>".join(
        link + ("" if headings == [link] else ": " + ", ".join(headings))
        for link, headings in pages.items()
    )
    names = "<br>".join(text(_sentence(name)) for name in tests)
    return f"| {row.id} | {row.section} | {text(row.title)} | {chapters or '–'} | {names or '–'} |"


def render(
    ids: dict[str, SourceId], cells: dict[str, list[CellReference]], tests: dict[str, list[str]]
) -> str:
    """The page of the book, the same bytes for the same declarations."""
    both = [i for i in ids if i in cells and i in tests]
    lines = [
        "# Source map",
        "",
        "The book follows an article that goes from the Transformer to BERT, GPT and T5. Each of",
        "its formulas, steps and claims has an id. This page is made from the ids that notebook",
        "cells and tests declare, so it names nothing that is not there.",
        "",
        f"Of {len(ids)} ids, {sum(i in cells for i in ids)} are in a chapter, "
        f"{sum(i in tests for i in ids)} in a test, {len(both)} in both.",
    ]
    for letters, title in GROUPS.items():
        lines += ["", f"## {title}", "", "| id | section | what | chapters | tests |"]
        lines += ["|---|---|---|---|---|"]
        rows = [row for row in ids.values() if row.id[0] in letters]
        lines += [_row(row, cells.get(row.id, []), tests.get(row.id, [])) for row in rows]
    return "\n".join(lines) + "\n"


def collect() -> tuple[dict[str, SourceId], dict[str, list[CellReference]], dict[str, list[str]]]:
    ids, cells, tests = read_ids(), covered_by_cells(), covered_by_tests()
    check_known(ids, {i: [r.page for r in refs] for i, refs in cells.items()}, tests)
    return ids, cells, tests


def write_page(page: Path = PAGE) -> None:
    """Write the page if it changed, so that an unchanged book is not built again."""
    text = render(*collect())
    if not page.is_file() or page.read_text(encoding="utf-8") != text:
        page.write_text(text, encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description="print which source ids are covered, and where")
    parser.add_argument(
        "--complete", action="store_true", help="fail when an id has no chapter cell or no test"
    )
    arguments = parser.parse_args()
    ids, cells, tests = collect()
    for row in ids.values():
        chapters = dict.fromkeys(Path(c.page).name for c in cells.get(row.id, []))
        print(f"{row.id:4} {row.title}")
        print(f"       chapters: {', '.join(chapters) or '-'}")
        print(f"       tests:    {', '.join(tests.get(row.id, [])) or '-'}")
    gaps = [i for i in ids if i not in cells or i not in tests]
    print(f"\n{len(ids) - len(gaps)} of {len(ids)} ids have a chapter cell and a test")
    if arguments.complete and gaps:
        print(f"without a chapter cell or a test: {' '.join(gaps)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
