"""The check of the built site finds what it must find; the sources of the book are complete."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from book_tools import ROOT, colab, site_check

GENERATED = {"book/source_map"}  # by tools/build_book.py, before Sphinx runs

CLEAN = """
<!doctype html><html><head>
<link rel="canonical" href="https://example.org/page.html">
<link rel="stylesheet" href="_static/a.css"><link rel="icon" href="data:image/svg+xml;base64,AA">
<script src="_static/a.js"></script>
<script>const n = "http://www.w3.org/2000/svg"; document.x = "a//b";</script>
<script type="application/json">{"cite": "https://example.org"}</script>
<style>p { background: url(_static/b.png) }</style></head>
<body><a href="https://example.org/">a link</a><img src="_static/b.png" alt="">
<p style="background: url('data:image/png;base64,AA')">https://example.org as text</p></body></html>
"""


def test_links_text_and_local_files_are_no_loads() -> None:
    assert site_check.external_loads(CLEAN) == []


@pytest.mark.parametrize(
    "tag",
    [
        '<script src="https://cdn.example.org/x.js"></script>',
        '<script src="//cdn.example.org/x.js"></script>',
        '<link rel="stylesheet" href="https://fonts.example.org/css">',
        '<link rel="preconnect" href="https://fonts.example.org">',
        '<link rel="shortcut icon" href="HTTPS://example.org/i.ico">',
        '<img src="https://example.org/badge.svg">',
        '<img srcset="a.png 1x, https://example.org/b.png 2x">',
        '<iframe src="https://example.org"></iframe>',
        '<video poster="https://example.org/p.png"></video>',
        '<object data="https://example.org/o.svg"></object>',
        '<svg><image href="https://example.org/i.png"/></svg>',
        '<p style="background: url(https://example.org/b.png)">',
        '<style>@import "https://example.org/a.css";</style>',
        '<style>p { background: url("//example.org/b.png") }</style>',
        '<script>import("https://cdn.example.org/x.js")</script>',
        "<script>const THEBE_JS_URL = `https://unpkg.com/thebe/lib/index.js`</script>",
        '<meta http-equiv="refresh" content="0; url=https://example.org">',
    ],
)
def test_each_way_to_load_from_another_host_is_found(tag: str) -> None:
    found = site_check.external_loads(CLEAN.replace("</body>", tag + "</body>"))
    assert len(found) == 1
    assert "example.org" in found[0].lower() or "unpkg" in found[0]


def build(folder: Path, pages: dict[str, str]) -> tuple[Path, Path]:
    toc, site = folder / "_toc.yml", folder / "html"
    toc.write_text(
        "format: jb-book\nroot: book/index\nparts:\n- chapters:\n  - file: book/setup.md\n"
        "    sections:\n    - file: notebooks/12_gpt\n"
    )
    for name, html in pages.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(html, encoding="utf-8")
    return toc, site


PAGES = {
    "book/index.html": '<a href="setup.html#how">a</a><a href="#top">b</a><a href="mailto:a">c</a>',
    "book/setup.html": '<h2 id="how">How</h2><a href="../notebooks/12_gpt.html">next</a>',
    "notebooks/12_gpt.html": '<img src="../_static/a%20b.png">',
    "_static/a b.png": "",
    "_static/a.css": "/* https://example.org */ p { background: url(a.png) }",
}


def test_a_complete_site_has_no_problems(tmp_path: Path) -> None:
    assert site_check.check_site(*build(tmp_path, PAGES)) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"notebooks/12_gpt.html": None}, "notebooks/12_gpt.html was not built"),
        ({"book/setup.html": "<p>"}, "setup.html#how leads to no such id"),
        ({"_static/a b.png": None}, "leads to no file"),
        ({"book/index.html": '<img src="https://example.org/a.png">'}, "loads https://example.org"),
        ({"_static/a.css": "@import url(//example.org/b.css);"}, "a.css: loads //example.org"),
    ],
)
def test_a_broken_site_is_reported(
    tmp_path: Path, change: dict[str, str | None], message: str
) -> None:
    pages = {name: html for name, html in {**PAGES, **change}.items() if html is not None}
    problems = site_check.check_site(*build(tmp_path, pages))
    assert any(message in problem for problem in problems), problems


def test_the_contents_name_existing_pages_and_every_notebook() -> None:
    pages = site_check.toc_pages(ROOT / "_toc.yml")
    assert len(pages) == len(set(pages))
    for page in set(pages) - GENERATED:
        assert any((ROOT / f"{page}{suffix}").is_file() for suffix in (".md", ".ipynb")), page
    written = {p.relative_to(ROOT).with_suffix("") for p in (ROOT / "book").rglob("*.md")}
    written |= {p.relative_to(ROOT).with_suffix("") for p in ROOT.glob("notebooks/*.ipynb")}
    assert {page.as_posix() for page in written} - GENERATED <= set(pages), "a page is not listed"


def test_one_repository_and_no_execution_in_the_settings() -> None:
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    owner, name = colab.REPOSITORY.split("/")
    assert config["repository"]["url"] == f"https://github.com/{colab.REPOSITORY}"
    assert config["html"]["baseurl"] == f"https://{owner}.github.io/{name}/"
    assert config["execute"]["execute_notebooks"] == "off"
    assert config["only_build_toc_files"] is True
    assert config["sphinx"]["config"]["mathjax_path"].startswith("vendor/")
    assert "sphinx_thebe" not in config["sphinx"]["config"]["extensions"]


def test_the_pictures_of_the_site_are_local_and_named() -> None:
    for path in (ROOT / "book" / "_static").glob("*.svg"):
        text = path.read_text(encoding="utf-8")
        assert site_check.external_loads(text) == []
        assert path.name == "favicon.svg" or "aria-label" in text
