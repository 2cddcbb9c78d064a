"""The map of the source claims what cells and tests declare, and nothing else."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from book_tools import ROOT, coverage_map
from nbformat import v4

TESTS = '''
import pytest
pytestmark = [pytest.mark.slow, pytest.mark.covers("X1")]

@pytest.mark.covers("F12", "F13")
@pytest.mark.gpu
def test_shift() -> None: ...

@pytest.mark.covers("G1")
class TestLoop:
    @pytest.mark.covers("G2")
    def test_inner(self) -> None: ...

@pytest.mark.covers("F1")
def helper() -> None: ...

def test_words() -> None:
    """covers F14, and pytest.mark.covers("F15") in a text."""
'''


def test_marks_are_read_from_functions_classes_and_modules(tmp_path: Path) -> None:
    (tmp_path / "test_a.py").write_text(TESTS)
    (tmp_path / "helper.py").write_text(TESTS)
    found = coverage_map.covered_by_tests(tmp_path)
    shift, inner = "test_a.py::test_shift", "test_a.py::TestLoop::test_inner"
    words = "test_a.py::test_words"
    assert found == {
        "X1": [shift, inner, words],
        "F12": [shift],
        "F13": [shift],
        "G1": [inner],
        "G2": [inner],
    }


def test_ids_must_be_plain_strings(tmp_path: Path) -> None:
    (tmp_path / "test_a.py").write_text("@pytest.mark.covers(*IDS)\ndef test_x(): ...\n")
    with pytest.raises(coverage_map.CoverageError, match="plain strings"):
        coverage_map.covered_by_tests(tmp_path)


def test_cells_are_found_with_their_chapter_and_heading(tmp_path: Path) -> None:
    folder = tmp_path / "notebooks"
    folder.mkdir()
    cells = [
        v4.new_markdown_cell("# 12 The | loss\n\n## Shift once"),
        v4.new_code_cell("1", metadata={"tags": ["covers-F12", "remove-cell"]}),
        v4.new_code_cell("2", metadata={"tags": ["covers-F12"]}),
        v4.new_markdown_cell("## Why covers-F1 in a text is no claim", metadata={"tags": []}),
        v4.new_markdown_cell("Words.", metadata={"tags": ["covers-K1"]}),
    ]
    nbformat.write(v4.new_notebook(cells=cells), folder / "12_loss.ipynb")
    found = coverage_map.covered_by_cells(folder)
    assert set(found) == {"F12", "K1"}
    (cell,) = found["F12"]
    assert (cell.page, cell.chapter, cell.heading) == (
        "notebooks/12_loss",
        "12 The | loss",
        "Shift once",
    )
    ids = coverage_map.read_ids()
    page = coverage_map.render(ids, found, {"F12": ["test_a.py::test_shift_once"]})
    assert "2 are in a chapter, 1 in a test, 1 in both" in page
    assert "[12 The \\| loss](../notebooks/12_loss.ipynb): Shift once | shift once |" in page
    assert page == coverage_map.render(ids, found, {"F12": ["test_a.py::test_shift_once"]})


def test_an_unknown_id_is_an_error() -> None:
    ids = coverage_map.read_ids()
    coverage_map.check_known(ids, {"F12": ["somewhere"]})
    with pytest.raises(coverage_map.CoverageError, match=r"'F99' in 12_gpt.*'Z1' in test_x"):
        coverage_map.check_known(ids, {"F99": ["12_gpt"]}, {"Z1": ["test_x"]})


def test_the_table_lists_every_item_of_the_source() -> None:
    ids = set(coverage_map.read_ids())
    counts = {"F": 15, "B": 6, "G": 7, "T": 7, "K": 4, "X": 4, "P": 5, "C": 4, "D": 5}
    expected = {f"{letter}{i}" for letter, n in counts.items() for i in range(1, n + 1)}
    assert ids == expected | {"S6", "S7", "S8", "S9"}


def test_this_project_declares_only_known_ids() -> None:
    ids, cells, tests = coverage_map.collect()
    page = coverage_map.render(ids, cells, tests)
    for row in ids.values():
        assert f"| {row.id} | {row.section} |" in page
    for source_id, names in tests.items():
        for name in names:
            file, _, function = name.partition("::")
            text = (ROOT / "tests" / file).read_text(encoding="utf-8")
            assert f"def {function.rpartition('::')[2]}(" in text
            assert source_id in text
