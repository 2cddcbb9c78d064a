"""The attention view in a real Chromium: keyboard, pointer, themes, frames, axe, hostile tokens."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from attention_cases import (
    HOSTILE,
    SOURCE,
    TARGET,
    WORDS,
    causal_view,
    cross_view,
    hostile_view,
    random_weights,
)
from browser_pages import PHONE, Watched, document, violations
from torch import Tensor

from llm_lab.pictures.attention import attention_view
from llm_lab.pictures.page_part import visible

pytestmark = pytest.mark.browser

Open = Callable[..., Watched]
SHOWN = [visible(word) for word in WORDS]


def numbers(view: Any) -> list[str]:
    return view.locator(".llm-av-number").all_text_contents()


def expected(weights: Tensor, row: int, query: int, head: int | None) -> list[str]:
    """What the view must show: hundredths of one head, or the mean of hundredths of all heads."""
    maps = weights[row, :, query] if head is None else weights[row, head : head + 1, query]
    mean = (maps * 100).round().mean(0) / 100
    return ["–" if (maps[:, s] == 0).all() else f"{mean[s]:.2f}" for s in range(maps.shape[1])]


def close(found: list[str], wanted: list[str]) -> bool:
    """Equal up to the rounding of a mean: x.xx5 may go either way."""
    return len(found) == len(wanted) and all(
        a == b or ("–" not in (a, b) and abs(float(a) - float(b)) < 0.011)
        for a, b in zip(found, wanted)
    )


CAUSAL = random_weights(2, 3, len(WORDS), len(WORDS), causal=True)
CROSS = random_weights(2, 4, len(TARGET), len(SOURCE))


def token_in_focus(page: Any) -> str:
    return page.evaluate(
        "(document.activeElement.querySelector('.llm-av-token') || {textContent: ''}).textContent"
    )


# Keyboard and pointer


def test_the_keyboard_alone_reaches_everything(show: Open) -> None:
    page = show(causal_view()).page
    view = page.locator(".llm-av")
    middle = len(WORDS) // 2
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.tagName") == "SELECT"
    page.keyboard.press("Tab")
    assert token_in_focus(page) == SHOWN[middle]
    assert close(numbers(view), expected(CAUSAL[0], 1, middle, None))
    for key, index in (
        ("ArrowRight", middle + 1),
        ("ArrowDown", middle + 2),
        ("ArrowLeft", middle + 1),
        ("ArrowUp", middle),
        ("End", len(WORDS) - 1),
        ("ArrowRight", len(WORDS) - 1),
        ("Home", 0),
        ("ArrowLeft", 0),
        ("ArrowRight", 1),
    ):
        page.keyboard.press(key)
        assert token_in_focus(page) == SHOWN[index]
        checked = view.locator(".llm-av-chip[aria-checked=true]")
        assert checked.locator(".llm-av-token").text_content() == SHOWN[index]
        assert close(numbers(view), expected(CAUSAL[0], 1, index, None))
    page.keyboard.press("Tab")  # one stop for all tokens, one for all heads
    assert page.evaluate("document.activeElement.type") == "radio"
    page.keyboard.press("ArrowRight")
    assert numbers(view) == expected(CAUSAL[0], 1, 1, 0)
    page.keyboard.press("ArrowRight")
    assert numbers(view) == expected(CAUSAL[0], 1, 1, 1)
    assert numbers(view) != expected(CAUSAL[0], 1, 1, 0)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.tagName") == "SUMMARY"
    assert not view.locator("table").is_visible()
    page.keyboard.press("Enter")
    assert view.locator("table").is_visible()
    page.keyboard.press("Tab")  # the scroll box, so that the keyboard can scroll it
    assert page.evaluate("document.activeElement.getAttribute('role')") == "region"


def test_the_page_around_gets_no_plain_key_but_commands_and_escape(show: Open) -> None:
    """JupyterLab has a command on most keys: "x" cuts the cell."""
    page = show(causal_view()).page
    page.evaluate("document.addEventListener('keydown', e => (window.keys ||= []).push(e.key))")
    page.locator(".llm-av-chip").first.focus()
    for key in ("x", "ArrowDown", "Escape", "Control+s"):
        page.keyboard.press(key)
    assert page.evaluate("window.keys") == ["Escape", "Control", "s"]


def test_what_has_the_focus_has_an_outline(show: Open) -> None:
    page = show(causal_view()).page
    seen = []
    for _ in range(4):
        page.keyboard.press("Tab")
        seen.append(
            page.evaluate(
                "() => { const e = document.activeElement;"
                "const shown = e.type === 'radio' ? e.nextElementSibling : e;"
                "const s = getComputedStyle(shown); return s.outlineStyle + ' ' + s.outlineWidth }"
            )
        )
    assert seen == ["solid 3px"] * 4


def test_layer_and_head_can_be_chosen_with_the_pointer(show: Open) -> None:
    page = show(causal_view()).page
    view = page.locator(".llm-av")
    last = len(WORDS) - 1
    view.locator(".llm-av-chip").nth(last).click()
    view.get_by_label("head 2").click()
    assert numbers(view) == expected(CAUSAL[0], 1, last, 2)
    view.get_by_label("Layer").select_option("1")
    assert numbers(view) == expected(CAUSAL[1], 1, last, 2)
    assert numbers(view) != expected(CAUSAL[0], 1, last, 2)
    status = view.get_by_role("status").text_content()
    assert status.startswith("Layer 1, head 2: “␣she” looks most at “")
    view.get_by_label("all heads").click()
    assert close(numbers(view), expected(CAUSAL[1], 1, last, None))


def test_hovering_shows_a_token_and_leaving_returns_to_the_kept_one(show: Open) -> None:
    page = show(causal_view()).page
    view = page.locator(".llm-av")
    chips = view.locator(".llm-av-chip")
    view.get_by_label("head 0").click()
    chips.nth(2).hover()
    assert numbers(view) == expected(CAUSAL[0], 1, 2, 0)
    view.locator(".llm-av-title").hover()
    assert numbers(view) == expected(CAUSAL[0], 1, len(WORDS) // 2, 0)
    chips.nth(2).click()
    view.locator(".llm-av-title").hover()
    assert numbers(view) == expected(CAUSAL[0], 1, 2, 0)


def test_masked_keys_differ_by_pattern_and_sign(show: Open) -> None:
    view = show(causal_view()).page.locator(".llm-av")
    view.locator(".llm-av-chip").nth(1).click()
    masked = view.locator(".llm-av-chip.llm-av-masked")
    assert masked.count() == len(WORDS) - 2
    assert set(masked.locator(".llm-av-number").all_text_contents()) == {"–"}
    assert view.locator(".llm-av-legend").text_content() == "weight 0  1masked"


def test_each_head_says_where_it_looks(show: Open) -> None:
    view = show(causal_view()).page.locator(".llm-av")
    view.locator(".llm-av-chip").nth(5).click()
    cards = view.locator(".llm-av-card")
    assert cards.count() == 4
    for head in range(3):
        mass, key = CAUSAL[0][1, head, 5].max(-1)
        card = cards.nth(head + 1)
        assert card.locator(".llm-av-best").text_content() == SHOWN[key]
        assert card.locator(".llm-av-value").text_content() == f"{mass:.2f}"


def test_the_sentence_names_no_token_of_weight_zero(show: Open) -> None:
    weights = torch.tensor([[0.9, 0.1, 0.0], [0.996, 0.002, 0.002], [0.4, 0.3, 0.3]])
    view = attention_view([weights[None, None]], ["a", "b", "c"], title="One head")
    page = show(view).page
    assert "“b” looks most at “a” 1.00." in page.get_by_role("status").text_content()
    page.get_by_role("radio", name="c", exact=True).click()
    status = page.get_by_role("status").text_content()
    assert status == "Layer 0, head 0: “c” looks most at “a” 0.40, “b” 0.30, “c” 0.30."
    assert "Choose a head" not in page.locator(".llm-av").inner_text()


def test_the_maps_are_drawn(show: Open) -> None:
    page = show(causal_view()).page
    alpha = page.evaluate(
        "() => { const c = document.querySelectorAll('canvas')[1];"
        "const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        "return Array.from(d).filter((_, i) => i % 4 === 3) }"
    )
    n = len(WORDS)
    for t in range(n):
        for s in range(n):
            weight = CAUSAL[0][1, 0, t, s].item()
            assert abs(alpha[t * n + s] - (255 if s > t else 255 * weight)) < 2.6


def test_source_and_target_stand_side_by_side(show: Open) -> None:
    page = show(cross_view(), viewport=PHONE).page
    view = page.locator(".llm-av")
    target = view.get_by_role("radiogroup", name="Target token, which looks")
    source = view.get_by_role("list", name="Source tokens, looked at")
    assert target.get_by_role("radio").count() == len(TARGET)
    assert source.get_by_role("listitem").count() == len(SOURCE)
    left, right = target.bounding_box(), source.bounding_box()
    assert left["x"] + left["width"] <= right["x"]
    assert abs(left["y"] - right["y"]) < 2
    view.get_by_label("head 3").click()
    target.get_by_role("radio").first.focus()
    for query in range(len(TARGET)):
        assert numbers(view) == expected(CROSS[1], 0, query, 3)
        page.keyboard.press("ArrowRight")


def test_the_table_of_the_script_is_that_of_python(show: Open) -> None:
    for head in (None, 1):
        weights = random_weights(2, 3, len(WORDS), len(WORDS), causal=True)
        view = attention_view(weights, WORDS, head=head)
        page = show(view).page
        static = re.search(r"<table>.*</table>", view._repr_html_(), re.S)
        assert static is not None
        drawn = page.evaluate("document.querySelector('table').outerHTML")
        assert html.unescape(drawn) == html.unescape(static[0])
        page.get_by_label("head 2").check()
        assert page.evaluate("document.querySelector('table').outerHTML") != drawn


# Themes, widths, frames


def luminance(color: list[float]) -> float:
    parts = [c / 255 for c in color[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: list[float], b: list[float]) -> float:
    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def color(element: Any, name: str) -> list[float]:
    value = element.evaluate(f"e => getComputedStyle(e).{name}")
    found = [float(part) for part in re.findall(r"[\d.]+", value)]
    return found + [1.0] * (4 - len(found))


THEMES: dict[str, dict[str, Any]] = {
    "light": {},
    "book light": {"attributes": 'data-theme="light"', "color_scheme": "dark"},
    "book dark": {"attributes": 'data-theme="dark"'},
    "system dark": {"color_scheme": "dark"},
    "lab light": {"body": 'data-jp-theme-light="true"', "color_scheme": "dark"},
    "lab dark": {"body": 'data-jp-theme-light="false"'},
    "colab light": {"attributes": 'theme="light"', "color_scheme": "dark"},
    "colab dark": {"attributes": 'theme="dark"'},
}


@pytest.mark.parametrize("theme", THEMES)
def test_text_has_contrast_on_every_shade_in_every_theme(show: Open, theme: str) -> None:
    options = {"reduced_motion": "reduce", **THEMES[theme]}
    page = show(causal_view(), **options).page
    view = page.locator(".llm-av")
    below = color(view, "backgroundColor")
    assert (luminance(below) < 0.05) == ("dark" in theme)
    chip = view.locator(".llm-av-chip").first
    for weight in (0, 0.25, 0.5, 1):
        chip.evaluate("(e, w) => e.style.setProperty('--w', w)", weight)
        *over, alpha = color(chip, "backgroundColor")
        shade = [alpha * o + (1 - alpha) * b for o, b in zip(over, below)]
        assert contrast(color(chip, "color"), shade) >= 4.5
    ends = color(view.locator(".llm-av-status"), "color"), color(page.locator("select"), "color")
    assert all(contrast(end, below) >= 7 for end in ends)


def test_another_theme_repaints_the_maps(show: Open) -> None:
    page = show(causal_view(), attributes='data-theme="light"').page
    pixel = (
        "() => Array.from(document.querySelectorAll('canvas')[1]"
        ".getContext('2d').getImageData(0, 0, 1, 1).data)"
    )
    before = page.evaluate(pixel)
    page.evaluate("document.documentElement.dataset.theme = 'dark'")
    page.wait_for_function(f"'{before}' !== JSON.stringify(({pixel})()).replaceAll(',', ', ')")
    assert page.evaluate(pixel) != before


@pytest.mark.parametrize("theme", ["light", "book dark"])
@pytest.mark.parametrize("case", ["causal", "cross", "hostile"])
def test_axe_finds_no_violation(show: Open, theme: str, case: str) -> None:
    view = {"causal": causal_view, "cross": cross_view, "hostile": hostile_view}[case]()
    for viewport in ({"width": 1280, "height": 900}, PHONE):
        page = show(view, viewport=viewport, reduced_motion="reduce", **THEMES[theme]).page
        assert violations(page, ".llm-av") == []
        page.locator("summary").click()
        page.get_by_label("head 1").check()
        assert violations(page, ".llm-av") == []


def test_axe_would_find_a_fault(show: Open) -> None:
    page = show(causal_view()).page
    page.evaluate("document.querySelector('.llm-av-chips').removeAttribute('aria-label')")
    page.evaluate("document.querySelector('.llm-av-help').style.color = '#ccc'")
    page.evaluate("document.querySelector('.llm-av-chip').setAttribute('aria-checked', 'x')")
    found = " ".join(violations(page, ".llm-av"))
    assert "color-contrast" in found
    assert "aria-valid-attr-value" in found


@pytest.mark.parametrize("case", ["causal", "cross", "hostile", "large"])
def test_a_phone_needs_no_sideways_scroll(show: Open, case: str) -> None:
    large = attention_view(random_weights(6, 12, 32, 32), ["information"] * 32, head=4)
    view = {"causal": causal_view(), "cross": cross_view(), "hostile": hostile_view()}.get(case)
    watched = show(view or large, viewport=PHONE)
    watched.page.locator("summary").click()
    assert watched.page.locator("table").is_visible()
    assert watched.wider_than_the_window() <= 0
    watched.page.evaluate("document.querySelector('.llm-av').style.width = '500px'")
    watched.page.evaluate("document.querySelector('.llm-av').style.maxWidth = 'none'")
    assert watched.wider_than_the_window() > 0


def test_motion_can_be_switched_off(show: Open) -> None:
    for wish, duration in (("reduce", "0s"), ("no-preference", "0.12s")):
        chip = show(causal_view(), reduced_motion=wish).page.locator(".llm-av-chip").first
        assert chip.evaluate("e => getComputedStyle(e).transitionDuration") == duration


def test_without_scripts_a_note_and_the_table_remain(show: Open) -> None:
    page = show(causal_view(), java_script_enabled=False).page
    assert "The table shows how it begins" in page.locator(".llm-av-note").text_content()
    assert page.locator("table").is_visible()
    assert page.locator("tbody tr").count() == len(WORDS)
    assert page.get_by_role("radio").count() == 0


def test_print_shows_the_table(show: Open) -> None:
    page = show(causal_view()).page
    assert not page.locator("table").is_visible()
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("table").is_visible()
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert not page.locator("table").is_visible()


def test_two_views_of_the_same_tokens_are_independent(show: Open) -> None:
    page = show(causal_view(), causal_view(seed=1)).page
    first, second = page.locator(".llm-av").nth(0), page.locator(".llm-av").nth(1)
    first.get_by_label("head 1").click()
    second.get_by_label("head 2").click()
    first.locator(".llm-av-chip").nth(3).click()
    second.locator(".llm-av-chip").nth(6).click()
    second.get_by_label("Layer").select_option("1")
    other = random_weights(2, 3, len(WORDS), len(WORDS), causal=True, seed=1)
    assert numbers(first) == expected(CAUSAL[0], 1, 3, 1)
    assert numbers(second) == expected(other[1], 1, 6, 2)
    assert page.locator("input:checked").count() == 2
    assert page.locator(".llm-av-app").count() == 2


# JupyterLab sets innerHTML and then puts a copy in the place of each script.
AS_JUPYTERLAB = """html => {
  const host = document.querySelector('main');
  host.innerHTML = html;
  for (const script of Array.from(host.querySelectorAll('script'))) {
    const copy = document.createElement('script');
    for (const { name, value } of script.attributes) copy.setAttribute(name, value);
    copy.textContent = script.textContent;
    script.replaceWith(copy);
  }
}"""


def test_it_starts_where_scripts_are_made_anew(show: Open) -> None:
    page = show(body='data-jp-theme-light="false"').page
    for view, wanted in (
        (causal_view(), expected(CAUSAL[0], 1, 4, None)),
        (cross_view(), expected(CROSS[1], 0, 1, None)),
    ):  # the second run of the cell replaces the first output
        page.evaluate(AS_JUPYTERLAB, view._repr_html_())
        assert page.locator(".llm-av-app").count() == 1
        assert close(numbers(page.locator(".llm-av")), wanted)


def test_it_starts_in_a_frame_that_may_only_run_scripts(show: Open) -> None:
    page = show().page
    page.evaluate(
        "html => { const frame = document.createElement('iframe');"
        "frame.setAttribute('sandbox', 'allow-scripts'); frame.srcdoc = html;"
        "document.body.append(frame) }",
        document(causal_view()),
    )
    frame = page.frame_locator("iframe")
    frame.get_by_label("head 1").check()
    assert numbers(frame.locator(".llm-av")) == expected(CAUSAL[0], 1, len(WORDS) // 2, 1)


# Tokens are text


def skeleton(page: Any) -> list[list[Any]]:
    """Each element with the names of its attributes, in document order."""
    return page.evaluate(
        "() => Array.from(document.querySelectorAll('*'), e => [e.tagName,"
        "Array.from(e.attributes, a => a.name).sort()])"
    )


def test_hostile_tokens_add_nothing_to_the_page(show: Open) -> None:
    pages = []
    for tokens in (HOSTILE, ["word"] * len(HOSTILE)):
        page = show(hostile_view(tokens)).page
        page.get_by_label("head 1").check()
        page.locator(".llm-av-chip").nth(len(tokens) // 2 + 1).click()
        page.locator("summary").click()
        pages.append(page)
    assert skeleton(pages[0]) == skeleton(pages[1])
    shown = pages[0].locator(".llm-av-token").all_text_contents()
    assert shown == [visible(token) for token in HOSTILE]
    assert pages[0].evaluate("window.broken") is None
    pages[1].evaluate("t => { document.querySelector('.llm-av-token').innerHTML = t }", HOSTILE[8])
    assert skeleton(pages[0]) != skeleton(pages[1])
