"""Page, badge, student notebook, package and results are of one commit."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from book_tools import build_book, colab, student
from nbformat import v4

NOTEBOOK = "12_title"


def git(folder: Path, *words: str) -> str:
    who = ("-c", "user.name=x", "-c", "user.email=x@example.org")
    run = subprocess.run(["git", *who, *words], cwd=folder, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def write_notebook(repository: Path, text: str) -> None:
    cells = [
        v4.new_markdown_cell(f"# 12 Title\n\n{colab.badge(NOTEBOOK)}\n\n{text}"),
        v4.new_code_cell(colab.cell(), metadata={"tags": list(colab.TAGS)}),
    ]
    notebook = v4.new_notebook(cells=cells)
    (repository / f"{NOTEBOOK}.ipynb").write_text(json.dumps(notebook), encoding="utf-8")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "--quiet", "--initial-branch=main")
    write_notebook(folder, "The first text.")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message", "first")
    return folder


def publish(repository: Path, place: Path) -> tuple[str, str]:
    """What the workflow does; the page, and the commit."""
    commit = colab.page_commit(root=repository)
    edition, site = place / "edition", place / "site"
    site.mkdir(parents=True, exist_ok=True)
    student.write_all(edition, repository, commit)
    colab.add_edition(place / "branch", edition, commit)
    page = site / "page.html"
    page.write_text(f"<p>{colab.badge(NOTEBOOK)}</p>", encoding="utf-8")
    build_book.pin(site, commit)
    return page.read_text(encoding="utf-8"), commit


def follow(page: str, branch: Path) -> str:
    """The notebook of the student branch that the badge of a page opens."""
    (path,) = re.findall(r"/blob/student/([^)]*)", page)
    return (branch / path).read_text(encoding="utf-8")


def test_the_badge_of_each_page_opens_the_notebook_of_its_own_commit(
    repository: Path, tmp_path: Path
) -> None:
    (tmp_path / "branch").mkdir()
    old_page, old = publish(repository, tmp_path)
    write_notebook(repository, "The second text.")
    git(repository, "commit", "--quiet", "--all", "--message", "second")
    new_page, new = publish(repository, tmp_path)
    assert old != new
    for page, commit, text in ((old_page, old, "first"), (new_page, new, "second")):
        opened = follow(page, tmp_path / "branch")
        assert f"The {text} text." in opened
        assert f"{colab.REPOSITORY}@{commit} " in opened
        assert f"{colab.REPOSITORY}@main" not in opened


def test_a_page_that_is_built_again_gets_the_new_commit(repository: Path, tmp_path: Path) -> None:
    page, commit = publish(repository, tmp_path)
    assert colab.at_commit(colab.at_commit(page, "a" * 40), commit) == page


def test_files_that_are_not_committed_are_refused_unless_told(repository: Path) -> None:
    commit = colab.page_commit(root=repository)
    assert re.fullmatch("[0-9a-f]{40}", commit)
    write_notebook(repository, "Not committed.")
    with pytest.raises(SystemExit, match=rf"1 files differ .*{NOTEBOOK}\.ipynb.*DIRTY=1"):
        colab.page_commit(root=repository)
    assert colab.page_commit(dirty=True, root=repository) == commit


def test_without_a_repository_it_is_the_branch(tmp_path: Path) -> None:
    assert colab.page_commit(root=tmp_path) == "main"


def test_the_branch_keeps_the_newest_editions(tmp_path: Path) -> None:
    edition, branch = tmp_path / "edition", tmp_path / "branch"
    edition.mkdir()
    branch.mkdir()
    (edition / "12_title.ipynb").write_text("{}")
    for commit in ("a", "b", "c", "b", "d"):
        colab.add_edition(branch, edition, commit, keep=3)
    assert sorted(path.name for path in branch.iterdir()) == ["b", "c", "d", "editions.txt"]
    assert (branch / "editions.txt").read_text().split() == ["c", "b", "d"]
