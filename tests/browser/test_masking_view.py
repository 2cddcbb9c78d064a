"""The masking view in a real Chromium: the button, the rule, themes, axe, hostile tokens."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from typing import Any

import pytest
from attention_cases import HOSTILE
from browser_pages import PHONE, Watched, document, violations

from llm_lab.pictures.masking import MaskingView, masking_view
from llm_lab.pictures.page_part import visible

pytestmark = pytest.mark.browser

Open = Callable[..., Watched]
WORDS = ["in", "spring", "the", "baker", "sold", "some", "warm", "bread", "near", "the", "lake"]
TOKENS = ["[CLS]", *WORDS, "[SEP]"]
VOCABULARY = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", *(f"word{i}" for i in range(500))]
SEED = 1


def view(tokens: list[str] = TOKENS, seed: int = SEED) -> MaskingView:
    return masking_view(tokens, VOCABULARY, seed=seed, title="Mask it again")


def table(page: Any, name: str) -> list[list[str]]:
    """The cells of a table, hidden or not."""
    return page.evaluate(
        "name => Array.from(document.querySelector('.llm-mk-' + name).rows,"
        "row => Array.from(row.cells, cell => cell.textContent))",
        name,
    )


def counted(page: Any) -> list[tuple[int, int]]:
    rows = table(page, "counts")[1:]
    return [(int(a), int(b)) for a, b in (row[1].split(" of ") for row in rows)]


def far(count: int, n: int, p: float) -> bool:
    return abs(count - n * p) > 4 * (n * p * (1 - p)) ** 0.5


def test_the_keyboard_masks_again(show: Open) -> None:
    page = show(view()).page
    before = table(page, "table")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Mask it again"
    for drawing, key in enumerate(["Enter", "Space", "Enter"], 2):
        page.keyboard.press(key)
        status = page.get_by_role("status").text_content()
        assert status.startswith(f"Masking {drawing}: ")
        assert counted(page)[0][1] == 11 * drawing
        assert page.evaluate("document.activeElement.textContent") == "Mask it again"
    assert table(page, "table") != before
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.get_by_role("status").text_content().startswith("Masking 104: ")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.tagName") == "SUMMARY"
    page.keyboard.press("Enter")
    assert page.locator(".llm-mk-table").is_visible()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('role')") == "region"


@pytest.mark.covers("P1")
def test_the_browser_draws_by_the_rule(show: Open) -> None:
    page = show(view()).page
    button = page.get_by_role("button", name="Mask it again")
    again = page.get_by_role("button", name="100 times more")
    seen = set()
    for _ in range(20):
        button.click()
        cards = table(page, "table")[1:]
        status = page.get_by_role("status").text_content()
        chosen = [row for row in cards if row[3] != "–"]
        assert f": {len(chosen)} of 11 tokens" in status
        assert f"{sum(row[2] == '[MASK]' for row in chosen)} [MASK]," in status
        assert [row[1] for row in cards] == TOKENS
        for row in cards:
            assert row[2] == row[1] or row in chosen  # what is not chosen is as in the text
            assert row[3] in ("–", row[1])
            assert row[1][0] != "[" or row[3] == "–"  # a special token never
        assert page.locator(".llm-mk-chosen").count() == len(chosen)
        assert page.locator(".llm-mk-token").all_text_contents() == [row[2] for row in cards]
        seen.add(str(cards))
    assert len(seen) > 15
    for _ in range(60):
        again.click()
    (chosen, n), *kinds = counted(page)
    assert n == 11 * 6021
    assert not far(chosen, n, 0.15)
    for (count, total), share in zip(kinds, (0.8, 0.1, 0.1)):
        assert total == chosen
        assert not far(count, total, share)
    assert sum(count for count, _ in kinds) == chosen
    assert far(chosen, n, 0.16)  # the bound can fail


def test_the_script_writes_what_python_writes(show: Open) -> None:
    for seed in range(4):
        shown = view(seed=seed)
        page = show(shown).page
        for name, tag in (("chips", "ol"), ("counts", "table"), ("table", "table")):
            static = re.search(rf'<{tag} class="llm-mk-{name}".*?</{tag}>', shown.html, re.S)
            assert static is not None
            script = f"document.querySelector('.llm-mk-{name}').outerHTML"
            assert html.unescape(page.evaluate(script)) == html.unescape(static[0])
            page.get_by_role("button", name="100 times more").click()
            assert html.unescape(page.evaluate(script)) != html.unescape(static[0])
            page = show(shown).page


def test_the_page_around_gets_no_plain_key(show: Open) -> None:
    page = show(view()).page
    page.evaluate("document.addEventListener('keydown', e => (window.keys ||= []).push(e.key))")
    page.get_by_role("button", name="Mask it again").focus()
    for key in ("x", "ArrowDown", "Escape", "Control+s"):
        page.keyboard.press(key)
    assert page.evaluate("window.keys") == ["Escape", "Control", "s"]


def test_without_scripts_the_first_masking_is_shown(show: Open) -> None:
    page = show(view(), java_script_enabled=False).page
    assert "This is the first one" in page.locator(".llm-mk-note").text_content()
    assert page.locator(".llm-mk-chip").count() == len(TOKENS)
    assert page.get_by_role("status").text_content().startswith("Masking 1: ")
    assert page.locator(".llm-mk-counts").is_visible()
    assert page.get_by_role("button").count() == 0


THEMES: dict[str, dict[str, Any]] = {
    "light": {},
    "book light": {"attributes": 'data-theme="light"', "color_scheme": "dark"},
    "book dark": {"attributes": 'data-theme="dark"'},
    "system dark": {"color_scheme": "dark"},
    "lab light": {"body": 'data-jp-theme-light="true"', "color_scheme": "dark"},
    "lab dark": {"body": 'data-jp-theme-light="false"'},
}


@pytest.mark.parametrize("theme", THEMES)
def test_axe_finds_no_violation_in_any_theme(show: Open, theme: str) -> None:
    for viewport in ({"width": 1280, "height": 900}, PHONE):
        page = show(view(), viewport=viewport, **THEMES[theme]).page
        page.get_by_role("button", name="100 times more").click()
        page.locator("summary").click()
        assert violations(page, ".llm-mk") == []
        page_color = page.locator(".llm-mk").evaluate("e => getComputedStyle(e).backgroundColor")
        assert (page_color == "rgb(20, 25, 28)") == ("dark" in theme)
    page.evaluate("document.querySelector('.llm-mk-help').style.color = '#888'")
    page.evaluate("document.querySelector('.llm-mk-help').style.background = '#777'")
    assert "color-contrast" in " ".join(violations(page, ".llm-mk"))


@pytest.mark.parametrize("tokens", [TOKENS, HOSTILE, ["information"] * 60])
def test_a_phone_needs_no_sideways_scroll(show: Open, tokens: list[str]) -> None:
    watched = show(view(tokens), viewport=PHONE)
    watched.page.locator("summary").click()
    assert watched.wider_than_the_window() <= 0
    watched.page.evaluate("document.querySelector('.llm-mk').style.width = '500px'")
    watched.page.evaluate("document.querySelector('.llm-mk').style.maxWidth = 'none'")
    assert watched.wider_than_the_window() > 0


def test_two_views_are_independent(show: Open) -> None:
    page = show(view(), view(seed=2)).page
    page.get_by_role("button", name="Mask it again").nth(1).click()
    texts = page.get_by_role("status").all_text_contents()
    assert [text.split(":")[0] for text in texts] == ["Masking 1", "Masking 2"]
    assert page.locator(".llm-mk-bar").count() == 2


def test_it_starts_in_a_frame_that_may_only_run_scripts(show: Open) -> None:
    page = show().page
    page.evaluate(
        "html => { const frame = document.createElement('iframe');"
        "frame.setAttribute('sandbox', 'allow-scripts'); frame.srcdoc = html;"
        "document.body.append(frame) }",
        document(view()),
    )
    frame = page.frame_locator("iframe")
    frame.get_by_role("button", name="Mask it again").click()
    assert frame.get_by_role("status").text_content().startswith("Masking 2: ")


def skeleton(page: Any) -> list[str]:
    """The elements without the chips' classes and labels, which depend on the drawing."""
    return page.evaluate(
        "() => Array.from(document.querySelectorAll('*'), e => e.tagName + ' ' +"
        "Array.from(e.attributes, a => a.name).sort())"
    )


def test_hostile_tokens_add_nothing_to_the_page(show: Open) -> None:
    pages = []
    for tokens in (HOSTILE, [f"word{i}" for i in range(len(HOSTILE))]):
        page = show(masking_view(tokens, tokens, seed=SEED)).page
        for _ in range(10):
            page.get_by_role("button", name="Mask it again").click()
        page.locator("summary").click()
        pages.append(page)
    assert skeleton(pages[0]) == skeleton(pages[1])
    assert [row[1] for row in table(pages[0], "table")[1:]] == [visible(t) for t in HOSTILE]
    assert pages[0].evaluate("window.broken") is None
    pages[1].evaluate("t => { document.querySelector('.llm-mk-token').innerHTML = t }", HOSTILE[8])
    assert skeleton(pages[0]) != skeleton(pages[1])
