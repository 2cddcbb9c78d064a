"""Build the book into _build/html and check the result: `make book` (needs no torch).

Before Sphinx runs, MathJax is copied from its locked package and the source map is written; after
it, the student edition is put beside the pages and the site is checked.
"""

from __future__ import annotations

import argparse
import filecmp
import shutil
import subprocess
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import colab
import coverage_map
import student
from site_check import check_site, toc_pages

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / "_build" / "html"
STATIC = ROOT / "book" / "_static"
VENDOR = STATIC / "vendor" / "mathjax"
# The component that typesets, the fonts, the TeX extensions that load on demand, and what the
# menu's accessibility entries need, with English speech.
MATHJAX_FILES = (
    "tex-chtml.js",
    "output/chtml/fonts/**/*.woff",
    "input/tex/extensions/*.js",
    "a11y/*.js",
    "sre/mathmaps/base.json",
    "sre/mathmaps/en.json",
)


def copy_changed(source: Path, target: Path, files: Iterable[Path]) -> int:
    """Copy the files below `source` that differ from those below `target`; return how many."""
    changed = 0
    for file in files:
        copy = target / file.relative_to(source)
        if not copy.is_file() or not filecmp.cmp(file, copy, shallow=False):
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
            changed += 1
    return changed


def copy_mathjax(target: Path = VENDOR) -> int:
    """Copy MathJax 3 from the package django-static-mathjax; return how many files changed."""
    spec = find_spec("mathjax")
    if spec is None or spec.origin is None:
        raise SystemExit("MathJax is missing: install the extra `book` (django-static-mathjax)")
    source = Path(spec.origin).parent / "static" / "mathjax" / "es5"
    changed = 0
    for pattern in MATHJAX_FILES:
        files = sorted(source.glob(pattern))
        if not files:
            raise SystemExit(f"django-static-mathjax has no {pattern}: another MathJax version?")
        changed += copy_changed(source, target, files)
    return changed


def build() -> int:
    """Run Jupyter Book; warnings are errors, and every broken reference is reported at once."""
    # The list of papers follows what all other pages cite, so it is read anew each time.
    (ROOT / "book" / "references.md").touch()
    program = "from jupyter_book.cli.main import main; main()"
    options = ["build", str(ROOT), "-W", "-n", "--keep-going", "--quiet"]
    code = subprocess.run([sys.executable, "-c", program, *options], cwd=ROOT).returncode
    if code:
        # A page that warned is kept as read, so a second build would pass over its warning.
        shutil.rmtree(ROOT / "_build" / ".doctrees", ignore_errors=True)
    return code


def pin(site: Path, commit: str) -> None:
    """Let the badges of all pages open the notebooks of this commit."""
    for pattern in ("**/*.html", "_sources/**/*.ipynb"):
        for page in site.glob(pattern):
            text = page.read_text(encoding="utf-8")
            if (pinned := colab.at_commit(text, commit)) != text:
                page.write_text(pinned, encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description="build the book into _build/html")
    parser.add_argument("--dirty", action="store_true", help="although files are not committed")
    commit = colab.page_commit(parser.parse_args().dirty)
    copy_mathjax()
    coverage_map.write_page()
    if code := build():
        print("make book: Jupyter Book failed; every warning above is an error", file=sys.stderr)
        return code
    # Sphinx copies these only when it also builds a page.
    copy_changed(STATIC, SITE / "_static", (p for p in STATIC.rglob("*") if p.is_file()))
    pin(SITE, commit)
    notebooks = student.write_all(SITE / "student", commit=commit)
    problems = check_site(ROOT / "_toc.yml", SITE)
    for problem in problems:
        print(f"make book: {problem}", file=sys.stderr)
    if not problems:
        pages = len(toc_pages(ROOT / "_toc.yml"))
        print(f"make book: {pages} pages and {len(notebooks)} student notebooks in {SITE}")
        print(f"make book: the badges open the notebooks of {commit[:12]}")
        print("make book: every page is there, no dead link, nothing loads from another host")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
