"""Every page of the built book in a real Chromium: no error, no other host, no fault for axe.

Needs `make book` before. On a desktop in the light theme, on a phone in the dark one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from book_tools import ROOT
from browser_pages import DESKTOP, PHONE, opened, served, violations

pytestmark = pytest.mark.browser

SITE = ROOT / "_build" / "html"
PAGES = sorted(
    path.relative_to(SITE).as_posix()
    for path in SITE.rglob("*.html")
    if not {"_static", "student"} & set(path.relative_to(SITE).parts)
    and 'http-equiv="Refresh"' not in path.read_text(encoding="utf-8")
)
# Rules of axe that pages may break, each with its reason.
ALLOWED = {
    "region": "the theme puts its logo outside of all landmarks",
}
# Thousands of elements that are alike on all pages: axe looks at them once, below.
ALIKE = ("mjx-container", "div.highlight")
SCREENS = {"desktop": (DESKTOP, "light"), "phone": (PHONE, "dark")}
TYPESET = """async () => {
  if (window.MathJax && MathJax.startup && MathJax.startup.promise) await MathJax.startup.promise;
  await document.fonts.ready;
}"""
# The theme looks 0.3 s after a new size which boxes scroll, and makes them reachable by keyboard.
SETTLED = """() => new Promise(done =>
  requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 400))))"""


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    if not PAGES:
        pytest.skip("the book is not built: `make book` writes _build/html")
    with served(SITE) as address:
        yield address


def show(page: Any, screen: str) -> None:
    """Another window and another theme; the pages follow the system's wish."""
    size, theme = SCREENS[screen]
    page.set_viewport_size(size)
    page.emulate_media(color_scheme=theme)
    page.wait_for_function("t => document.documentElement.dataset.theme === t", arg=theme)
    page.evaluate(SETTLED)


@pytest.mark.parametrize("page_name", PAGES or ["(no page)"])
def test_page_is_sound(browser: Any, site: str, page_name: str) -> None:
    with opened(browser, reduced_motion="reduce") as watched:
        watched.page.goto(f"{site}/{page_name}", wait_until="load")
        watched.page.evaluate(TYPESET)
        for screen in SCREENS:
            show(watched.page, screen)
            found = violations(watched.page, without=ALIKE, skip=tuple(ALLOWED))
            assert found == [], screen
            assert watched.wider_than_the_window() <= 0, screen
        assert watched.faults == []


@pytest.mark.parametrize(
    ("page_name", "part"), [("book/notation.html", ALIKE[0]), ("book/setup.html", ALIKE[1])]
)
def test_equations_and_code_are_sound(browser: Any, site: str, page_name: str, part: str) -> None:
    with opened(browser, reduced_motion="reduce") as watched:
        watched.page.goto(f"{site}/{page_name}", wait_until="load")
        watched.page.evaluate(TYPESET)
        assert watched.page.locator(part).count() > 3
        for screen in SCREENS:
            show(watched.page, screen)
            assert violations(watched.page, part) == [], screen


def test_faults_of_a_page_are_found(browser: Any) -> None:
    bad = (
        '<html lang="en"><title>t</title><main><h1>a</h1><img src="https://example.org/a.png">'
        '<p style="width: 3000px; color: #ccc; background: #fff">wide</p>'
        "<script>console.error('logged'); missing()</script></main>"
    )
    with opened(browser, viewport=PHONE) as watched:
        watched.page.set_content(bad)
        assert watched.wider_than_the_window() > 0
        found = {line.split()[0] for line in violations(watched.page)}
        assert found >= {"color-contrast", "image-alt"}
        kinds = {fault.split(":")[0] for fault in watched.faults}
        assert kinds == {"console", "error", "request"}
